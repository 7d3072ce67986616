//! Locks as another process may hold them: an operator's open transaction, a replica that hangs, a
//! backup.

use sea_orm::sqlx::{Connection, Executor, PgConnection, SqliteConnection};

use super::database::Database;

/// A session that holds a lock until this value is dropped.
pub(crate) enum Locked {
    /// Locks one row.
    Row { _session: PgConnection },
    /// Holds the write lock of a SQLite file.
    File { _session: SqliteConnection },
}

impl Locked {
    /// Locks the row of a schedule.
    pub(crate) async fn row(database: &Database, id: &str) -> Self {
        let mut session = PgConnection::connect(&database.url()).await.unwrap();
        session.execute("BEGIN").await.unwrap();
        let sql = format!("SELECT 1 FROM canvas_schedule WHERE id = '{id}' FOR UPDATE");
        session
            .execute(sea_orm::sqlx::AssertSqlSafe(sql))
            .await
            .unwrap();
        Self::Row { _session: session }
    }

    /// Locks a SQLite file for writing.
    pub(crate) async fn file(database: &Database) -> Self {
        let mut session = SqliteConnection::connect(&database.url()).await.unwrap();
        session.execute("BEGIN IMMEDIATE").await.unwrap();
        Self::File { _session: session }
    }
}
