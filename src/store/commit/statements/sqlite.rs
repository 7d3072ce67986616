//! The statements of the group commit in SQLite's words: a batch travels as rows of values.

use std::collections::HashSet;
use std::sync::LazyLock;

use sea_orm::{ConnectionTrait, DbErr, Value};
use uuid::Uuid;

use super::Writes;
use crate::store::commit::insert;
use crate::store::schema::tables::{canvas_schedule, request, revision};
use crate::store::schema::values::ValuesStatement;

static UPDATE: LazyLock<ValuesStatement> = LazyLock::new(|| {
    ValuesStatement::new(14, |rows| {
        format!(
            "UPDATE canvas_schedule AS s SET revision = i.column4, version = i.column3 + 1, time_ms = i.column5, \
               in_local_time = i.column6, at_optimal_time = i.column7, state = i.column8, next_wave_ms = i.column9, \
               wake_ms = i.column10, missed_before_ms = i.column11, updated_ms = i.column12, cancelled_ms = i.column13, \
               properties_id = i.column14 \
             FROM {rows} AS i WHERE s.workspace_id = i.column1 AND s.id = i.column2 AND s.version = i.column3"
        )
    })
});

static WAKES: LazyLock<ValuesStatement> = LazyLock::new(|| {
    ValuesStatement::new(3, |rows| {
        format!(
            "INSERT OR IGNORE INTO canvas_schedule_wake (wake_ms, workspace_id, id) SELECT * FROM {rows} WHERE column1 IS NOT NULL"
        )
    })
});

static REVISIONS: LazyLock<ValuesStatement> = LazyLock::new(|| {
    ValuesStatement::new(12, |rows| {
        format!(
            "INSERT INTO canvas_schedule_revision (schedule_id, revision, created_ms, previous_ms, workspace_id, kind, time_ms, \
               in_local_time, at_optimal_time, properties_id, actor, commit_id) SELECT * FROM {rows} WHERE column1 IS NOT NULL"
        )
    })
});

/// Within a transaction that has the one write lock, so that every row still has the version that was read.
pub(crate) async fn write<C: ConnectionTrait>(
    db: &C,
    writes: &Writes,
) -> Result<HashSet<Uuid>, DbErr> {
    let mut updated = 0;
    for statement in UPDATE.of(writes.rows.iter().map(row_values)) {
        updated += db.execute_raw(statement).await?.rows_affected();
    }
    if updated != writes.rows.len() as u64 {
        return Err(DbErr::Custom(format!(
            "{updated} of {} rows had the version that was read",
            writes.rows.len()
        )));
    }
    // An entry for each wave that is now the earliest of its schedule.
    let earliest = writes
        .rows
        .iter()
        .filter(|row| row.wake_ms.is_some() && row.wake_ms == row.next_wave_ms);
    for statement in
        WAKES.of(earliest.map(|row| [row.wake_ms.into(), row.workspace_id.into(), row.id.into()]))
    {
        db.execute_raw(statement).await?;
    }
    for statement in REVISIONS.of(writes.revisions.iter().map(revision_values)) {
        db.execute_raw(statement).await?;
    }
    insert::properties(db, &writes.properties).await?;
    let requests: Vec<request::Model> = writes
        .requests
        .iter()
        .map(|write| write.row.clone())
        .collect();
    insert::requests(db, &requests).await?;
    Ok(writes.rows.iter().map(|row| row.id).collect())
}

fn row_values(row: &canvas_schedule::Model) -> [Value; 14] {
    [
        row.workspace_id.into(),
        row.id.into(),
        row.version.into(),
        row.revision.into(),
        row.time_ms.into(),
        row.in_local_time.into(),
        row.at_optimal_time.into(),
        row.state.into(),
        row.next_wave_ms.into(),
        row.wake_ms.into(),
        row.missed_before_ms.into(),
        row.updated_ms.into(),
        row.cancelled_ms.into(),
        row.properties_id.into(),
    ]
}

fn revision_values(one: &revision::Model) -> [Value; 12] {
    [
        one.schedule_id.into(),
        one.revision.into(),
        one.created_ms.into(),
        one.previous_ms.into(),
        one.workspace_id.into(),
        one.kind.into(),
        one.time_ms.into(),
        one.in_local_time.into(),
        one.at_optimal_time.into(),
        one.properties_id.into(),
        one.actor.as_str().into(),
        one.commit_id.into(),
    ]
}
