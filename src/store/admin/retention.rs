//! Retention: removes schedules that finished long enough ago, with everything that belongs to
//! them, a few at a time.

use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbErr};
use uuid::Uuid;

use crate::error::Error;
use crate::store::admin::AdminStore;
use crate::store::schema::answered::REQUEST_KEPT;
use crate::store::schema::history;
use crate::store::schema::load::{self, Lock, ScheduleKey};
use crate::store::schema::row::row;
use crate::store::schema::statement::{OverBatch, Texts, skip_locked};
use crate::store::session::error::lock_timed_out;

/// Schedules that may have finished long enough ago; the domain decides for each one.
static FINISHED: LazyLock<Texts> =
    LazyLock::new(|| load::selection("finished_ms <= $1 ORDER BY finished_ms"));
static CANCELLED: LazyLock<Texts> =
    LazyLock::new(|| load::selection("cancelled_ms <= $1 ORDER BY cancelled_ms"));

/// The request may have been answered again since, under the same id.
static OLD_ANSWERS: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let skip = skip_locked(backend, "r");
        format!(
            "DELETE FROM answered_request WHERE (workspace_id, request_id) IN ( \
               SELECT r.workspace_id, r.request_id FROM answered_request r \
               WHERE r.created_ms <= $1 ORDER BY r.created_ms LIMIT $2 {skip} \
             ) AND created_ms <= $1"
        )
    })
});

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
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let remove = async {
            let db = self.sessions.acquire().await?;
            let values = [oldest.into(), limit.into()];
            let remove = OLD_ANSWERS.with(db.get_database_backend(), values);
            let removed = db.execute_raw(remove).await?.rows_affected();
            Ok(usize::try_from(removed).unwrap_or(usize::MAX))
        };
        self.sessions.run(remove).await
    }

    /// Removes up to `limit` schedules that finished before `before`, and returns how many.
    pub async fn remove_finished(&self, before: DateTime<Utc>, limit: u64) -> Result<usize, Error> {
        let remove = async {
            let by_finish = self.remove_selected(&FINISHED, before, limit).await?;
            Ok(by_finish + self.remove_selected(&CANCELLED, before, limit).await?)
        };
        self.sessions.run(remove).await
    }

    async fn remove_selected(
        &self,
        query: &Texts,
        before: DateTime<Utc>,
        limit: u64,
    ) -> Result<usize, DbErr> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let db = self.sessions.acquire().await?;
        let values = [before.timestamp_millis().into(), limit.into()];
        let keys = load::select_keys(&db, query, values).await?;
        drop(db);
        match self.remove(&keys, before).await {
            Err(fault) if lock_timed_out(&fault) => self.remove_one_by_one(&keys, before).await,
            done => done,
        }
    }

    /// Keeps rows that another session has locked, and that belong to one schedule, from holding up
    /// all others.
    async fn remove_one_by_one(
        &self,
        keys: &[ScheduleKey],
        before: DateTime<Utc>,
    ) -> Result<usize, DbErr> {
        let mut removed = 0;
        for key in keys {
            match self.remove(std::slice::from_ref(key), before).await {
                Err(fault) if lock_timed_out(&fault) => tracing::warn!(
                    schedule_id = %key.id,
                    "a finished schedule is not removed yet, since another session locks its rows"
                ),
                done => removed += done?,
            }
        }
        Ok(removed)
    }

    /// Removes those that finished before `before`, and returns how many.
    async fn remove(&self, keys: &[ScheduleKey], before: DateTime<Utc>) -> Result<usize, DbErr> {
        let db = self.sessions.begin().await?;
        let (mut removed, mut retained) = (vec![], vec![]);
        // Locked, so that none changes while it is removed. A later pass removes those that another
        // session has locked.
        let consequence = "it is not removed";
        for loaded in load::load_readable(&db, keys, Lock::Skip, consequence).await? {
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
        let written = async {
            remove_all(&db, &removed).await?;
            RETAIN.execute(&db, [], &retained).await
        };
        if let Err(fault) = written.await {
            db.abandon(&fault).await;
            return Err(fault);
        }
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
