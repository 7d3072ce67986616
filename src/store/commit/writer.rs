//! The writer: commits the changes in its queue, round after round, as the parent module describes.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::DbErr;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clock::SharedClock;
use crate::domain::SchedulePolicy;
use crate::error::{Error, StoreOutage};
use crate::store::commit::batch::{Batch, Context, Decision};
use crate::store::commit::job::{Job, Work};
use crate::store::commit::snapshot::Snapshot;
use crate::store::commit::statements;
use crate::store::schema::history;
use crate::store::schema::load::{Lock, ScheduleKey};
use crate::store::session::error::{
    away, describe, lock_timed_out, may_be_committed, outage, retryable, unavailable,
    unique_violation,
};
use crate::store::session::options::Options;
use crate::store::session::sessions::{Session, Sessions};
use crate::telemetry::metrics::{CommitFailure, CommitMetrics};
use crate::telemetry::notices::ServerWarnings;
use crate::telemetry::outage::OutageLog;

/// After losing this many rounds to another writer, a row is read under a lock.
const ROUNDS_BEFORE_LOCK: u8 = 2;
/// After this many rounds, the change itself is taken for the cause of a fault.
const MAX_ROUNDS: u8 = 10;
/// How long a round may take. After that its connection counts as lost.
const ROUND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the reading part of a round may take. After that its connection counts as lost.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// Between rounds while the database is away.
const OUTAGE_PAUSE: Duration = Duration::from_millis(100);
/// Between rounds while another session locks a row.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Commits the changes of its share of the schedules, one batch after the other, over one session.
pub struct Writer {
    queue: mpsc::Receiver<Job>,
    sessions: Sessions,
    warnings: ServerWarnings,
    clock: SharedClock,
    policy: SchedulePolicy,
    max_batch: usize,
    revisions_kept: i64,
    metrics: CommitMetrics,
    outage: OutageLog,
}

/// A round that did not end in a commit.
struct Failed {
    jobs: Vec<Job>,
    fault: DbErr,
}

impl Writer {
    pub(crate) fn new(
        queue: mpsc::Receiver<Job>,
        sessions: Sessions,
        options: &Options,
        clock: SharedClock,
        policy: SchedulePolicy,
    ) -> Self {
        Self {
            queue,
            sessions,
            warnings: options.warnings.clone(),
            clock,
            policy,
            max_batch: options.settings.commit_max.get(),
            revisions_kept: i64::from(options.settings.revisions_kept.get()),
            metrics: options.metrics.clone(),
            outage: OutageLog::new(
                "the writer cannot reach its database; changes are retried",
                "the writer reaches its database again",
            ),
        }
    }

    /// Runs until every `Store` is dropped and the queue is empty. A single change is committed
    /// without delay: the writer takes what waits and never waits for more.
    pub async fn run(mut self) {
        let mut retried: Vec<Job> = Vec::new();
        loop {
            let mut batch = std::mem::take(&mut retried);
            if batch.is_empty() && self.queue.recv_many(&mut batch, self.max_batch).await == 0 {
                return;
            }
            self.fill(&mut batch).await;
            let now = Instant::now();
            let batch = batch
                .into_iter()
                .filter_map(|job| job.if_still_wanted(now))
                .collect();
            retried = self.commit(batch).await;
            if retried.iter().any(|job| job.lock_awaited) {
                tokio::time::sleep(LOCK_PAUSE).await;
            }
        }
    }

    /// Adds what has arrived. Lets this runtime read what its connections have received for as long
    /// as each such turn brings changes; on an idle service the first one brings none, and nothing
    /// is waited for.
    async fn fill(&mut self, batch: &mut Vec<Job>) {
        let mut before = 0;
        while batch.len() < self.max_batch && batch.len() > before {
            before = batch.len();
            tokio::task::yield_now().await;
            while batch.len() < self.max_batch {
                let Ok(job) = self.queue.try_recv() else {
                    break;
                };
                batch.push(job);
            }
        }
    }

    /// Commits a batch. Returns the jobs that are to be retried, in their order. A part whose
    /// statement fails is halved until the faulty change stands alone, so that it fails no other.
    async fn commit(&mut self, batch: Vec<Job>) -> Vec<Job> {
        // New schedules are inserted, others changed: different statements, and no row is in both.
        let (changes, creations): (Vec<Job>, Vec<Job>) = batch
            .into_iter()
            .partition(|job| matches!(job.work, Work::Change(..)));
        let mut parts = vec![creations, changes];
        let mut retried = Vec::new();
        while let Some(part) = parts.pop() {
            let part = hold_back(part, &mut retried);
            if part.is_empty() {
                continue;
            }
            match self.timed_round(part).await {
                Ok(jobs) => {
                    self.outage.succeeded();
                    retried.extend(jobs);
                }
                Err(Failed { jobs, fault }) if away(&fault) => {
                    retried.extend(self.wait_out(jobs, &fault).await);
                }
                Err(Failed { jobs, fault }) => match after_fault(jobs, &fault) {
                    AfterFault::Retry(jobs) => retried.extend(jobs),
                    AfterFault::Halve(mut first) => {
                        let second = first.split_off(first.len() / 2);
                        parts.push(second);
                        parts.push(first);
                    }
                    AfterFault::Answered => {}
                },
            }
        }
        retried
    }

