//! The statements of the group commit on PostgreSQL: a batch travels as arrays.

use std::collections::HashSet;
use std::sync::LazyLock;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, Value};
use uuid::Uuid;

use super::{ChangedSchedule, REVISION, ROW, UNCHANGED, Writes, assignments};
use crate::store::schema::statement::Columns;
use crate::store::schema::tables::{canvas_schedule, properties, request, revision};

const POSTGRES: DbBackend = DbBackend::Postgres;

/// Adds an entry to the queue for each wave that is now the earliest of its schedule.
const WAKES: &str = "INSERT INTO canvas_schedule_wake (wake_ms, workspace_id, id) \
     SELECT wake_ms, workspace_id, id FROM moved WHERE wake_ms = next_wave_ms \
     ON CONFLICT DO NOTHING";

static PROPERTIES: LazyLock<Columns<properties::Model>> = LazyLock::new(Columns::all);
static REQUEST: LazyLock<Columns<(ChangedSchedule, request::Model)>> = LazyLock::new(Columns::all);

/// The columns of a revision that its row does not have.
static ADDED: LazyLock<Columns<revision::Model>> = LazyLock::new(added);

fn added() -> Columns<revision::Model> {
    use revision::Column::{Actor, Kind, PreviousMs};
    Columns::only([PreviousMs, Kind, Actor])
}

/// Updates the rows that still have the version that was read, from the table `source`.
fn update(source: &str) -> String {
    let assignments = assignments();
    format!(
        "UPDATE canvas_schedule s SET {assignments} FROM {source} AS i \
         WHERE s.workspace_id = i.workspace_id AND s.id = i.id AND s.version = i.version \
         RETURNING s.id, s.wake_ms, s.next_wave_ms"
    )
}

/// Writes the rows, their entries in the queue and their history: one statement, one round trip,
/// one commit.
fn write_text(extras: &str) -> String {
    let (update, history) = (
        update(&ROW.table(POSTGRES, 1)),
        REVISION.table(POSTGRES, ROW.len() + 1),
    );
    let names = REVISION.names("");
    format!(
        "WITH moved AS ({update}, s.workspace_id), wakes AS ({WAKES}), history AS ( \
           INSERT INTO canvas_schedule_revision ({names}) SELECT {names} FROM {history} AS r \
           WHERE r.schedule_id IN (SELECT id FROM moved) \
         ){extras} SELECT id FROM moved"
    )
}

static WRITE_PLAIN: LazyLock<String> = LazyLock::new(|| write_text(""));

/// The same with properties and first answers, which few batches have.
static WRITE_ALL: LazyLock<String> = LazyLock::new(|| {
    let first = ROW.len() + REVISION.len() + 1;
    let properties = PROPERTIES.table(POSTGRES, first);
    let requests = REQUEST.table(POSTGRES, first + PROPERTIES.len());
    let (property, request) = (
        PROPERTIES.names(""),
        Columns::<request::Model>::all().names(""),
    );
    write_text(&format!(
        ", contents AS ( \
           INSERT INTO canvas_schedule_properties ({property}) \
           SELECT {property} FROM {properties} AS p \
           WHERE p.schedule_id IN (SELECT id FROM moved) ON CONFLICT (id) DO NOTHING \
         ), answers AS ( \
           INSERT INTO answered_request ({request}) \
           SELECT {request} FROM {requests} AS a WHERE a.schedule_id IN (SELECT id FROM moved) \
         )"
    ))
});

/// The usual batch: each row has one revision, and nothing else is written. The revision then
/// travels with its row, which spares an array for each of its columns and a join: a fifth of
/// PostgreSQL's work at 64 callers.
fn single_text(source: &str) -> String {
    let (update, names) = (update(source), REVISION.names(""));
    let commit_id = ROW.len() + ADDED.len() + 1;
    let added = ADDED.names("");
    let added: Vec<&str> = added.split(", ").collect();
    let returned = REVISION.join(|column| match column.name {
        "schedule_id" => "s.id AS schedule_id".to_owned(),
        "created_ms" => "s.updated_ms AS created_ms".to_owned(),
        "commit_id" => format!("${commit_id}::int8 AS commit_id"),
        name if added.contains(&name) => format!("i.{name}"),
        name => format!("s.{name}"),
    });
    format!(
        "WITH moved AS ({update}, {returned}), wakes AS ({WAKES}) \
         INSERT INTO canvas_schedule_revision ({names}) \
         SELECT {names} FROM moved RETURNING schedule_id"
    )
}

fn row_with_revision() -> Columns<(canvas_schedule::Model, revision::Model)> {
    Columns::except(UNCHANGED).and(added())
}

static WRITE_SINGLE: LazyLock<String> =
    LazyLock::new(|| single_text(&row_with_revision().table(POSTGRES, 1)));

/// The same for one row, whose values need no arrays: a quarter less work for PostgreSQL when a
/// single caller waits.
static WRITE_ONE: LazyLock<String> = LazyLock::new(|| single_text(&row_with_revision().single(1)));

pub(crate) async fn write<C: ConnectionTrait>(
    db: &C,
    writes: &Writes,
) -> Result<HashSet<Uuid>, DbErr> {
    let (sql, values) = statement(writes);
    let moved = db
        .query_all_raw(Statement::from_sql_and_values(POSTGRES, sql, values))
        .await?;
    moved.iter().map(|row| row.try_get_by_index(0)).collect()
}

fn statement(writes: &Writes) -> (&'static str, Vec<Value>) {
    let (rows, revisions) = (writes.rows.as_slice(), writes.revisions.as_slice());
    let is_plain = writes.properties.is_empty() && writes.requests.is_empty();
    match (rows, revisions) {
        ([row], [revision]) if is_plain => {
            let values = ROW.row(row).chain(ADDED.row(revision));
            let commit_id = revision.commit_id.into();
            (&WRITE_ONE, values.chain([commit_id]).collect())
        }
        // Every row has a revision, so that each has one if they are as many; they are in the same
        // order.
        (rows, [first, ..]) if is_plain && rows.len() == revisions.len() => {
            let mut values = ROW.values(POSTGRES, rows);
            values.extend(ADDED.values(POSTGRES, revisions));
            values.push(first.commit_id.into());
            (&WRITE_SINGLE, values)
        }
        _ => {
            let mut values = ROW.values(POSTGRES, rows);
            values.extend(REVISION.values(POSTGRES, revisions));
            if is_plain {
                return (&WRITE_PLAIN, values);
            }
            values.extend(PROPERTIES.values(POSTGRES, &writes.properties));
            values.extend(REQUEST.values(POSTGRES, &writes.requests));
            (&WRITE_ALL, values)
        }
    }
}
