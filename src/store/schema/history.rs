//! The history of one schedule, from its newest revision back.
//!
//! Each revision names the instant of the one before it, and the hot row has the instant of the
//! newest. So the table's key leads with the time and is only ever added to at its end: no page of
//! an index is touched at random for a revision (docs/adr/0002 has the figures), and the table can
//! be partitioned by time.

use std::collections::HashSet;
use std::sync::LazyLock;

use sea_orm::{ConnectionTrait, DbErr, Statement, Value};
use uuid::Uuid;

use crate::domain::WorkspaceId;
use crate::store::schema::tables::revision;
use crate::store::schema::tenant::Tenant;

/// From the hot row back, one revision after the other. Ends where older ones were removed.
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

/// A schedule's row in the database's terms.
pub(crate) type RowKey = (i32, Uuid);

fn statement<C: ConnectionTrait>(
    db: &C,
    sql: &str,
    (workspace, id): RowKey,
    more: impl IntoIterator<Item = i64>,
) -> Statement {
    let more = more.into_iter().map(Value::from);
    Statement::from_sql_and_values(
        db.get_database_backend(),
        sql,
        [workspace.into(), id.into()].into_iter().chain(more),
    )
}

/// Up to `limit` revisions between `oldest` and `before`, neither included, the newest first. Walks
/// all that are newer too.
pub(crate) async fn newest<C: ConnectionTrait>(
    db: &C,
    key: RowKey,
    before: i64,
    oldest: i64,
    limit: i64,
) -> Result<Vec<revision::Model>, DbErr> {
    revision::Entity::within(WorkspaceId(key.0))
        .from_raw_sql(statement(db, &NEWEST, key, [before, oldest, limit]))
        .all(db)
        .await
}

/// Those of these commits that wrote a revision of the schedule that is still stored.
pub(crate) async fn written_by<C: ConnectionTrait>(
    db: &C,
    key: RowKey,
    commits: &[i64],
) -> Result<HashSet<i64>, DbErr> {
    let mut found = HashSet::new();
    for commit in commits {
        if db
            .query_one_raw(statement(db, &WRITTEN_BY, key, [*commit]))
            .await?
            .is_some()
        {
            found.insert(*commit);
        }
    }
    Ok(found)
}

/// Removes the revisions up to `newest`, it included.
pub(crate) async fn remove<C: ConnectionTrait>(
    db: &C,
    key: RowKey,
    newest: i64,
) -> Result<(), DbErr> {
    db.execute_raw(statement(db, &REMOVE, key, [newest]))
        .await?;
    Ok(())
}
