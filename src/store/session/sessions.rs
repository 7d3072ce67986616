//! Sessions, each on its own connection.
//!
//! The connections are kept open and reused. sqlx's pools hide what this store must know
//! (docs/adr/0013): after an error they may reuse a connection with an open transaction, and they
//! report "timed out" instead of the cause.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sea_orm::{
    ConnAcquireErr, ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, Statement,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, StoreOutage};
use crate::store::session::connect::{Purpose, ServerProcess};
use crate::store::session::connection::DriverConnection;
use crate::store::session::database::Database;
use crate::store::session::error::{
    ConnectFault, Remedy, connection_is_spent, describe, public, unavailable,
};

/// How long a piece of work may take: longer than PostgreSQL's `statement_timeout`. After that its
/// connection counts as lost.
const WORK_TIMEOUT: Duration = Duration::from_secs(12);
/// A connection that was idle for this long may have been dropped by a firewall, or its server
/// demoted: it is checked before use.
const CHECK_AFTER_IDLE: Duration = Duration::from_secs(1);
/// How long a check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// The age at which a connection is replaced, shortened by up to a tenth so that not all are
/// replaced together.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// How long to wait for sessions in use before they are closed, and for a farewell.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Opens up to a fixed number of sessions at a time. Cheap to clone; all clones share the
/// connections.
#[derive(Clone)]
pub(crate) struct Sessions(Arc<SharedSessions>);

struct SharedSessions {
    database: Database,
    purpose: Purpose,
    max: usize,
    permits: Arc<Semaphore>,
    /// The connections that no session uses, the last used one last.
    idle: Mutex<Vec<Open>>,
}

/// An open connection.
struct Open {
    connection: DriverConnection,
    backend: ServerProcess,
    /// The server that it leads to.
    generation: u64,
    replace_at: Instant,
    used: Instant,
}

impl Sessions {
    /// At most `max` sessions; none is opened yet.
    pub(crate) fn new(database: Database, purpose: Purpose, max: usize) -> Self {
        Self(Arc::new(SharedSessions {
            database,
            purpose,
            max,
            permits: Arc::new(Semaphore::new(max)),
            idle: Mutex::default(),
        }))
    }

    pub(crate) fn database(&self) -> &Database {
        &self.0.database
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.0.database.backend() == DbBackend::Postgres
    }

    /// The maximum number of sessions.
    pub(crate) fn max(&self) -> usize {
        self.0.max
    }

    /// The number of sessions that are open and not in use.
    pub(crate) fn idle(&self) -> usize {
        self.0.idle.lock().len()
    }

    /// The number of sessions in use.
    pub(crate) fn used(&self) -> usize {
        self.0
            .max
            .saturating_sub(self.0.permits.available_permits())
    }

