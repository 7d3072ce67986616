//! The backlog, for operators: how much is due, and how many dispatches are in each state. The
//! work of each query is bounded.

use std::sync::LazyLock;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::ConnectionTrait;

use crate::domain::DispatchState;
use crate::error::Error;
use crate::store::admin::AdminStore;
use crate::store::schema::codec;
use crate::store::schema::statement::statement;
use crate::telemetry::metrics::{DispatchTotals, DueBacklog};

/// The highest count; a larger one is reported as this.
const MAX_COUNT: i64 = 10_000;

const DUE: &str = "SELECT count(*), min(wake_ms) FROM (SELECT wake_ms FROM canvas_schedule_wake \
     WHERE wake_ms <= $1 ORDER BY wake_ms LIMIT $2) AS due";

/// Reads the index `dispatch_odd`. SQLite uses it only for a query that repeats its condition.
static TOTALS: LazyLock<String> = LazyLock::new(|| {
    let [unknown, dead] = [DispatchState::Unknown, DispatchState::Dead].map(|state| {
        let state = codec::dispatch_state_code(state);
        format!(
            "(SELECT count(*) FROM (SELECT 1 FROM workspace t \
             JOIN dispatch d ON d.workspace_id = t.id AND d.state = {state} \
             AND d.state IN (1, 3, 4) LIMIT {MAX_COUNT}) AS counted)"
        )
    });
    format!(
        "SELECT {unknown}, {dead}, (SELECT count(*) FROM workspace WHERE sending_paused), \
         (SELECT paused FROM sending WHERE id = 1)"
    )
});

impl AdminStore {
    /// The waves that are due at `now` and not claimed.
    pub async fn backlog(&self, now: DateTime<Utc>) -> Result<DueBacklog, Error> {
        let read = async {
            let db = &self.sessions.acquire().await?;
            let values = [now.timestamp_millis().into(), MAX_COUNT.into()];
            let row = db.query_one_raw(statement(db, DUE, values)).await?;
            let Some(row) = row else {
                return Ok(DueBacklog::default());
            };
            let since: Option<i64> = row.try_get_by_index(1)?;
            let oldest = since.map_or(0, |since| now.timestamp_millis() - since);
            Ok(DueBacklog {
                due: row.try_get_by_index(0)?,
                oldest: Duration::from_millis(oldest.max(0).unsigned_abs()),
            })
        };
        self.sessions.run(read).await
    }

    /// The number of dispatches of all workspaces in each state, and what is paused.
    pub async fn dispatch_totals(&self) -> Result<DispatchTotals, Error> {
        let read = async {
            let db = &self.sessions.acquire().await?;
            let row = db.query_one_raw(statement(db, &TOTALS, [])).await?;
            let Some(row) = row else {
                return Ok(DispatchTotals::default());
            };
            Ok(DispatchTotals {
                unknown: row.try_get_by_index(0)?,
                dead: row.try_get_by_index(1)?,
                workspaces_paused: row.try_get_by_index(2)?,
                all_paused: row.try_get_by_index(3)?,
            })
        };
        self.sessions.run(read).await
    }
}
