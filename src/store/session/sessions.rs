//! Connections that one part of the process keeps between its pieces of work, transactions
//! included.
//!
//! sea-orm takes a connection out of its pool for each statement, and sqlx's pool checks a
//! connection whenever it gets one back: one round trip more for each statement (docs/adr/0002 has
//! the figures). A kept PostgreSQL connection spares them. SQLite has one connection that writes,
//! which its pool lends in turn.

use std::sync::Arc;

use sea_orm::sqlx::pool::PoolConnection;
use sea_orm::sqlx::{self, AssertSqlSafe, Postgres};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseExecutor, DatabaseTransaction, DbBackend, DbErr,
    ExecResult, QueryResult, RuntimeErr, Statement,
};
use sea_query_sqlx::SqlxValues;

use crate::store::session::error::away;
use crate::store::session::pool::{Pool, begin};

/// Opens sessions, one after the other, on one kept connection; a session that is opened while
/// another is in use gets another connection. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sessions {
    pool: Pool,
    /// The connection while no session uses it.
    kept: Arc<parking_lot::Mutex<Option<PoolConnection<Postgres>>>>,
}

impl Sessions {
    /// Takes its connection out of `pool` when it is first needed, and a new one after each that
    /// failed.
    pub(crate) fn new(pool: Pool) -> Self {
        Self {
            pool,
            kept: Arc::default(),
        }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Opens a session for single statements, each of which commits.
    pub(crate) async fn acquire(&self) -> Result<Session<'_>, DbErr> {
        let db = self.pool.db();
        let on = if db.get_database_backend() == DbBackend::Postgres {
            let kept = self.kept.lock().take();
            let connection = match kept {
                Some(connection) => connection,
                None => connect(&db).await?,
            };
            On::Kept(tokio::sync::Mutex::new(connection))
        } else {
            On::Shared(db)
        };
        Ok(Session {
            sessions: self,
            on,
            in_transaction: false,
        })
    }

    /// Opens a session with a transaction that writes.
    pub(crate) async fn begin(&self) -> Result<Session<'_>, DbErr> {
        self.acquire().await?.begin().await
    }
}

/// Takes a connection out of a pool to PostgreSQL. Dropping it closes it, because its
/// state is then unknown.
async fn connect(db: &DatabaseConnection) -> Result<PoolConnection<Postgres>, DbErr> {
    let pool = db.get_postgres_connection_pool();
    let mut connection = pool
        .acquire()
        .await
        .map_err(|why| DbErr::Conn(driver(why)))?;
    connection.close_on_drop();
    Ok(connection)
}

/// A session. Its connection is kept when the session ends well, and closed, with all that is not
/// committed, when the session is dropped before.
pub(crate) struct Session<'a> {
    sessions: &'a Sessions,
    on: On,
    in_transaction: bool,
}

enum On {
    Kept(tokio::sync::Mutex<PoolConnection<Postgres>>),
    Shared(DatabaseConnection),
    Transaction(DatabaseTransaction),
}

impl Session<'_> {
    /// Begins a transaction that writes. It ends with [`Self::commit`] or [`Self::rollback`].
    pub(crate) async fn begin(self) -> Result<Self, DbErr> {
        let on = match self.on {
            On::Shared(db) => On::Transaction(begin(&db).await?),
            _ => {
                self.execute_unprepared("BEGIN").await?;
                self.on
            }
        };
        Ok(Self {
            sessions: self.sessions,
            on,
            in_transaction: true,
        })
    }

    pub(crate) fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Ends a session whose statements succeeded.
    pub(crate) fn release(self) {
        if let On::Kept(connection) = self.on {
            *self.sessions.kept.lock() = Some(connection.into_inner());
        }
    }

    /// Ends the transaction with all that it wrote.
    pub(crate) async fn commit(self) -> Result<(), DbErr> {
        match self.on {
            On::Transaction(transaction) => transaction.commit().await,
            _ => self.end("COMMIT").await,
        }
    }

    /// Ends the transaction with nothing of what it wrote.
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

    /// Ends a session one of whose statements failed. Its connection is kept unless the database is
    /// away.
    pub(crate) async fn abandon(self, fault: &DbErr) {
        if away(fault) {
            return;
        }
        if !self.in_transaction {
            return self.release();
        }
        if let Err(fault) = self.rollback().await {
            tracing::debug!(
                %fault,
                "a failed transaction was not rolled back; its connection is closed"
            );
        }
    }
}

fn driver(why: sqlx::Error) -> RuntimeErr {
    RuntimeErr::SqlxError(why.into())
}

type Query<'a> = sqlx::query::Query<'a, Postgres, SqlxValues>;

fn query(statement: Statement) -> Query<'static> {
    let values = statement
        .values
        .unwrap_or_else(|| sea_orm::sea_query::Values(vec![]));
    // The texts come from this crate's own code; what callers sent is in the values.
    sqlx::query_with(AssertSqlSafe(statement.sql), SqlxValues(values))
}

impl On {
    /// The kept connection, or what sea-orm runs statements on.
    fn executor(
        &self,
    ) -> Result<&tokio::sync::Mutex<PoolConnection<Postgres>>, DatabaseExecutor<'_>> {
        match self {
            Self::Kept(connection) => Ok(connection),
            Self::Shared(db) => Err(db.into()),
            Self::Transaction(transaction) => Err(transaction.into()),
        }
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for Session<'_> {
    fn get_database_backend(&self) -> DbBackend {
        match &self.on {
            On::Kept(_) => DbBackend::Postgres,
            _ => DbBackend::Sqlite,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let kept = match self.on.executor() {
            Ok(kept) => kept,
            Err(executor) => return executor.execute_raw(statement).await,
        };
        let done = query(statement).execute(&mut **kept.lock().await).await;
        done.map(ExecResult::from)
            .map_err(|why| DbErr::Exec(driver(why)))
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let kept = match self.on.executor() {
            Ok(kept) => kept,
            Err(executor) => return executor.execute_unprepared(sql).await,
        };
        let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut **kept.lock().await)
            .await;
        done.map(ExecResult::from)
            .map_err(|why| DbErr::Exec(driver(why)))
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let kept = match self.on.executor() {
            Ok(kept) => kept,
            Err(executor) => return executor.query_one_raw(statement).await,
        };
        let row = query(statement)
            .fetch_optional(&mut **kept.lock().await)
            .await;
        row.map(|row| row.map(QueryResult::from))
            .map_err(|why| DbErr::Query(driver(why)))
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let kept = match self.on.executor() {
            Ok(kept) => kept,
            Err(executor) => return executor.query_all_raw(statement).await,
        };
        let rows = query(statement).fetch_all(&mut **kept.lock().await).await;
        rows.map(|rows| rows.into_iter().map(QueryResult::from).collect())
            .map_err(|why| DbErr::Query(driver(why)))
    }
}
