//! Dispatches that must be looked at again: of unknown outcome and due for another attempt, or with a lease that ran out.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};
use uuid::Uuid;

use crate::domain::{DeliveryPolicy, DispatchState, Hold, WorkspaceId};
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::claim::{Taken, UNREADABLE_REST};
use crate::store::dispatch::cursor::Mark;
use crate::store::dispatch::payload::{Leased, Payloads, Taking};
use crate::store::dispatch::rows::{self, ScheduleKey};
use crate::store::schema::codec;
use crate::store::schema::load::{self, Lock};
use crate::store::schema::row::FromRow;
use crate::store::schema::statement::{Columns, Texts};
use crate::store::schema::tables::{canvas_schedule, dispatch};

static DUE: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let skip = if backend == DbBackend::Postgres {
            "FOR UPDATE SKIP LOCKED"
        } else {
            ""
        };
        let columns = Columns::<dispatch::Model>::all().names("d.");
        format!(
            "SELECT {columns}, t.name, t.sending_paused OR (SELECT paused FROM sending WHERE id = 1) AS paused FROM ( \
               SELECT * FROM dispatch WHERE retry_ms BETWEEN $3 AND $1 ORDER BY retry_ms LIMIT $2 {skip} \
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

impl DispatchStore {
    /// Leases up to `limit` dispatches for another attempt at `now`. One whose schedule was cancelled, or that has no attempt
    /// left, is laid down instead; both are looked up under the lock that leases it.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn retry(
        &self,
        limit: usize,
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
    ) -> Result<Taken, Error> {
        let retry = async {
            let db = self.claiming.begin().await?;
            let due = due(&db, self.heads.mark(), now, limit).await?;
            if due.is_empty() {
                db.rollback().await?;
                return Ok(Taken::default());
            }
            let Leasing {
                leased,
                moved,
                dead,
            } = lease_all(&db, due, now, delivery).await?;
            db.commit().await?;
            self.writes.count_dead_letters(dead);
            Ok(Taken {
                leased,
                more: moved,
            })
        };
        self.pool.run(retry).await
    }
}

async fn due<C: ConnectionTrait>(
    db: &C,
    from: Mark,
    now: DateTime<Utc>,
    limit: usize,
) -> Result<Vec<Due>, DbErr> {
    let backend = db.get_database_backend();
    let values = [
        now.timestamp_millis().into(),
        i64::try_from(limit).unwrap_or(i64::MAX).into(),
        from.retry_ms.into(),
    ];
    let rows = db
        .query_all_raw(Statement::from_sql_and_values(
            backend,
            DUE.get(backend),
            values,
        ))
        .await?;
    let due = rows.iter().map(|row| {
        let dispatch = dispatch::Model::from_row(row, 0)?;
        Ok(Due {
            dispatch,
            workspace_name: row.try_get("", "name")?,
            paused: row.try_get("", "paused")?,
        })
    });
    due.collect()
}

/// What became of those that were due.
struct Leasing {
    leased: Vec<Leased>,
    /// Whether any was decided.
    moved: bool,
    /// How many had no attempt left.
    dead: usize,
}

async fn lease_all<C: ConnectionTrait>(
    db: &C,
    due: Vec<Due>,
    now: DateTime<Utc>,
    delivery: &DeliveryPolicy,
) -> Result<Leasing, DbErr> {
    let rows = schedules(db, &due).await?;
    let (mut written, mut takings) = (vec![], vec![]);
    for due in due {
        // Its row is in other hands at the moment, or gone: another look will tell.
        let Some(row) = rows.get(&due.dispatch.schedule_id) else {
            continue;
        };
        match decide(row, &due, now, delivery) {
            Ok(taking) => takings.push(taking),
            Err(fault) => written.push(unreadable(due.dispatch, now, &fault)),
        }
    }
    let in_hand = |taking: &&Taking| taking.firing.state == DispatchState::InHand;
    let payloads = Payloads::read(db, takings.iter().filter(in_hand)).await?;
    let mut leased = vec![];
    for taking in &takings {
        let row = codec::dispatch_row(taking.workspace, &taking.schedule, &taking.firing)?;
        match in_hand(&taking)
            .then(|| payloads.lease(taking, now))
            .transpose()
        {
            Ok(one) => {
                leased.extend(one);
                written.push(row);
            }
            Err(fault) => written.push(unreadable(row, now, &fault)),
        }
    }
    rows::update(db, &written).await?;
    let dead = takings
        .iter()
        .filter(|taking| taking.firing.state == DispatchState::Dead)
        .count();
    Ok(Leasing {
        leased,
        moved: !written.is_empty(),
        dead,
    })
}

/// Lets the domain decide what becomes of one.
fn decide(
    row: &canvas_schedule::Model,
    due: &Due,
    now: DateTime<Utc>,
    delivery: &DeliveryPolicy,
) -> Result<Taking, DbErr> {
    let schedule = codec::schedule(row.clone())?;
    let held = Hold {
        cancelled: schedule.cancelled_at.is_some(),
        paused: due.paused,
    };
    let firing = codec::firing(due.dispatch.clone(), &schedule)?.again(held, now, delivery);
    Ok(Taking {
        workspace: WorkspaceId(row.workspace_id),
        workspace_name: due.workspace_name.clone(),
        schedule,
        firing,
    })
}

/// One that this build cannot read rests as it is, so that it is in nobody's way.
fn unreadable(row: dispatch::Model, now: DateTime<Utc>, fault: &DbErr) -> dispatch::Model {
    let (schedule_id, n) = (row.schedule_id, row.n);
    tracing::error!(%schedule_id, n, %fault, "a dispatch cannot be read; it is looked at again in a minute");
    dispatch::Model {
        retry_ms: Some((now + UNREADABLE_REST).timestamp_millis()),
        ..row
    }
}

/// The rows of these dispatches, locked: a cancellation waits for us or we see it.
async fn schedules<C: ConnectionTrait>(
    db: &C,
    due: &[Due],
) -> Result<HashMap<Uuid, canvas_schedule::Model>, DbErr> {
    let key = |due: &Due| ScheduleKey {
        id: due.dispatch.schedule_id,
        workspace_id: due.dispatch.workspace_id,
    };
    let mut keys: Vec<ScheduleKey> = due.iter().map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    let keys: Vec<_> = keys.iter().map(ScheduleKey::pair).collect();
    let rows = load::read_rows(db, &keys, Lock::Skip).await?;
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
}
