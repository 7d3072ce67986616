//! The only place with sea-orm: what the service may ask, and nothing else.

mod admin;
mod commit;
mod dispatch;
mod read;
mod schema;
mod session;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use sea_orm::DatabaseConnection;
use tokio::sync::mpsc;

pub use admin::gauges::{Fill, Levels};
pub use admin::keys::WorkspaceChange;
pub use commit::batch::Answered;
pub use commit::job::{Caller, RequestKey, Work};
pub use commit::writer::Writer;
pub use dispatch::claim::Taken;
pub use dispatch::dead_letters::DispatchFilter;
pub use dispatch::next_due::Next;
pub use dispatch::payload::Leased;
pub use dispatch::settle::Finished;
pub use read::{Details, Filter};
pub use session::connect::{Durability, Options};
pub use session::error::RETRY_AFTER;

use crate::clock::SharedClock;
use crate::domain::{Outcome, Policy, ScheduleId, WorkspaceId};
use crate::error::Error;
use crate::telemetry::metrics::Writes;
use commit::job::Job;
use dispatch::cursor::Heads;
use schema::migration;
use session::lane::Lane;
use session::pool::Link;
use session::{connect, error};

/// How long the first answer to a request id is kept.
pub const REQUEST_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// How many revisions of a schedule are kept and shown: its newest.
pub const REVISIONS_KEPT: i64 = 100;
/// When to try again while a writer's queue is full.
const BUSY_RETRY_AFTER: Duration = Duration::from_millis(200);

/// The database, and the writers that carry changes to it.
#[derive(Clone)]
pub struct Store {
    reads: DatabaseConnection,
    /// For what fires and finishes; on SQLite the one connection that writes.
    link: Link,
    /// Of them, one for what fires.
    firing: Lane,
    /// Of them, one for what finishes.
    finishing: Lane,
    /// Where what is due begins.
    heads: Heads,
    writers: Arc<[mpsc::Sender<Job>]>,
    clock: SharedClock,
    revisions_kept: i64,
    writes: Writes,
}

impl Store {
    /// Opens the database. The second part of the answer does the writing: each is to be run for as long as the store is used,
    /// on a runtime of its choice; it ends once every clone of the store is gone.
    ///
    /// # Errors
    /// What is wrong with the URL, or [`Error::StoreUnavailable`] with the cause in the log.
    pub async fn open(
        options: &Options,
        clock: SharedClock,
        policy: Policy,
    ) -> Result<(Self, Vec<Writer>), Error> {
        let reads = connect::reads(options).await?;
        let mut senders = Vec::new();
        let mut writers = Vec::new();
        for _ in 0..connect::writer_count(options) {
            let (sender, queue) = mpsc::channel(options.queue_max);
            let connect = connect::writer(options);
            let db = connect::writer_connection(options, &connect, &reads).await?;
            let (clock, batch_max, revisions_kept) =
                (clock.clone(), options.batch_max, options.revisions_kept);
            let writes = options.writes.clone();
            writers.push(Writer {
                queue,
                connect,
                db,
                clock,
                policy,
                batch_max,
                revisions_kept,
                writes,
                held: None,
                away: false,
            });
            senders.push(sender);
        }
        let link =
            connect::dispatching(options, writers.first().map_or(&reads, |writer| &writer.db))
                .await?;
        let (firing, finishing) = (Lane::new(link.clone()), Lane::new(link.clone()));
        let (revisions_kept, writes) = (options.revisions_kept, options.writes.clone());
        let heads = Heads::default();
        Ok((
            Self {
                reads,
                link,
                firing,
                finishing,
                heads,
                writers: senders.into(),
                clock,
                revisions_kept,
                writes,
            },
            writers,
        ))
    }

    /// Hands a change to its writer and waits for its commit.
    ///
    /// # Errors
    /// The domain's refusals, and those of a full queue, an expired deadline, or a database that is away.
    pub async fn commit(
        &self,
        caller: Caller,
        work: Work,
        request: Option<RequestKey>,
    ) -> Result<Outcome, Error> {
        self.enqueue(caller, work, request)?.await
    }

    /// Hands a change to its writer now; the answer comes with the future. Changes of one schedule are applied in the order in
    /// which they were handed over.
    ///
    /// # Errors
    /// [`Error::Busy`] when the writer's queue is full.
    pub fn enqueue(
        &self,
        caller: Caller,
        work: Work,
        request: Option<RequestKey>,
    ) -> Result<impl Future<Output = Result<Outcome, Error>> + Send + use<>, Error> {
        let writer = self.writer_of(work.schedule_id())?;
        let (job, answer) = Job::new(caller, work, request);
        writer.try_send(job).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => {
                self.writes.queue_was_full();
                Error::Busy {
                    retry_after: BUSY_RETRY_AFTER,
                }
            }
            mpsc::error::TrySendError::Closed(_) => Error::Draining,
        })?;
        // The sender goes unanswered only when the round that held it was given up.
        Ok(async move { answer.await.unwrap_or(Err(Error::OutcomeUnknown)) })
    }

    /// A schedule has one writer in this process, so that the process never conflicts with itself.
    fn writer_of(&self, id: ScheduleId) -> Result<&mpsc::Sender<Job>, Error> {
        let mut hash = DefaultHasher::new();
        id.hash(&mut hash);
        let index = usize::try_from(hash.finish() % self.writers.len().max(1) as u64).unwrap_or(0);
        self.writers
            .get(index)
            .ok_or_else(|| Error::internal("the store has no writer"))
    }

    /// Applies pending migrations and answers their names.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn migrate(&self) -> Result<Vec<String>, Error> {
        migration::migrate(&self.reads)
            .await
            .map_err(|fault| error::public(&fault))
    }

    /// The names of migrations that were not applied yet.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn pending_migrations(&self) -> Result<Vec<String>, Error> {
        migration::pending(&self.reads)
            .await
            .map_err(|fault| error::public(&fault))
    }

    /// Whether an acknowledged change survives a crash of the database's machine.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn durability(&self) -> Result<Durability, Error> {
        connect::durability(&self.reads)
            .await
            .map_err(|fault| error::public(&fault))
    }
}

/// A workspace and the id of a schedule in it: the only way to name a row.
pub type Key = (WorkspaceId, ScheduleId);
