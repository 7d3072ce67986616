//! Writes the decision of a batch. The texts of the statements are constant, so that they stay
//! prepared; a batch travels as arrays on PostgreSQL and as rows of values on SQLite.

mod postgres;
mod sqlite;

use std::collections::HashSet;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr};
use uuid::Uuid;

use crate::store::commit::insert::{self, NewRows};
use crate::store::dispatch::rows;
use crate::store::dispatch::zone_rules;
use crate::store::schema::load::ScheduleKey;
use crate::store::schema::row::row;
use crate::store::schema::statement::Columns;
use crate::store::schema::tables::canvas_schedule::Column;
use crate::store::schema::tables::{canvas_schedule, properties, request, revision};

row! {
    /// The schedule whose change a first answer is for.
    pub(crate) struct ChangedSchedule {
        pub schedule_id: Uuid,
    }
}

/// Everything that one batch writes.
pub(crate) struct Writes {
    pub created: NewRows,
    /// Each changed row once, with its new values but the `version` that was read. In the order of
    /// their ids, so that batches of several replicas do not deadlock.
    pub rows: Vec<canvas_schedule::Model>,
    /// The revisions of those rows, in their order; those of one row in the order of the changes.
    pub revisions: Vec<revision::Model>,
    pub properties: Vec<properties::Model>,
    /// First answers, each written only if its schedule's row is.
    pub requests: Vec<(ChangedSchedule, request::Model)>,
    /// Schedules with dispatches that this batch cancels: their unknown dispatches are not retried.
    pub abandoned: Vec<ScheduleKey>,
    /// Schedules whose next wave is now computed with this build's zone data.
    pub restamped: Vec<ScheduleKey>,
    pub now: DateTime<Utc>,
}

impl Writes {
    pub(crate) fn new(now: DateTime<Utc>) -> Self {
        Self {
            created: NewRows::default(),
            rows: vec![],
            revisions: vec![],
            properties: vec![],
            requests: vec![],
            abandoned: vec![],
            restamped: vec![],
            now,
        }
    }

    /// Whether one statement writes all of it, which needs no transaction.
    pub(crate) fn is_one_statement(&self) -> bool {
        self.created.schedules.is_empty() && self.abandoned.is_empty() && self.restamped.is_empty()
    }
}

/// The columns that no change writes: they are fixed at creation, or only the dispatcher writes
/// them.
const UNCHANGED: [Column; 7] = [
    Column::CanvasId,
    Column::CreatedMs,
    Column::DefaultZone,
    Column::StatedZones,
    Column::Fired,
    Column::ZoneRules,
    Column::FinishedMs,
];

/// The columns that a change sends: the key, the version that was read, and those of
/// [`assignments`].
static ROW: LazyLock<Columns<canvas_schedule::Model>> =
    LazyLock::new(|| Columns::except(UNCHANGED));

/// The assignments of a changed row from the table `i`.
fn assignments() -> String {
    let key = [Column::WorkspaceId, Column::Id, Column::Version];
    let changed = Columns::<canvas_schedule::Model>::except(UNCHANGED.into_iter().chain(key));
    format!("version = s.version + 1, {}", changed.assignments("i"))
}

static REVISION: LazyLock<Columns<revision::Model>> = LazyLock::new(Columns::all);

/// Writes a batch. Returns the schedules that were written: the new ones, and those whose rows
/// still had the version that was read. Writes nothing of the others.
pub(crate) async fn write<C: ConnectionTrait>(
    db: &C,
    writes: &Writes,
) -> Result<HashSet<Uuid>, DbErr> {
    insert::schedules(db, &writes.created).await?;
    let mut written = HashSet::new();
    if !writes.rows.is_empty() {
        written = match db.get_database_backend() {
            DbBackend::Postgres => postgres::write(db, writes).await?,
            _ => sqlite::write(db, writes).await?,
        };
        let of_written = |keys: &[ScheduleKey]| -> Vec<ScheduleKey> {
            let written = keys.iter().filter(|key| written.contains(&key.id));
            written.copied().collect()
        };
        rows::abandon(db, &of_written(&writes.abandoned), writes.now).await?;
        zone_rules::stamp(db, &of_written(&writes.restamped)).await?;
    }
    written.extend(writes.created.schedules.iter().map(|row| row.id));
    Ok(written)
}
