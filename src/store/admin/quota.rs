//! The quotas that all replicas share, and the replicas that are alive.

use std::sync::LazyLock;

use chrono::TimeDelta;
use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter,
};
use uuid::Uuid;

use crate::domain::{Quota, QuotaRequest, WorkspaceId};
use crate::error::{Error, StoreOutage};
use crate::store::admin::AdminStore;
use crate::store::schema::statement::{Texts, skip_locked};
use crate::store::schema::tables::{rate_window, replica};
use crate::store::schema::tenant::Tenant;
use crate::store::session::error::unavailable;

/// A replica that has recorded no sign of life for this long gets no share.
const REPLICA_TIMEOUT: TimeDelta = TimeDelta::seconds(30);
/// Attempts to write a count that other replicas write too.
const MAX_ROUNDS: usize = 50;

static OLD_WINDOWS: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let skip = skip_locked(backend, "w");
        format!(
            "DELETE FROM rate_window WHERE (workspace_id, counted, began_ms) IN ( \
               SELECT w.workspace_id, w.counted, w.began_ms FROM rate_window w \
               WHERE w.ends_ms < $1 {skip})"
        )
    })
});

static OLD_REPLICAS: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let skip = skip_locked(backend, "r");
        format!(
            "DELETE FROM replica WHERE id IN (SELECT r.id FROM replica r WHERE r.seen_ms < $1 {skip})"
        )
    })
});

/// The calls that were counted against a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaTaken {
    /// By this call.
    pub got: u64,
    /// By all replicas.
    pub in_all: u64,
}

impl AdminStore {
    /// Takes `ask` calls, or some of them, from the window of a quota for this process, which is
    /// one of `replicas`. Takes nothing if less is left than one call needs.
    pub async fn take_quota(
        &self,
        workspace: WorkspaceId,
        counted: &str,
        began_ms: i64,
        quota: Quota,
        ask: QuotaRequest,
        replicas: u32,
    ) -> Result<QuotaTaken, Error> {
        for _ in 0..MAX_ROUNDS {
            let taken = self
                .sessions
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
            if self.sessions.run(self.write_count(taken, row)).await? {
                return Ok(after);
            }
        }
        Err(unavailable(StoreOutage::Locked))
    }

    async fn taken(
        &self,
        workspace: WorkspaceId,
        counted: &str,
        began_ms: i64,
    ) -> Result<Option<i64>, DbErr> {
        let db = self.sessions.acquire().await?;
        let row = rate_window::Entity::within(workspace)
            .filter(rate_window::Column::Counted.eq(counted))
            .filter(rate_window::Column::BeganMs.eq(began_ms))
            .one(&db)
            .await?;
        Ok(row.map(|row| row.taken))
    }

    /// Writes the count unless another replica has written it since it was read. Returns whether
    /// it was written.
    async fn write_count(
        &self,
        before: Option<i64>,
        row: rate_window::Model,
    ) -> Result<bool, DbErr> {
        let db = self.sessions.acquire().await?;
        let written = match before {
            None => {
                let key = [
                    rate_window::Column::WorkspaceId,
                    rate_window::Column::Counted,
                    rate_window::Column::BeganMs,
                ];
                let keep = OnConflict::columns(key).do_nothing().to_owned();
                let insert = rate_window::Entity::insert(row.into_active_model()).on_conflict(keep);
                match insert.exec_without_returning(&db).await {
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
                update.exec(&db).await?.rows_affected
            }
        };
        Ok(written == 1)
    }

    /// Records that this replica is alive, and returns the number of replicas that are.
    pub async fn see_replica(&self, id: Uuid) -> Result<u32, Error> {
        let now = self.clock.now();
        let see = async {
            let db = self.sessions.acquire().await?;
            let row = replica::Model {
                id,
                seen_ms: now.timestamp_millis(),
            };
            let update = OnConflict::column(replica::Column::Id)
                .update_column(replica::Column::SeenMs)
                .to_owned();
            replica::Entity::insert(row.into_active_model())
                .on_conflict(update)
                .exec_without_returning(&db)
                .await?;
            let alive = replica::Column::SeenMs.gt((now - REPLICA_TIMEOUT).timestamp_millis());
            replica::Entity::find().filter(alive).count(&db).await
        };
        self.sessions
            .run(see)
            .await
            .map(|count| u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Deletes the windows that ended, and the replicas that were last seen, more than an hour ago.
    pub async fn remove_old_windows(&self) -> Result<(), Error> {
        let long_ago = (self.clock.now() - TimeDelta::hours(1)).timestamp_millis();
        let remove = async {
            let db = self.sessions.acquire().await?;
            for old in [&*OLD_WINDOWS, &*OLD_REPLICAS] {
                let remove = old.with(db.get_database_backend(), [long_ago.into()]);
                db.execute_raw(remove).await?;
            }
            Ok(())
        };
        self.sessions.run(remove).await
    }
}
