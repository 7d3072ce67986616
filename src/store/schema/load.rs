//! Loads schedules with their dispatches.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, Value};
use uuid::Uuid;

use crate::domain::{CanvasSchedule, Dispatch};
use crate::store::schema::codec;
use crate::store::schema::row::{FromRow, row};
use crate::store::schema::statement::{Columns, OverBatch, Texts, skip_locked};
use crate::store::schema::tables::{canvas_schedule, dispatch};
use crate::store::schema::values::ValuesStatement;

/// Whether the rows that are read stay as they are until the transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    None,
    /// They stay; waits for rows that another session has locked.
    Wait,
    /// They stay; leaves out rows that another session has locked.
    Skip,
}

row! {
    /// The key of a schedule's row.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub(crate) struct ScheduleKey {
        /// The schedule; first, so that keys sort by it.
        pub id: Uuid,
        pub workspace_id: i32,
    }
}

impl ScheduleKey {
    pub(crate) fn new(workspace_id: i32, id: Uuid) -> Self {
        Self { id, workspace_id }
    }

    pub(crate) fn of(row: &canvas_schedule::Model) -> Self {
        Self::new(row.workspace_id, row.id)
    }
}

/// A schedule as it is stored.
pub(crate) struct Loaded {
    pub row: canvas_schedule::Model,
    pub schedule: CanvasSchedule,
    /// Its dispatches, in their order.
    pub dispatches: Vec<Dispatch>,
}

/// A schedule with a stored value that this build cannot read.
pub(crate) struct Unreadable {
    pub key: ScheduleKey,
    fault: DbErr,
}

impl Unreadable {
    /// Logs it with what follows from it.
    pub(crate) fn log(&self, consequence: &str) {
        let (schedule_id, fault) = (self.key.id, &self.fault);
        tracing::error!(%schedule_id, %fault, consequence, "a stored schedule cannot be read");
    }
}

impl From<Unreadable> for DbErr {
    fn from(unreadable: Unreadable) -> Self {
        unreadable.fault
    }
}

/// Selects the keys of the schedules `s` for which a condition holds, in the order that it may end
/// with, without those that another session has locked, which do not count against the limit. The
/// parameters are one of the condition and the limit.
pub(crate) fn selection(condition: &str) -> Texts {
    Texts::of(|backend| {
        let skip = skip_locked(backend, "s");
        format!(
            "SELECT s.id, s.workspace_id FROM canvas_schedule s WHERE {condition} LIMIT $2 {skip}"
        )
    })
}

/// The keys that a [`selection`] selects, sorted.
pub(crate) async fn select_keys<C: ConnectionTrait>(
    db: &C,
    query: &Texts,
    values: [Value; 2],
) -> Result<Vec<ScheduleKey>, DbErr> {
    let query = query.with(db.get_database_backend(), values);
    let rows = db.query_all_raw(query).await?;
    let mut keys = rows
        .iter()
        .map(|row| ScheduleKey::from_row(row, 0))
        .collect::<Result<Vec<_>, _>>()?;
    keys.sort_unstable();
    Ok(keys)
}

/// Which of the rows that a read with [`Lock::Skip`] left out exist: another session has locked
/// them.
pub(crate) async fn locked<C: ConnectionTrait>(
    db: &C,
    left_out: &[ScheduleKey],
) -> Result<HashSet<ScheduleKey>, DbErr> {
    let rows = read_rows(db, left_out, Lock::None).await?;
    Ok(rows.iter().map(ScheduleKey::of).collect())
}

/// Loads the schedules that exist of these keys, in the order of their ids. SQLite locks the whole
/// file and ignores `lock`.
pub(crate) async fn load<C: ConnectionTrait>(
    db: &C,
    keys: &[ScheduleKey],
    lock: Lock,
) -> Result<Vec<Result<Loaded, Unreadable>>, DbErr> {
    with_dispatches(db, read_rows(db, keys, lock).await?).await
}

/// The key of a schedule that was loaded.
pub(crate) fn key_of(loaded: &Result<Loaded, Unreadable>) -> ScheduleKey {
    match loaded {
        Ok(loaded) => loaded.key(),
        Err(unreadable) => unreadable.key,
    }
}

/// As [`load`], without those that cannot be read, which it logs with the consequence.
pub(crate) async fn load_readable<C: ConnectionTrait>(
    db: &C,
    keys: &[ScheduleKey],
    lock: Lock,
    consequence: &str,
) -> Result<Vec<Loaded>, DbErr> {
    let loaded = load(db, keys, lock).await?.into_iter();
    Ok(loaded
        .filter_map(|one| {
            one.inspect_err(|unreadable| unreadable.log(consequence))
                .ok()
        })
        .collect())
}

