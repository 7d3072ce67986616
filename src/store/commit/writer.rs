//! The group commit: a writer takes what waits, reads those rows in one statement, lets the domain decide each change, and
//! makes all of them durable at once. The database's limit is per transaction, not per row (docs/adr/0002).

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ColumnTrait, ConnectOptions, ConnectionTrait, Database, DatabaseConnection,
    DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryFilter,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::SharedClock;
use crate::domain::{RequestId, SchedulePolicy, WorkspaceId, Zone};
use crate::error::Error;
use crate::store::commit::batch::{Batch, Context, Read};
use crate::store::commit::insert;
use crate::store::commit::job::{Job, Work};
use crate::store::commit::statements;
use crate::store::dispatch::rows;
use crate::store::dispatch::zone_rules;
use crate::store::schema::answered::Answered;
use crate::store::schema::answered::REQUEST_KEPT;
use crate::store::schema::codec;
use crate::store::schema::history;
use crate::store::schema::load::{self, Lock, ScheduleKey};
use crate::store::schema::tables::{request, workspace};
use crate::store::schema::tenant::Tenant;
use crate::store::session::connection::Held;
use crate::store::session::error::{
    RETRY_AFTER, away, connection_lost, deadlock, lock_not_had, unique_violation,
};
use crate::store::session::pool::begin;
use crate::telemetry::metrics::{CommitFailure, CommitMetrics};

/// After so many rounds lost to another writer, a row is taken under a lock.
const ROUNDS_BEFORE_LOCK: u8 = 2;
/// After so many rounds a fault that is not the connection's is the change's own.
const ROUNDS_MOST: u8 = 10;
/// How long a round may take: then the connection is taken for lost.
const ROUND_MOST: Duration = Duration::from_secs(10);
/// Between rounds while the database is away.
const OUTAGE_PAUSE: Duration = Duration::from_millis(100);
/// Between rounds while another session holds a row.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Carries the changes of its share of the schedules, one batch after the other, over one connection.
pub struct Writer {
    pub(crate) queue: mpsc::Receiver<Job>,
    pub(crate) connect: ConnectOptions,
    pub(crate) db: DatabaseConnection,
    /// PostgreSQL's connection for what needs no transaction.
    pub(crate) held: Option<Held>,
    pub(crate) clock: SharedClock,
    pub(crate) policy: SchedulePolicy,
    pub(crate) batch_max: usize,
    pub(crate) revisions_kept: i64,
    pub(crate) writes: CommitMetrics,
    /// Whether the last round could not reach the database, so that an outage is logged once.
    pub(crate) away: bool,
}

/// A round that did not end in a commit.
struct Failed {
    jobs: Vec<Job>,
    fault: DbErr,
}

impl Writer {
    /// Runs until every [`crate::store::Store`] is gone and the queue is empty. A lone change is committed at once: the writer takes
    /// what waits and never waits for more.
    pub async fn run(mut self) {
        let mut again: Vec<Job> = Vec::new();
        loop {
            let mut batch = std::mem::take(&mut again);
            if batch.is_empty() && self.queue.recv_many(&mut batch, self.batch_max).await == 0 {
                return;
            }
            self.take_what_has_arrived(&mut batch).await;
            let now = Instant::now();
            let batch = batch
                .into_iter()
                .filter_map(|job| job.if_still_wanted(now))
                .collect();
            again = self.commit(batch).await;
            if again.iter().any(|job| job.lock_awaited) {
                tokio::time::sleep(LOCK_PAUSE).await;
            }
        }
    }

    /// Closes the batch when nothing more comes in: lets this runtime read what its connections have received, for as long as
    /// each such round brings changes. A look, never a wait: on an idle service the first round brings none.
    async fn take_what_has_arrived(&mut self, batch: &mut Vec<Job>) {
        let mut before = 0;
        while batch.len() < self.batch_max && batch.len() > before {
            before = batch.len();
            tokio::task::yield_now().await;
            while batch.len() < self.batch_max {
                let Ok(job) = self.queue.try_recv() else {
                    break;
                };
                batch.push(job);
            }
        }
    }