    /// Opens a session for single statements, each of which commits.
    pub(crate) async fn acquire(&self) -> Result<Session<'_>, DbErr> {
        let timeout = self.0.database.options().connect_timeout;
        let permit = self.0.permits.clone().acquire_owned();
        let permit = match tokio::time::timeout(timeout, permit).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed)),
            // Nothing is wrong with the database: its sessions are busy.
            Err(_) => return Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)),
        };
        self.session(permit).await
    }

    async fn session(&self, permit: OwnedSemaphorePermit) -> Result<Session<'_>, DbErr> {
        let open = match self.usable().await {
            Some(open) => open,
            None => self.open().await?,
        };
        Ok(Session {
            sessions: self,
            permit: Some(permit),
            held: tokio::sync::Mutex::new(Held {
                open: Some(open),
                state: SessionState::Ready,
            }),
            in_transaction: false,
        })
    }

    /// Opens a session with a transaction that writes.
    pub(crate) async fn begin(&self) -> Result<Session<'_>, DbErr> {
        self.acquire().await?.begin().await
    }

    /// Opens a session whose statements all read the same state of the database.
    pub(crate) async fn snapshot(&self) -> Result<Session<'_>, DbErr> {
        let begin = if self.is_postgres() {
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        } else {
            "BEGIN"
        };
        self.acquire().await?.begin_with(begin).await
    }

    /// Runs a piece of work within [`WORK_TIMEOUT`].
    pub(crate) async fn run<T>(
        &self,
        work: impl Future<Output = Result<T, DbErr>>,
    ) -> Result<T, Error> {
        self.run_within(WORK_TIMEOUT, work).await
    }

    /// Runs a piece of work within this time.
    pub(crate) async fn run_within<T>(
        &self,
        timeout: Duration,
        work: impl Future<Output = Result<T, DbErr>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(timeout, work).await {
            Ok(done) => done.map_err(|fault| public(&fault)),
            Err(_) => {
                tracing::error!(
                    seconds = timeout.as_secs(),
                    "the database did not answer in time; the connection is closed"
                );
                self.suspect();
                Err(unavailable(StoreOutage::Unreachable))
            }
        }
    }

    /// The fault of a statement that the database did not answer. From now on every connection is
    /// checked before it is used again.
    pub(crate) fn suspect(&self) -> DbErr {
        let fault = DbErr::from(ConnectFault {
            why: StoreOutage::Unreachable,
            message: "the database does not answer".to_owned(),
            remedy: Remedy::Wait,
        });
        self.0.database.note(&fault);
        fault
    }

    /// Makes everything durable that this process has read so far: commits and waits for the disk,
    /// and for the standbys that the server waits for. A server that has restarted shows commits
    /// that no standby has.
    pub(crate) async fn confirm(&self) -> Result<(), DbErr> {
        let db = self.begin().await?;
        db.write_mark().await?;
        db.commit().await
    }

    /// Makes everything durable as [`Self::confirm`] does, after a fault. On SQLite it first moves
    /// the log into the file: on a small disk, the log alone may have filled it.
    pub(crate) async fn recover_from_fault(&self) -> Result<(), DbErr> {
        if !self.is_postgres() {
            let db = self.acquire().await?;
            db.execute_unprepared("PRAGMA wal_checkpoint(TRUNCATE)")
                .await?;
        }
        self.confirm().await
    }

    /// Whether a session can be opened. If all are in use, their own outcomes show it.
    pub(crate) async fn probe(&self) -> Result<(), DbErr> {
        let Ok(permit) = self.0.permits.clone().try_acquire_owned() else {
            return Ok(());
        };
        let session = self.session(permit).await?;
        let asked = Statement::from_string(self.0.database.backend(), "SELECT 1");
        session.query_one_raw(asked).await.map(drop)
    }

    /// Waits for the sessions in use, closes every connection, and opens no more.
    pub(crate) async fn close(&self) {
        let all = u32::try_from(self.0.max).unwrap_or(u32::MAX);
        match tokio::time::timeout(CLOSE_TIMEOUT, self.0.permits.acquire_many(all)).await {
            Ok(Ok(permits)) => permits.forget(),
            Ok(Err(_)) => {}
            Err(_) => tracing::warn!("a session with the database is still in use; it is cut off"),
        }
        self.0.permits.close();
        let idle = std::mem::take(&mut *self.0.idle.lock());
        for open in idle {
            open.close().await;
        }
    }

    /// An idle connection that is known to work.
    async fn usable(&self) -> Option<Open> {
        loop {
            let mut open = self.0.idle.lock().pop()?;
            if !self.0.database.is_current(open.generation) {
                // Without a farewell, for which a server that is gone would be waited for.
                continue;
            }
            if open.replace_at <= Instant::now() {
                open.close().await;
                continue;
            }
            let is_fresh =
                open.used.elapsed() < CHECK_AFTER_IDLE && self.0.database.is_trusted(open.used);
            if is_fresh || !self.is_postgres() {
                return Some(open);
            }
            match tokio::time::timeout(CHECK_TIMEOUT, check(&mut open.connection)).await {
                Ok(Ok(())) => return Some(open),
                Ok(Err(fault)) => {
                    tracing::debug!(fault = describe(&fault), "an idle connection is replaced");
                }
                Err(_) => {
                    tracing::debug!("an idle connection does not answer; all are replaced");
                    // Whatever made this one silent, such as a firewall, made the others silent.
                    let silent = std::mem::take(&mut *self.0.idle.lock());
                    for open in silent {
                        self.0.database.abandon(open.backend);
                    }
                }
            }
            self.0.database.abandon(open.backend);
        }
    }

    /// Keeps a connection for the next session.
    fn keep(&self, mut open: Open) {
        if !self.0.permits.is_closed() {
            open.used = Instant::now();
            self.0.idle.lock().push(open);
        }
    }

    /// Waits for the statement that a connection is still busy with, rolls back its transaction, and
    /// keeps it; closes it if that takes too long.
    async fn recover(&self, mut open: Open, in_transaction: bool) {
        let recovered = async {
            open.connection.ping().await?;
            if in_transaction {
                open.connection.execute_unprepared("ROLLBACK").await?;
            }
            Ok::<_, DbErr>(())
        };
        match tokio::time::timeout(CHECK_TIMEOUT, recovered).await {
            Ok(Ok(())) => self.keep(open),
            _ => self.0.database.abandon(open.backend),
        }
    }

    async fn open(&self) -> Result<Open, DbErr> {
        let (opened, generation) = self.0.database.open(self.0.purpose).await?;
        let now = Instant::now();
        let shortened = MAX_AGE.mul_f64(1.0 - fastrand::f64() / 10.0);
        Ok(Open {
            connection: opened.connection,
            backend: opened.backend,
            generation,
            replace_at: now + shortened,
            used: now,
        })
    }
}

