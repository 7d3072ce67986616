//! Retries dead letters at a caller's request.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr};

use crate::domain::{DeliveryPolicy, Dispatch, DispatchId};
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::rows;
use crate::store::schema::codec;
use crate::store::schema::load::{self, Loaded, Lock, ScheduleKey};
use crate::store::schema::tenant::Key;

impl DispatchStore {
    /// Makes a dead letter due for another attempt. Fails with [`Error::NotFound`],
    /// [`Error::DispatchNotFound`], those of the domain, and [`Error::OutcomeUnknown`] when the
    /// commit fails.
    pub async fn retry_dead_letter(
        &self,
        key: Key,
        id: DispatchId,
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
    ) -> Result<Dispatch, Error> {
        let retry = async {
            let db = self.other.begin().await?;
            let retried = retry_in(&db, key, id, now, delivery).await?;
            Ok((db, retried))
        };
        let (db, retried) = self.other.run(retry).await?;
        // Rolled back here rather than on drop, which would keep the row locked for a while; a
        // retry passes over a locked row.
        match &retried {
            Ok(_) => self.commit(db).await?,
            Err(_) => self.other.run(db.rollback()).await?,
        }
        retried
    }
}

async fn retry_in<C: ConnectionTrait>(
    db: &C,
    (workspace, schedule_id): Key,
    id: DispatchId,
    now: DateTime<Utc>,
    delivery: &DeliveryPolicy,
) -> Result<Result<Dispatch, Error>, DbErr> {
    let key = ScheduleKey::new(workspace.0, schedule_id.0);
    // Under the lock of its schedule: a cancellation either waits or is seen.
    let Some(loaded) = load::load(db, &[key], Lock::Wait).await?.pop() else {
        let schedule_id = schedule_id.to_string();
        return Ok(Err(Error::NotFound { schedule_id }));
    };
    let Loaded {
        schedule,
        dispatches,
        ..
    } = loaded?;
    let Some(dead) = dispatches.iter().find(|one| one.id(schedule.id) == id) else {
        let dispatch_id = id.to_string();
        return Ok(Err(Error::DispatchNotFound { dispatch_id }));
    };
    let retried = match dead.retry_dead_letter(&schedule, now, delivery) {
        Ok(retried) => retried,
        Err(refused) => return Ok(Err(refused)),
    };
    let row = codec::dispatch_row(workspace, &schedule, &retried, rows::NO_CLAIM)?;
    rows::UPDATE.execute(db, [], &[row]).await?;
    Ok(Ok(retried))
}
