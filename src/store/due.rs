//! When there is something to do next, and what time it is.

use std::time::Instant;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, Statement};

use super::{Store, convert};
use crate::clock::{Clock, Sample, SystemClock};
use crate::error::Error;

const NEXT: &str = "SELECT (SELECT wake_ms FROM canvas_schedule_wake ORDER BY wake_ms LIMIT 1) AS wake_ms, \
     (SELECT retry_ms FROM dispatch WHERE retry_ms IS NOT NULL ORDER BY retry_ms LIMIT 1) AS retry_ms";

const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8";

/// When there is something to do next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Next {
    /// When a schedule is to be looked at.
    pub wake: Option<DateTime<Utc>>,
    /// When a dispatch is to be looked at again.
    pub retry: Option<DateTime<Utc>>,
}

impl Store {
    /// When there is something to do next. Locks nothing.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn next_due(&self) -> Result<Next, Error> {
        let read = async {
            let db = self.firing.connection().await?;
            let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), NEXT)).await?;
            db.done();
            let Some(row) = row else { return Ok(Next::default()) };
            let instant = |millis: Option<i64>| millis.and_then(DateTime::from_timestamp_millis);
            Ok(Next { wake: instant(row.try_get_by_index(0)?), retry: instant(row.try_get_by_index(1)?) })
        };
        self.link.in_time(read).await
    }

    /// Looks at the clock that all replicas share: PostgreSQL's, or the machine's where the database is a file on it.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn look_at_clock(&self) -> Result<Sample, Error> {
        let db = &self.link.db();
        let asked = Instant::now();
        if db.get_database_backend() != DbBackend::Postgres {
            return Ok(Sample { time: SystemClock.now(), asked, told: asked });
        }
        let read = async {
            let row = db.query_one_raw(Statement::from_string(DbBackend::Postgres, CLOCK)).await?;
            let told = Instant::now();
            let micros: i64 = row.map(|row| row.try_get_by_index(0)).transpose()?.unwrap_or_default();
            let time = DateTime::from_timestamp_micros(micros).ok_or_else(|| convert::broken(micros))?;
            Ok(Sample { time, asked, told })
        };
        self.link.in_time(read).await
    }
}
