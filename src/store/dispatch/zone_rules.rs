//! Waiting schedules and the zone data that their next wave was computed with (docs/adr/0005). The newest data that any
//! dispatcher has lately said it has is in force: who has it recomputes what was computed with other data, who has older data leaves alone
//! what was computed with newer.

use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbErr, Statement};
use uuid::Uuid;

use crate::domain::zone;
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::rows::{self, ScheduleKey};
use crate::store::dispatch::transitions::Moves;
use crate::store::schema::load::{self, Lock};
use crate::store::schema::statement::OverBatch;

/// How long what a dispatcher has said counts.
const COUNTS_FOR: TimeDelta = TimeDelta::minutes(1);

const ANNOUNCE: &str = "INSERT INTO zone_rules (number, version, seen_ms) VALUES ($1, $2, $3) \
     ON CONFLICT (number) DO UPDATE SET seen_ms = excluded.seen_ms";

const IN_FORCE: &str = "SELECT max(number) FROM zone_rules WHERE seen_ms > $1";

/// In the text of their index.
const OLDER: &str = "SELECT workspace_id, id FROM canvas_schedule \
     WHERE state <= 1 AND (in_local_time OR at_optimal_time) AND zone_rules < $1 LIMIT $2";
const NEWER: &str = "SELECT workspace_id, id FROM canvas_schedule \
     WHERE state <= 1 AND (in_local_time OR at_optimal_time) AND zone_rules > $1 LIMIT $2";

static STAMP: LazyLock<OverBatch<ScheduleKey>> = LazyLock::new(|| {
    OverBatch::after(
        1,
        "UPDATE canvas_schedule AS s SET zone_rules = $1 FROM batch AS k WHERE s.workspace_id = k.workspace_id AND s.id = k.id",
    )
});

impl DispatchStore {
    /// Says which zone data this build has, and answers the number of the newest that is in force.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn announce_zone_rules(&self, now: DateTime<Utc>) -> Result<i32, Error> {
        let announce = async {
            let db = &self.pool.db();
            let backend = db.get_database_backend();
            let own = [
                zone::data_number().into(),
                zone::data_version().into(),
                now.timestamp_millis().into(),
            ];
            db.execute_raw(Statement::from_sql_and_values(backend, ANNOUNCE, own))
                .await?;
            let since = [(now - COUNTS_FOR).timestamp_millis().into()];
            let row = db
                .query_one_raw(Statement::from_sql_and_values(backend, IN_FORCE, since))
                .await?;
            let newest: Option<i32> = row
                .map(|row| row.try_get_by_index(0))
                .transpose()?
                .flatten();
            Ok(newest.unwrap_or_else(zone::data_number))
        };
        self.pool.run(announce).await
    }

    /// Computes the next waves of up to `most` waiting schedules anew that were computed with other zone data than ours, and
    /// answers how many.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn recompute(&self, now: DateTime<Utc>, most: u64) -> Result<usize, Error> {
        let recompute = async {
            Ok(self.recompute_those(OLDER, now, most).await?
                + self.recompute_those(NEWER, now, most).await?)
        };
        self.pool.run(recompute).await
    }

    async fn recompute_those(
        &self,
        which: &str,
        now: DateTime<Utc>,
        most: u64,
    ) -> Result<usize, DbErr> {
        let values = [
            zone::data_number().into(),
            i64::try_from(most).unwrap_or(i64::MAX).into(),
        ];
        let db = self.pool.begin().await?;
        let found = db
            .query_all_raw(Statement::from_sql_and_values(
                db.get_database_backend(),
                which,
                values,
            ))
            .await?;
        let mut keys: Vec<(i32, Uuid)> = vec![];
        for row in found {
            keys.push((row.try_get_by_index(0)?, row.try_get_by_index(1)?));
        }
        if keys.is_empty() {
            db.rollback().await?;
            return Ok(0);
        }
        keys.sort_unstable_by_key(|(_, id)| *id);
        let rows = load::read_rows(&db, &keys, Lock::Skip).await?;
        let mut dispatches = rows::of_rows(&db, rows.iter()).await?;
        let mut moves = Moves::default();
        for row in rows {
            let of_row = dispatches.remove(&row.id).unwrap_or_default();
            let schedule = match rows::schedule(row.clone(), of_row) {
                Ok((schedule, _)) => schedule,
                Err(fault) => {
                    tracing::error!(schedule_id = %row.id, %fault, "a waiting schedule cannot be read, so it is not recomputed");
                    continue;
                }
            };
            moves.row(
                &row,
                &schedule.replanned(),
                None,
                now.timestamp_millis(),
                None,
            )?;
        }
        let moved = moves.write(&db).await?;
        db.commit().await?;
        Ok(moved.len())
    }
}

/// Marks schedules as computed with our zone data, in the transaction that changes them.
///
/// # Errors
/// What the database says.
pub(crate) async fn stamp<C: ConnectionTrait>(db: &C, keys: &[ScheduleKey]) -> Result<(), DbErr> {
    STAMP.execute(db, [zone::data_number().into()], keys).await
}
