//! A batch in memory: what was read, what the domain decides of it, what is to be written, and who gets which answer.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use sea_orm::DbErr;
use uuid::Uuid;

use crate::domain::{CanvasSchedule, Outcome, RequestId, SchedulePolicy, WorkspaceId, Zone, zone};
use crate::error::Error;
use crate::store::commit::insert::NewRows;
use crate::store::commit::job::{Job, Unsettled, Work};
use crate::store::commit::statements::{RequestWrite, Writes};
use crate::store::schema::answered::Answered;
use crate::store::schema::codec;
use crate::store::schema::history::RowKey;
use crate::store::schema::load::{Loaded, ScheduleKey, Unreadable};
use crate::store::schema::tables::{canvas_schedule, properties, request, revision, target, wake};

/// Old revisions are removed once for so many new ones.
const TRIM_EVERY: i64 = 50;

/// What the database holds about the jobs of a batch.
#[derive(Default)]
pub(crate) struct Read {
    /// The rows that exist.
    pub rows: HashMap<(WorkspaceId, Uuid), Result<Loaded, Unreadable>>,
    /// Rows that another session holds.
    pub held: HashSet<(WorkspaceId, Uuid)>,
    /// First answers to their request ids.
    pub answered: HashMap<(WorkspaceId, RequestId), Answered>,
    /// Commits that are there after all.
    pub settled: HashSet<(Uuid, i64)>,
    /// Default zones, for new schedules.
    pub default_zones: HashMap<WorkspaceId, Zone>,
}

/// The moment, the rules and the commit that a batch is decided with.
pub(crate) struct Context<'a> {
    /// The instant of every change in the batch.
    pub now: DateTime<Utc>,
    /// The settings of the rules.
    pub policy: &'a SchedulePolicy,
    /// Marks the revisions.
    pub commit_id: i64,
}

/// One row and all the jobs of the batch that are about it, in their order.
struct Entry {
    before: canvas_schedule::Model,
    after: CanvasSchedule,
    jobs: Vec<(Job, Result<Outcome, Error>)>,
}

/// A decided batch.
pub(crate) struct Batch {
    entries: BTreeMap<Uuid, Entry>,
    created: Vec<(Job, Outcome)>,
    /// The instant of every change in it.
    pub now: DateTime<Utc>,
    /// Jobs that must wait for the next round.
    pub again: Vec<Job>,
    commit_id: i64,
}

impl Batch {
    /// Lets the domain decide each job, in order, on what the jobs before it left. Answers at once what needs no write.
    pub(crate) fn decide(jobs: Vec<Job>, mut read: Read, context: &Context<'_>) -> Self {
        let mut batch = Self {
            entries: BTreeMap::new(),
            created: vec![],
            now: context.now,
            again: vec![],
            commit_id: context.commit_id,
        };
        let (mut seen, mut held) = (HashSet::new(), std::mem::take(&mut read.held));
        for job in jobs {
            let Some(job) = answer_what_is_known(job, &read) else {
                continue;
            };
            let request = job
                .request
                .as_ref()
                .map(|request| (job.caller.workspace, request.id.clone()));
            // Its twin is in this batch: the next round finds the twin's answer.
            let is_twin = request
                .as_ref()
                .is_some_and(|request| seen.contains(request));
            if is_twin || held.contains(&job.key()) {
                // What follows on its schedule follows it there too.
                held.insert(job.key());
                batch.again.push(job);
                continue;
            }
            if batch.decide_one(job, &mut read, context) {
                // One that was refused has no answer to find; its twin keeps its place in the order.
                seen.extend(request);
            }
        }
        batch
    }

