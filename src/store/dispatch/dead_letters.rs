//! Dead letters that are tried again.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr};

use crate::domain::{DeliveryPolicy, Dispatch, DispatchId};
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::rows::{self, ScheduleKey};
use crate::store::schema::codec;
use crate::store::schema::load::{self, Lock};
use crate::store::schema::tenant::Key;

impl DispatchStore {
    /// Lets a dead letter be tried again.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::DispatchNotFound`], the domain's refusals, and what the database says, for the log.
    pub async fn retry_dead_letter(
        &self,
        key: Key,
        id: DispatchId,
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
    ) -> Result<Dispatch, Error> {
        let revive = async {
            let db = self.pool.begin().await?;
            let revived = revived(&db, key, id, now, delivery).await?;
            // A refusal ends it here too: one that is only dropped holds its row a while longer, and a dispatch that is due is
            // passed over meanwhile.
            match &revived {
                Ok(_) => db.commit().await?,
                Err(_) => db.rollback().await?,
            }
            Ok(revived)
        };
        self.pool.run(revive).await?
    }
}

/// The firing that is to be tried again, written; or why it cannot be.
async fn revived<C: ConnectionTrait>(
    db: &C,
    key: Key,
    id: DispatchId,
    now: DateTime<Utc>,
    delivery: &DeliveryPolicy,
) -> Result<Result<Dispatch, Error>, DbErr> {
    // Under the lock of its schedule: a cancellation waits for us or we see it.
    let Some(row) = load::read_rows(db, &[(key.0.0, key.1.0)], Lock::Wait)
        .await?
        .pop()
    else {
        return Ok(Err(Error::NotFound {
            schedule_id: key.1.to_string(),
        }));
    };
    let mut rows = rows::of_schedules(db, &[ScheduleKey::of(&row)]).await?;
    let (schedule, firings) =
        rows::schedule(row.clone(), rows.remove(&row.id).unwrap_or_default())?;
    let Some(dead) = firings
        .into_iter()
        .find(|firing| firing.id(schedule.id) == id)
    else {
        return Ok(Err(Error::DispatchNotFound {
            dispatch_id: id.to_string(),
        }));
    };
    let revived = match dead.revived(&schedule, now, delivery) {
        Ok(revived) => revived,
        Err(refused) => return Ok(Err(refused)),
    };
    rows::update(db, &[codec::dispatch_row(key.0, &schedule, &revived)?]).await?;
    Ok(Ok(revived))
}
