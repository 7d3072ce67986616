//! A connection that one part of the dispatcher keeps for itself, transactions included. On SQLite it is the one that writes, of
//! which whoever waits is served in turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, Statement,
};

use crate::store::session::connection::Held;
use crate::store::session::pool::Pool;

/// Serves one after the other; who comes in between gets another connection. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sessions {
    pool: Pool,
    /// The connection while nobody uses it.
    held: Arc<Mutex<Option<Held>>>,
}

impl Sessions {
    /// A sessions that takes its connection out of those of `pool` when it is first needed, and a new one after each that failed.
    pub(crate) fn new(pool: Pool) -> Self {
        Self {
            pool,
            held: Arc::default(),
        }
    }

    /// For single statements, each of which commits.
    ///
    /// # Errors
    /// There is no connection to be had.
    pub(crate) async fn acquire(&self) -> Result<Session<'_>, DbErr> {
        let db = self.pool.db();
        let on = if db.get_database_backend() == DbBackend::Postgres {
            On::Held(self.take(&db).await?)
        } else {
            On::Shared(db)
        };
        Ok(Session { sessions: self, on })
    }

    /// Begins a transaction that writes. It ends with [`Session::commit`]; dropped before, it is rolled back.
    ///
    /// # Errors
    /// What the database says.
    pub(crate) async fn begin(&self) -> Result<Session<'_>, DbErr> {
        let db = self.pool.db();
        let on = if db.get_database_backend() == DbBackend::Postgres {
            let held = self.take(&db).await?;
            held.execute_unprepared("BEGIN").await?;
            On::Held(held)
        } else {
            On::Transaction(self.pool.begin().await?)
        };
        Ok(Session { sessions: self, on })
    }

    async fn take(&self, db: &DatabaseConnection) -> Result<Held, DbErr> {
        let held = self.kept().take();
        match held {
            Some(held) => Ok(held),
            None => Held::take(db).await,
        }
    }

    fn put(&self, held: Held) {
        *self.kept() = Some(held);
    }

    fn kept(&self) -> MutexGuard<'_, Option<Held>> {
        // Whoever panicked with it left it whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Work on a sessions. Its connection is kept when it ends well, and closed, with all that is not committed, when it is dropped before.
pub(crate) struct Session<'a> {
    sessions: &'a Sessions,
    on: On,
}

enum On {
    Held(Held),
    Shared(DatabaseConnection),
    Transaction(DatabaseTransaction),
}

impl Session<'_> {
    /// Ends single statements that went well.
    pub(crate) fn release(self) {
        if let On::Held(held) = self.on {
            self.sessions.put(held);
        }
    }

    /// Ends the transaction with all that it wrote.
    ///
    /// # Errors
    /// What the database says.
    pub(crate) async fn commit(self) -> Result<(), DbErr> {
        match self.on {
            On::Transaction(transaction) => transaction.commit().await,
            _ => self.end("COMMIT").await,
        }
    }

    /// Ends the transaction with nothing of what it wrote.
    ///
    /// # Errors
    /// What the database says.
    pub(crate) async fn rollback(self) -> Result<(), DbErr> {
        match self.on {
            On::Transaction(transaction) => transaction.rollback().await,
            _ => self.end("ROLLBACK").await,
        }
    }

    async fn end(self, how: &str) -> Result<(), DbErr> {
        self.execute_unprepared(how).await?;
        self.release();
        Ok(())
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for Session<'_> {
    fn get_database_backend(&self) -> DbBackend {
        match &self.on {
            On::Held(on) => on.get_database_backend(),
            On::Shared(on) => on.get_database_backend(),
            On::Transaction(on) => on.get_database_backend(),
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match &self.on {
            On::Held(on) => on.execute_raw(statement).await,
            On::Shared(on) => on.execute_raw(statement).await,
            On::Transaction(on) => on.execute_raw(statement).await,
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        match &self.on {
            On::Held(on) => on.execute_unprepared(sql).await,
            On::Shared(on) => on.execute_unprepared(sql).await,
            On::Transaction(on) => on.execute_unprepared(sql).await,
        }
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match &self.on {
            On::Held(on) => on.query_one_raw(statement).await,
            On::Shared(on) => on.query_one_raw(statement).await,
            On::Transaction(on) => on.query_one_raw(statement).await,
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match &self.on {
            On::Held(on) => on.query_all_raw(statement).await,
            On::Shared(on) => on.query_all_raw(statement).await,
            On::Transaction(on) => on.query_all_raw(statement).await,
        }
    }
}
