//! The store: the only module that uses sea-orm.

mod admin;
mod availability;
mod commit;
mod dispatch;
mod gauges;
mod read;
mod schema;
mod session;
mod settings;

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
pub use session::store_sessions::StoreSessions;
pub use settings::StoreSettings;

use crate::clock::SharedClock;
use crate::domain::SchedulePolicy;
use crate::error::Error;
use dispatch::DispatchSessions;
use schema::migration;
use session::database::Database;
use session::error;

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

    /// The gauges of the queues and of the sessions.
    pub fn gauges(&self) -> StoreGauges {
        let (reads, admin) = (self.sessions.reads.clone(), self.sessions.admin.clone());
        StoreGauges::new(self.commit.writers(), reads, admin)
    }
}
