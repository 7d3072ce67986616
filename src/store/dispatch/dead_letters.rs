//! Dispatches as callers see them: lists, and dead letters that are tried again.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, ConnectionTrait, DbErr, QueryFilter, QueryOrder, QuerySelect};
use uuid::Uuid;

use crate::domain::{
    CanvasSchedule, DeliveryPolicy, Dispatch, DispatchId, DispatchState, ScheduleId, WorkspaceId,
};
use crate::error::Error;
use crate::store::Key;
use crate::store::Store;
use crate::store::commit::statements::{self, Lock};
use crate::store::commit::writer::begin;
use crate::store::dispatch::rows::{self, ScheduleKey};
use crate::store::schema::codec;
use crate::store::schema::tables::dispatch;
use crate::store::schema::tenant::Tenant;
use crate::store::session::error::public;

/// Which dispatches a list is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DispatchFilter {
    /// Only those of this schedule.
    pub schedule_id: Option<ScheduleId>,
    /// Only those in this state.
    pub state: Option<DispatchState>,
}

impl Store {
    /// Up to `limit` dispatches after `after`, in the order of schedule and number.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn dispatches(
        &self,
        workspace: WorkspaceId,
        filter: DispatchFilter,
        after: Option<(ScheduleId, u32)>,
        limit: u64,
    ) -> Result<Vec<(ScheduleId, Dispatch)>, Error> {
        let read = async {
            let mut query = dispatch::Entity::within(workspace);
            if let Some(schedule) = filter.schedule_id {
                query = query.filter(dispatch::Column::ScheduleId.eq(schedule.0));
            }
            if let Some(state) = filter.state {
                // In its text, as the partial indexes have it.
                query = query.filter(Expr::cust(format!(
                    "state = {}",
                    codec::dispatch_state_code(state)
                )));
            }
            if filter.state == Some(DispatchState::InHand) {
                query = query.filter(dispatch::Column::RetryMs.is_not_null());
            }
            if let Some((schedule, n)) = after {
                let key = Expr::tuple([
                    Expr::col(dispatch::Column::ScheduleId),
                    Expr::col(dispatch::Column::N),
                ]);
                query = query.filter(key.gt(Expr::tuple([
                    Expr::value(schedule.0),
                    Expr::value(codec::signed(n)?),
                ])));
            }
            let query = query
                .order_by_asc(dispatch::Column::ScheduleId)
                .order_by_asc(dispatch::Column::N);
            self.with_schedules(query.limit(limit).all(&self.reads).await?)
                .await
        };
        read.await.map_err(|fault: DbErr| public(&fault))
    }

    /// Dispatches as firings, which may be of every zone that their schedules are about.
    async fn with_schedules(
        &self,
        rows: Vec<dispatch::Model>,
    ) -> Result<Vec<(ScheduleId, Dispatch)>, DbErr> {
        let mut keys: Vec<(i32, Uuid)> = rows
            .iter()
            .map(|row| (row.workspace_id, row.schedule_id))
            .collect();
        keys.dedup();
        let mut schedules: HashMap<Uuid, CanvasSchedule> = HashMap::new();
        if !keys.is_empty() {
            for row in statements::read_rows(&self.reads, &keys, Lock::None).await? {
                schedules.insert(row.id, codec::schedule(row)?);
            }
        }
        // One whose schedule was removed meanwhile is gone, too.
        let of = |row: dispatch::Model| {
            let schedule = schedules.get(&row.schedule_id)?;
            Some(codec::firing(row, schedule).map(|firing| (schedule.id, firing)))
        };
        rows.into_iter().filter_map(of).collect()
    }

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
            let db = begin(&self.link.db()).await?;
            let revived = revived(&db, key, id, now, delivery).await?;
            // A refusal ends it here too: one that is only dropped holds its row a while longer, and a dispatch that is due is
            // passed over meanwhile.
            match &revived {
                Ok(_) => db.commit().await?,
                Err(_) => db.rollback().await?,
            }
            Ok(revived)
        };
        self.link.in_time(revive).await?
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
    let Some(row) = statements::read_rows(db, &[(key.0.0, key.1.0)], Lock::Wait)
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
