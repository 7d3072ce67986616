//! The database as all sessions of a process see it: the one server that they lead to, and what is
//! wrong with it.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr};

use crate::error::StoreOutage;
use crate::store::session::connect::{self, Opened, Purpose, ServerProcess};
use crate::store::session::connection::DriverConnection;
use crate::store::session::error::{Remedy, connect_fault, connection_is_spent, describe, outage};
use crate::store::session::options::{Location, Options};

/// The most backends that are remembered to be ended.
const MAX_ABANDONED: usize = 64;

/// What is wrong with the database, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreFault {
    /// The class of the fault.
    pub why: StoreOutage,
    /// The server and the cause, without credentials.
    pub message: String,
    /// Whether waiting does not help: something must be changed at the server.
    pub lasts: bool,
}

/// The database of a process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Database(Arc<Shared>);

struct Shared {
    options: Options,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The server that sessions lead to.
    server: String,
    /// Its number among the hosts of the URL.
    host: usize,
    /// Counts the servers; a connection to an earlier one is not used any more.
    generation: u64,
    /// When a session last failed; a connection that was last used before is checked before use.
    suspected: Option<Instant>,
    fault: Option<(StoreFault, Instant)>,
    /// Backends whose connections were dropped in the middle of something.
    abandoned: Vec<ServerProcess>,
}

impl Database {
    pub(crate) fn new(options: &Options) -> Self {
        Self(Arc::new(Shared {
            options: options.clone(),
            state: Mutex::default(),
        }))
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn backend(&self) -> DbBackend {
        match self.0.options.location {
            Location::Postgres(_) => DbBackend::Postgres,
            Location::Sqlite { .. } => DbBackend::Sqlite,
        }
    }

    /// Opens a connection, and returns it with the generation of its server. When that is another
    /// server than before, a failover has happened, and all connections to the old one end: what
    /// this process writes to one server it must not read from another.
    pub(crate) async fn open(&self, purpose: Purpose) -> Result<(Opened, u64), DbErr> {
        let host = self.0.state.lock().host;
        let opened = connect::open(&self.0.options, purpose, host).await;
        let (mut opened, host) = opened.map_err(|fault| {
            let fault = DbErr::from(fault);
            self.note(&fault);
            fault
        })?;
        self.end_abandoned(&mut opened.connection).await?;
        let mut state = self.0.state.lock();
        state.host = host;
        if state.server != opened.server {
            if !state.server.is_empty() {
                tracing::warn!("the database has restarted or failed over; sessions reconnect");
            }
            state.server.clone_from(&opened.server);
            state.generation += 1;
        }
        Ok((opened, state.generation))
    }

    /// Ends the abandoned backends. Fails only if the connection cannot be used any more: a role may
    /// lack the right to end backends, whose own timeouts then end them.
    async fn end_abandoned(&self, connection: &mut DriverConnection) -> Result<(), DbErr> {
        let abandoned = std::mem::take(&mut self.0.state.lock().abandoned);
        if abandoned.is_empty() {
            return Ok(());
        }
        let Err(fault) = connect::terminate(connection, &abandoned).await else {
            return Ok(());
        };
        self.note(&fault);
        tracing::debug!(fault = describe(&fault), "abandoned backends are not ended");
        if connection_is_spent(&fault) {
            return Err(fault);
        }
        Ok(())
    }

    /// Remembers the backend of a connection that was dropped in the middle of something, to end it
    /// with the next connection that is opened.
    pub(crate) fn abandon(&self, backend: ServerProcess) {
        let mut state = self.0.state.lock();
        if self.backend() == DbBackend::Postgres && state.abandoned.len() < MAX_ABANDONED {
            state.abandoned.push(backend);
        }
    }

    /// The driver's own pool with one connection to the current server, which it keeps, with the
    /// settings that the URL asks for.
    pub(crate) async fn pool_of_one(&self) -> Result<DatabaseConnection, DbErr> {
        let host = self.0.state.lock().host;
        let db = connect::pool_of_one(&self.0.options, host);
        if !self.0.options.session_settings.is_empty() {
            let set = connect::set(&self.0.options.session_settings);
            db.execute_unprepared(&set).await?;
        }
        Ok(db)
    }

    /// Whether a connection that was last used at `used` may be used without a check.
    pub(crate) fn is_trusted(&self, used: Instant) -> bool {
        self.0.state.lock().suspected.is_none_or(|at| at < used)
    }

    /// Whether connections of this generation lead to the current server.
    pub(crate) fn is_current(&self, generation: u64) -> bool {
        self.0.state.lock().generation == generation
    }

    /// Records a fault of a session, if it is one of the database.
    pub(crate) fn note(&self, fault: &DbErr) {
        if let Some(why) = outage(fault) {
            let lasts = connect_fault(fault).is_some_and(|fault| fault.remedy > Remedy::Wait);
            let message = describe(fault);
            self.report(StoreFault {
                why,
                message,
                lasts,
            });
        }
    }

    /// Records what is wrong.
    pub(crate) fn report(&self, fault: StoreFault) {
        let now = Instant::now();
        let mut state = self.0.state.lock();
        state.suspected = Some(now);
        state.fault = Some((fault, now));
    }

    /// Records that everything worked from `began` on.
    pub(crate) fn recovered(&self, began: Instant) {
        let mut state = self.0.state.lock();
        if state.fault.as_ref().is_some_and(|(_, at)| *at < began) {
            state.fault = None;
        }
    }

    pub(crate) fn fault(&self) -> Option<StoreFault> {
        self.0
            .state
            .lock()
            .fault
            .as_ref()
            .map(|(fault, _)| fault.clone())
    }
}
