//! The connections of what fires and finishes. Whoever tries again many times a second must not wait for a server that is gone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DatabaseTransaction, DbErr,
    SqliteTransactionMode, TransactionOptions, TransactionTrait,
};

use crate::error::Error;
use crate::store::session::error::{RETRY_AFTER, away, background};

/// How long a piece of work may take: longer than PostgreSQL lets a statement run. Then its connection is taken for lost.
const MOST: Duration = Duration::from_secs(12);

/// Connections that are left for new ones when the database is away. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pool {
    db: Arc<Mutex<DatabaseConnection>>,
    /// How new ones are made; none where there is no other server.
    connect: Option<ConnectOptions>,
}

impl Pool {
    /// These connections, and how to make new ones.
    pub(crate) fn new(db: DatabaseConnection, connect: Option<ConnectOptions>) -> Self {
        Self {
            db: Arc::new(Mutex::new(db)),
            connect,
        }
    }

    /// The connections as they are now.
    pub(crate) fn db(&self) -> DatabaseConnection {
        self.db
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Begins a transaction that writes, on any of the connections.
    pub(crate) async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        begin(&self.db()).await
    }

    /// Does a piece of work, which is given up when it takes too long.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub(crate) async fn run<T>(
        &self,
        work: impl Future<Output = Result<T, DbErr>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(MOST, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(fault)) => {
                if away(&fault) {
                    self.leave().await;
                }
                Err(background(&fault))
            }
            Err(_) => {
                tracing::error!(
                    seconds = MOST.as_secs(),
                    "the database has not answered; its connections are left for new ones"
                );
                self.leave().await;
                Err(Error::StoreUnavailable {
                    retry_after: RETRY_AFTER,
                })
            }
        }
    }

    /// New connections, made when they are needed: the old ones may be to a server that is gone or only reads now.
    async fn leave(&self) {
        let Some(connect) = &self.connect else { return };
        match Database::connect(connect.clone()).await {
            Ok(fresh) => *self.db.lock().unwrap_or_else(PoisonError::into_inner) = fresh,
            Err(fault) => tracing::error!(%fault, "no new connections for the dispatcher"),
        }
    }
}

/// Begins a transaction that writes.
pub(crate) async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    // On SQLite the write lock is taken at once: one that reads first and writes later may find it taken.
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..Default::default()
    };
    db.begin_with_options(options).await
}
