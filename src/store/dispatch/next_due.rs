//! When there is something to do next, and what time it is.

use std::time::Instant;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};

use crate::clock::{Clock, Sample, SystemClock};
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::cursor::Mark;
use crate::store::schema::codec;

const NEXT: &str = "SELECT w.wake_ms, w.workspace_id, w.id, r.retry_ms FROM (SELECT 1 AS one) AS o \
     LEFT JOIN (SELECT wake_ms, workspace_id, id FROM canvas_schedule_wake WHERE (wake_ms, workspace_id, id) >= ($1, $2, $3) \
       ORDER BY wake_ms, workspace_id, id LIMIT 1) AS w ON true \
     LEFT JOIN (SELECT retry_ms FROM dispatch WHERE retry_ms >= $4 ORDER BY retry_ms LIMIT 1) AS r ON true";

const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8";

/// When there is something to do next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Next {
    /// When a schedule is to be looked at.
    pub wake: Option<DateTime<Utc>>,
    /// When a dispatch is to be looked at again.
    pub retry: Option<DateTime<Utc>>,
}

impl DispatchStore {
    /// When there is something to do next, as seen at `now`. Locks nothing.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn next_due(&self, now: DateTime<Utc>) -> Result<Next, Error> {
        let read = async {
            let db = self.claiming.acquire().await?;
            let Mark {
                wake: (wake_ms, workspace_id, id),
                retry_ms,
            } = self.heads.begin(Instant::now());
            let from = [
                wake_ms.into(),
                workspace_id.into(),
                id.into(),
                retry_ms.into(),
            ];
            let row = db
                .query_one_raw(Statement::from_sql_and_values(
                    db.get_database_backend(),
                    NEXT,
                    from,
                ))
                .await?;
            db.release();
            let Some(row) = row else {
                return Ok(Next::default());
            };
            let (wake_ms, retry_ms): (Option<i64>, Option<i64>) =
                (row.try_get_by_index(0)?, row.try_get_by_index(3)?);
            let wake = wake_ms.map(|wake_ms| {
                Ok::<_, DbErr>((wake_ms, row.try_get_by_index(1)?, row.try_get_by_index(2)?))
            });
            self.heads.found(wake.transpose()?, retry_ms, now);
            let instant = |millis: Option<i64>| millis.and_then(DateTime::from_timestamp_millis);
            Ok(Next {
                wake: instant(wake_ms),
                retry: instant(retry_ms),
            })
        };
        self.pool.run(read).await
    }

    /// Looks at the clock that all replicas share: PostgreSQL's, or the machine's where the database is a file on it.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn look_at_clock(&self) -> Result<Sample, Error> {
        let db = &self.pool.db();
        let asked = Instant::now();
        if db.get_database_backend() != DbBackend::Postgres {
            return Ok(Sample {
                time: SystemClock.now(),
                asked,
                told: asked,
            });
        }
        let read = async {
            let row = db
                .query_one_raw(Statement::from_string(DbBackend::Postgres, CLOCK))
                .await?;
            let told = Instant::now();
            let micros: i64 = row
                .map(|row| row.try_get_by_index(0))
                .transpose()?
                .unwrap_or_default();
            let time =
                DateTime::from_timestamp_micros(micros).ok_or_else(|| codec::broken(micros))?;
            Ok(Sample { time, asked, told })
        };
        self.pool.run(read).await
    }
}