    /// Commits a batch and answers the jobs that must go round again, in their order. A part whose statement fails is halved
    /// until the faulty change stands alone, so that it never fails its neighbours.
    async fn commit(&mut self, batch: Vec<Job>) -> Vec<Job> {
        // New schedules are inserted, others changed: different statements, and no row is in both.
        let (changes, creations): (Vec<Job>, Vec<Job>) = batch
            .into_iter()
            .partition(|job| matches!(job.work, Work::Change(..)));
        let mut parts = vec![creations, changes];
        let mut again = Vec::new();
        while let Some(part) = parts.pop() {
            let part = hold_back(part, &mut again);
            if part.is_empty() {
                continue;
            }
            match self.bounded_round(part).await {
                Ok(rest) => {
                    self.away = false;
                    again.extend(rest);
                }
                Err(Failed { jobs, fault }) if away(&fault) => {
                    again.extend(self.outage(jobs, &fault).await)
                }
                Err(Failed { jobs, fault }) => match settle_fault(jobs, &fault) {
                    Ok(rest) => again.extend(rest),
                    Err(mut first) => {
                        let second = first.split_off(first.len() / 2);
                        parts.push(second);
                        parts.push(first);
                    }
                },
            }
        }
        again
    }

    /// A round that ends. One that takes too long is given up with its connection; its callers are told that the outcome is
    /// unknown, since their answers' senders go with it. SQLite is in this process, and its file answers or fails.
    async fn bounded_round(&mut self, mut jobs: Vec<Job>) -> Result<Vec<Job>, Failed> {
        let changes = jobs.len();
        self.writes.observe_batch(changes);
        jobs.iter_mut().for_each(|job| job.enter_round(changes));
        let began = Instant::now();
        if self.db.get_database_backend() != DbBackend::Postgres {
            let ended = self.round(jobs).await;
            return self.counted(began, ended);
        }
        if let Ok(ended) = tokio::time::timeout(ROUND_MOST, self.round(jobs)).await {
            return self.counted(began, ended);
        }
        self.writes.count_failure(CommitFailure::Timeout);
        let fault = DbErr::Custom(format!("no answer for {} seconds", ROUND_MOST.as_secs()));
        tracing::error!(%fault, "a group commit was given up with its connection");
        self.reconnect().await;
        Ok(vec![])
    }

    fn counted(&self, began: Instant, ended: Result<Vec<Job>, Failed>) -> Result<Vec<Job>, Failed> {
        match &ended {
            Ok(_) => self.writes.observe_commit(began.elapsed()),
            Err(Failed { fault, .. }) => self.writes.count_failure(if away(fault) {
                CommitFailure::Away
            } else {
                CommitFailure::Fault
            }),
        }
        ended
    }

    /// Leaves the connection for a new one, which is made when it is needed: the old one may be to a server that only reads now,
    /// or that does not answer any more. SQLite has no other server.
    async fn reconnect(&mut self) {
        self.held = None;
        if self.db.get_database_backend() != DbBackend::Postgres {
            return;
        }
        match Database::connect(self.connect.clone()).await {
            Ok(fresh) => self.db = fresh,
            Err(fault) => tracing::error!(%fault, "no new connection for the group commit"),
        }
    }

    /// The jobs that are still to be tried, after a pause.
    async fn outage(&mut self, jobs: Vec<Job>, fault: &DbErr) -> Vec<Job> {
        if !self.away {
            tracing::warn!(%fault, jobs = jobs.len(), "the group commit lost its database; changes are tried again");
        }
        self.away = true;
        tokio::time::sleep(OUTAGE_PAUSE).await;
        self.reconnect().await;
        let now = Instant::now();
        jobs.into_iter()
            .filter_map(|job| job.unless_given_up(now))
            .collect()
    }

