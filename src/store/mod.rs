//! The store: the only module that uses sea-orm.

mod admin;
mod commit;
mod dispatch;
mod gauges;
mod read;
mod schema;
mod session;
mod settings;

use sea_orm::DatabaseConnection;
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
pub use session::durability::Durability;
pub use session::error::RETRY_AFTER;
pub use session::options::Options;
pub use settings::StoreSettings;

use crate::clock::SharedClock;
use crate::domain::SchedulePolicy;
use crate::error::Error;
use schema::migration;
use session::pool::Pool;
use session::{connect, durability, error};

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
    reads: DatabaseConnection,
    dispatching: Pool,
}

impl Store {
    /// Opens the database. The store writes only while the returned writers run, on any runtime;
    /// they end once every clone of the store is dropped.
    pub async fn open(
        options: &Options,
        clock: SharedClock,
        policy: SchedulePolicy,
    ) -> Result<(Self, Vec<Writer>), Error> {
        let reads = connect::reads(options).await?;
        let pools = connect::writers(options, &reads).await?;
        let pool = connect::dispatcher(options, pools.first()).await?;
        let (mut senders, mut writers) = (Vec::new(), Vec::new());
        for pool in pools {
            let (sender, queue) = mpsc::channel(options.settings.queue_max.get());
            writers.push(Writer::new(queue, pool, options, clock.clone(), policy));
            senders.push(sender);
        }
        let metrics = options.metrics.clone();
        let store = Self {
            read: Reads {
                db: reads.clone(),
                clock: clock.clone(),
                revisions_kept: i64::from(options.settings.revisions_kept.get()),
            },
            commit: CommitQueue::new(senders, metrics.clone()),
            dispatch: DispatchStore::new(pool.clone(), metrics),
            admin: AdminStore {
                reads: reads.clone(),
                pool: pool.clone(),
                clock,
            },
            reads,
            dispatching: pool,
        };
        Ok((store, writers))
    }

    /// Applies pending migrations and returns their names.
    pub async fn migrate(&self) -> Result<Vec<String>, Error> {
        migration::migrate(&self.reads).await.map_err(error::public)
    }

    /// The names of pending migrations.
    pub async fn pending_migrations(&self) -> Result<Vec<String>, Error> {
        migration::pending(&self.reads).await.map_err(error::public)
    }

    /// Whether an acknowledged change survives a crash of the database's machine.
    pub async fn durability(&self) -> Result<Durability, Error> {
        durability::durability(&self.reads)
            .await
            .map_err(error::public)
    }

    /// The gauges of the queues and pools.
    pub fn gauges(&self) -> StoreGauges {
        StoreGauges::new(
            self.commit.writers(),
            self.reads.clone(),
            self.dispatching.clone(),
        )
    }
}
