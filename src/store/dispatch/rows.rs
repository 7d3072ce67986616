//! Writes the rows of dispatches.

use std::collections::HashSet;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr};
use uuid::Uuid;

use crate::domain::DispatchState;
use crate::store::schema::codec;
use crate::store::schema::load::ScheduleKey;
use crate::store::schema::row::{FromRow, row};
use crate::store::schema::statement::{Columns, OverBatch, skip_locked};
use crate::store::schema::tables::dispatch;

row! {
    /// The key of a dispatch's row.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub(crate) struct DispatchKey {
        /// The schedule; first, so that keys sort by it.
        pub schedule_id: Uuid,
        pub n: i32,
        pub workspace_id: i32,
    }
}

impl DispatchKey {
    /// The key of its schedule.
    pub(crate) fn schedule(&self) -> ScheduleKey {
        ScheduleKey::new(self.workspace_id, self.schedule_id)
    }
}

/// The claim of a dispatch that is not leased.
pub(crate) const NO_CLAIM: i64 = 0;

/// Writes the states of dispatches, and the claims that lease them.
pub(crate) static UPDATE: LazyLock<OverBatch<dispatch::Model>> = LazyLock::new(|| {
    use dispatch::Column::{Attempt, ClaimId, FinishedMs, LastAttempt, RetryMs, State, Why};
    let columns = [
        RetryMs,
        FinishedMs,
        Attempt,
        LastAttempt,
        State,
        Why,
        ClaimId,
    ];
    let assignments = Columns::<dispatch::Model>::only(columns).assignments("i");
    OverBatch::new(&format!(
        "UPDATE dispatch AS d SET {assignments} FROM batch AS i \
         WHERE d.workspace_id = i.workspace_id AND d.schedule_id = i.schedule_id AND d.n = i.n"
    ))
});

pub(crate) static DELETE: LazyLock<OverBatch<DispatchKey>> = LazyLock::new(|| {
    OverBatch::new(
        "DELETE FROM dispatch WHERE (workspace_id, schedule_id, n) IN \
         (SELECT workspace_id, schedule_id, n FROM batch)",
    )
});

/// Locks dispatches, without those that another session has locked.
static LOCK: LazyLock<OverBatch<DispatchKey>> = LazyLock::new(|| {
    OverBatch::by_backend(0, |backend| {
        let skip = skip_locked(backend, "d");
        format!("{SELECT_KEYS} {skip}")
    })
});

static EXISTING: LazyLock<OverBatch<DispatchKey>> = LazyLock::new(|| OverBatch::new(SELECT_KEYS));

const SELECT_KEYS: &str = "SELECT d.schedule_id, d.n, d.workspace_id FROM batch AS k \
     JOIN dispatch d ON d.workspace_id = k.workspace_id AND d.schedule_id = k.schedule_id \
       AND d.n = k.n";

/// Locks these dispatches until the transaction ends, and returns those that another session has
/// locked.
pub(crate) async fn lock<C: ConnectionTrait>(
    db: &C,
    keys: &[DispatchKey],
) -> Result<HashSet<DispatchKey>, DbErr> {
    let free = select(db, &LOCK, keys).await?;
    if free.len() == keys.len() {
        return Ok(HashSet::new());
    }
    let existing = select(db, &EXISTING, keys).await?;
    Ok(existing.difference(&free).copied().collect())
}

async fn select<C: ConnectionTrait>(
    db: &C,
    statement: &OverBatch<DispatchKey>,
    keys: &[DispatchKey],
) -> Result<HashSet<DispatchKey>, DbErr> {
    let rows = statement.query(db, keys).await?;
    rows.iter()
        .map(|row| DispatchKey::from_row(row, 0))
        .collect()
}

/// Only those that are unknown when this is written; its answer settles one that is leased. A later
/// retry or settle abandons one that another session has locked.
static ABANDON: LazyLock<OverBatch<ScheduleKey>> = LazyLock::new(|| {
    let [unknown, abandoned] =
        [DispatchState::Unknown, DispatchState::Abandoned].map(codec::dispatch_state_code);
    OverBatch::by_backend(1, |backend| {
        let skip = skip_locked(backend, "u");
        format!(
            "UPDATE dispatch AS d SET state = {abandoned}, retry_ms = NULL, finished_ms = $1 \
             FROM (SELECT u.workspace_id, u.schedule_id, u.n FROM batch AS k JOIN dispatch u \
               ON u.workspace_id = k.workspace_id AND u.schedule_id = k.id \
               WHERE u.state = {unknown} {skip}) AS f \
             WHERE d.workspace_id = f.workspace_id AND d.schedule_id = f.schedule_id AND d.n = f.n"
        )
    })
});

/// Abandons the unknown dispatches of these schedules, in the transaction that cancels them, after
/// their rows: a later settle or retry sees the cancellation.
pub(crate) async fn abandon<C: ConnectionTrait>(
    db: &C,
    keys: &[ScheduleKey],
    now: DateTime<Utc>,
) -> Result<(), DbErr> {
    let now = now.timestamp_millis();
    ABANDON.execute(db, [now.into()], keys).await
}
