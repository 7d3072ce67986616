//! State transitions that no caller asked for: to the next wave, to reopened zones, to other zone
//! rules. Each is guarded by the version that was read and moves it, so that a change that was
//! decided meanwhile is decided again.

use std::collections::HashSet;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr};
use uuid::Uuid;

use crate::domain::{CanvasSchedule, zone};
use crate::store::schema::codec;
use crate::store::schema::row::row;
use crate::store::schema::statement::{Columns, OverBatch, expect_all, statement};
use crate::store::schema::tables::{canvas_schedule, dispatch, wake};

/// The transitions of one transaction.
#[derive(Default)]
pub(crate) struct Transitions {
    rows: Vec<TransitionRow>,
    /// Entries of the queue that the transaction has locked, to be removed with their row's
    /// transition.
    taken: Vec<wake::Model>,
    /// Entries to be added; none is among those taken. One whose row is not written costs one
    /// needless check.
    added: Vec<wake::Model>,
}

row! {
    /// The transition of one row. The columns are named differently from the dispatch's.
    struct Transition {
        workspace: i32,
        id: Uuid,
        /// The version that was read.
        version: i64,
        next_state: i16,
        next_wave_ms: Option<i64>,
        wake_ms: Option<i64>,
        fired: i32,
        zone_rules: i32,
        done_ms: Option<i64>,
    }
}

/// The part of a transition that only a claim has.
#[derive(Default)]
pub(crate) struct Taken {
    /// The entries that the claim took from the queue.
    pub entries: Vec<wake::Model>,
    /// The dispatch to insert.
    pub dispatch: Option<dispatch::Model>,
}

/// A transition and the dispatch that it inserts.
type TransitionRow = (Transition, Option<dispatch::Model>);

const ROWS: &str = "UPDATE canvas_schedule AS s SET version = s.version + 1, \
       state = i.next_state, next_wave_ms = i.next_wave_ms, \
       wake_ms = i.wake_ms, fired = i.fired, zone_rules = i.zone_rules, finished_ms = i.done_ms \
     FROM i WHERE s.workspace_id = i.workspace AND s.id = i.id AND s.version = i.version";

const QUEUE: &str = "canvas_schedule_wake";
/// Holds the entries of paused workspaces.
const PARKED: &str = "canvas_schedule_parked";

/// Deletes the entries in the table `of` from `queue`.
fn delete_from(queue: &str, of: &str) -> String {
    let key = ENTRY_COLUMNS.names("");
    format!("DELETE FROM {queue} WHERE ({key}) IN (SELECT {key} FROM {of})")
}

/// Inserts the entries in the table `of` into `queue`.
fn insert_into(queue: &str, of: &str) -> String {
    let key = ENTRY_COLUMNS.names("");
    format!("INSERT INTO {queue} ({key}) SELECT {key} FROM {of} WHERE true ON CONFLICT DO NOTHING")
}

/// Inserts the dispatches of the rows in the table `of`. Dispatches are numbered from 1.
fn inserted(of: &str) -> String {
    let names = Columns::<dispatch::Model>::all().names("");
    format!("INSERT INTO dispatch ({names}) SELECT {names} FROM {of} WHERE n > 0")
}

static ROW_COLUMNS: LazyLock<Columns<TransitionRow>> = LazyLock::new(Columns::all);
static ENTRY_COLUMNS: LazyLock<Columns<wake::Model>> = LazyLock::new(Columns::all);

fn tables(backend: DbBackend) -> String {
    let taken = 1 + ROW_COLUMNS.parameters(backend);
    let added = taken + ENTRY_COLUMNS.parameters(backend);
    format!(
        "i AS {}, t AS {}, a AS {}",
        ROW_COLUMNS.table(backend, 1),
        ENTRY_COLUMNS.table(backend, taken),
        ENTRY_COLUMNS.table(backend, added)
    )
}

/// One statement, one round trip. A dispatch travels with its row and comes out of the update that
/// writes it: to join the two would compare each with each, since the planner knows nothing of a
/// batch's rows. The selected part runs first: no entry is removed before all rows are locked, so
/// that a writer that waits to add the same entry holds no row that is still needed.
static POSTGRES: LazyLock<String> = LazyLock::new(|| {
    let dispatches = Columns::<dispatch::Model>::all().names("i.");
    let (tables, inserted) = (tables(DbBackend::Postgres), inserted("moved"));
    let (taken, added) = (delete_from(QUEUE, "t"), insert_into(QUEUE, "a"));
    format!(
        "WITH {tables}, moved AS ({ROWS} RETURNING s.id, {dispatches}), taken AS ({taken}), \
           added AS ({added}), inserted AS ({inserted}) \
         SELECT id FROM moved"
    )
});

/// One after the other, under the one write lock, so that every row still has the version that was
/// read.
static SQLITE: LazyLock<[String; 4]> = LazyLock::new(|| {
    let tables = tables(DbBackend::Sqlite);
    let (taken, added) = (delete_from(QUEUE, "t"), insert_into(QUEUE, "a"));
    [ROWS, &taken, &added, &inserted("i")].map(|part| format!("WITH {tables} {part}"))
});