    /// One round: read, decide, write. Optimistic on PostgreSQL (two round trips, each row guarded by the version that was
    /// read) until a row was lost too often; then, for new rows, and on SQLite, one transaction.
    async fn round(&mut self, jobs: Vec<Job>) -> Result<Vec<Job>, Failed> {
        let lock = lock_for(&jobs);
        if self.db.get_database_backend() != DbBackend::Postgres || lock != Lock::None {
            return self.round_in_transaction(jobs, lock).await;
        }
        let held = match self.held.take() {
            Some(held) => held,
            None => match Held::take(&self.db).await {
                Ok(held) => held,
                Err(fault) => return Err(Failed { jobs, fault }),
            },
        };
        let ended = self.round_at_once(&held, jobs, lock).await;
        // Dropped, and closed, when this round is given up meanwhile or its connection is lost.
        if !matches!(&ended, Err(Failed { fault, .. }) if connection_lost(fault)) {
            self.held = Some(held);
        }
        ended
    }

    async fn round_at_once(
        &self,
        held: &Held,
        jobs: Vec<Job>,
        lock: Lock,
    ) -> Result<Vec<Job>, Failed> {
        let batch = self.decide(held, jobs, lock).await?;
        if !batch.is_one_statement() {
            return match begin(&self.db).await {
                Ok(transaction) => self.write_all(transaction, batch).await,
                Err(fault) => Err(Failed {
                    jobs: batch.into_jobs(false),
                    fault,
                }),
            };
        }
        match write(held, &batch).await {
            Ok(moved) => Ok(self.committed(batch, &moved).await),
            Err(fault) => Err(Failed {
                jobs: batch.into_jobs(connection_lost(&fault)),
                fault,
            }),
        }
    }

    async fn round_in_transaction(&self, jobs: Vec<Job>, lock: Lock) -> Result<Vec<Job>, Failed> {
        let transaction = match begin(&self.db).await {
            Ok(transaction) => transaction,
            Err(fault) => return Err(Failed { jobs, fault }),
        };
        let batch = self.decide(&transaction, jobs, lock).await?;
        self.write_all(transaction, batch).await
    }

    /// Writes a batch of several statements and ends their transaction.
    async fn write_all(
        &self,
        transaction: DatabaseTransaction,
        batch: Batch,
    ) -> Result<Vec<Job>, Failed> {
        match write(&transaction, &batch).await {
            Ok(moved) => match transaction.commit().await {
                Ok(()) => Ok(self.committed(batch, &moved).await),
                Err(fault) => Err(Failed {
                    jobs: batch.into_jobs(connection_lost(&fault)),
                    fault,
                }),
            },
            Err(fault) => Err(Failed {
                jobs: batch.into_jobs(false),
                fault,
            }),
        }
    }

    /// Answers the callers, then removes revisions that are not kept any more; what fails there is tried again in its time.
    async fn committed(&self, batch: Batch, moved: &HashSet<Uuid>) -> Vec<Job> {
        let trims = batch.trims(moved, self.revisions_kept);
        let again = batch.answer(moved);
        for (key, newest) in trims {
            if let Err(fault) = history::remove(&self.db, key, newest).await {
                tracing::warn!(schedule_id = %key.1, %fault, "old revisions were not removed; the next removal takes them too");
            }
        }
        again
    }

