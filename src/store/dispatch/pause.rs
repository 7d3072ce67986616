//! Pauses sending, of one workspace or of all: while it is paused, nothing is claimed or
//! retried.

use std::sync::LazyLock;

use sea_orm::{ConnectionTrait, DbErr, Value};

use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::transitions;
use crate::store::schema::row::FromRow;
use crate::store::schema::statement::{Texts, skip_locked, statement};
use crate::store::schema::tables::wake;

/// Workspaces with parked entries that are no longer paused.
const RELEASED: &str = "SELECT t.id FROM workspace t WHERE NOT t.sending_paused \
     AND EXISTS (SELECT 1 FROM canvas_schedule_parked p WHERE p.workspace_id = t.id)";

/// Parked entries, without those that another session has locked.
static PARKED: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let skip = skip_locked(backend, "p");
        format!(
            "SELECT p.wake_ms, p.workspace_id, p.id FROM canvas_schedule_parked p \
             WHERE p.workspace_id = $1 ORDER BY p.wake_ms LIMIT $2 {skip}"
        )
    })
});

impl DispatchStore {
    /// Pauses or resumes sending of a workspace, or of all. Returns whether the workspace exists.
    /// Fails with [`Error::OutcomeUnknown`] when the commit fails.
    pub async fn set_sending(&self, workspace: Option<&str>, paused: bool) -> Result<bool, Error> {
        let set = async {
            let db = self.other.begin().await?;
            let (text, values): (&str, Vec<Value>) = match workspace {
                None => (
                    "UPDATE sending SET paused = $1 WHERE id = 1",
                    vec![paused.into()],
                ),
                Some(name) => (
                    "UPDATE workspace SET sending_paused = $1 WHERE name = $2",
                    vec![paused.into(), name.into()],
                ),
            };
            let updated = db.execute_raw(statement(&db, text, values)).await?;
            Ok((db, updated.rows_affected() > 0))
        };
        let (db, exists) = self.other.run(set).await?;
        self.commit(db).await?;
        Ok(exists)
    }

    /// Puts up to `limit` parked entries of each workspace whose pause has ended back into the
    /// queue, and returns how many. A paused workspace's entries are parked as they come due, so
    /// that they delay no other workspace.
    pub async fn unpark(&self, limit: u64) -> Result<usize, Error> {
        let unpark = async {
            let db = self.other.acquire().await?;
            let released = db.query_all_raw(statement(&db, RELEASED, [])).await?;
            drop(db);
            let mut moved = 0;
            for workspace in released {
                moved += self
                    .unpark_one(workspace.try_get_by_index(0)?, limit)
                    .await?;
            }
            Ok(moved)
        };
        self.other.run(unpark).await
    }

    async fn unpark_one(&self, workspace: i32, limit: u64) -> Result<usize, DbErr> {
        let db = self.other.begin().await?;
        let values = [
            workspace.into(),
            i64::try_from(limit).unwrap_or(i64::MAX).into(),
        ];
        let parked = PARKED.with(db.get_database_backend(), values);
        let rows = db.query_all_raw(parked).await?;
        let entries = rows
            .iter()
            .map(|row| wake::Model::from_row(row, 0))
            .collect::<Result<Vec<_>, _>>()?;
        transitions::unpark_entries(&db, &entries).await?;
        db.commit().await?;
        Ok(entries.len())
    }
}
