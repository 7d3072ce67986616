//! Retention: removes schedules that finished long enough ago, with everything that belongs to
//! them, a few at a time.

use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ColumnTrait, ConnectionTrait, DbErr, QueryFilter, QueryOrder, QuerySelect};
use uuid::Uuid;

use crate::domain::WorkspaceId;
use crate::error::Error;
use crate::store::admin::AdminStore;
use crate::store::schema::answered::REQUEST_KEPT;
use crate::store::schema::history;
use crate::store::schema::load::{self, Lock, ScheduleKey};
use crate::store::schema::row::row;
use crate::store::schema::statement::OverBatch;
use crate::store::schema::tables::request;
use crate::store::schema::tenant::Tenant;

/// Schedules that may have finished long enough ago; the domain decides for each one.
const FINISHED: &str = "SELECT id, workspace_id FROM canvas_schedule WHERE finished_ms <= $1 \
     ORDER BY finished_ms LIMIT $2";
const CANCELLED: &str = "SELECT id, workspace_id FROM canvas_schedule WHERE cancelled_ms <= $1 \
     ORDER BY cancelled_ms LIMIT $2";

/// A schedule that still waits for the outcome of a dispatch is examined again after this.
const OUTCOME_RETRY_INTERVAL: TimeDelta = TimeDelta::hours(1);

row! {
    /// The finish time of a schedule that stays; NULL while it is open.
    struct RetainedSchedule {
        workspace_id: i32,
        id: Uuid,
        finished_ms: Option<i64>,
    }
}

static RETAIN: LazyLock<OverBatch<RetainedSchedule>> = LazyLock::new(|| {
    OverBatch::new(
        "UPDATE canvas_schedule AS s SET finished_ms = i.finished_ms FROM batch AS i \
             WHERE s.workspace_id = i.workspace_id AND s.id = i.id",
    )
});

/// Deletes the rows of schedules, the hot row last.
static REMOVE: LazyLock<[OverBatch<ScheduleKey>; 4]> = LazyLock::new(|| {
    let of = |columns: &str, table: &str| {
        OverBatch::new(&format!(
            "DELETE FROM {table} WHERE ({columns}) IN (SELECT workspace_id, id FROM batch)"
        ))
    };
    [
        of("workspace_id, schedule_id", "dispatch"),
        of("workspace_id, schedule_id", "canvas_schedule_properties"),
        of("workspace_id, schedule_id", "canvas_schedule_target"),
        of("workspace_id, id", "canvas_schedule"),
    ]
});

impl AdminStore {
    /// Removes up to `limit` stored answers that are older than a day, and returns how many.
    pub async fn remove_old_answers(&self, limit: u64) -> Result<usize, Error> {
        let oldest = self.clock.now().timestamp_millis()
            - i64::try_from(REQUEST_KEPT.as_millis()).unwrap_or(i64::MAX);
        let remove = async {
            let db = self.sessions.acquire().await?;
            let too_old = request::Column::CreatedMs.lte(oldest);
            let rows = request::Entity::across_workspaces()
                .filter(too_old.clone())
                .order_by_asc(request::Column::CreatedMs)
                .limit(limit);
            let rows = rows.all(&db).await?;
            for row in &rows {
                // Checks the age again: the id may have been reused since it was read.
                request::Entity::delete_within(WorkspaceId(row.workspace_id))
                    .filter(request::Column::RequestId.eq(row.request_id.as_str()))
                    .filter(too_old.clone())
                    .exec(&db)
                    .await?;
            }
            Ok(rows.len())
        };
        self.sessions.run(remove).await
    }

    /// Removes up to `limit` schedules that finished before `before`, and returns how many.
    pub async fn remove_finished(&self, before: DateTime<Utc>, limit: u64) -> Result<usize, Error> {
        let remove = async {
            let by_finish = self.remove_selected(FINISHED, before, limit).await?;
            Ok(by_finish + self.remove_selected(CANCELLED, before, limit).await?)
        };
        self.sessions.run(remove).await
    }

    async fn remove_selected(
        &self,
        query: &str,
        before: DateTime<Utc>,
        limit: u64,
    ) -> Result<usize, DbErr> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let db = self.sessions.begin().await?;
        let values = [before.timestamp_millis().into(), limit.into()];
        let keys = load::select_keys(&db, query, values).await?;
        let (mut removed, mut retained) = (vec![], vec![]);
        // Locked, so that none changes while it is removed. A later pass removes those that another
        // session has locked.
        let consequence = "it is not removed";
        for loaded in load::load_readable(&db, &keys, Lock::Skip, consequence).await? {
            let (key, schedule) = (loaded.key(), &loaded.schedule);
            match schedule.finished_since(&loaded.dispatches) {
                Some(since) if since <= before => removed.push(key),
                since => {
                    let waits = since.is_none() && schedule.next_wave.is_none();
                    let since = since.or(waits.then_some(before + OUTCOME_RETRY_INTERVAL));
                    retained.push(RetainedSchedule {
                        workspace_id: key.workspace_id,
                        id: key.id,
                        finished_ms: since.map(|since| since.timestamp_millis()),
                    });
                }
            }
        }
        remove_all(&db, &removed).await?;
        RETAIN.execute(&db, [], &retained).await?;
        db.commit().await?;
        Ok(removed.len())
    }
}

async fn remove_all<C: ConnectionTrait>(db: &C, keys: &[ScheduleKey]) -> Result<(), DbErr> {
    for key in keys {
        // The history first: it is found through the hot row.
        history::remove(db, *key, i64::MAX).await?;
    }
    for part in &*REMOVE {
        part.execute(db, [], keys).await?;
    }
    Ok(())
}
