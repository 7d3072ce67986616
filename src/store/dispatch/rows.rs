//! Writes the rows of dispatches.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr};
use uuid::Uuid;

use crate::domain::DispatchState;
use crate::store::schema::codec;
use crate::store::schema::load::ScheduleKey;
use crate::store::schema::row::row;
use crate::store::schema::statement::{Columns, OverBatch};
use crate::store::schema::tables::dispatch;

row! {
    /// The key of a dispatch's row.
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct DispatchKey {
        /// The schedule; first, so that keys sort by it.
        pub schedule_id: Uuid,
        pub n: i32,
        pub workspace_id: i32,
    }
}

/// Writes the states of dispatches.
pub(crate) static UPDATE: LazyLock<OverBatch<dispatch::Model>> = LazyLock::new(|| {
    use dispatch::Column::{Attempt, FinishedMs, LastAttempt, RetryMs, State, Why};
    let columns = [RetryMs, FinishedMs, Attempt, LastAttempt, State, Why];
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

/// Only those that are unknown when this is written; its answer settles one that is leased.
static ABANDON: LazyLock<OverBatch<ScheduleKey>> = LazyLock::new(|| {
    let [unknown, abandoned] =
        [DispatchState::Unknown, DispatchState::Abandoned].map(codec::dispatch_state_code);
    let text = format!(
        "UPDATE dispatch AS d SET state = {abandoned}, retry_ms = NULL, finished_ms = $1 \
         FROM batch AS k \
         WHERE d.workspace_id = k.workspace_id AND d.schedule_id = k.id AND d.state = {unknown}"
    );
    OverBatch::after(1, &text)
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
