//! Rows that move on by no change of a caller: to their next wave, to open zones again, to newer zone rules. Each is guarded by the
//! version that was read, and moves it, so that a change that was decided meanwhile is decided again.

use std::collections::HashSet;
use std::sync::LazyLock;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};
use serde::Serialize;
use uuid::Uuid;

use super::convert;
use super::dispatches::{DISPATCH, ScheduleKey};
use super::entity::{canvas_schedule, dispatch, wake};
use super::rows::{Columns, Kind, Texts, json, names, table};
use crate::domain::{CanvasSchedule, zone};

/// What one transaction moves.
#[derive(Default)]
pub struct Moves {
    /// Each row once as it is to be, but for its `version`, which is the one that was read.
    pub rows: Vec<Move>,
    /// Entries of the queue that were taken, to be removed with their row's move.
    pub taken: Vec<wake::Model>,
    /// Entries to be added with their row's move; none is among those taken.
    pub added: Vec<wake::Model>,
    /// Dispatches to be added with their schedule's move.
    pub fired: Vec<dispatch::Model>,
}

/// One row as it is to be.
#[derive(Debug, Clone, Serialize)]
pub struct Move {
    workspace_id: i32,
    id: Uuid,
    version: i64,
    state: i16,
    next_wave_ms: Option<i64>,
    wake_ms: Option<i64>,
    fired: i32,
    zone_rules: i32,
    finished_ms: Option<i64>,
}

const MOVE: Columns = &[
    ("workspace_id", Kind::Int),
    ("id", Kind::Uuid),
    ("version", Kind::Big),
    ("state", Kind::Small),
    ("next_wave_ms", Kind::Big),
    ("wake_ms", Kind::Big),
    ("fired", Kind::Int),
    ("zone_rules", Kind::Int),
    ("finished_ms", Kind::Big),
];

/// An entry of the queue.
pub const WAKE: Columns = &[("wake_ms", Kind::Big), ("workspace_id", Kind::Int), ("id", Kind::Uuid)];

const ROWS: &str = "UPDATE canvas_schedule AS s SET version = s.version + 1, state = i.state, next_wave_ms = i.next_wave_ms, \
       wake_ms = i.wake_ms, fired = i.fired, zone_rules = i.zone_rules, finished_ms = i.finished_ms \
     FROM i WHERE s.workspace_id = i.workspace_id AND s.id = i.id AND s.version = i.version";

const TAKEN: &str = "DELETE FROM canvas_schedule_wake WHERE (wake_ms, workspace_id, id) IN \
     (SELECT t.wake_ms, t.workspace_id, t.id FROM t JOIN moved m ON m.workspace_id = t.workspace_id AND m.id = t.id)";

const ADDED: &str = "INSERT INTO canvas_schedule_wake (wake_ms, workspace_id, id) \
     SELECT a.wake_ms, a.workspace_id, a.id FROM a JOIN moved m ON m.workspace_id = a.workspace_id AND m.id = a.id \
     WHERE true ON CONFLICT DO NOTHING";

static FIRED: LazyLock<String> = LazyLock::new(|| {
    let (names, values) = (names(DISPATCH, ""), names(DISPATCH, "f."));
    format!(
        "INSERT INTO dispatch ({names}) SELECT {values} FROM f \
         JOIN moved m ON m.workspace_id = f.workspace_id AND m.id = f.schedule_id"
    )
});

fn tables(backend: DbBackend) -> String {
    let tables = [("i", MOVE), ("t", WAKE), ("a", WAKE), ("f", DISPATCH)];
    let tables = tables.iter().enumerate().map(|(n, (name, columns))| table(backend, name, columns, n + 1));
    tables.collect::<Vec<_>>().join(", ")
}

/// One statement, one round trip.
static POSTGRES: LazyLock<String> = LazyLock::new(|| {
    let tables = tables(DbBackend::Postgres);
    format!(
        "WITH {tables}, moved AS ({ROWS} RETURNING s.workspace_id, s.id), taken AS ({TAKEN}), added AS ({ADDED}), \
         fired AS ({}) SELECT id FROM moved",
        *FIRED
    )
});

/// One after the other, under the one write lock, so that every row still has the version that was read.
static SQLITE: LazyLock<[String; 4]> = LazyLock::new(|| {
    let tables = tables(DbBackend::Sqlite);
    let with_moved = |part: &str| format!("WITH {tables}, moved AS (SELECT workspace_id, id FROM i) {part}");
    [format!("WITH {tables} {ROWS}"), with_moved(TAKEN), with_moved(ADDED), with_moved(&FIRED)]
});

