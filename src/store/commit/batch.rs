//! Decides a batch in memory: turns a snapshot and the callers' jobs into writes and answers.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use sea_orm::DbErr;
use uuid::Uuid;

use crate::domain::{CanvasSchedule, Outcome, SchedulePolicy, WorkspaceId, zone};
use crate::error::Error;
use crate::store::commit::job::{Job, Unsettled, Work};
use crate::store::commit::snapshot::Snapshot;
use crate::store::commit::statements::{ChangedSchedule, Writes};
use crate::store::schema::codec;
use crate::store::schema::load::{Loaded, ScheduleKey};
use crate::store::schema::tables::{canvas_schedule, properties, request, revision, target, wake};

/// Old revisions of a schedule are removed once for every so many new ones.
const TRIM_INTERVAL: i64 = 50;

/// The instant, the rules and the commit of a batch.
pub(crate) struct Context<'a> {
    pub now: DateTime<Utc>,
    pub policy: &'a SchedulePolicy,
    /// Marks the revisions.
    pub commit_id: i64,
    /// How many of its newest revisions a schedule keeps.
    pub revisions_kept: i64,
}

/// A batch of jobs that the domain decides, in order.
pub(crate) struct Batch<'a> {
    snapshot: Snapshot,
    context: &'a Context<'a>,
    entries: BTreeMap<Uuid, Entry>,
    decision: Decision,
}

/// The decision of a batch: its writes, and the answers that its callers get once those are
/// committed.
pub(crate) struct Decision {
    pub writes: Writes,
    /// Schedules whose revisions up to this number are removed after the commit.
    trims: Vec<(ScheduleKey, i64)>,
    answers: Vec<(Job, Result<Outcome, Error>)>,
    /// Jobs whose answers were read back: a commit that was cut off, or an earlier answer to the
    /// request. They are visible, but durable only after a commit that follows the read.
    known: Vec<(Job, Result<Outcome, Error>)>,
    /// Jobs that wait for the next round.
    postponed: Vec<Job>,
    commit_id: i64,
}

/// One row and the jobs of the batch that change it, in their order.
struct Entry {
    before: canvas_schedule::Model,
    after: CanvasSchedule,
    revisions: Vec<revision::Model>,
    jobs: Vec<(Job, Result<Outcome, Error>)>,
}

impl<'a> Batch<'a> {
    /// Lets the domain decide each job on what the jobs before it left. Jobs of rows all of whose
    /// changes are refused need no write and are answered here.
    pub(crate) fn decide(jobs: Vec<Job>, snapshot: Snapshot, context: &'a Context<'a>) -> Decision {
        let mut batch = Self {
            snapshot,
            context,
            entries: BTreeMap::new(),
            decision: Decision {
                writes: Writes::new(context.now),
                trims: vec![],
                answers: vec![],
                known: vec![],
                postponed: vec![],
                commit_id: context.commit_id,
            },
        };
        let (mut seen, mut waiting) = (HashSet::new(), std::mem::take(&mut batch.snapshot.locked));
        for job in jobs {
            let Some(job) = batch.unless_known(job) else {
                continue;
            };
            let request = job
                .request
                .as_ref()
                .map(|request| (job.caller.workspace, request.id.clone()));
            // A second job with the same request id waits for the next round, which finds the first
            // one's answer.
            let is_repeated = request
                .as_ref()
                .is_some_and(|request| seen.contains(request));
            if is_repeated || waiting.contains(&job.key()) {
                // The jobs that follow on its schedule wait too, so that they keep their order.
                waiting.insert(job.key());
                batch.decision.postponed.push(job);
                continue;
            }
            if batch.decide_one(job) {
                // A refused job leaves no answer to find; the next one with its request id keeps
                // its place in the order.
                seen.extend(request);
            }
        }
        // In the order of the rows, so that batches of several replicas do not deadlock.
        let writes = &mut batch.decision.writes;
        writes.properties.sort_by_key(|row| row.schedule_id);
        writes
            .requests
            .sort_by_key(|(changed, _)| changed.schedule_id);
        let entries = std::mem::take(&mut batch.entries);
        for entry in entries.into_values() {
            batch.decision.finish(entry, context.revisions_kept);
        }
        batch.decision
    }

