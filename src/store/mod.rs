//! The store: the only module that uses sea-orm.

mod admin;
mod commit;
mod dispatch;
mod gauges;
mod read;
mod schema;
mod session;
mod settings;

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait as _, DbErr};
use tokio::sync::mpsc;

pub use admin::AdminStore;
pub use admin::workspaces::WorkspaceChange;
pub use commit::job::{Caller, Work};
pub use commit::queue::CommitQueue;
pub use commit::writer::Writer;
pub use dispatch::DispatchStore;
pub use dispatch::claim::Claimed;
pub use dispatch::next_due::NextDue;
pub use dispatch::payload::Leased;
pub use dispatch::settle::AttemptResult;
pub use gauges::{Fill, StoreGauges};
pub use read::{Details, DispatchFilter, Filter, Reads};
pub use schema::answered::{Answered, REQUEST_KEPT, RequestKey};
pub use schema::tenant::Key;
pub use session::database::StoreFault;
pub use session::durability::Durability;
pub use session::error::RETRY_AFTER;
pub use session::options::Options;
pub use settings::StoreSettings;

use crate::clock::SharedClock;
use crate::domain::SchedulePolicy;
use crate::error::{Error, StoreOutage};
use crate::telemetry::outage::OutageLog;
use dispatch::DispatchSessions;
use schema::migration;
use schema::statement::statement;
use session::connect::Purpose;
use session::database::Database;
use session::error::Remedy;
use session::sessions::Sessions;
use session::{durability, error, pooler};

/// The time between attempts of a command to reach the database.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// How long a command waits for the database: a release's migration does not fail because the
/// database is slow or just starting.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Sessions of a process on PostgreSQL for keys, quotas, maintenance and the clock.
const ADMIN_SESSIONS: usize = 4;

/// The database, in four parts, one for each kind of user.
#[derive(Clone)]
pub struct Store {
    /// Reads for callers.
    pub read: Reads,
    /// Callers' changes, which the writers commit.
    pub commit: CommitQueue,
    /// Operations of the dispatcher.
    pub dispatch: DispatchStore,
    /// Operations of operators and of the process itself.
    pub admin: AdminStore,
    /// The sessions of all of them, to be closed.
    pub sessions: StoreSessions,
}

/// The sessions of a process, by use. They keep no queue open.
#[derive(Clone)]
pub struct StoreSessions {
    reads: Sessions,
    writers: Vec<Sessions>,
    claiming: Sessions,
    settling: Sessions,
    admin: Sessions,
}

impl StoreSessions {
    /// On SQLite, everything that writes shares the one connection that may write at a time; a
    /// database in memory has only one connection.
    fn new(database: &Database, settings: &StoreSettings) -> Self {
        let sessions = |purpose, max| Sessions::new(database.clone(), purpose, max);
        let reads = usize::try_from(settings.read_connections.get()).unwrap_or(usize::MAX);
        if database.options().is_sqlite() {
            let writer = sessions(Purpose::Commit, 1);
            let reads = if database.options().is_in_memory() {
                writer.clone()
            } else {
                sessions(Purpose::Read, reads)
            };
            return Self {
                reads,
                writers: vec![writer.clone()],
                claiming: writer.clone(),
                settling: writer.clone(),
                admin: writer,
            };
        }
        let writers = (0..settings.writers.get()).map(|_| sessions(Purpose::Commit, 1));
        Self {
            reads: sessions(Purpose::Read, reads),
            writers: writers.collect(),
            claiming: sessions(Purpose::Dispatch, 1),
            settling: sessions(Purpose::Dispatch, 1),
            admin: sessions(Purpose::Dispatch, ADMIN_SESSIONS),
        }
    }

    /// Each once; on SQLite, the one that writes comes last.
    fn distinct(&self) -> Vec<&Sessions> {
        let database = self.reads.database().options();
        let mut distinct = vec![&self.reads];
        if !database.is_in_memory() {
            distinct.extend(&self.writers);
        }
        if !database.is_sqlite() {
            distinct.extend([&self.claiming, &self.settling, &self.admin]);
        }
        distinct
    }

    /// Waits for the sessions in use, for at most a few seconds, and closes every connection. The
    /// last connection to a SQLite file moves everything into the file.
    pub async fn close(&self) {
        for sessions in self.distinct() {
            sessions.close().await;
        }
    }
}

impl Store {
    /// A store over this database, which is connected to when it is first used. It writes only
    /// while the returned writers run, on any runtime; they end once every clone of the store is
    /// dropped.
    pub fn open(
        options: &Options,
        clock: SharedClock,
        policy: SchedulePolicy,
    ) -> (Self, Vec<Writer>) {
        let database = Database::new(options);
        let sessions = StoreSessions::new(&database, &options.settings);
        let (mut senders, mut writers) = (Vec::new(), Vec::new());
        for sessions in &sessions.writers {
            let (sender, queue) = mpsc::channel(options.settings.queue_max.get());
            let sessions = sessions.clone();
            writers.push(Writer::new(queue, sessions, options, clock.clone(), policy));
            senders.push(sender);
        }
        let metrics = options.metrics.clone();
        let store = Self {
            read: Reads {
                sessions: sessions.reads.clone(),
                confirming: sessions.admin.clone(),
                clock: clock.clone(),
                revisions_kept: i64::from(options.settings.revisions_kept.get()),
            },
            commit: CommitQueue::new(senders, metrics.clone()),
            dispatch: DispatchStore::new(
                DispatchSessions {
                    claiming: sessions.claiming.clone(),
                    settling: sessions.settling.clone(),
                    other: sessions.admin.clone(),
                },
                metrics,
            ),
            admin: AdminStore {
                sessions: sessions.admin.clone(),
                clock,
            },
            sessions,
        };
        (store, writers)
    }