impl Transitions {
    /// Moves a row to `after`, removes the entries that were taken from the queue for it, and
    /// inserts its dispatch, if it was claimed. The queue entry is for the time of the next wave,
    /// or for `examine_ms`. Adds nothing if this fails.
    pub(crate) fn push(
        &mut self,
        before: &canvas_schedule::Model,
        after: &CanvasSchedule,
        examine_ms: Option<i64>,
        now: DateTime<Utc>,
        taken: Taken,
    ) -> Result<(), DbErr> {
        let next_wave_ms = after.next_wave.map(|at| at.timestamp_millis());
        let wake_ms = next_wave_ms.map(|next| examine_ms.unwrap_or(next));
        let now_ms = now.timestamp_millis();
        let transition = Transition {
            workspace: before.workspace_id,
            id: before.id,
            version: before.version,
            next_state: codec::state_code(after.state()),
            next_wave_ms,
            wake_ms,
            fired: codec::signed(after.last_number)?,
            zone_rules: zone::data_number(),
            done_ms: match (before.next_wave_ms, next_wave_ms) {
                (_, Some(_)) => None,
                (None, None) => before.finished_ms.or(Some(now_ms)),
                (Some(_), None) => Some(now_ms),
            },
        };
        self.rows.push((transition, taken.dispatch));
        self.taken.extend(taken.entries);
        if let Some(wake_ms) = wake_ms {
            self.add_entry(wake::Model {
                wake_ms,
                workspace_id: before.workspace_id,
                id: before.id,
            });
        }
        Ok(())
    }

    /// Adds an entry; one that was taken stays.
    fn add_entry(&mut self, entry: wake::Model) {
        match self.taken.iter().position(|taken| *taken == entry) {
            Some(at) => drop(self.taken.swap_remove(at)),
            None => self.added.push(entry),
        }
    }

    /// Writes them within a transaction, and returns the schedules that still had the version that
    /// was read. Of the others it writes nothing.
    pub(crate) async fn write<C: ConnectionTrait>(
        mut self,
        db: &C,
    ) -> Result<HashSet<Uuid>, DbErr> {
        if self.rows.is_empty() {
            return Ok(HashSet::new());
        }
        // Every batch locks in the order of the ids, so that batches do not deadlock.
        self.rows
            .sort_unstable_by_key(|(row, _)| (row.id, row.workspace));
        let backend = db.get_database_backend();
        let values = [
            ROW_COLUMNS.values(backend, &self.rows),
            ENTRY_COLUMNS.values(backend, &self.taken),
            ENTRY_COLUMNS.values(backend, &self.added),
        ]
        .concat();
        if backend == DbBackend::Postgres {
            let moved = db.query_all_raw(statement(db, &POSTGRES, values)).await?;
            let moved = moved.iter().map(|row| row.try_get_by_index(0));
            let moved = moved.collect::<Result<HashSet<Uuid>, _>>()?;
            self.taken.retain(|entry| !moved.contains(&entry.id));
            ADD_ENTRIES.execute(db, [], &self.taken).await?;
            return Ok(moved);
        }
        for (n, part) in SQLITE.iter().enumerate() {
            let statement = statement(db, part, values.clone());
            let written = db.execute_raw(statement).await?.rows_affected();
            if n == 0 {
                expect_all(written, self.rows.len())?;
            }
        }
        Ok(self.rows.iter().map(|(row, _)| row.id).collect())
    }
}

pub(crate) type OverEntries = LazyLock<OverBatch<wake::Model>>;

pub(crate) static REMOVE_ENTRIES: OverEntries =
    LazyLock::new(|| OverBatch::new(&delete_from(QUEUE, "batch")));
static ADD_ENTRIES: OverEntries = LazyLock::new(|| OverBatch::new(&insert_into(QUEUE, "batch")));
static UNPARK_ENTRIES: OverEntries =
    LazyLock::new(|| OverBatch::new(&delete_from(PARKED, "batch")));
static PARK_ENTRIES: OverEntries = LazyLock::new(|| OverBatch::new(&insert_into(PARKED, "batch")));

/// Parks entries of a paused workspace, so that the queue holds only what may be claimed.
pub(crate) async fn park_entries<C: ConnectionTrait>(
    db: &C,
    entries: &[wake::Model],
) -> Result<(), DbErr> {
    PARK_ENTRIES.execute(db, [], entries).await?;
    REMOVE_ENTRIES.execute(db, [], entries).await
}

pub(crate) async fn unpark_entries<C: ConnectionTrait>(
    db: &C,
    entries: &[wake::Model],
) -> Result<(), DbErr> {
    UNPARK_ENTRIES.execute(db, [], entries).await?;
    ADD_ENTRIES.execute(db, [], entries).await
}

pub(crate) async fn postpone_entries<C: ConnectionTrait>(
    db: &C,
    mut entries: Vec<wake::Model>,
    at: DateTime<Utc>,
) -> Result<(), DbErr> {
    REMOVE_ENTRIES.execute(db, [], &entries).await?;
    for entry in &mut entries {
        entry.wake_ms = at.timestamp_millis();
    }
    ADD_ENTRIES.execute(db, [], &entries).await
}
