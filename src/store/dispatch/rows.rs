//! Dispatches as rows: read by schedule, written where they stand, listed.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr, FromQueryResult};
use uuid::Uuid;

use crate::domain::{CanvasSchedule, Dispatch, DispatchState};
use crate::store::schema::codec;
use crate::store::schema::columns::{Texts, names, row, table};
use crate::store::schema::tables::{canvas_schedule, dispatch};

row!(dispatch::Model {
    workspace_id: Int,
    schedule_id: Uuid,
    n: Int,
    revision: Big,
    wave_ms: Big,
    retry_ms: BigOrNull,
    fired_ms: Big,
    finished_ms: BigOrNull,
    attempt: Int,
    last_attempt: Int,
    state: Small,
    optimal_time: Bool,
    includes_unlisted: Bool,
    properties_id: UuidOrNull,
    zones: TextOrNull,
    why: Text,
});

/// A schedule's key as a row of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ScheduleKey {
    /// The schedule; first, so that keys sort by it.
    pub id: Uuid,
    /// The tenant.
    pub workspace_id: i32,
}

row!(ScheduleKey {
    workspace_id: Int,
    id: Uuid
});

/// Names a dispatch.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DispatchKey {
    /// The schedule; first, so that keys sort by it.
    pub schedule_id: Uuid,
    /// The number of the firing.
    pub n: i32,
    /// The tenant.
    pub workspace_id: i32,
}

row!(DispatchKey {
    workspace_id: Int,
    schedule_id: Uuid,
    n: Int
});

impl DispatchKey {
    /// The key of a row.
    pub(crate) fn of(row: &dispatch::Model) -> Self {
        Self {
            schedule_id: row.schedule_id,
            n: row.n,
            workspace_id: row.workspace_id,
        }
    }
}

impl ScheduleKey {
    /// The key of a row.
    pub(crate) fn of(row: &canvas_schedule::Model) -> Self {
        Self {
            id: row.id,
            workspace_id: row.workspace_id,
        }
    }

    /// As the reads take it.
    pub(crate) fn pair(&self) -> (i32, Uuid) {
        (self.workspace_id, self.id)
    }
}

static OF_SCHEDULES: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let keys = table::<ScheduleKey>(backend, "k", 1);
        let columns = names::<dispatch::Model>("d.");
        format!(
            "WITH {keys} SELECT {columns} FROM k JOIN dispatch d ON d.workspace_id = k.workspace_id AND d.schedule_id = k.id \
             ORDER BY d.schedule_id, d.n"
        )
    })
});

static UPDATE: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let rows = table::<dispatch::Model>(backend, "i", 1);
        format!(
            "WITH {rows} UPDATE dispatch AS d SET retry_ms = i.retry_ms, finished_ms = i.finished_ms, attempt = i.attempt, \
               last_attempt = i.last_attempt, state = i.state, why = i.why FROM i \
             WHERE d.workspace_id = i.workspace_id AND d.schedule_id = i.schedule_id AND d.n = i.n"
        )
    })
});

static DELETE: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let keys = table::<DispatchKey>(backend, "k", 1);
        format!(
            "WITH {keys} DELETE FROM dispatch WHERE (workspace_id, schedule_id, n) IN (SELECT workspace_id, schedule_id, n FROM k)"
        )
    })
});

/// Only what is unknown as this is written: what is in hand by then is settled by its answer.
static ABANDON: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let keys = table::<ScheduleKey>(backend, "k", 2);
        let [unknown, abandoned] =
            [DispatchState::Unknown, DispatchState::Abandoned].map(codec::dispatch_state_code);
        format!(
            "WITH {keys} UPDATE dispatch AS d SET state = {abandoned}, retry_ms = NULL, finished_ms = $1 FROM k \
             WHERE d.workspace_id = k.workspace_id AND d.schedule_id = k.id AND d.state = {unknown}"
        )
    })
});

/// The dispatches of these schedules, of each in their order.
///
/// # Errors
/// What the database says.
pub(crate) async fn of_schedules<C: ConnectionTrait>(
    db: &C,
    keys: &[ScheduleKey],
) -> Result<HashMap<Uuid, Vec<dispatch::Model>>, DbErr> {
    let mut found: HashMap<Uuid, Vec<dispatch::Model>> = HashMap::new();
    for row in OF_SCHEDULES.query(db, keys).await? {
        let row = dispatch::Model::from_query_result(&row, "")?;
        found.entry(row.schedule_id).or_default().push(row);
    }
    Ok(found)
}

/// Of these rows, the dispatches of those that have been fired.
///
/// # Errors
/// What the database says.
pub(crate) async fn of_rows<'a, C: ConnectionTrait>(
    db: &C,
    rows: impl Iterator<Item = &'a canvas_schedule::Model>,
) -> Result<HashMap<Uuid, Vec<dispatch::Model>>, DbErr> {
    let fired: Vec<ScheduleKey> = rows
        .filter(|row| row.fired > 0)
        .map(ScheduleKey::of)
        .collect();
    of_schedules(db, &fired).await
}

/// A schedule with its firings.
///
/// # Errors
/// A stored value that this build cannot read.
pub(crate) fn schedule(
    row: canvas_schedule::Model,
    dispatches: Vec<dispatch::Model>,
) -> Result<(CanvasSchedule, Vec<Dispatch>), DbErr> {
    let bare = codec::schedule(row)?;
    let firings = dispatches
        .into_iter()
        .map(|row| codec::firing(row, &bare))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((bare.with_firings(&firings), firings))
}

/// Writes where these dispatches stand.
///
/// # Errors
/// What the database says.
pub(crate) async fn update<C: ConnectionTrait>(
    db: &C,
    rows: &[dispatch::Model],
) -> Result<(), DbErr> {
    UPDATE.execute(db, [], rows).await
}

/// Removes these dispatches.
///
/// # Errors
/// What the database says.
pub(crate) async fn remove<C: ConnectionTrait>(
    db: &C,
    rows: &[dispatch::Model],
) -> Result<(), DbErr> {
    DELETE
        .execute(
            db,
            [],
            &rows.iter().map(DispatchKey::of).collect::<Vec<_>>(),
        )
        .await
}

/// Lays down the unknown dispatches of these schedules, in the transaction that cancels them, after their rows: whoever settles
/// or leases one later sees the cancellation.
///
/// # Errors
/// What the database says.
pub(crate) async fn abandon<C: ConnectionTrait>(
    db: &C,
    keys: &[ScheduleKey],
    now: DateTime<Utc>,
) -> Result<(), DbErr> {
    ABANDON
        .execute(db, [now.timestamp_millis().into()], keys)
        .await
}
