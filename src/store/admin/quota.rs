//! What all replicas have taken of the quotas, and which replicas there are.

use chrono::TimeDelta;
use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{ColumnTrait, DbErr, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter};
use uuid::Uuid;

use crate::domain::{Ask, Quota, WorkspaceId};
use crate::error::Error;
use crate::store::admin::AdminStore;
use crate::store::schema::tables::{rate_window, replica};
use crate::store::schema::tenant::Tenant;
use crate::store::session::error::RETRY_AFTER;

/// A replica that was not seen for so long has no share.
const REPLICA_LIVES: TimeDelta = TimeDelta::seconds(30);
/// How often a count is tried to be moved before others.
const ROUNDS_MOST: usize = 50;

/// What was taken of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaTaken {
    /// By this call.
    pub got: u64,
    /// By all replicas.
    pub in_all: u64,
}

impl AdminStore {
    /// Takes what is asked for, or some of it, of a window of a quota for this process, one of `replicas`; 0 when less is left than
    /// a call needs.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn take_quota(
        &self,
        workspace: WorkspaceId,
        counted: &str,
        began_ms: i64,
        quota: Quota,
        ask: Ask,
        replicas: u32,
    ) -> Result<QuotaTaken, Error> {
        for _ in 0..ROUNDS_MOST {
            let taken = self
                .pool
                .run(self.taken(workspace, counted, began_ms))
                .await?;
            let before = taken.map_or(0, |taken| u64::try_from(taken).unwrap_or_default());
            let got = quota.chunk(before, ask, replicas);
            let after = QuotaTaken {
                got,
                in_all: before + got,
            };
            if got == 0 {
                return Ok(after);
            }
            let row = rate_window::Model {
                workspace_id: workspace.0,
                counted: counted.to_owned(),
                began_ms,
                ends_ms: began_ms + quota.window.millis(),
                taken: i64::try_from(after.in_all).unwrap_or(i64::MAX),
            };
            if self.pool.run(self.moved(taken, row)).await? {
                return Ok(after);
            }
        }
        Err(Error::StoreUnavailable {
            retry_after: RETRY_AFTER,
        })
    }

    async fn taken(
        &self,
        workspace: WorkspaceId,
        counted: &str,
        began_ms: i64,
    ) -> Result<Option<i64>, DbErr> {
        let row = rate_window::Entity::within(workspace)
            .filter(rate_window::Column::Counted.eq(counted))
            .filter(rate_window::Column::BeganMs.eq(began_ms))
            .one(&self.pool.db())
            .await?;
        Ok(row.map(|row| row.taken))
    }

    /// Writes the count unless another replica has moved it since it was read; whether it was written.
    async fn moved(&self, before: Option<i64>, row: rate_window::Model) -> Result<bool, DbErr> {
        let written = match before {
            None => {
                let key = [
                    rate_window::Column::WorkspaceId,
                    rate_window::Column::Counted,
                    rate_window::Column::BeganMs,
                ];
                let there = OnConflict::columns(key).do_nothing().to_owned();
                let insert =
                    rate_window::Entity::insert(row.into_active_model()).on_conflict(there);
                match insert.exec_without_returning(&self.pool.db()).await {
                    Err(DbErr::RecordNotInserted) => 0,
                    written => written?,
                }
            }
            Some(before) => {
                let update = rate_window::Entity::update_within(WorkspaceId(row.workspace_id))
                    .col_expr(rate_window::Column::Taken, Expr::value(row.taken))
                    .filter(rate_window::Column::Counted.eq(row.counted))
                    .filter(rate_window::Column::BeganMs.eq(row.began_ms))
                    .filter(rate_window::Column::Taken.eq(before));
                update.exec(&self.pool.db()).await?.rows_affected
            }
        };
        Ok(written == 1)
    }

    /// Says that this replica lives, and answers how many do.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn see_replica(&self, id: Uuid) -> Result<u32, Error> {
        let now = self.clock.now();
        let see = async {
            let row = replica::Model {
                id,
                seen_ms: now.timestamp_millis(),
            };
            let again = OnConflict::column(replica::Column::Id)
                .update_column(replica::Column::SeenMs)
                .to_owned();
            replica::Entity::insert(row.into_active_model())
                .on_conflict(again)
                .exec_without_returning(&self.pool.db())
                .await?;
            let alive = replica::Column::SeenMs.gt((now - REPLICA_LIVES).timestamp_millis());
            replica::Entity::find()
                .filter(alive)
                .count(&self.pool.db())
                .await
        };
        self.pool
            .run(see)
            .await
            .map(|count| u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Removes windows that have ended and replicas that are gone.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn remove_old_windows(&self) -> Result<(), Error> {
        let long_ago = (self.clock.now() - TimeDelta::hours(1)).timestamp_millis();
        let remove = async {
            rate_window::Entity::delete_across_workspaces()
                .filter(rate_window::Column::EndsMs.lt(long_ago))
                .exec(&self.pool.db())
                .await?;
            replica::Entity::delete_many()
                .filter(replica::Column::SeenMs.lt(long_ago))
                .exec(&self.pool.db())
                .await
        };
        self.pool.run(remove).await.map(drop)
    }
}
