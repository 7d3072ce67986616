//! The queues of the writers.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::domain::{Outcome, ScheduleId};
use crate::error::Error;
use crate::store::commit::job::{Caller, Job, Work};
use crate::store::schema::answered::RequestKey;
use crate::telemetry::metrics::CommitMetrics;

/// When to try again while a writer's queue is full.
const BUSY_RETRY_AFTER: Duration = Duration::from_millis(200);

/// Enqueues changes for the writers.
#[derive(Clone)]
pub struct CommitQueue {
    writers: Arc<[mpsc::Sender<Job>]>,
    metrics: CommitMetrics,
}

impl CommitQueue {
    pub(crate) fn new(writers: Vec<mpsc::Sender<Job>>, metrics: CommitMetrics) -> Self {
        Self {
            writers: writers.into(),
            metrics,
        }
    }

    /// The queue of each writer.
    pub(crate) fn writers(&self) -> &[mpsc::Sender<Job>] {
        &self.writers
    }

    /// Enqueues a change and waits for its commit.
    pub async fn commit(
        &self,
        caller: Caller,
        work: Work,
        request: Option<RequestKey>,
    ) -> Result<Outcome, Error> {
        self.enqueue(caller, work, request)?.await
    }

    /// Enqueues a change; the future returns its answer. Changes of one schedule are applied in the
    /// order in which they were enqueued. Fails with [`Error::Busy`] when the writer's queue is
    /// full.
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
                self.metrics.count_queue_full();
                Error::Busy {
                    retry_after: BUSY_RETRY_AFTER,
                }
            }
            mpsc::error::TrySendError::Closed(_) => Error::Draining,
        })?;
        // Only a round that timed out drops a job without an answer.
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
}