    /// A round within [`ROUND_TIMEOUT`]. A round that takes longer is given up with its session;
    /// its callers learn that the outcome is unknown, since the senders of their answers are
    /// dropped with it. SQLite runs in this process and needs no timeout: its file answers or
    /// fails.
    async fn timed_round(&mut self, mut jobs: Vec<Job>) -> Result<Vec<Job>, Failed> {
        let changes = jobs.len();
        self.metrics.observe_batch(changes);
        jobs.iter_mut().for_each(|job| job.enter_round(changes));
        let began = Instant::now();
        let round = self.round(jobs);
        let ended = if self.sessions.is_postgres() {
            tokio::time::timeout(ROUND_TIMEOUT, round).await
        } else {
            Ok(round.await)
        };
        let Ok(ended) = ended else {
            self.metrics.count_failure(CommitFailure::Timeout);
            tracing::error!(
                seconds = ROUND_TIMEOUT.as_secs(),
                "the database did not answer a group commit in time; its connection is closed"
            );
            self.sessions.suspect();
            return Ok(vec![]);
        };
        match &ended {
            Ok(_) => self.metrics.observe_commit(began.elapsed()),
            Err(Failed { fault, .. }) if away(fault) => {
                self.metrics.count_failure(CommitFailure::Away);
            }
            Err(_) => self.metrics.count_failure(CommitFailure::Fault),
        }
        ended
    }

    /// Pauses, and returns the jobs that are still to be tried.
    async fn wait_out(&mut self, jobs: Vec<Job>, fault: &DbErr) -> Vec<Job> {
        self.outage.unavailable(&describe(fault));
        tokio::time::sleep(OUTAGE_PAUSE).await;
        let (now, why) = (Instant::now(), outage(fault));
        let why = why.unwrap_or(StoreOutage::Unreachable);
        jobs.into_iter()
            .filter_map(|job| job.unless_given_up(now, why))
            .collect()
    }

    /// One round: reads, decides, writes and replies. Returns the jobs that lost it.
    async fn round(&self, jobs: Vec<Job>) -> Result<Vec<Job>, Failed> {
        let (session, decision) = self.decide(jobs).await?;
        let warnings = self.warnings.count();
        let (decision, written) = write(session, decision).await?;
        // A warning may say that the wait for a standby was cancelled.
        let is_confirmed = self.warnings.count() == warnings;
        if (decision.needs_confirmation(&written) || !is_confirmed)
            && let Err(fault) = self.sessions.confirm().await
        {
            let jobs = decision.into_jobs(true);
            return Err(Failed { jobs, fault });
        }
        let trims: Vec<_> = decision.trims_of(&written);
        let retried = decision.reply(&written);
        self.trim(trims).await;
        Ok(retried)
    }

    /// Reads what the jobs need and decides them. Optimistic on PostgreSQL: no row is locked, and
    /// its version guards the write, until a row has lost too many rounds. Then, for new rows, and
    /// on SQLite, reading and writing are one transaction.
    async fn decide(&self, jobs: Vec<Job>) -> Result<(Session<'_>, Decision), Failed> {
        let lock = lock_for(&jobs);
        let opened = if self.sessions.is_postgres() && lock == Lock::None {
            self.sessions.acquire().await
        } else {
            self.sessions.begin().await
        };
        let session = match opened {
            Ok(session) => session,
            Err(fault) => return Err(Failed { jobs, fault }),
        };
        let now = self.clock.now();
        let snapshot = match self.read(&session, &jobs, now, lock).await {
            Ok(snapshot) => snapshot,
            Err(fault) => {
                session.abandon(&fault).await;
                return Err(Failed { jobs, fault });
            }
        };
        let context = Context {
            now,
            policy: &self.policy,
            commit_id: fastrand::i64(..),
            revisions_kept: self.revisions_kept,
        };
        Ok((session, Batch::decide(jobs, snapshot, &context)))
    }