/// Fails when the connection is dead or its server read-only.
async fn check(connection: &mut DriverConnection) -> Result<(), DbErr> {
    let shown = connection
        .query_unprepared("SHOW transaction_read_only")
        .await?;
    let read_only: Option<String> = shown.map(|row| row.try_get_by_index(0)).transpose()?;
    if read_only.as_deref() == Some("off") {
        return Ok(());
    }
    Err(DbErr::from(ConnectFault {
        why: StoreOutage::ReadOnly,
        message: "the server has become read-only".to_owned(),
        remedy: Remedy::Wait,
    }))
}

impl Open {
    async fn close(self) {
        let is_remote = matches!(self.connection, DriverConnection::Postgres(_));
        let closing = self.connection.close();
        let closed = if is_remote {
            // A server that does not answer a farewell learns of the end from the socket.
            let closed = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
            closed.unwrap_or(Ok(()))
        } else {
            // The last connection to the file moves everything into it.
            closing.await
        };
        if let Err(fault) = closed {
            tracing::debug!(
                fault = describe(&fault),
                "a connection was not closed in order"
            );
        }
    }
}

/// A session. Dropping it keeps its connection for the next one. If a statement is unfinished then,
/// because its caller has gone, or a transaction open, the statement is waited for and the
/// transaction rolled back first. A connection that failed is closed, with all that is not
/// committed.
pub(crate) struct Session<'a> {
    sessions: &'a Sessions,
    /// Absent only while the session is dropped.
    permit: Option<OwnedSemaphorePermit>,
    held: tokio::sync::Mutex<Held>,
    in_transaction: bool,
}

struct Held {
    /// Absent only while the session is dropped.
    open: Option<Open>,
    state: SessionState,
}

/// The state of a session's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SessionState {
    /// The next statement may run on it.
    Ready,
    /// A statement runs on it.
    Busy,
    /// It must not be used again.
    Spent,
}

