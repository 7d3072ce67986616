//! The statements of the group commit, in each database's own words (`sql/`). Their texts are constant, so that they stay
//! prepared; a batch travels as arrays (PostgreSQL) or as rows of values (SQLite).

mod postgres;
mod sqlite;

use std::collections::HashSet;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult};
use uuid::Uuid;

use crate::store::schema::tables::{canvas_schedule, properties, request, revision};

/// A first answer, to be written only if its schedule's row is.
pub(crate) struct RequestWrite {
    /// The schedule whose change it answers.
    pub schedule_id: Uuid,
    /// The answer.
    pub row: request::Model,
}

/// All that one batch of changes writes.
#[derive(Default)]
pub(crate) struct Writes {
    /// Each row once as it is to be, but for its `version`, which is the one that was read. In the order of their ids, so that
    /// batches of several replicas never wait for each other in a ring.
    pub rows: Vec<canvas_schedule::Model>,
    /// Every revision, of one row in their order.
    pub revisions: Vec<revision::Model>,
    /// New property sets.
    pub properties: Vec<properties::Model>,
    /// First answers.
    pub requests: Vec<RequestWrite>,
}

/// Whether the rows that are read stay as they are until the transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// They may change.
    None,
    /// They stay; rows that another session holds are waited for.
    Wait,
    /// They stay; rows that another session holds are left out.
    Skip,
}

/// Reads the rows of these keys, in the order of their ids. SQLite locks the whole file, and heeds no `lock`.
///
/// # Errors
/// What the database says.
pub(crate) async fn read_rows<C: ConnectionTrait>(
    db: &C,
    keys: &[(i32, Uuid)],
    lock: Lock,
) -> Result<Vec<canvas_schedule::Model>, DbErr> {
    let statements = match db.get_database_backend() {
        DbBackend::Postgres => vec![postgres::read(keys, lock)],
        _ => sqlite::read(keys),
    };
    let mut rows = Vec::with_capacity(keys.len());
    for statement in statements {
        rows.extend(db.query_all_raw(statement).await?);
    }
    rows.iter().map(row_of).collect()
}

/// The columns of the reads, in the order in which [`row_of`] takes them: by place, which costs a third of by name.
const COLUMNS: &str = "s.workspace_id, s.id, s.canvas_id, s.revision, s.version, s.time_ms, s.in_local_time, s.at_optimal_time, \
     s.state, s.next_wave_ms, s.wake_ms, s.missed_before_ms, s.created_ms, s.updated_ms, s.cancelled_ms, s.default_zone, \
     s.stated_zones, s.properties_id, s.fired, s.zone_rules, s.finished_ms";

fn row_of(row: &QueryResult) -> Result<canvas_schedule::Model, DbErr> {
    Ok(canvas_schedule::Model {
        workspace_id: row.try_get_by_index(0)?,
        id: row.try_get_by_index(1)?,
        canvas_id: row.try_get_by_index(2)?,
        revision: row.try_get_by_index(3)?,
        version: row.try_get_by_index(4)?,
        time_ms: row.try_get_by_index(5)?,
        in_local_time: row.try_get_by_index(6)?,
        at_optimal_time: row.try_get_by_index(7)?,
        state: row.try_get_by_index(8)?,
        next_wave_ms: row.try_get_by_index(9)?,
        wake_ms: row.try_get_by_index(10)?,
        missed_before_ms: row.try_get_by_index(11)?,
        created_ms: row.try_get_by_index(12)?,
        updated_ms: row.try_get_by_index(13)?,
        cancelled_ms: row.try_get_by_index(14)?,
        default_zone: row.try_get_by_index(15)?,
        stated_zones: row.try_get_by_index(16)?,
        properties_id: row.try_get_by_index(17)?,
        fired: row.try_get_by_index(18)?,
        zone_rules: row.try_get_by_index(19)?,
        finished_ms: row.try_get_by_index(20)?,
    })
}

/// Writes a batch and answers the ids of the rows that still had the version that was read; of the others nothing is written.
///
/// # Errors
/// What the database says.
pub(crate) async fn write<C: ConnectionTrait>(
    db: &C,
    writes: Writes,
) -> Result<HashSet<Uuid>, DbErr> {
    match db.get_database_backend() {
        DbBackend::Postgres => postgres::write(db, writes).await,
        _ => sqlite::write(db, writes).await,
    }
}