/// Reads the dispatches of these rows. Only rows that have been claimed have any.
pub(crate) async fn with_dispatches<C: ConnectionTrait>(
    db: &C,
    rows: Vec<canvas_schedule::Model>,
) -> Result<Vec<Result<Loaded, Unreadable>>, DbErr> {
    let claimed = rows.iter().filter(|row| row.fired > 0);
    let keys: Vec<ScheduleKey> = claimed.map(ScheduleKey::of).collect();
    let mut dispatches: HashMap<Uuid, Vec<dispatch::Model>> = HashMap::new();
    for row in DISPATCHES.query(db, &keys).await? {
        let row = dispatch::Model::from_row(&row, 0)?;
        dispatches.entry(row.schedule_id).or_default().push(row);
    }
    let loaded = |row: canvas_schedule::Model| {
        let key = ScheduleKey::of(&row);
        let dispatches = dispatches.remove(&row.id).unwrap_or_default();
        Loaded::new(row, dispatches).map_err(|fault| Unreadable { key, fault })
    };
    Ok(rows.into_iter().map(loaded).collect())
}

impl Loaded {
    pub(crate) fn key(&self) -> ScheduleKey {
        ScheduleKey::of(&self.row)
    }

    /// This schedule as unreadable, because another stored part of it cannot be read.
    pub(crate) fn unreadable(&self, fault: DbErr) -> Unreadable {
        let key = self.key();
        Unreadable { key, fault }
    }

    fn new(row: canvas_schedule::Model, dispatches: Vec<dispatch::Model>) -> Result<Self, DbErr> {
        let bare = codec::schedule(&row)?;
        let dispatches = dispatches
            .into_iter()
            .map(|row| codec::dispatch(row, &bare));
        let dispatches = dispatches.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            row,
            schedule: bare.with_dispatches(&dispatches),
            dispatches,
        })
    }
}

static DISPATCHES: LazyLock<OverBatch<ScheduleKey>> = LazyLock::new(|| {
    let columns = Columns::<dispatch::Model>::all().names("d.");
    OverBatch::new(&format!(
        "SELECT {columns} FROM batch AS k \
         JOIN dispatch d ON d.workspace_id = k.workspace_id AND d.schedule_id = k.id \
         ORDER BY d.schedule_id, d.n"
    ))
});

/// Reads the rows of these keys, in the order of their ids; nothing for none.
pub(crate) async fn read_rows<C: ConnectionTrait>(
    db: &C,
    keys: &[ScheduleKey],
    lock: Lock,
) -> Result<Vec<canvas_schedule::Model>, DbErr> {
    if keys.is_empty() {
        return Ok(vec![]);
    }
    let statements = match db.get_database_backend() {
        DbBackend::Postgres => vec![postgres(keys, lock)],
        _ => READ_SQLITE.over(keys).collect(),
    };
    let mut rows = Vec::with_capacity(keys.len());
    for statement in statements {
        for row in db.query_all_raw(statement).await? {
            rows.push(canvas_schedule::Model::from_row(&row, 0)?);
        }
    }
    Ok(rows)
}

/// Begins a statement that reads rows.
fn select() -> String {
    let columns = Columns::<canvas_schedule::Model>::all().names("s.");
    format!("SELECT {columns} FROM")
}

static KEY: LazyLock<Columns<ScheduleKey>> = LazyLock::new(Columns::all);

static READ: LazyLock<String> = LazyLock::new(|| {
    let (select, keys) = (select(), KEY.table(DbBackend::Postgres, 1));
    format!(
        "{select} {keys} AS k \
         JOIN canvas_schedule s ON s.workspace_id = k.workspace_id AND s.id = k.id"
    )
});

static READ_ONE: LazyLock<String> = LazyLock::new(|| {
    let select = select();
    format!("{select} canvas_schedule s WHERE s.workspace_id = $1 AND s.id = $2")
});

static READ_LOCKED: LazyLock<String> = LazyLock::new(|| {
    let (select, keys, names) = (select(), KEY.table(DbBackend::Postgres, 1), KEY.names("s."));
    format!("{select} canvas_schedule s WHERE ({names}) IN {keys} ORDER BY s.id FOR UPDATE")
});

static READ_UNLOCKED: LazyLock<String> = LazyLock::new(|| format!("{} SKIP LOCKED", *READ_LOCKED));

fn postgres(keys: &[ScheduleKey], lock: Lock) -> Statement {
    let (sql, values): (&str, Vec<Value>) = match (lock, keys) {
        (Lock::None, [key]) => (&READ_ONE, vec![key.workspace_id.into(), key.id.into()]),
        _ => {
            let sql: &str = match lock {
                Lock::None => &READ,
                Lock::Wait => &READ_LOCKED,
                Lock::Skip => &READ_UNLOCKED,
            };
            (sql, KEY.values(DbBackend::Postgres, keys))
        }
    };
    Statement::from_sql_and_values(DbBackend::Postgres, sql, values)
}

static READ_SQLITE: LazyLock<ValuesStatement<ScheduleKey>> = LazyLock::new(|| {
    let select = select();
    ValuesStatement::new(
        Columns::all(),
        &format!(
            "{select} batch AS k \
             CROSS JOIN canvas_schedule s ON s.workspace_id = k.workspace_id AND s.id = k.id"
        ),
    )
});
