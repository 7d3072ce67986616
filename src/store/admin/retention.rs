//! Retention: what has been finished for long enough is removed with everything that belongs to it, a few at a time.

use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, QueryFilter, QueryOrder, QuerySelect, Statement,
};
use uuid::Uuid;

use crate::domain::WorkspaceId;
use crate::error::Error;
use crate::store::admin::AdminStore;
use crate::store::dispatch::rows::{self, ScheduleKey};
use crate::store::schema::answered::REQUEST_KEPT;
use crate::store::schema::history;
use crate::store::schema::load::{self, Lock};
use crate::store::schema::row::row;
use crate::store::schema::statement::OverBatch;
use crate::store::schema::tables::request;
use crate::store::schema::tenant::Tenant;
use crate::store::session::error::public;

/// Those that have had no wave to come for long enough, as the dispatcher saw them; the domain decides each.
const CANDIDATES: &str = "SELECT workspace_id, id FROM canvas_schedule WHERE finished_ms <= $1 ORDER BY finished_ms LIMIT $2";
const CANCELLED: &str = "SELECT workspace_id, id FROM canvas_schedule WHERE cancelled_ms <= $1 ORDER BY cancelled_ms LIMIT $2";

/// After how long a schedule that waits for the outcome of a dispatch is looked at again.
const OUTCOME_REST: TimeDelta = TimeDelta::hours(1);

row! {
    /// Since when a row that is kept is finished; null when it is not.
    struct Kept {
        workspace_id: i32,
        id: Uuid,
        finished_ms: Option<i64>,
    }
}

impl Kept {
    fn of(key: ScheduleKey, since: Option<DateTime<Utc>>) -> Self {
        Self {
            workspace_id: key.workspace_id,
            id: key.id,
            finished_ms: since.map(|since| since.timestamp_millis()),
        }
    }
}

static KEEP: LazyLock<OverBatch<Kept>> = LazyLock::new(|| {
    OverBatch::new(
        "UPDATE canvas_schedule AS s SET finished_ms = i.finished_ms FROM batch AS i \
             WHERE s.workspace_id = i.workspace_id AND s.id = i.id",
    )
});

/// What belongs to a schedule, and itself last.
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
    /// Removes up to `most` first answers that are older than a day, and answers how many.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn remove_old_answers(&self, most: u64) -> Result<usize, Error> {
        let oldest = self.clock.now().timestamp_millis()
            - i64::try_from(REQUEST_KEPT.as_millis()).unwrap_or(i64::MAX);
        let remove = async {
            let too_old = request::Column::CreatedMs.lte(oldest);
            let rows = request::Entity::across_workspaces()
                .filter(too_old.clone())
                .order_by_asc(request::Column::CreatedMs)
                .limit(most);
            let rows = rows.all(&self.reads).await?;
            for row in &rows {
                // Its age again: the id may have been used anew since it was read.
                request::Entity::delete_within(WorkspaceId(row.workspace_id))
                    .filter(request::Column::RequestId.eq(row.request_id.as_str()))
                    .filter(too_old.clone())
                    .exec(&self.reads)
                    .await?;
            }
            Ok(rows.len())
        };
        remove.await.map_err(|fault: DbErr| public(&fault))
    }

    /// Removes up to `most` schedules that have been finished since before `before`, and answers how many it looked at.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn remove_finished(&self, before: DateTime<Utc>, most: u64) -> Result<usize, Error> {
        let remove = async {
            let by_finish = self.remove_candidates(CANDIDATES, before, most).await?;
            Ok(by_finish + self.remove_candidates(CANCELLED, before, most).await?)
        };
        self.pool.run(remove).await
    }

    async fn remove_candidates(
        &self,
        candidates: &str,
        before: DateTime<Utc>,
        most: u64,
    ) -> Result<usize, DbErr> {
        let db = self.pool.begin().await?;
        let values = [
            before.timestamp_millis().into(),
            i64::try_from(most).unwrap_or(i64::MAX).into(),
        ];
        let found = db
            .query_all_raw(Statement::from_sql_and_values(
                db.get_database_backend(),
                candidates,
                values,
            ))
            .await?;
        let mut keys = found
            .iter()
            .map(|row| Ok((row.try_get_by_index(0)?, row.try_get_by_index(1)?)))
            .collect::<Result<Vec<_>, DbErr>>()?;
        keys.sort_unstable_by_key(|(_, id)| *id);
        if keys.is_empty() {
            db.rollback().await?;
            return Ok(0);
        }
        // Locked, so that none is changed while it is removed; those in other hands are left to the next pass.
        let rows = load::read_rows(&db, &keys, Lock::Skip).await?;
        let mut dispatches = rows::of_rows(&db, rows.iter()).await?;
        let (mut removed, mut kept) = (vec![], vec![]);
        for row in rows {
            let key = ScheduleKey::of(&row);
            let (schedule, firings) = match rows::schedule(
                row,
                dispatches.remove(&key.id).unwrap_or_default(),
            ) {
                Ok(read) => read,
                Err(fault) => {
                    tracing::error!(schedule_id = %key.id, %fault, "a finished schedule cannot be read, so it is kept");
                    continue;
                }
            };
            match schedule.finished_since(&firings) {
                Some(since) if since <= before => removed.push(key),
                None if schedule.next_wave.is_none() => {
                    kept.push(Kept::of(key, Some(before + OUTCOME_REST)))
                }
                since => kept.push(Kept::of(key, since)),
            }
        }
        remove_all(&db, &removed).await?;
        KEEP.execute(&db, [], &kept).await?;
        db.commit().await?;
        Ok(removed.len())
    }
}

async fn remove_all<C: ConnectionTrait>(db: &C, keys: &[ScheduleKey]) -> Result<(), DbErr> {
    for key in keys {
        // From the hot row back, so before it.
        history::remove(db, key.pair(), i64::MAX).await?;
    }
    for part in &*REMOVE {
        part.execute(db, [], keys).await?;
    }
    Ok(())
}