    /// Whether the job was accepted.
    fn decide_one(&mut self, job: Job, read: &mut Read, context: &Context<'_>) -> bool {
        match &job.work {
            Work::Create(id, create) => {
                let decided = match read.default_zones.get(&job.caller.workspace) {
                    Some(zone) => create.decide(*id, *zone, context.now, context.policy),
                    None => Err(Error::internal("the workspace does not exist")),
                };
                match decided {
                    Ok(outcome) => {
                        self.created.push((job, outcome));
                        return true;
                    }
                    Err(error) => job.answer(Err(error)),
                }
            }
            Work::Change(id, command) => match self.entry(&job, read) {
                Ok(Some(entry)) => {
                    let decided = command.decide(&entry.after, context.now, context.policy);
                    if let Ok(outcome) = &decided {
                        entry.after = outcome.after.clone();
                    }
                    let accepted = decided.is_ok();
                    entry.jobs.push((job, decided));
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

    /// The row that a job is about, with what the jobs before it made of it; none when its workspace has no such row.
    fn entry(&mut self, job: &Job, read: &mut Read) -> Result<Option<&mut Entry>, DbErr> {
        let key = job.key();
        if let Some(loaded) = read.rows.remove(&key) {
            let Loaded { row, schedule, .. } = loaded?;
            let entry = Entry {
                before: row,
                after: schedule,
                jobs: vec![],
            };
            self.entries.insert(key.1, entry);
        }
        Ok(self
            .entries
            .get_mut(&key.1)
            .filter(|entry| entry.before.workspace_id == key.0.0))
    }

    /// Answers the jobs of rows that need no write: all of their changes were refused on what is stored.
    pub(crate) fn answer_refused(&mut self) {
        let refused = |entry: &Entry| entry.jobs.iter().all(|(_, decided)| decided.is_err());
        let ids: Vec<Uuid> = self
            .entries
            .iter()
            .filter(|(_, entry)| refused(entry))
            .map(|(id, _)| *id)
            .collect();
        for entry in ids
            .iter()
            .filter_map(|id| self.entries.remove(id))
            .collect::<Vec<_>>()
        {
            entry
                .jobs
                .into_iter()
                .for_each(|(job, decided)| job.answer(decided));
        }
    }

    /// What the changes write.
    ///
    /// # Errors
    /// Never in practice: outcomes always make JSON.
    pub(crate) fn writes(&self) -> Result<Writes, DbErr> {
        let mut writes = Writes::default();
        for (id, entry) in &self.entries {
            writes.rows.push(entry.row()?);
            let mut previous_ms = entry.before.updated_ms;
            for (job, outcome) in entry
                .jobs
                .iter()
                .filter_map(|(job, decided)| decided.as_ref().ok().map(|outcome| (job, outcome)))
            {
                let revision = revision_row(job, outcome, previous_ms, self.commit_id);
                previous_ms = revision.created_ms;
                writes.revisions.push(revision);
                writes.properties.extend(properties_row(job, outcome));
                if let Some(row) = request_row(job, outcome)? {
                    writes.requests.push(RequestWrite {
                        schedule_id: *id,
                        row,
                    });
                }
            }
        }
        Ok(writes)
    }

    /// What the creations write.
    ///
    /// # Errors
    /// Never in practice: what callers send always makes JSON.
    pub(crate) fn new_rows(&self) -> Result<NewRows, DbErr> {
        let mut new = NewRows::default();
        for (job, outcome) in &self.created {
            let Work::Create(id, create) = &job.work else {
                continue;
            };
            let workspace_id = job.caller.workspace.0;
            let body = serde_json::to_string(&create.target).map_err(codec::broken)?;
            new.schedules.push(codec::schedule_row(
                job.caller.workspace,
                &outcome.after,
                None,
            )?);
            new.wakes
                .extend(outcome.after.next_wave.map(|at| wake::Model {
                    wake_ms: at.timestamp_millis(),
                    workspace_id,
                    id: id.0,
                }));
            new.revisions
                .push(revision_row(job, outcome, 0, self.commit_id));
            new.targets.push(target::Model {
                schedule_id: id.0,
                workspace_id,
                body,
            });
            new.properties.extend(properties_row(job, outcome));
            new.requests.extend(request_row(job, outcome)?);
        }
        Ok(new)
    }

    /// Of these rows, those that are cancelled now and have been fired: their unknown dispatches are tried no more.
    pub(crate) fn abandoned(&self, moved: impl Fn(&Uuid) -> bool) -> Vec<ScheduleKey> {
        let cancelled =
            |entry: &Entry| entry.after.cancelled_at.is_some() && entry.before.fired > 0;
        let written = self
            .entries
            .iter()
            .filter(|(id, entry)| moved(id) && cancelled(entry));
        written
            .map(|(_, entry)| ScheduleKey::of(&entry.before))
            .collect()
    }

    /// Of these rows, those whose next wave is by other zone data than they are marked with: a release with other data is about.
    pub(crate) fn restamped(&self, moved: impl Fn(&Uuid) -> bool) -> Vec<ScheduleKey> {
        let other = |entry: &Entry| {
            entry.after.schedule.is_local() && entry.before.zone_rules != zone::data_number()
        };
        let written = self
            .entries
            .iter()
            .filter(|(id, entry)| moved(id) && other(entry));
        written
            .map(|(_, entry)| ScheduleKey::of(&entry.before))
            .collect()
    }

    /// Whether all that it writes is one statement.
    pub(crate) fn is_one_statement(&self) -> bool {
        self.created.is_empty()
            && self.abandoned(|_| true).is_empty()
            && self.restamped(|_| true).is_empty()
    }

    /// Written schedules that have passed another [`TRIM_EVERY`] revisions, with the newest one that is not kept any more.
    pub(crate) fn trims(&self, moved: &HashSet<Uuid>, kept: i64) -> Vec<(RowKey, i64)> {
        let written = self.entries.iter().filter(|(id, _)| moved.contains(id));
        let revised = written.map(|(id, entry)| {
            (
                (entry.before.workspace_id, *id),
                entry.before.revision,
                entry.after.revision,
            )
        });
        let due = revised.filter(|(_, before, after)| {
            before / TRIM_EVERY != after / TRIM_EVERY && *after > kept
        });
        due.map(|(key, _, after)| (key, after - kept)).collect()
    }

    /// Answers every job whose row was written, after its commit; the others go round again.
    pub(crate) fn answer(self, moved: &HashSet<Uuid>) -> Vec<Job> {
        let mut again = Vec::new();
        for (job, outcome) in self.created {
            job.answer(Ok(outcome));
        }
        for (id, entry) in self.entries {
            for (mut job, decided) in entry.jobs {
                if moved.contains(&id) {
                    job.answer(decided);
                } else {
                    job.rounds_lost = job.rounds_lost.saturating_add(1);
                    again.push(job);
                }
            }
        }
        // They waited for changes before them.
        again.extend(self.again);
        again
    }

    /// The jobs of a batch that failed; `cut_off` when its commit may have been carried out all the same.
    pub(crate) fn into_jobs(self, cut_off: bool) -> Vec<Job> {
        let created = self
            .created
            .into_iter()
            .map(|(job, outcome)| (job, Ok(outcome)));
        let changed = self.entries.into_values().flat_map(|entry| entry.jobs);
        let unsettle = |(mut job, decided): (Job, Result<Outcome, Error>)| {
            if let (true, Ok(outcome)) = (cut_off, decided) {
                job.unsettled.push(Unsettled {
                    commit_id: self.commit_id,
                    outcome,
                });
            }
            job
        };
        let mut jobs: Vec<Job> = created.chain(changed).map(unsettle).collect();
        jobs.extend(self.again);
        jobs
    }
}

impl Entry {
    /// The row as it is to be, with the version that was read.
    fn row(&self) -> Result<canvas_schedule::Model, DbErr> {
        let workspace = WorkspaceId(self.before.workspace_id);
        codec::schedule_row(workspace, &self.after, Some(&self.before))
    }
}

/// Answers a job whose commit turned out to be there, or whose request was answered before.
fn answer_what_is_known(mut job: Job, read: &Read) -> Option<Job> {
    let id = job.work.schedule_id().0;
    if let Some(at) = job
        .unsettled
        .iter()
        .position(|cut| read.settled.contains(&(id, cut.commit_id)))
    {
        let outcome = job.unsettled.swap_remove(at).outcome;
        job.answer(Ok(outcome));
        return None;
    }
    let Some(request) = &job.request else {
        return Some(job);
    };
    match read
        .answered
        .get(&(job.caller.workspace, request.id.clone()))
    {
        Some(answered) => {
            let replayed = answered.replay(request);
            job.answer(replayed);
            None
        }
        None => Some(job),
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

fn request_row(job: &Job, outcome: &Outcome) -> Result<Option<request::Model>, DbErr> {
    let Some(request) = &job.request else {
        return Ok(None);
    };
    Ok(Some(request::Model {
        workspace_id: job.caller.workspace.0,
        request_id: request.id.as_str().to_owned(),
        digest: request.digest.clone(),
        outcome: serde_json::to_string(outcome).map_err(codec::broken)?,
        created_ms: outcome.after.updated_at.timestamp_millis(),
    }))
}
