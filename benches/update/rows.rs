//! The schedules in the database. Every value is a function of the schedule's number, so that the
//! databases, pgbench and the load generator compute the same one.

#![allow(dead_code, reason = "shared: each bench uses a part of it")]

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::settings::Workload;

/// The milliseconds in the id of schedule 0. Each further schedule is a millisecond later, so that
/// ids sort by creation.
const FIRST_MS: u64 = 1_752_346_656_768;
/// Spreads the numbers over the random part of the ids. Its product with the largest number is
/// below 2^63.
const SPREAD: u64 = 364_957_127_683;
/// The lower 47 bits. The 48th is always set, so that the part has twelve digits.
const LOW_47: u64 = (1 << 47) - 1;
/// Schedules share this many Canvases.
const CANVASES: u64 = 1000;
/// How far the first zone is ahead of UTC: 14 hours.
const FIRST_ZONE_MS: i64 = 14 * HOUR_MS;
const HOUR_MS: i64 = 3_600_000;

/// The columns of a revision, in the order of the `SELECT`s below.
const REVISION_COLUMNS: &str = "schedule_id, revision, created_ms, previous_ms, time_ms, commit_id, workspace_id, kind, in_local_time, \
     at_optimal_time, properties_id, actor";

/// The id of schedule `i`.
pub(crate) fn id(i: u64) -> String {
    let random = (i * SPREAD) & LOW_47 | (LOW_47 + 1);
    let millis = FIRST_MS + i;
    let id =
        uuid::Uuid::from_u128(u128::from(millis) << 80 | 0x7c0f_8a5e << 48 | u128::from(random));
    id.to_string()
}

/// The number of the schedule with this id.
pub(crate) fn number(id: &str) -> Option<u64> {
    let millis = u64::try_from(uuid::Uuid::parse_str(id).ok()?.as_u128() >> 80).ok()?;
    millis.checked_sub(FIRST_MS)
}

/// The Canvas of schedule `i`.
pub(crate) fn canvas(i: u64) -> String {
    format!("canvas-{}", i % CANVASES)
}

/// The times of schedules: from one day to 30 days ahead, so that none is missed in any zone,
/// however long the run takes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Times {
    /// The start of the run.
    pub now_ms: i64,
    /// Whether times are wall-clock times.
    pub local: bool,
}

impl Times {
    /// The times of a run that starts now.
    pub(crate) fn of(workload: Workload) -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            now_ms: i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            local: workload == Workload::Local,
        }
    }

    /// The earliest time.
    pub(crate) fn earliest_ms(&self) -> i64 {
        self.now_ms + 24 * HOUR_MS
    }

    /// The number of different times.
    pub(crate) fn span_ms(&self) -> i64 {
        29 * 24 * HOUR_MS
    }

    /// How long the first wave precedes the schedule's time.
    fn lead_ms(&self) -> i64 {
        if self.local { FIRST_ZONE_MS } else { 0 }
    }
}

/// The SQL dialects of the databases.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dialect {
    Postgres,
    Sqlite,
}

impl Dialect {
    /// An expression for the id of schedule `i`, where `i` is an expression.
    fn id(self, i: &str) -> String {
        let (millis, random) = (
            format!("{FIRST_MS} + {i}"),
            format!("(({i} * {SPREAD}) & {LOW_47}) | {}", LOW_47 + 1),
        );
        match self {
            Self::Postgres => {
                format!("('0' || to_hex({millis}) || '7c0f8a5e' || to_hex({random}))::uuid")
            }
            Self::Sqlite => format!("unhex(printf('0%x7c0f8a5e%x', {millis}, {random}))"),
        }
    }

    /// A table of these numbers as `i`, with the time of each as `t`.
    fn numbers(self, Range { start, end }: Range<u64>, time: &str) -> String {
        match self {
            Self::Postgres => format!(
                "(SELECT i, {time} AS t FROM generate_series({start}::bigint, {end} - 1) AS i) AS numbers"
            ),
            Self::Sqlite => format!(
                "(WITH RECURSIVE series (i) AS (SELECT {start} UNION ALL SELECT i + 1 FROM series WHERE i < {end} - 1) \
                  SELECT i, {time} AS t FROM series) AS numbers"
            ),
        }
    }
}

/// The statements that load `schedules` pending schedules, each at its first revision.
pub(crate) fn load(dialect: Dialect, schedules: u64, times: &Times) -> [String; 4] {
    let time = format!(
        "{} + (i * 2654435761) % {}",
        times.earliest_ms(),
        times.span_ms()
    );
    insert(dialect, 0..schedules, &time, times)
}

