//! Reads the hot rows of a batch of keys.

use std::sync::LazyLock;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult, Statement, Value};
use uuid::Uuid;

use crate::store::schema::tables::canvas_schedule;
use crate::store::schema::values::ValuesStatement;

/// Whether the rows that are read stay as they are until the transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// They may change.
    None,
    /// They stay; rows that another session holds are waited for.
    Wait,
    /// They stay; rows that another session holds are left out.
    Skip,
}

/// Reads the rows of these keys, in the order of their ids. SQLite locks the whole file, and heeds no `lock`.
///
/// # Errors
/// What the database says.
pub(crate) async fn read_rows<C: ConnectionTrait>(
    db: &C,
    keys: &[(i32, Uuid)],
    lock: Lock,
) -> Result<Vec<canvas_schedule::Model>, DbErr> {
    let statements = match db.get_database_backend() {
        DbBackend::Postgres => vec![postgres(keys, lock)],
        _ => sqlite(keys),
    };
    let mut rows = Vec::with_capacity(keys.len());
    for statement in statements {
        rows.extend(db.query_all_raw(statement).await?);
    }
    rows.iter().map(row_of).collect()
}

/// The columns of the reads, in the order in which [`row_of`] takes them: by place, which costs a third of by name.
const COLUMNS: &str = "s.workspace_id, s.id, s.canvas_id, s.revision, s.version, s.time_ms, s.in_local_time, s.at_optimal_time, \
     s.state, s.next_wave_ms, s.wake_ms, s.missed_before_ms, s.created_ms, s.updated_ms, s.cancelled_ms, s.default_zone, \
     s.stated_zones, s.properties_id, s.fired, s.zone_rules, s.finished_ms";

fn row_of(row: &QueryResult) -> Result<canvas_schedule::Model, DbErr> {
    Ok(canvas_schedule::Model {
        workspace_id: row.try_get_by_index(0)?,
        id: row.try_get_by_index(1)?,
        canvas_id: row.try_get_by_index(2)?,
        revision: row.try_get_by_index(3)?,
        version: row.try_get_by_index(4)?,
        time_ms: row.try_get_by_index(5)?,
        in_local_time: row.try_get_by_index(6)?,
        at_optimal_time: row.try_get_by_index(7)?,
        state: row.try_get_by_index(8)?,
        next_wave_ms: row.try_get_by_index(9)?,
        wake_ms: row.try_get_by_index(10)?,
        missed_before_ms: row.try_get_by_index(11)?,
        created_ms: row.try_get_by_index(12)?,
        updated_ms: row.try_get_by_index(13)?,
        cancelled_ms: row.try_get_by_index(14)?,
        default_zone: row.try_get_by_index(15)?,
        stated_zones: row.try_get_by_index(16)?,
        properties_id: row.try_get_by_index(17)?,
        fired: row.try_get_by_index(18)?,
        zone_rules: row.try_get_by_index(19)?,
        finished_ms: row.try_get_by_index(20)?,
    })
}

static READ: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS} FROM unnest($1::int4[], $2::uuid[]) AS k (workspace_id, id) \
         JOIN canvas_schedule s ON s.workspace_id = k.workspace_id AND s.id = k.id"
    )
});

static READ_ONE: LazyLock<String> = LazyLock::new(|| {
    format!("SELECT {COLUMNS} FROM canvas_schedule s WHERE s.workspace_id = $1 AND s.id = $2")
});

static READ_LOCKED: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS} FROM canvas_schedule s WHERE (s.workspace_id, s.id) IN \
         (SELECT * FROM unnest($1::int4[], $2::uuid[])) ORDER BY s.id FOR UPDATE"
    )
});

static READ_UNLOCKED: LazyLock<String> = LazyLock::new(|| format!("{} SKIP LOCKED", *READ_LOCKED));

fn postgres(keys: &[(i32, Uuid)], lock: Lock) -> Statement {
    if let (&[(workspace, id)], Lock::None) = (keys, lock) {
        return Statement::from_sql_and_values(
            DbBackend::Postgres,
            READ_ONE.as_str(),
            [workspace.into(), id.into()],
        );
    }
    let sql: &str = match lock {
        Lock::None => &READ,
        Lock::Wait => &READ_LOCKED,
        Lock::Skip => &READ_UNLOCKED,
    };
    Statement::from_sql_and_values(
        DbBackend::Postgres,
        sql,
        [
            keys.iter().map(|key| key.0).collect::<Vec<i32>>().into(),
            keys.iter().map(|key| key.1).collect::<Vec<Uuid>>().into(),
        ],
    )
}

static READ_SQLITE: LazyLock<ValuesStatement> = LazyLock::new(|| {
    ValuesStatement::new(2, |rows| {
        format!(
            "SELECT {COLUMNS} FROM {rows} AS k CROSS JOIN canvas_schedule s ON s.workspace_id = k.column1 AND s.id = k.column2"
        )
    })
});

fn sqlite(keys: &[(i32, Uuid)]) -> Vec<Statement> {
    READ_SQLITE.of(keys
        .iter()
        .map(|(workspace, id)| [Value::from(*workspace), Value::from(*id)]))
}
