//! The history of one schedule, from its newest revision back.
//!
//! Each revision holds the time of the one before it, and the hot row holds the time of the newest.
//! So the table's key leads with the time and the table only grows at its end: a revision touches
//! no random page of an index (docs/adr/0002 has the figures), and the table can be partitioned by
//! time.

use std::collections::HashSet;
use std::sync::LazyLock;

use sea_orm::{ConnectionTrait, DbErr, Statement, Value};

use crate::domain::WorkspaceId;
use crate::store::schema::load::ScheduleKey;
use crate::store::schema::statement::statement;
use crate::store::schema::tables::revision;
use crate::store::schema::tenant::Tenant;

/// Follows the revisions from the hot row back. Ends where older ones were removed.
const CHAIN: &str = "WITH RECURSIVE chain AS ( \
       SELECT r.* FROM canvas_schedule s JOIN canvas_schedule_revision r \
         ON r.created_ms = s.updated_ms AND r.schedule_id = s.id AND r.revision = s.revision \
       WHERE s.workspace_id = $1 AND s.id = $2 \
     UNION ALL \
       SELECT r.* FROM chain c JOIN canvas_schedule_revision r \
         ON r.created_ms = c.previous_ms AND r.schedule_id = c.schedule_id \
           AND r.revision = c.revision - 1 \
     )";

static NEWEST: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{CHAIN} SELECT * FROM chain WHERE revision < $3 AND revision > $4 \
         ORDER BY revision DESC LIMIT $5"
    )
});

static WRITTEN_BY: LazyLock<String> =
    LazyLock::new(|| format!("{CHAIN} SELECT * FROM chain WHERE commit_id = $3 LIMIT 1"));

static REMOVE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{CHAIN} DELETE FROM canvas_schedule_revision WHERE (created_ms, schedule_id, revision) IN \
         (SELECT created_ms, schedule_id, revision FROM chain WHERE revision <= $3)"
    )
});

fn of_schedule<C: ConnectionTrait>(
    db: &C,
    sql: &str,
    key: ScheduleKey,
    more: impl IntoIterator<Item = i64>,
) -> Statement {
    let more = more.into_iter().map(Value::from);
    let key = [key.workspace_id.into(), key.id.into()];
    statement(db, sql, key.into_iter().chain(more))
}

/// Up to `limit` revisions between `oldest` and `before`, both excluded, the newest first. Reads
/// all newer ones too.
pub(crate) async fn newest<C: ConnectionTrait>(
    db: &C,
    key: ScheduleKey,
    before: i64,
    oldest: i64,
    limit: i64,
) -> Result<Vec<revision::Model>, DbErr> {
    revision::Entity::within(WorkspaceId(key.workspace_id))
        .from_raw_sql(of_schedule(db, &NEWEST, key, [before, oldest, limit]))
        .all(db)
        .await
}

/// Which of these commits wrote a revision of the schedule that is still stored.
pub(crate) async fn written_by<C: ConnectionTrait>(
    db: &C,
    key: ScheduleKey,
    commits: &[i64],
) -> Result<HashSet<i64>, DbErr> {
    let mut written = HashSet::new();
    for commit in commits {
        let statement = of_schedule(db, &WRITTEN_BY, key, [*commit]);
        if db.query_one_raw(statement).await?.is_some() {
            written.insert(*commit);
        }
    }
    Ok(written)
}

/// Removes the revisions up to and including `newest`.
pub(crate) async fn remove<C: ConnectionTrait>(
    db: &C,
    key: ScheduleKey,
    newest: i64,
) -> Result<(), DbErr> {
    db.execute_raw(of_schedule(db, &REMOVE, key, [newest]))
        .await?;
    Ok(())
}
