//! The statements of the group commit on SQLite: a batch travels as rows of values.

use std::collections::HashSet;
use std::sync::LazyLock;

use sea_orm::{ConnectionTrait, DbErr};
use uuid::Uuid;

use super::{REVISION, UNCHANGED, Writes, assignments};
use crate::store::commit::insert;
use crate::store::schema::load::ScheduleKey;
use crate::store::schema::statement::{Columns, expect_all};
use crate::store::schema::tables::{canvas_schedule, revision, wake};
use crate::store::schema::values::ValuesStatement;

static UPDATE: LazyLock<ValuesStatement<canvas_schedule::Model>> = LazyLock::new(|| {
    let assignments = assignments();
    ValuesStatement::new(
        Columns::except(UNCHANGED),
        &format!(
            "UPDATE canvas_schedule AS s SET {assignments} FROM batch AS i \
             WHERE s.workspace_id = i.workspace_id AND s.id = i.id AND s.version = i.version"
        ),
    )
});

static WAKES: LazyLock<ValuesStatement<wake::Model>> = LazyLock::new(|| {
    ValuesStatement::new(
        Columns::all(),
        "INSERT OR IGNORE INTO canvas_schedule_wake (wake_ms, workspace_id, id) \
         SELECT wake_ms, workspace_id, id FROM batch WHERE id IS NOT NULL",
    )
});

static REVISIONS: LazyLock<ValuesStatement<revision::Model>> = LazyLock::new(|| {
    let names = REVISION.names("");
    ValuesStatement::new(
        Columns::all(),
        &format!(
            "INSERT INTO canvas_schedule_revision ({names}) \
             SELECT {names} FROM batch WHERE schedule_id IS NOT NULL"
        ),
    )
});

/// Runs within a transaction that has the one write lock, so that every row still has the version
/// that was read.
pub(crate) async fn write<C: ConnectionTrait>(
    db: &C,
    writes: &Writes,
) -> Result<HashSet<Uuid>, DbErr> {
    let mut updated = 0;
    for statement in UPDATE.over(&writes.rows) {
        updated += db.execute_raw(statement).await?.rows_affected();
    }
    expect_all(updated, writes.rows.len())?;
    let wakes: Vec<wake::Model> = writes.rows.iter().filter_map(earliest_wake).collect();
    let inserts = WAKES.over(&wakes).chain(REVISIONS.over(&writes.revisions));
    for statement in inserts {
        db.execute_raw(statement).await?;
    }
    insert::properties(db, &writes.properties).await?;
    insert::requests(db, writes.requests.iter().map(|(_, row)| row)).await?;
    Ok(writes.rows.iter().map(|row| row.id).collect())
}

/// The entry in the queue for a wave that is now the earliest of its schedule.
fn earliest_wake(row: &canvas_schedule::Model) -> Option<wake::Model> {
    let wake_ms = row.wake_ms.filter(|_| row.wake_ms == row.next_wave_ms)?;
    let ScheduleKey { id, workspace_id } = ScheduleKey::of(row);
    Some(wake::Model {
        wake_ms,
        workspace_id,
        id,
    })
}
