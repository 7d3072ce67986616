//! Dispatches that must be looked at again: of unknown outcome and due for another attempt, or with a lease that ran out.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, FromQueryResult, Statement};

use super::carried::{Payloads, Taking};
use super::commit::begin;
use super::dispatches::{self, DISPATCH, ScheduleKey};
use super::entity::{canvas_schedule, dispatch};
use super::error::public;
use super::fire::Taken;
use super::rows::{Texts, names};
use super::sql::{self, Lock};
use super::{Store, convert};
use crate::domain::{Delivery, DispatchState, Held, WorkspaceId};
use crate::error::Error;

static DUE: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let skip = if backend == DbBackend::Postgres { "FOR UPDATE SKIP LOCKED" } else { "" };
        let columns = names(DISPATCH, "d.");
        format!(
            "SELECT {columns}, t.name, t.sending_paused OR (SELECT paused FROM sending WHERE id = 1) AS paused FROM ( \
               SELECT * FROM dispatch WHERE retry_ms <= $1 ORDER BY retry_ms LIMIT $2 {skip} \
             ) AS d JOIN workspace t ON t.id = d.workspace_id"
        )
    })
});

/// A dispatch that is due again, and what its workspace says.
struct Due {
    dispatch: dispatch::Model,
    workspace_name: String,
    paused: bool,
}

impl Store {
    /// Leases up to `limit` dispatches for another attempt at `now`. One whose schedule was cancelled, or that has no attempt
    /// left, is laid down instead; both are looked up under the lock that leases it.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn retry(&self, limit: usize, now: DateTime<Utc>, delivery: &Delivery) -> Result<Taken, Error> {
        let retry = async {
            let db = begin(&self.dispatching).await?;
            let due = due(&db, now, limit).await?;
            if due.is_empty() {
                db.rollback().await?;
                return Ok(Taken::default());
            }
            let more = due.len() >= limit;
            let leased = lease_all(&db, due, now, delivery).await?;
            db.commit().await?;
            Ok(Taken { leased, more })
        };
        retry.await.map_err(|fault: DbErr| public(&fault))
    }
}

async fn due<C: ConnectionTrait>(db: &C, now: DateTime<Utc>, limit: usize) -> Result<Vec<Due>, DbErr> {
    let backend = db.get_database_backend();
    let values = [now.timestamp_millis().into(), i64::try_from(limit).unwrap_or(i64::MAX).into()];
    let rows = db.query_all_raw(Statement::from_sql_and_values(backend, DUE.get(backend), values)).await?;
    let due = rows.iter().map(|row| {
        let dispatch = dispatch::Model::from_query_result(row, "")?;
        Ok(Due { dispatch, workspace_name: row.try_get("", "name")?, paused: row.try_get("", "paused")? })
    });
    due.collect()
}

async fn lease_all<C: ConnectionTrait>(
    db: &C,
    due: Vec<Due>,
    now: DateTime<Utc>,
    delivery: &Delivery,
) -> Result<Vec<super::carried::Leased>, DbErr> {
    let rows = schedules(db, &due).await?;
    let (mut written, mut takings) = (vec![], vec![]);
    for Due { dispatch, workspace_name, paused } in due {
        // Its row is in other hands at the moment, or gone: another look will tell.
        let Some(row) = rows.get(&dispatch.schedule_id) else { continue };
        let workspace = WorkspaceId(dispatch.workspace_id);
        let schedule = convert::schedule(row.clone())?;
        let held = Held { cancelled: schedule.cancelled_at.is_some(), paused };
        let firing = convert::firing(dispatch, &schedule)?.again(held, now, delivery);
        written.push(convert::dispatch_row(workspace, &schedule, &firing)?);
        if firing.state == DispatchState::InHand {
            takings.push(Taking { workspace, workspace_name, schedule, firing });
        }
    }
    let payloads = Payloads::read(db, takings.iter()).await?;
    let leased = takings.iter().map(|taking| payloads.lease(taking, now)).collect::<Result<Vec<_>, _>>()?;
    dispatches::update(db, &written).await?;
    Ok(leased)
}

/// The rows of these dispatches, locked: a cancellation waits for us or we see it.
async fn schedules<C: ConnectionTrait>(db: &C, due: &[Due]) -> Result<HashMap<uuid::Uuid, canvas_schedule::Model>, DbErr> {
    let key = |due: &Due| ScheduleKey { id: due.dispatch.schedule_id, workspace_id: due.dispatch.workspace_id };
    let mut keys: Vec<ScheduleKey> = due.iter().map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    let keys: Vec<_> = keys.iter().map(ScheduleKey::pair).collect();
    let rows = sql::read_rows(db, &keys, Lock::Skip).await?;
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
}