impl Session<'_> {
    /// Begins a transaction that writes. It ends with [`Self::commit`] or [`Self::rollback`].
    pub(crate) async fn begin(self) -> Result<Self, DbErr> {
        // On SQLite this takes the write lock: a transaction that reads before it writes may find
        // the database locked.
        let begin = match self.get_database_backend() {
            DbBackend::Postgres => "BEGIN",
            _ => "BEGIN IMMEDIATE",
        };
        self.begin_with(begin).await
    }

    async fn begin_with(mut self, begin: &str) -> Result<Self, DbErr> {
        self.execute_unprepared(begin).await?;
        self.in_transaction = true;
        Ok(self)
    }

    pub(crate) fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Ends the transaction with all that it wrote. After an error the connection is closed, and
    /// the transaction may have been committed all the same.
    pub(crate) async fn commit(mut self) -> Result<(), DbErr> {
        let committed = self.execute_unprepared("COMMIT").await;
        self.in_transaction = committed.is_err();
        committed.map(drop)
    }

    /// Ends the transaction with nothing of what it wrote.
    pub(crate) async fn rollback(mut self) -> Result<(), DbErr> {
        let ended = self.execute_unprepared("ROLLBACK").await;
        self.in_transaction = ended.is_err();
        ended.map(drop)
    }

    /// Ends a transaction that only reads, whatever came of it.
    pub(crate) async fn finish<T>(self, read: Result<T, DbErr>) -> Result<T, DbErr> {
        match &read {
            Ok(_) => self.commit().await?,
            Err(fault) => self.abandon(fault).await,
        }
        read
    }

    /// Ends a session one of whose statements failed. Its connection is kept if nothing is left of
    /// the transaction.
    pub(crate) async fn abandon(self, fault: &DbErr) {
        if !self.in_transaction || connection_is_spent(fault) {
            return;
        }
        if let Err(fault) = self.rollback().await {
            let fault = describe(&fault);
            tracing::debug!(
                fault,
                "a failed transaction was not rolled back; its connection is closed"
            );
        }
    }

    /// Writes something that its commit makes durable.
    async fn write_mark(&self) -> Result<(), DbErr> {
        let mark = match self.get_database_backend() {
            // A record in the write-ahead log, which locks no row.
            DbBackend::Postgres => "SELECT pg_logical_emit_message(true, 'canvas-scheduler', '')",
            // The header of the file, which needs no table.
            _ => "PRAGMA user_version = 0",
        };
        self.execute_unprepared(mark).await.map(drop)
    }

    /// The connection for one statement. Until the statement ends, it is not to be used again.
    async fn connection(&self) -> Result<Using<'_>, DbErr> {
        let mut held = self.held.lock().await;
        held.state = SessionState::Busy;
        if held.open.is_none() {
            return Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed));
        }
        let sessions = self.sessions;
        Ok(Using { held, sessions })
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let held = self.held.get_mut();
        let (Some(open), permit) = (held.open.take(), self.permit.take()) else {
            return;
        };
        let sessions = self.sessions.clone();
        match held.state {
            SessionState::Ready if !self.in_transaction => sessions.keep(open),
            SessionState::Spent => sessions.0.database.abandon(open.backend),
            SessionState::Ready | SessionState::Busy => {
                let Ok(runtime) = tokio::runtime::Handle::try_current() else {
                    return sessions.0.database.abandon(open.backend);
                };
                let in_transaction = self.in_transaction;
                runtime.spawn(async move {
                    sessions.recover(open, in_transaction).await;
                    // Only now may another session take its place.
                    drop(permit);
                });
            }
        }
    }
}

/// The connection of a session while a statement runs.
struct Using<'a> {
    held: tokio::sync::MutexGuard<'a, Held>,
    sessions: &'a Sessions,
}

impl Using<'_> {
    fn open(&mut self) -> Result<&mut DriverConnection, DbErr> {
        let open = self.held.open.as_mut();
        open.map(|open| &mut open.connection)
            .ok_or(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed))
    }

    /// Records how the statement ended.
    fn ended<T>(mut self, result: Result<T, DbErr>) -> Result<T, DbErr> {
        match &result {
            Ok(_) => self.held.state = SessionState::Ready,
            Err(fault) => {
                self.held.state = if connection_is_spent(fault) {
                    SessionState::Spent
                } else {
                    SessionState::Ready
                };
                self.sessions.0.database.note(fault);
            }
        }
        result
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for Session<'_> {
    fn get_database_backend(&self) -> DbBackend {
        self.sessions.0.database.backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let mut using = self.connection().await?;
        let done = using.open()?.execute(statement).await;
        using.ended(done)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let mut using = self.connection().await?;
        let done = using.open()?.execute_unprepared(sql).await;
        using.ended(done)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let mut using = self.connection().await?;
        let row = using.open()?.query_one(statement).await;
        using.ended(row)
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let mut using = self.connection().await?;
        let rows = using.open()?.query_all(statement).await;
        using.ended(rows)
    }
}
