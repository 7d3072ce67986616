//! When there is something to do next.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr, Statement};

use super::Store;
use super::error::public;
use crate::error::Error;

const NEXT: &str = "SELECT (SELECT wake_ms FROM canvas_schedule_wake ORDER BY wake_ms LIMIT 1) AS wake_ms, \
     (SELECT retry_ms FROM dispatch WHERE retry_ms IS NOT NULL ORDER BY retry_ms LIMIT 1) AS retry_ms";

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
            let db = &self.dispatching;
            let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), NEXT)).await?;
            let Some(row) = row else { return Ok(Next::default()) };
            let instant = |millis: Option<i64>| millis.and_then(DateTime::from_timestamp_millis);
            Ok(Next { wake: instant(row.try_get_by_index(0)?), retry: instant(row.try_get_by_index(1)?) })
        };
        read.await.map_err(|fault: DbErr| public(&fault))
    }
}