    async fn decide<C: ConnectionTrait>(
        &self,
        db: &C,
        jobs: Vec<Job>,
        lock: Lock,
    ) -> Result<Batch, Failed> {
        let now = self.clock.now();
        match read(db, &jobs, now, lock).await {
            Ok(read) => {
                let mut batch = Batch::decide(
                    jobs,
                    read,
                    &Context {
                        now,
                        policy: &self.policy,
                        commit_id: commit_id(),
                    },
                );
                batch.answer_refused();
                Ok(batch)
            }
            Err(fault) => Err(Failed { jobs, fault }),
        }
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

/// The jobs of a part that may go on. Those whose schedules have a change that goes round again follow it, so that changes of
/// one schedule keep their order.
fn hold_back(part: Vec<Job>, again: &mut Vec<Job>) -> Vec<Job> {
    if again.is_empty() {
        return part;
    }
    let waiting: HashSet<_> = again.iter().map(Job::key).collect();
    let (held, free): (Vec<Job>, Vec<Job>) = part
        .into_iter()
        .partition(|job| waiting.contains(&job.key()));
    again.extend(held);
    free
}

/// What becomes of jobs whose statement failed: those to be tried again, or (as an error) those to be halved.
fn settle_fault(mut jobs: Vec<Job>, fault: &DbErr) -> Result<Vec<Job>, Vec<Job>> {
    let again = |mut job: Job| {
        job.rounds_lost = job.rounds_lost.saturating_add(1);
        job.lock_awaited |= lock_not_had(fault);
        job
    };
    if deadlock(fault) && jobs.iter().all(|job| job.rounds_lost < ROUNDS_MOST) {
        return Ok(jobs.into_iter().map(again).collect());
    }
    if jobs.len() > 1 {
        return Err(jobs);
    }
    let Some(job) = jobs.pop() else {
        return Ok(vec![]);
    };
    // Its request id was answered by another writer since it was looked up, or its own cut-off creation landed: the next round
    // finds that.
    let explained = job.request.is_some() || !job.unsettled.is_empty();
    if unique_violation(fault) && explained && job.rounds_lost < ROUNDS_MOST {
        return Ok(vec![again(job)]);
    }
    // What waited in vain to the end was not written, and is no fault of ours.
    job.answer(Err(if deadlock(fault) {
        Error::StoreUnavailable {
            retry_after: RETRY_AFTER,
        }
    } else {
        Error::internal(fault)
    }));
    Ok(vec![])
}

/// Tells the revisions of one commit from all others.
fn commit_id() -> i64 {
    // A fresh RandomState is seeded at random once for each thread and counted on from there.
    i64::from_ne_bytes(RandomState::new().hash_one(Instant::now()).to_ne_bytes())
}

async fn write<C: ConnectionTrait>(db: &C, batch: &Batch) -> Result<HashSet<Uuid>, DbErr> {
    let new = batch.new_rows()?;
    insert::schedules(db, new).await?;
    let writes = batch.writes()?;
    if writes.rows.is_empty() {
        return Ok(HashSet::new());
    }
    let moved = statements::write(db, writes).await?;
    let abandoned = batch.abandoned(|id| moved.contains(id));
    if !abandoned.is_empty() {
        rows::abandon(db, &abandoned, batch.now).await?;
    }
    let restamped = batch.restamped(|id| moved.contains(id));
    if !restamped.is_empty() {
        zone_rules::stamp(db, &restamped).await?;
    }
    Ok(moved)
}

/// Reads what the database holds about the jobs. Only the rows are asked for in the usual case.
async fn read<C: ConnectionTrait>(
    db: &C,
    jobs: &[Job],
    now: DateTime<Utc>,
    lock: Lock,
) -> Result<Read, DbErr> {
    let mut keys: Vec<ScheduleKey> = changes(jobs)
        .map(|(workspace, id)| ScheduleKey {
            id,
            workspace_id: workspace.0,
        })
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let (answered, default_zones) = (
        answered(db, jobs, now).await?,
        default_zones(db, jobs).await?,
    );
    let mut read = Read {
        answered,
        default_zones,
        ..Read::default()
    };
    if !keys.is_empty() {
        for loaded in load::load(db, &keys, lock).await? {
            let key = load::key_of(&loaded);
            read.rows
                .insert((WorkspaceId(key.workspace_id), key.id), loaded);
        }
        if lock == Lock::Skip && read.rows.len() < keys.len() {
            let locked = keys
                .iter()
                .map(ScheduleKey::pair)
                .filter(|(workspace, id)| !read.rows.contains_key(&(WorkspaceId(*workspace), *id)));
            let locked: Vec<(i32, Uuid)> = locked.collect();
            let held = load::read_rows(db, &locked, Lock::None).await?;
            read.held = held
                .iter()
                .map(|row| (WorkspaceId(row.workspace_id), row.id))
                .collect();
        }
    }
    // After the rows: a commit that was cut off and lands before they are read is found here, one that lands later moves a
    // version, so that this round's write is refused.
    read.settled = settled(db, jobs).await?;
    Ok(read)
}

fn changes(jobs: &[Job]) -> impl Iterator<Item = (WorkspaceId, Uuid)> {
    jobs.iter()
        .filter(|job| matches!(job.work, Work::Change(..)))
        .map(Job::key)
}

/// First answers to the jobs' request ids. One that is older than a day is removed: the id is free again.
async fn answered<C: ConnectionTrait>(
    db: &C,
    jobs: &[Job],
    now: DateTime<Utc>,
) -> Result<HashMap<(WorkspaceId, RequestId), Answered>, DbErr> {
    let mut ids: HashMap<i32, Vec<&str>> = HashMap::new();
    for (job, request) in jobs
        .iter()
        .filter_map(|job| job.request.as_ref().map(|request| (job, request)))
    {
        ids.entry(job.caller.workspace.0)
            .or_default()
            .push(request.id.as_str());
    }
    let mut found = HashMap::new();
    for (workspace, ids) in ids {
        let (workspace, named) = (
            WorkspaceId(workspace),
            request::Column::RequestId.is_in(ids),
        );
        let oldest = now - TimeDelta::from_std(REQUEST_KEPT).unwrap_or_default();
        let too_old = request::Column::CreatedMs.lte(oldest.timestamp_millis());
        let rows = request::Entity::within(workspace)
            .filter(named.clone())
            .all(db)
            .await?;
        if rows
            .iter()
            .any(|row| row.created_ms <= oldest.timestamp_millis())
        {
            request::Entity::delete_within(workspace)
                .filter(named)
                .filter(too_old)
                .exec(db)
                .await?;
        }
        for row in rows
            .into_iter()
            .filter(|row| row.created_ms > oldest.timestamp_millis())
        {
            let id = RequestId::parse(&row.request_id).map_err(codec::broken)?;
            let outcome = serde_json::from_str(&row.outcome).map_err(codec::broken)?;
            found.insert(
                (workspace, id),
                Answered {
                    digest: row.digest,
                    outcome,
                },
            );
        }
    }
    Ok(found)
}

/// Which of the commits that were cut off are there after all.
async fn settled<C: ConnectionTrait>(db: &C, jobs: &[Job]) -> Result<HashSet<(Uuid, i64)>, DbErr> {
    let mut settled = HashSet::new();
    for job in jobs.iter().filter(|job| !job.unsettled.is_empty()) {
        let (workspace, id) = job.key();
        let commits: Vec<i64> = job.unsettled.iter().map(|cut| cut.commit_id).collect();
        let found = history::written_by(db, (workspace.0, id), &commits).await?;
        settled.extend(found.into_iter().map(|commit| (id, commit)));
    }
    Ok(settled)
}

async fn default_zones<C: ConnectionTrait>(
    db: &C,
    jobs: &[Job],
) -> Result<HashMap<WorkspaceId, Zone>, DbErr> {
    let creating = jobs
        .iter()
        .filter(|job| matches!(job.work, Work::Create(..)));
    let workspaces: HashSet<i32> = creating.map(|job| job.caller.workspace.0).collect();
    if workspaces.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = workspace::Entity::find()
        .filter(workspace::Column::Id.is_in(workspaces))
        .all(db)
        .await?;
    rows.into_iter()
        .map(|row| {
            Ok((
                WorkspaceId(row.id),
                Zone::parse(&row.default_time_zone).map_err(codec::broken)?,
            ))
        })
        .collect()
}