impl Moves {
    /// Moves a row to `after`, looked at next when its next wave is due, or at `look_ms` where that is given.
    pub fn row(&mut self, before: &canvas_schedule::Model, after: &CanvasSchedule, look_ms: Option<i64>, now_ms: i64) -> Result<(), DbErr> {
        let next_wave_ms = after.next_wave.map(|at| at.timestamp_millis());
        let wake_ms = next_wave_ms.map(|next| look_ms.unwrap_or(next));
        if let Some(wake_ms) = wake_ms {
            self.look(wake::Model { wake_ms, workspace_id: before.workspace_id, id: before.id });
        }
        self.rows.push(Move {
            workspace_id: before.workspace_id,
            id: before.id,
            version: before.version,
            state: convert::state_code(after.state()),
            next_wave_ms,
            wake_ms,
            fired: convert::signed(after.fired)?,
            zone_rules: zone::data_number(),
            finished_ms: match (before.next_wave_ms, next_wave_ms) {
                (_, Some(_)) => None,
                (None, None) => before.finished_ms.or(Some(now_ms)),
                (Some(_), None) => Some(now_ms),
            },
        });
        Ok(())
    }

    /// Adds an entry; one that was taken simply stays.
    fn look(&mut self, entry: wake::Model) {
        match self.taken.iter().position(|taken| *taken == entry) {
            Some(at) => drop(self.taken.swap_remove(at)),
            None => self.added.push(entry),
        }
    }

    /// Writes it all, within a transaction, and answers the schedules that still had the version that was read; of the others
    /// nothing is written.
    ///
    /// # Errors
    /// What the database says.
    pub async fn write<C: ConnectionTrait>(mut self, db: &C) -> Result<HashSet<Uuid>, DbErr> {
        if self.rows.is_empty() {
            return Ok(HashSet::new());
        }
        // In the order of the ids, as every other batch, so that batches never wait for each other in a ring.
        self.rows.sort_unstable_by_key(|row| ScheduleKey { id: row.id, workspace_id: row.workspace_id });
        let values = [json(&self.rows)?, json(&self.taken)?, json(&self.added)?, json(&self.fired)?];
        if db.get_database_backend() == DbBackend::Postgres {
            let moved = db.query_all_raw(Statement::from_sql_and_values(DbBackend::Postgres, POSTGRES.as_str(), values)).await?;
            return moved.iter().map(|row| row.try_get_by_index::<Uuid>(0)).collect();
        }
        for (n, part) in SQLITE.iter().enumerate() {
            let done = db.execute_raw(Statement::from_sql_and_values(DbBackend::Sqlite, part, values.clone())).await?;
            if n == 0 && done.rows_affected() != self.rows.len() as u64 {
                return Err(DbErr::Custom(format!("{} of {} rows had the version that was read", done.rows_affected(), self.rows.len())));
            }
        }
        Ok(self.rows.iter().map(|row| row.id).collect())
    }
}

static REMOVE_ENTRIES: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let entries = table(backend, "t", WAKE, 1);
        format!(
            "WITH {entries} DELETE FROM canvas_schedule_wake WHERE (wake_ms, workspace_id, id) IN (SELECT wake_ms, workspace_id, id FROM t)"
        )
    })
});

static ADD_ENTRIES: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let entries = table(backend, "t", WAKE, 1);
        format!(
            "WITH {entries} INSERT INTO canvas_schedule_wake (wake_ms, workspace_id, id) \
             SELECT wake_ms, workspace_id, id FROM t WHERE true ON CONFLICT DO NOTHING"
        )
    })
});

static UNPARK_ENTRIES: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let entries = table(backend, "t", WAKE, 1);
        format!(
            "WITH {entries} DELETE FROM canvas_schedule_parked \
             WHERE (wake_ms, workspace_id, id) IN (SELECT wake_ms, workspace_id, id FROM t)"
        )
    })
});

static PARK_ENTRIES: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let entries = table(backend, "t", WAKE, 1);
        format!(
            "WITH {entries} INSERT INTO canvas_schedule_parked (wake_ms, workspace_id, id) \
             SELECT wake_ms, workspace_id, id FROM t WHERE true ON CONFLICT DO NOTHING"
        )
    })
});

/// Removes entries that no row stands behind.
///
/// # Errors
/// What the database says.
pub async fn remove_entries<C: ConnectionTrait>(db: &C, entries: &[wake::Model]) -> Result<(), DbErr> {
    REMOVE_ENTRIES.execute(db, entries, []).await
}

/// Puts entries aside until sending goes on in their workspace: the queue holds only what may be fired.
///
/// # Errors
/// What the database says.
pub async fn park_entries<C: ConnectionTrait>(db: &C, entries: &[wake::Model]) -> Result<(), DbErr> {
    PARK_ENTRIES.execute(db, entries, []).await?;
    remove_entries(db, entries).await
}

/// Puts entries that were put aside back into the queue.
///
/// # Errors
/// What the database says.
pub async fn unpark_entries<C: ConnectionTrait>(db: &C, entries: &[wake::Model]) -> Result<(), DbErr> {
    UNPARK_ENTRIES.execute(db, entries, []).await?;
    ADD_ENTRIES.execute(db, entries, []).await
}

/// Looks at these entries later, at `at_ms`.
///
/// # Errors
/// What the database says.
pub async fn postpone_entries<C: ConnectionTrait>(db: &C, entries: Vec<wake::Model>, at_ms: i64) -> Result<(), DbErr> {
    remove_entries(db, &entries).await?;
    let later: Vec<wake::Model> = entries.into_iter().map(|entry| wake::Model { wake_ms: at_ms, ..entry }).collect();
    ADD_ENTRIES.execute(db, &later, []).await
}
