//! Reads when the next wave and the next retry are due, and the database's clock.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};

use crate::clock::{Clock, Sample, SystemClock};
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::cursor::Position;
use crate::store::schema::codec;
use crate::store::schema::statement::statement;

const NEXT_DUE: &str = "SELECT w.wake_ms, w.workspace_id, w.id, r.retry_ms, l.wake_ms \
     FROM (SELECT 1 AS one) AS o \
     LEFT JOIN (SELECT wake_ms, workspace_id, id FROM canvas_schedule_wake \
       WHERE (wake_ms, workspace_id, id) >= ($1, $2, $3) \
       ORDER BY wake_ms, workspace_id, id LIMIT 1) AS w ON true \
     LEFT JOIN (SELECT wake_ms FROM canvas_schedule_wake WHERE wake_ms > $5 \
       ORDER BY wake_ms LIMIT 1) AS l ON true \
     LEFT JOIN (SELECT retry_ms FROM dispatch WHERE retry_ms >= $4 \
       ORDER BY retry_ms LIMIT 1) AS r ON true";

const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8";

/// How long a poll may take. It is a short read, and polls are so frequent that the connection is
/// never checked for having been idle: an unanswered poll shows that it was dropped.
const POLL_TIMEOUT: Duration = Duration::from_secs(3);

/// When the dispatcher has something to do next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NextDue {
    /// When the first entry of the queue is due.
    pub wake: Option<DateTime<Utc>>,
    /// When the first entry that is not due yet will be due: those before it may be locked.
    pub later_wake: Option<DateTime<Utc>>,
    /// When the first retry is due.
    pub retry: Option<DateTime<Utc>>,
}

impl NextDue {
    /// Whether something is due at `now`.
    pub fn is_due(&self, now: DateTime<Utc>) -> bool {
        let first = self.wake.into_iter().chain(self.retry).min();
        first.is_some_and(|at| at <= now)
    }
}

impl DispatchStore {
    /// When the dispatcher has something to do next, as of `now`. Takes no locks.
    pub async fn next_due(&self, now: DateTime<Utc>) -> Result<NextDue, Error> {
        let read = async {
            let db = self.claiming.acquire().await?;
            let Position {
                wake: (wake_ms, workspace_id, id),
                retry_ms,
            } = self.cursor.start(Instant::now());
            let from = [
                wake_ms.into(),
                workspace_id.into(),
                id.into(),
                retry_ms.into(),
                now.timestamp_millis().into(),
            ];
            let row = db.query_one_raw(statement(&db, NEXT_DUE, from)).await?;
            drop(db);
            let Some(row) = row else {
                return Ok(NextDue::default());
            };
            let (wake_ms, retry_ms): (Option<i64>, Option<i64>) =
                (row.try_get_by_index(0)?, row.try_get_by_index(3)?);
            let wake = wake_ms.map(|wake_ms| {
                Ok::<_, DbErr>((wake_ms, row.try_get_by_index(1)?, row.try_get_by_index(2)?))
            });
            self.cursor.found(wake.transpose()?, retry_ms, now);
            let instant = |millis: Option<i64>| millis.and_then(DateTime::from_timestamp_millis);
            Ok(NextDue {
                wake: instant(wake_ms),
                later_wake: instant(row.try_get_by_index(4)?),
                retry: instant(retry_ms),
            })
        };
        self.claiming.run_within(POLL_TIMEOUT, read).await
    }

    /// Reads the clock that all replicas share: PostgreSQL's, or with SQLite the machine's.
    pub async fn sample_clock(&self) -> Result<Sample, Error> {
        if !self.other.is_postgres() {
            let asked = Instant::now();
            return Ok(Sample {
                time: SystemClock.now(),
                asked,
                answered: asked,
            });
        }
        let read = async {
            let db = self.other.acquire().await?;
            let asked = Instant::now();
            let row = db
                .query_one_raw(Statement::from_string(DbBackend::Postgres, CLOCK))
                .await?;
            let answered = Instant::now();
            let micros: i64 = row
                .map(|row| row.try_get_by_index(0))
                .transpose()?
                .unwrap_or_default();
            let time =
                DateTime::from_timestamp_micros(micros).ok_or_else(|| codec::broken(micros))?;
            Ok(Sample {
                time,
                asked,
                answered,
            })
        };
        self.other.run(read).await
    }
}