    /// Reads what the jobs need, within [`READ_TIMEOUT`]: nothing is written yet, so another
    /// session can try again.
    async fn read(
        &self,
        session: &Session<'_>,
        jobs: &[Job],
        now: DateTime<Utc>,
        lock: Lock,
    ) -> Result<Snapshot, DbErr> {
        let read = Snapshot::read(session, jobs, now, lock);
        if !self.sessions.is_postgres() {
            return read.await;
        }
        match tokio::time::timeout(READ_TIMEOUT, read).await {
            Ok(read) => read,
            Err(_) => Err(self.sessions.suspect()),
        }
    }

    /// Removes old revisions after the callers have their answers. If a removal fails, the
    /// schedule's next one includes it.
    async fn trim(&self, trims: Vec<(ScheduleKey, i64)>) {
        for (key, newest) in trims {
            let removed = async {
                let session = self.sessions.acquire().await?;
                history::remove(&session, key, newest).await
            };
            if let Err(fault) = removed.await {
                tracing::warn!(
                    schedule_id = %key.id,
                    %fault,
                    "old revisions were not removed; the next removal includes them"
                );
            }
        }
    }
}

/// Writes a decision. A batch of one statement needs no transaction; the others begin one here
/// unless they were read in one.
async fn write(
    session: Session<'_>,
    decision: Decision,
) -> Result<(Decision, HashSet<uuid::Uuid>), Failed> {
    let failed = |decision: Decision, cut_off: bool, fault: DbErr| Failed {
        jobs: decision.into_jobs(cut_off),
        fault,
    };
    let one_statement = decision.writes.is_one_statement();
    let session = if one_statement || session.in_transaction() {
        session
    } else {
        match session.begin().await {
            Ok(session) => session,
            Err(fault) => return Err(failed(decision, false, fault)),
        }
    };
    let in_transaction = session.in_transaction();
    let written = match statements::write(&session, &decision.writes).await {
        Ok(written) => written,
        Err(fault) => {
            session.abandon(&fault).await;
            // What was written in a transaction is rolled back with its connection.
            let cut_off = !in_transaction && may_be_committed(&fault);
            return Err(failed(decision, cut_off, fault));
        }
    };
    if !in_transaction {
        return Ok((decision, written));
    }
    match session.commit().await {
        Ok(()) => Ok((decision, written)),
        Err(fault) => Err(failed(decision, may_be_committed(&fault), fault)),
    }
}

/// How the rows of these jobs are read.
fn lock_for(jobs: &[Job]) -> Lock {
    if jobs.iter().any(|job| job.lock_awaited) {
        return Lock::Skip;
    }
    let contended = jobs
        .iter()
        .any(|job| job.rounds_lost >= ROUNDS_BEFORE_LOCK || matches!(job.work, Work::Create(..)));
    if contended { Lock::Wait } else { Lock::None }
}

/// The jobs of a part that may go on. Jobs whose schedules have a change that is retried follow it,
/// so that changes of one schedule keep their order.
fn hold_back(part: Vec<Job>, retried: &mut Vec<Job>) -> Vec<Job> {
    if retried.is_empty() {
        return part;
    }
    let waiting: HashSet<_> = retried.iter().map(Job::key).collect();
    let (held, free): (Vec<Job>, Vec<Job>) = part
        .into_iter()
        .partition(|job| waiting.contains(&job.key()));
    retried.extend(held);
    free
}

/// What to do with jobs whose statement failed.
enum AfterFault {
    Retry(Vec<Job>),
    Halve(Vec<Job>),
    Answered,
}

fn after_fault(mut jobs: Vec<Job>, fault: &DbErr) -> AfterFault {
    let lost_round = |mut job: Job| {
        job.rounds_lost = job.rounds_lost.saturating_add(1);
        job.lock_awaited |= lock_timed_out(fault);
        job
    };
    if retryable(fault) && jobs.iter().all(|job| job.rounds_lost < MAX_ROUNDS) {
        return AfterFault::Retry(jobs.into_iter().map(lost_round).collect());
    }
    if jobs.len() > 1 {
        return AfterFault::Halve(jobs);
    }
    let Some(job) = jobs.pop() else {
        return AfterFault::Answered;
    };
    // Another writer has answered its request id since it was looked up, or its own cut-off
    // creation has landed: the next round finds that.
    let explained = job.request.is_some() || !job.unsettled.is_empty();
    if unique_violation(fault) && explained && job.rounds_lost < MAX_ROUNDS {
        return AfterFault::Retry(vec![lost_round(job)]);
    }
    // A change that waited for a lock to the end was not written, and nothing is wrong with it.
    job.answer(Err(if retryable(fault) {
        unavailable(StoreOutage::Locked)
    } else {
        Error::internal(fault)
    }));
    AfterFault::Answered
}