    /// Keeps the answer of a job whose cut-off commit was carried out, or whose request was answered
    /// before; returns any other job.
    fn unless_known(&mut self, job: Job) -> Option<Job> {
        let id = job.work.schedule_id().0;
        let settled = |cut: &&Unsettled| self.snapshot.settled.contains(&(id, cut.commit_id));
        if let Some(cut) = job.unsettled.iter().find(settled) {
            let outcome = cut.outcome.clone();
            self.decision.known.push((job, Ok(outcome)));
            return None;
        }
        let Some(request) = &job.request else {
            return Some(job);
        };
        let key = (job.caller.workspace, request.id.clone());
        let Some(answered) = self.snapshot.answered.get(&key) else {
            return Some(job);
        };
        let replayed = answered.replay(request);
        self.decision.known.push((job, replayed));
        None
    }

    /// Whether the job was accepted.
    fn decide_one(&mut self, job: Job) -> bool {
        match &job.work {
            Work::Create(..) => match self.create(&job) {
                Ok(outcome) => {
                    self.decision.answers.push((job, Ok(outcome)));
                    return true;
                }
                Err(error) => job.answer(Err(error)),
            },
            Work::Change(id, _) => match self.change(&job) {
                Ok(Some(decided)) => {
                    let accepted = decided.is_ok();
                    if let Some(entry) = self.entries.get_mut(&id.0) {
                        entry.jobs.push((job, decided));
                    }
                    return accepted;
                }
                Ok(None) => {
                    let schedule_id = id.to_string();
                    job.answer(Err(Error::NotFound { schedule_id }));
                }
                Err(fault) => job.answer(Err(Error::internal(fault))),
            },
        }
        false
    }

    /// Decides a creation, and adds its rows.
    fn create(&mut self, job: &Job) -> Result<Outcome, Error> {
        let Work::Create(id, create) = &job.work else {
            return Err(Error::internal("a change is not a creation"));
        };
        let (workspace, context) = (job.caller.workspace, self.context);
        let zone = self.snapshot.default_zones.get(&workspace);
        let zone = zone.ok_or_else(|| Error::internal("the workspace does not exist"))?;
        let outcome = create.decide(*id, *zone, context.now, context.policy)?;
        let body = serde_json::to_string(&create.target).map_err(Error::internal)?;
        let schedule =
            codec::schedule_row(workspace, &outcome.after, None).map_err(Error::internal)?;
        let request = request_row(job, &outcome)?;
        let created = &mut self.decision.writes.created;
        created.schedules.push(schedule);
        created
            .wakes
            .extend(outcome.after.next_wave.map(|at| wake::Model {
                wake_ms: at.timestamp_millis(),
                workspace_id: workspace.0,
                id: id.0,
            }));
        created
            .revisions
            .push(revision_row(job, &outcome, 0, context.commit_id));
        created.targets.push(target::Model {
            schedule_id: id.0,
            workspace_id: workspace.0,
            body,
        });
        created.properties.extend(properties_row(job, &outcome));
        created.requests.extend(request);
        Ok(outcome)
    }

    /// Decides a change on the state that the jobs before it left, and adds its writes. None when
    /// the workspace has no such row.
    fn change(&mut self, job: &Job) -> Result<Option<Result<Outcome, Error>>, DbErr> {
        let Work::Change(_, command) = &job.work else {
            return Ok(None);
        };
        let (key, context) = (job.key(), self.context);
        if let Some(loaded) = self.snapshot.rows.remove(&key) {
            let Loaded { row, schedule, .. } = loaded?;
            let entry = Entry {
                before: row,
                after: schedule,
                revisions: vec![],
                jobs: vec![],
            };
            self.entries.insert(key.id, entry);
        }
        let entry = self.entries.get_mut(&key.id);
        let Some(entry) = entry.filter(|entry| entry.before.workspace_id == key.workspace_id)
        else {
            return Ok(None);
        };
        let decided = command
            .decide(&entry.after, context.now, context.policy)
            .and_then(|outcome| Ok((request_row(job, &outcome)?, outcome)));
        let (request, outcome) = match decided {
            Ok(accepted) => accepted,
            Err(error) => return Ok(Some(Err(error))),
        };
        let last = entry.revisions.last();
        let previous_ms = last.map_or(entry.before.updated_ms, |last| last.created_ms);
        entry
            .revisions
            .push(revision_row(job, &outcome, previous_ms, context.commit_id));
        entry.after = outcome.after.clone();
        let writes = &mut self.decision.writes;
        writes.properties.extend(properties_row(job, &outcome));
        let changed = ChangedSchedule {
            schedule_id: key.id,
        };
        writes.requests.extend(request.map(|row| (changed, row)));
        Ok(Some(Ok(outcome)))
    }
}

