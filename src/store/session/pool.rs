//! Connection pools that are replaced when the database is lost.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr,
    SqliteTransactionMode, TransactionOptions, TransactionTrait,
};

use crate::error::Error;
use crate::store::session::error::{away, background, unavailable};

/// How long a piece of work may take: longer than PostgreSQL's `statement_timeout`. After that its
/// connection counts as lost.
const WORK_TIMEOUT: Duration = Duration::from_secs(12);

/// A connection pool with its replacement. Cheap to clone; all clones use the same pool.
#[derive(Clone)]
pub(crate) struct Pool {
    db: Arc<Mutex<DatabaseConnection>>,
    /// How to connect the replacement; `None` for SQLite, which has no other server.
    connect: Option<ConnectOptions>,
}

impl Pool {
    /// This pool, and how to connect its replacement.
    pub(crate) fn new(db: DatabaseConnection, connect: Option<ConnectOptions>) -> Self {
        Self {
            db: Arc::new(Mutex::new(db)),
            connect,
        }
    }

    pub(crate) fn db(&self) -> DatabaseConnection {
        self.db.lock().clone()
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.db.lock().get_database_backend() == DbBackend::Postgres
    }

    /// Begins a transaction that writes, on any connection of the pool.
    pub(crate) async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        begin(&self.db()).await
    }

    /// Runs a piece of work within [`WORK_TIMEOUT`]. The pool is replaced when the work takes
    /// longer or the database is away.
    pub(crate) async fn run<T>(
        &self,
        work: impl Future<Output = Result<T, DbErr>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(WORK_TIMEOUT, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(fault)) => {
                if away(&fault) {
                    self.replace().await;
                }
                Err(background(&fault))
            }
            Err(_) => {
                tracing::error!(
                    seconds = WORK_TIMEOUT.as_secs(),
                    "the database did not answer in time; its connections are replaced"
                );
                self.replace().await;
                Err(unavailable())
            }
        }
    }

    /// Replaces the pool: its connections may lead to a server that is gone or that is read-only
    /// now. The new ones are made when they are needed.
    pub(crate) async fn replace(&self) {
        let Some(connect) = &self.connect else { return };
        match Database::connect(connect.clone()).await {
            Ok(fresh) => *self.db.lock() = fresh,
            Err(fault) => tracing::error!(%fault, "the connection pool cannot be replaced"),
        }
    }
}

pub(crate) async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    // On SQLite this takes the write lock: a transaction that reads before it writes may find the
    // database locked.
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..Default::default()
    };
    db.begin_with_options(options).await
}