    /// Applies pending migrations and returns their names.
    pub async fn migrate(&self) -> Result<Vec<String>, Error> {
        let migrated = migration::migrate(&self.sessions.admin).await;
        migrated.map_err(|fault| error::public(&fault))
    }

    /// The names of pending migrations.
    pub async fn pending_migrations(&self) -> Result<Vec<String>, Error> {
        let pending = async {
            let db = self.sessions.admin.acquire().await?;
            migration::pending(&db).await
        };
        self.sessions.admin.run(pending).await
    }

    /// Checks that this database can hold the service's data, and returns whether an acknowledged
    /// change survives a crash of its machine.
    ///
    /// # Errors
    /// [`Error::Invalid`] when another database, or another way to it, must be used;
    /// [`Error::StoreUnavailable`] when the database is away, with its cause in [`Self::fault`].
    pub async fn check(&self) -> Result<Durability, Error> {
        let check = async {
            let database = self.sessions.admin.database();
            if !database.options().is_sqlite() {
                pooler::check(database).await?;
            }
            let db = self.sessions.admin.acquire().await?;
            durability::durability(&db).await
        };
        check
            .await
            .map_err(|fault| match error::connect_fault(&fault) {
                Some(refused) if refused.remedy == Remedy::Url => {
                    Error::invalid("database-url", refused.message.clone())
                }
                _ => error::public(&fault),
            })
    }

    /// [`Self::check`], repeated while the database is away, for at most 30 seconds. Logs what it
    /// waits for.
    pub async fn wait_until_usable(&self) -> Result<Durability, Error> {
        let began = Instant::now();
        let mut waited_for = String::new();
        loop {
            let error = match self.check().await {
                Err(error @ Error::StoreUnavailable { .. }) => error,
                checked => return checked,
            };
            let fault = self.fault();
            let lasts = fault.as_ref().is_some_and(|fault| fault.lasts);
            let cause = fault.map_or(error.to_string(), |fault| fault.message);
            if lasts || began.elapsed() >= COMMAND_TIMEOUT {
                return Err(Error::internal(cause));
            }
            if cause != waited_for {
                let seconds = COMMAND_TIMEOUT.as_secs();
                tracing::warn!(cause, "waiting up to {seconds} s for the database");
                waited_for = cause;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// What is wrong with the database, as far as this process has noticed.
    pub fn fault(&self) -> Option<StoreFault> {
        self.sessions.admin.database().fault()
    }

    /// Checks every kind of session, and after a fault that a write succeeds, so that
    /// [`Self::fault`] is up to date. `log` gets the end and the beginning of an outage.
    pub async fn probe(&self, log: &mut OutageLog) {
        let (began, sessions) = (Instant::now(), &self.sessions);
        let was_faulty = self.fault().is_some();
        let probe = async {
            for sessions in sessions.distinct() {
                sessions.probe().await?;
            }
            self.check_connection_limit().await?;
            if was_faulty {
                sessions.admin.recover_from_fault().await?;
            }
            Ok(())
        };
        match sessions.admin.run(probe).await {
            Ok(()) => sessions.admin.database().recovered(began),
            Err(error) if self.fault().is_none() => log.failed(&error),
            Err(_) => {}
        }
        match self.fault() {
            Some(fault) => log.unavailable(&fault.message),
            None => log.succeeded(),
        }
    }

    /// Reports a limit that is lower than the number of sessions of this process.
    async fn check_connection_limit(&self) -> Result<(), DbErr> {
        if self.sessions.reads.database().options().is_sqlite() {
            return Ok(());
        }
        let db = self.sessions.admin.acquire().await?;
        let row = db
            .query_one_raw(statement(&db, CONNECTION_LIMIT, []))
            .await?;
        let limit: Option<i32> = row
            .map(|row| row.try_get_by_index(0))
            .transpose()?
            .flatten();
        let needed: usize = self.sessions.distinct().iter().map(|one| one.max()).sum();
        let Some(limit) = limit.filter(|limit| usize::try_from(*limit).is_ok_and(|n| n < needed))
        else {
            return Ok(());
        };
        self.sessions.admin.database().report(StoreFault {
            why: StoreOutage::TooManyConnections,
            message: format!(
                "the database allows {limit} connections, and this process needs {needed}; raise \
                 the CONNECTION LIMIT of the role or of the database, or lower --read-connections"
            ),
            lasts: true,
        });
        Ok(())
    }

    /// The gauges of the queues and of the sessions.
    pub fn gauges(&self) -> StoreGauges {
        let (reads, admin) = (self.sessions.reads.clone(), self.sessions.admin.clone());
        StoreGauges::new(self.commit.writers(), reads, admin)
    }
}

/// The smallest limit on this role's connections to this database; superusers have none.
const CONNECTION_LIMIT: &str = "SELECT min(n) FROM ( \
       SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user AND NOT rolsuper \
       UNION ALL SELECT datconnlimit FROM pg_database WHERE datname = current_database() \
         AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) \
     ) AS limits (n) WHERE n >= 0";