/// The statements that insert the schedules of these numbers, each at its first revision and
/// pending at `time`, an expression over its number `i`.
pub(crate) fn insert(
    dialect: Dialect,
    schedules: Range<u64>,
    time: &str,
    times: &Times,
) -> [String; 4] {
    let (id, numbers) = (dialect.id("i"), dialect.numbers(schedules, time));
    let Times { now_ms, local } = times;
    let (lead, missed_before) = (times.lead_ms(), now_ms - HOUR_MS);
    [
        format!(
            "INSERT INTO canvas_schedule (workspace_id, id, revision, version, time_ms, next_wave_ms, wake_ms, missed_before_ms, \
               created_ms, updated_ms, state, in_local_time, at_optimal_time, default_zone, canvas_id) \
             SELECT 1, {id}, 1, 1, t, t - {lead}, t - {lead}, {missed_before}, {now_ms}, {now_ms}, 0, {local}, false, 'UTC', \
               'canvas-' || (i % {CANVASES}) FROM {numbers}"
        ),
        format!(
            "INSERT INTO canvas_schedule_wake (wake_ms, workspace_id, id) SELECT t - {lead}, 1, {id} FROM {numbers}"
        ),
        format!(
            "INSERT INTO canvas_schedule_revision ({REVISION_COLUMNS}) \
             SELECT {id}, 1, {now_ms}, 0, t, i, 1, 0, {local}, false, NULL, 'anonymous' FROM {numbers}"
        ),
        format!(
            "INSERT INTO canvas_schedule_target (schedule_id, workspace_id, body) \
             SELECT {id}, 1, '{{\"recipients\":[],\"audience\":null,\"broadcast\":true}}' FROM {numbers}"
        ),
    ]
}

/// The baseline on PostgreSQL, for pgbench: the change of one row with its history, in one
/// statement.
pub(crate) fn pgbench_script(schedules: u64, times: &Times) -> String {
    let Times { now_ms, local } = times;
    let (from, lead) = (times.earliest_ms(), times.lead_ms());
    let id = Dialect::Postgres.id(":i");
    format!(
        "\\set i random(0, {schedules} - 1)\n\
         \\set time random({from}, {from} + {span} - 1)\n\
         \\set wave :time - {lead}\n\
         \\set now random({now_ms}, {now_ms} + 600000)\n\
         \\set late :now - {HOUR_MS}\n\
         \\set commit random(1, 9223372036854775806)\n\
         WITH moved AS (UPDATE canvas_schedule SET revision = revision + 1, version = version + 1, time_ms = :time, \
         in_local_time = {local}, at_optimal_time = false, state = 0, next_wave_ms = :wave, wake_ms = LEAST(wake_ms, :wave), \
         missed_before_ms = :late, updated_ms = :now, cancelled_ms = NULL, properties_id = properties_id \
         WHERE workspace_id = 1 AND id = {id} \
         RETURNING id, revision, updated_ms, time_ms, workspace_id, in_local_time, at_optimal_time, properties_id, \
         wake_ms, next_wave_ms), \
         wakes AS (INSERT INTO canvas_schedule_wake (wake_ms, workspace_id, id) \
         SELECT wake_ms, workspace_id, id FROM moved WHERE wake_ms = next_wave_ms ON CONFLICT DO NOTHING) \
         INSERT INTO canvas_schedule_revision ({REVISION_COLUMNS}) \
         SELECT id, revision, updated_ms, 0, time_ms, CAST(:commit AS bigint), workspace_id, 1, in_local_time, at_optimal_time, \
         properties_id, 'baseline' FROM moved;\n",
        span = times.span_ms(),
    )
}

/// The baseline on SQLite: the change of one row. Binds time, local, first wave, first wave, late,
/// now, id.
pub(crate) const SQLITE_UPDATE: &str = "UPDATE canvas_schedule SET revision = revision + 1, version = version + 1, time_ms = ?, \
     in_local_time = ?, at_optimal_time = false, state = 0, next_wave_ms = ?, wake_ms = min(wake_ms, ?), missed_before_ms = ?, \
     updated_ms = ?, cancelled_ms = NULL, properties_id = properties_id WHERE workspace_id = 1 AND id = ?";

/// The baseline on SQLite: the revision. Binds the commit and the id.
pub(crate) const SQLITE_HISTORY: &str = "INSERT INTO canvas_schedule_revision (schedule_id, revision, created_ms, previous_ms, time_ms, \
     commit_id, workspace_id, kind, in_local_time, at_optimal_time, properties_id, actor) \
     SELECT id, revision, updated_ms, 0, time_ms, ?, workspace_id, 1, in_local_time, at_optimal_time, properties_id, 'anonymous' \
     FROM canvas_schedule WHERE workspace_id = 1 AND id = ?";

/// The baseline on SQLite: the entry in the table of wakes. Binds the id.
pub(crate) const SQLITE_WAKE: &str = "INSERT OR IGNORE INTO canvas_schedule_wake (wake_ms, workspace_id, id) \
     SELECT wake_ms, workspace_id, id FROM canvas_schedule WHERE workspace_id = 1 AND id = ? AND wake_ms = next_wave_ms";

/// The values of one update on SQLite.
pub(crate) struct SqliteUpdate {
    /// The time.
    pub time_ms: i64,
    /// The first wave.
    pub wave_ms: i64,
    /// Earlier waves are missed.
    pub late_ms: i64,
}

impl Times {
    /// The values of an update with the time number `n`.
    pub(crate) fn sqlite_update(&self, n: i64) -> SqliteUpdate {
        let time_ms = self.earliest_ms() + n;
        SqliteUpdate {
            time_ms,
            wave_ms: time_ms - self.lead_ms(),
            late_ms: self.now_ms - HOUR_MS,
        }
    }
}

/// A fast random number generator (SplitMix64).
pub(crate) struct Random(pub u64);

impl Random {
    /// A random number below `bound`, which must not be 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