impl Decision {
    /// Adds the writes of a row, or answers its jobs when all of them were refused.
    fn finish(&mut self, entry: Entry, revisions_kept: i64) {
        if entry.revisions.is_empty() {
            for (job, decided) in entry.jobs {
                job.answer(decided);
            }
            return;
        }
        let workspace = WorkspaceId(entry.before.workspace_id);
        let row = match codec::schedule_row(workspace, &entry.after, Some(&entry.before)) {
            Ok(row) => row,
            Err(fault) => {
                for (job, _) in entry.jobs {
                    job.answer(Err(Error::internal(&fault)));
                }
                return;
            }
        };
        let (before, after) = (&entry.before, &entry.after);
        let key = ScheduleKey::of(before);
        if after.cancelled_at.is_some() && before.fired > 0 {
            self.writes.abandoned.push(key);
        }
        // A release with other zone data is running as well.
        if after.schedule.is_local() && before.zone_rules != zone::data_number() {
            self.writes.restamped.push(key);
        }
        let due_for_trim = before.revision / TRIM_INTERVAL != after.revision / TRIM_INTERVAL;
        if due_for_trim && after.revision > revisions_kept {
            self.trims.push((key, after.revision - revisions_kept));
        }
        self.writes.rows.push(row);
        self.writes.revisions.extend(entry.revisions);
        self.answers.extend(entry.jobs);
    }

    /// The schedules that were written whose revisions up to this number are to be removed.
    pub(crate) fn trims_of(&self, written: &HashSet<Uuid>) -> Vec<(ScheduleKey, i64)> {
        let of_written = self
            .trims
            .iter()
            .filter(|(key, _)| written.contains(&key.id));
        of_written.copied().collect()
    }

    /// Whether answers were read back that no commit has followed.
    pub(crate) fn needs_confirmation(&self, written: &HashSet<Uuid>) -> bool {
        !self.known.is_empty() && written.is_empty()
    }

    /// Answers every job whose row was written, after its commit, and those whose answers are known. Returns the others, which are
    /// retried, in their order.
    pub(crate) fn reply(self, written: &HashSet<Uuid>) -> Vec<Job> {
        let mut retried = Vec::new();
        for (job, known) in self.known {
            job.answer(known);
        }
        for (mut job, decided) in self.answers {
            if written.contains(&job.key().id) {
                job.answer(decided);
            } else {
                job.rounds_lost = job.rounds_lost.saturating_add(1);
                retried.push(job);
            }
        }
        // They waited for jobs before them.
        retried.extend(self.postponed);
        retried
    }

    /// The jobs of a batch that failed. With `cut_off` its commit may have been carried out all the
    /// same.
    pub(crate) fn into_jobs(self, cut_off: bool) -> Vec<Job> {
        let commit_id = self.commit_id;
        let unsettle = |(mut job, decided): (Job, Result<Outcome, Error>)| {
            if let (true, Ok(outcome)) = (cut_off, decided) {
                job.unsettled.push(Unsettled { commit_id, outcome });
            }
            job
        };
        let known = self.known.into_iter().map(|(job, _)| job);
        let mut jobs: Vec<Job> = known.collect();
        jobs.extend(self.answers.into_iter().map(unsettle));
        jobs.extend(self.postponed);
        jobs
    }
}

fn revision_row(job: &Job, outcome: &Outcome, previous_ms: i64, commit_id: i64) -> revision::Model {
    let after = &outcome.after;
    revision::Model {
        schedule_id: after.id.0,
        revision: after.revision,
        created_ms: after.updated_at.timestamp_millis(),
        previous_ms,
        workspace_id: job.caller.workspace.0,
        kind: codec::kind_code(outcome.kind),
        time_ms: after.schedule.millis(),
        in_local_time: after.schedule.in_local_time,
        at_optimal_time: after.schedule.at_optimal_time,
        properties_id: after.properties.map(|id| id.0),
        actor: job.caller.actor.to_string(),
        commit_id,
    }
}

fn properties_row(job: &Job, outcome: &Outcome) -> Option<properties::Model> {
    let (id, body) = outcome.new_properties.clone()?;
    Some(properties::Model {
        id: id.0,
        workspace_id: job.caller.workspace.0,
        schedule_id: outcome.after.id.0,
        body,
    })
}

fn request_row(job: &Job, outcome: &Outcome) -> Result<Option<request::Model>, Error> {
    let Some(request) = &job.request else {
        return Ok(None);
    };
    Ok(Some(request::Model {
        workspace_id: job.caller.workspace.0,
        request_id: request.id.as_str().to_owned(),
        digest: request.digest.clone(),
        outcome: serde_json::to_string(outcome).map_err(Error::internal)?,
        created_ms: outcome.after.updated_at.timestamp_millis(),
    }))
}
