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
        let locked = Self::row_at(&database.url(), id).await;
        locked.expect("the row is free")
    }

    /// Locks the row of a schedule on the server at this URL, unless another session locks it.
    pub(crate) async fn row_at(url: &str, id: &str) -> Option<Self> {
        let mut session = PgConnection::connect(url).await.unwrap();
        session
            .execute("BEGIN; SET LOCAL lock_timeout = '10s'")
            .await
            .unwrap();
        let sql = format!("SELECT 1 FROM canvas_schedule WHERE id = '{id}' FOR UPDATE");
        session
            .execute(sea_orm::sqlx::AssertSqlSafe(sql))
            .await
            .ok()?;
        Some(Self::Row { _session: session })
    }

    /// Locks a SQLite file for writing.
    pub(crate) async fn file(database: &Database) -> Self {
        let locked = Self::file_at(&database.url()).await;
        locked.expect("the file is free")
    }

    /// Locks the SQLite file of this URL, unless another session locks it.
    pub(crate) async fn file_at(url: &str) -> Option<Self> {
        let mut session = SqliteConnection::connect(url).await.ok()?;
        session.execute("BEGIN IMMEDIATE").await.ok()?;
        Some(Self::File { _session: session })
    }
}
