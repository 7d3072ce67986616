//! Leases dispatches for another attempt: those of unknown outcome that are due again, and those
//! whose lease expired.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr};

use crate::domain::{DeliveryPolicy, DispatchState, Hold, WorkspaceId};
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::claim::{Claimed, UNREADABLE_RETRY_INTERVAL};
use crate::store::dispatch::payload::{Leased, Payload, PendingLease, joined_payload};
use crate::store::dispatch::rows;
use crate::store::dispatch::unsettled::Committing;
use crate::store::schema::codec;
use crate::store::schema::row::{FromRow, Row};
use crate::store::schema::statement::{Columns, Texts, join_in_order, skip_locked};
use crate::store::schema::tables::{canvas_schedule, dispatch};

/// Dispatches that are due for another attempt, with all that a retry reads: one round trip. Their
/// schedules are locked, so that a cancellation either waits or is seen. A dispatch that another
/// session has locked, or whose schedule is locked, does not count against the limit; a later retry
/// finds it.
static DUE: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let dispatch = Columns::<dispatch::Model>::all().names("d.");
        let schedule = Columns::<canvas_schedule::Model>::all().names("s.");
        let (payload, joined) = (Payload::COLUMNS, joined_payload("d.properties_id"));
        let (join, skip) = (join_in_order(backend), skip_locked(backend, "s, d"));
        format!(
            "SELECT {dispatch}, {schedule}, {payload}, t.name, \
               t.sending_paused OR (SELECT paused FROM sending WHERE id = 1) \
             FROM dispatch d \
             {join} canvas_schedule s ON s.workspace_id = d.workspace_id AND s.id = d.schedule_id \
             {join} workspace t ON t.id = d.workspace_id {joined} \
             WHERE d.retry_ms BETWEEN $3 AND $1 ORDER BY d.retry_ms LIMIT $2 {skip}"
        )
    })
});

/// A dispatch that is due for another attempt.
struct DueDispatch {
    row: dispatch::Model,
    schedule: canvas_schedule::Model,
    payload: Payload,
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
            let from_ms = self.cursor.position().retry_ms;
            let due = due_dispatches(&db, from_ms, now, limit).await?;
            if due.is_empty() {
                db.rollback().await?;
                return Ok(Claimed::default());
            }
            let retry = lease_all(&db, due, now, delivery).await?;
            self.commit_claim(db, retry).await
        };
        self.claiming.run(retry).await
    }
}

async fn due_dispatches<C: ConnectionTrait>(
    db: &C,
    from_ms: i64,
    now: DateTime<Utc>,
    limit: usize,
) -> Result<Vec<DueDispatch>, DbErr> {
    let values = [
        now.timestamp_millis().into(),
        i64::try_from(limit).unwrap_or(i64::MAX).into(),
        from_ms.into(),
    ];
    let statement = DUE.with(db.get_database_backend(), values);
    let rows = db.query_all_raw(statement).await?;
    let due = rows.iter().map(|row| {
        const AFTER_DISPATCH: usize = dispatch::Model::COUNT;
        const AFTER_SCHEDULE: usize = AFTER_DISPATCH + canvas_schedule::Model::COUNT;
        Ok(DueDispatch {
            row: dispatch::Model::from_row(row, 0)?,
            schedule: canvas_schedule::Model::from_row(row, AFTER_DISPATCH)?,
            payload: Payload::from_row(row, AFTER_SCHEDULE)?,
            workspace_name: row.try_get_by_index(AFTER_SCHEDULE + 2)?,
            paused: row.try_get_by_index(AFTER_SCHEDULE + 3)?,
        })
    });
    due.collect()
}

/// Leases the dispatches.
async fn lease_all<C: ConnectionTrait>(
    db: &C,
    due: Vec<DueDispatch>,
    now: DateTime<Utc>,
    delivery: &DeliveryPolicy,
) -> Result<Committing, DbErr> {
    let claim_id = fastrand::i64(..);
    let (mut written, mut leased, mut dead) = (vec![], vec![], 0);
    for due in due {
        let before = due.row.clone();
        match decide(due, now, delivery, claim_id) {
            Ok(Decided { row, lease }) => {
                dead += usize::from(row.state == codec::dispatch_state_code(DispatchState::Dead));
                leased.extend(lease);
                written.push(row);
            }
            Err(fault) => written.push(postponed(before, now, &fault)),
        }
    }
    rows::UPDATE.execute(db, [], &written).await?;
    let more = !written.is_empty();
    Ok(Committing {
        claim_id,
        at: now,
        leased,
        more,
        dead,
    })
}

/// A dispatch as it is written, and its lease if it gets one.
struct Decided {
    row: dispatch::Model,
    lease: Option<Leased>,
}

/// Lets the domain decide whether the dispatch is leased again.
fn decide(
    due: DueDispatch,
    now: DateTime<Utc>,
    delivery: &DeliveryPolicy,
    claim_id: i64,
) -> Result<Decided, DbErr> {
    let schedule = codec::schedule(&due.schedule)?;
    let hold = Hold {
        cancelled: schedule.cancelled_at.is_some(),
        paused: due.paused,
    };
    let dispatch = codec::dispatch(due.row, &schedule)?.retry(hold, now, delivery);
    let is_leased = dispatch.state == DispatchState::InFlight;
    let pending = PendingLease {
        workspace: WorkspaceId(due.schedule.workspace_id),
        workspace_name: due.workspace_name,
        schedule,
        dispatch,
        payload: due.payload,
    };
    Ok(Decided {
        row: pending.row(claim_id)?,
        lease: is_leased.then(|| pending.lease(now)).transpose()?,
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
