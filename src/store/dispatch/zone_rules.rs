//! Zone data of several releases at the same time (docs/adr/0006). A schedule's next wave is
//! computed with some version of the zone data. The newest version that any dispatcher has
//! announced lately is in force. A dispatcher that has it recomputes waves that were computed with
//! another version; one that has an older version leaves waves of a newer one alone.

use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbErr};

use crate::domain::zone;
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::transitions::{Taken, Transitions};
use crate::store::schema::load::{self, Lock, ScheduleKey};
use crate::store::schema::statement::{OverBatch, Texts, statement};

/// How long an announcement holds.
const ANNOUNCEMENT_LIFETIME: TimeDelta = TimeDelta::minutes(1);

const ANNOUNCE: &str = "INSERT INTO zone_rules (number, version, seen_ms) VALUES ($1, $2, $3) \
     ON CONFLICT (number) DO UPDATE SET seen_ms = excluded.seen_ms";

const IN_FORCE: &str = "SELECT max(number) FROM zone_rules WHERE seen_ms > $1";

static OLDER: LazyLock<Texts> = LazyLock::new(|| waiting("zone_rules < $1"));
static NEWER: LazyLock<Texts> = LazyLock::new(|| waiting("zone_rules > $1"));

/// Selects waiting schedules, with the condition of their partial index.
fn waiting(condition: &str) -> Texts {
    load::selection(&format!(
        "state <= 1 AND (in_local_time OR at_optimal_time) AND {condition}"
    ))
}

static STAMP: LazyLock<OverBatch<ScheduleKey>> = LazyLock::new(|| {
    OverBatch::after(
        1,
        "UPDATE canvas_schedule AS s SET zone_rules = $1 FROM batch AS k \
         WHERE s.workspace_id = k.workspace_id AND s.id = k.id",
    )
});

impl DispatchStore {
    /// Announces this build's zone data, and returns the number of the newest that is in force.
    pub async fn announce_zone_rules(&self, now: DateTime<Utc>) -> Result<i32, Error> {
        let announce = async {
            let db = &self.other.acquire().await?;
            let own = [
                zone::data_number().into(),
                zone::data_version().into(),
                now.timestamp_millis().into(),
            ];
            db.execute_raw(statement(db, ANNOUNCE, own)).await?;
            let since = [(now - ANNOUNCEMENT_LIFETIME).timestamp_millis().into()];
            let row = db.query_one_raw(statement(db, IN_FORCE, since)).await?;
            let newest: Option<i32> = row
                .map(|row| row.try_get_by_index(0))
                .transpose()?
                .flatten();
            Ok(newest.unwrap_or_else(zone::data_number))
        };
        self.other.run(announce).await
    }

    /// Recomputes the next waves of up to `limit` waiting schedules that were computed with other
    /// zone data than this build's, and returns how many it wrote.
    pub async fn recompute(&self, now: DateTime<Utc>, limit: u64) -> Result<usize, Error> {
        let recompute = async {
            Ok(self.recompute_selected(&OLDER, now, limit).await?
                + self.recompute_selected(&NEWER, now, limit).await?)
        };
        self.other.run(recompute).await
    }

    async fn recompute_selected(
        &self,
        query: &Texts,
        now: DateTime<Utc>,
        limit: u64,
    ) -> Result<usize, DbErr> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let db = self.other.begin().await?;
        let values = [zone::data_number().into(), limit.into()];
        let keys = load::select_keys(&db, query, values).await?;
        let consequence = "its next wave is not recomputed";
        let mut transitions = Transitions::default();
        for loaded in load::load_readable(&db, &keys, Lock::None, consequence).await? {
            let replanned = loaded.schedule.replanned();
            transitions.push(&loaded.row, &replanned, None, now, Taken::default())?;
        }
        let written = transitions.write(&db).await?;
        db.commit().await?;
        Ok(written.len())
    }
}

/// Marks schedules as computed with this build's zone data, in the transaction that changes them.
pub(crate) async fn stamp<C: ConnectionTrait>(db: &C, keys: &[ScheduleKey]) -> Result<(), DbErr> {
    STAMP.execute(db, [zone::data_number().into()], keys).await
}
