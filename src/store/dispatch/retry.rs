//! Leases dispatches for another attempt: those of unknown outcome that are due again, and those
//! whose lease expired.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr};
use uuid::Uuid;

use crate::domain::{DeliveryPolicy, DispatchState, Hold, WorkspaceId};
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::claim::{Claimed, UNREADABLE_RETRY_INTERVAL};
use crate::store::dispatch::cursor::Position;
use crate::store::dispatch::payload::{Payloads, PendingLease};
use crate::store::dispatch::rows;
use crate::store::schema::codec;
use crate::store::schema::load::{self, Lock, ScheduleKey};
use crate::store::schema::row::{FromRow, Row};
use crate::store::schema::statement::{Columns, Texts, skip_locked};
use crate::store::schema::tables::{canvas_schedule, dispatch};

static DUE: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let skip = skip_locked(backend);
        let columns = Columns::<dispatch::Model>::all().names("d.");
        format!(
            "SELECT {columns}, t.name, \
               t.sending_paused OR (SELECT paused FROM sending WHERE id = 1) \
             FROM ( \
               SELECT * FROM dispatch WHERE retry_ms BETWEEN $3 AND $1 \
               ORDER BY retry_ms LIMIT $2 {skip} \
             ) AS d JOIN workspace t ON t.id = d.workspace_id"
        )
    })
});

/// A dispatch that is due for another attempt.
struct DueDispatch {
    row: dispatch::Model,
    workspace_name: String,
    paused: bool,
}

impl DispatchStore {
    /// Leases up to `limit` dispatches for another attempt at `now`. One whose schedule was
    /// cancelled is abandoned instead, and one with no attempt left becomes a dead letter; both are
    /// decided under the lock that leases it.
    pub async fn retry(
        &self,
        limit: usize,
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
    ) -> Result<Claimed, Error> {
        let retry = async {
            let db = self.claiming.begin().await?;
            let due = due_dispatches(&db, self.cursor.position(), now, limit).await?;
            if due.is_empty() {
                db.rollback().await?;
                return Ok(Claimed::default());
            }
            let (claimed, dead) = lease_all(&db, due, now, delivery).await?;
            db.commit().await?;
            self.metrics.count_dead_letters(dead);
            Ok(claimed)
        };
        self.pool.run(retry).await
    }
}

async fn due_dispatches<C: ConnectionTrait>(
    db: &C,
    from: Position,
    now: DateTime<Utc>,
    limit: usize,
) -> Result<Vec<DueDispatch>, DbErr> {
    let values = [
        now.timestamp_millis().into(),
        i64::try_from(limit).unwrap_or(i64::MAX).into(),
        from.retry_ms.into(),
    ];
    let statement = DUE.with(db.get_database_backend(), values);
    let rows = db.query_all_raw(statement).await?;
    let due = rows.iter().map(|row| {
        Ok(DueDispatch {
            row: dispatch::Model::from_row(row, 0)?,
            workspace_name: row.try_get_by_index(dispatch::Model::COUNT)?,
            paused: row.try_get_by_index(dispatch::Model::COUNT + 1)?,
        })
    });
    due.collect()
}

/// Leases the dispatches, and returns with them how many became dead letters.
async fn lease_all<C: ConnectionTrait>(
    db: &C,
    due: Vec<DueDispatch>,
    now: DateTime<Utc>,
    delivery: &DeliveryPolicy,
) -> Result<(Claimed, usize), DbErr> {
    let schedules = locked_schedules(db, &due).await?;
    let (mut written, mut decided) = (vec![], vec![]);
    for due in due {
        // Locked by another session, or removed: a later retry finds out.
        let Some(schedule) = schedules.get(&due.row.schedule_id) else {
            continue;
        };
        match decide(schedule, &due, now, delivery) {
            Ok(pending) => decided.push(pending),
            Err(fault) => written.push(postponed(due.row, now, &fault)),
        }
    }
    let in_state = |state| move |one: &&PendingLease| one.dispatch.state == state;
    let leases = decided.iter().filter(in_state(DispatchState::InFlight));
    let payloads = Payloads::read(db, leases).await?;
    let mut leased = vec![];
    for pending in &decided {
        let row = pending.row()?;
        if pending.dispatch.state == DispatchState::InFlight {
            match payloads.lease(pending, now) {
                Ok(lease) => leased.push(lease),
                Err(fault) => {
                    written.push(postponed(row, now, &fault));
                    continue;
                }
            }
        }
        written.push(row);
    }
    rows::UPDATE.execute(db, [], &written).await?;
    let dead = decided.iter().filter(in_state(DispatchState::Dead)).count();
    let more = !written.is_empty();
    Ok((Claimed { leased, more }, dead))
}

/// Lets the domain decide whether the dispatch is leased again.
fn decide(
    row: &canvas_schedule::Model,
    due: &DueDispatch,
    now: DateTime<Utc>,
    delivery: &DeliveryPolicy,
) -> Result<PendingLease, DbErr> {
    let schedule = codec::schedule(row)?;
    let hold = Hold {
        cancelled: schedule.cancelled_at.is_some(),
        paused: due.paused,
    };
    let dispatch = codec::dispatch(due.row.clone(), &schedule)?.retry(hold, now, delivery);
    Ok(PendingLease {
        workspace: WorkspaceId(row.workspace_id),
        workspace_name: due.workspace_name.clone(),
        schedule,
        dispatch,
    })
}

/// A dispatch that this build cannot read, postponed as it is, so that it delays no other.
fn postponed(row: dispatch::Model, now: DateTime<Utc>, fault: &DbErr) -> dispatch::Model {
    let (schedule_id, n) = (row.schedule_id, row.n);
    tracing::error!(
        %schedule_id,
        n,
        %fault,
        "a stored dispatch cannot be read; it is postponed for a minute"
    );
    dispatch::Model {
        retry_ms: Some((now + UNREADABLE_RETRY_INTERVAL).timestamp_millis()),
        ..row
    }
}

/// The rows of the dispatches' schedules, locked: a cancellation either waits or is seen.
async fn locked_schedules<C: ConnectionTrait>(
    db: &C,
    due: &[DueDispatch],
) -> Result<HashMap<Uuid, canvas_schedule::Model>, DbErr> {
    let key = |due: &DueDispatch| ScheduleKey::new(due.row.workspace_id, due.row.schedule_id);
    let mut keys: Vec<ScheduleKey> = due.iter().map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    let rows = load::read_rows(db, &keys, Lock::Skip).await?;
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
}
