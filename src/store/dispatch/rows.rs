//! Dispatches as rows: read by schedule, written where they stand, listed.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr};
use uuid::Uuid;

use crate::domain::{CanvasSchedule, Dispatch, DispatchState};
use crate::store::schema::codec;
use crate::store::schema::row::{FromRow, row};
use crate::store::schema::statement::{Columns, OverBatch};
use crate::store::schema::tables::{canvas_schedule, dispatch};

row! {
    /// A schedule's key as a row of a batch.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub(crate) struct ScheduleKey {
        /// The schedule; first, so that keys sort by it.
        pub id: Uuid,
        /// The tenant.
        pub workspace_id: i32,
    }
}

row! {
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
}

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

static OF_SCHEDULES: LazyLock<OverBatch<ScheduleKey>> = LazyLock::new(|| {
    let columns = Columns::<dispatch::Model>::all().names("d.");
    OverBatch::new(&format!(
        "SELECT {columns} FROM batch AS k JOIN dispatch d ON d.workspace_id = k.workspace_id AND d.schedule_id = k.id \
             ORDER BY d.schedule_id, d.n"
    ))
});

static UPDATE: LazyLock<OverBatch<dispatch::Model>> = LazyLock::new(|| {
    use dispatch::Column::{Attempt, FinishedMs, LastAttempt, RetryMs, State, Why};
    let columns = [RetryMs, FinishedMs, Attempt, LastAttempt, State, Why];
    let assignments = Columns::<dispatch::Model>::only(columns).assignments("i");
    OverBatch::new(&format!(
        "UPDATE dispatch AS d SET {assignments} FROM batch AS i \
         WHERE d.workspace_id = i.workspace_id AND d.schedule_id = i.schedule_id AND d.n = i.n"
    ))
});

static DELETE: LazyLock<OverBatch<DispatchKey>> = LazyLock::new(|| {
    OverBatch::new(
        "DELETE FROM dispatch WHERE (workspace_id, schedule_id, n) IN (SELECT workspace_id, schedule_id, n FROM batch)",
    )
});

/// Only what is unknown as this is written: what is in hand by then is settled by its answer.
static ABANDON: LazyLock<OverBatch<ScheduleKey>> = LazyLock::new(|| {
    let [unknown, abandoned] =
        [DispatchState::Unknown, DispatchState::Abandoned].map(codec::dispatch_state_code);
    OverBatch::after(
        1,
        &format!(
            "UPDATE dispatch AS d SET state = {abandoned}, retry_ms = NULL, finished_ms = $1 FROM batch AS k \
             WHERE d.workspace_id = k.workspace_id AND d.schedule_id = k.id AND d.state = {unknown}"
        ),
    )
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
        let row = dispatch::Model::from_row(&row, 0)?;
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
