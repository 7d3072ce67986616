//! What a round reads before it decides.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ColumnTrait, ConnectionTrait, DbErr, EntityTrait, QueryFilter};
use uuid::Uuid;

use crate::domain::{RequestId, WorkspaceId, Zone};
use crate::store::commit::job::{Job, Work};
use crate::store::schema::answered::{Answered, REQUEST_KEPT};
use crate::store::schema::load::{self, Loaded, Lock, ScheduleKey, Unreadable};
use crate::store::schema::tables::{request, workspace};
use crate::store::schema::tenant::Tenant;
use crate::store::schema::{codec, history};

/// What the database holds about the jobs of a batch.
#[derive(Default)]
pub(crate) struct Snapshot {
    /// The schedules that exist.
    pub rows: HashMap<(WorkspaceId, Uuid), Result<Loaded, Unreadable>>,
    /// Rows that another session has locked.
    pub locked: HashSet<(WorkspaceId, Uuid)>,
    /// First answers to their request ids.
    pub answered: HashMap<(WorkspaceId, RequestId), Answered>,
    /// Commits that were cut off and that the database has after all, each with its schedule.
    pub settled: HashSet<(Uuid, i64)>,
    /// Default zones, for new schedules.
    pub default_zones: HashMap<WorkspaceId, Zone>,
}

impl Snapshot {
    /// Reads what the jobs need. In the usual case that is the rows alone, in one statement.
    pub(crate) async fn read<C: ConnectionTrait>(
        db: &C,
        jobs: &[Job],
        now: DateTime<Utc>,
        lock: Lock,
    ) -> Result<Self, DbErr> {
        let keys = changes(jobs).map(|(workspace, id)| ScheduleKey {
            id,
            workspace_id: workspace.0,
        });
        let mut keys: Vec<ScheduleKey> = keys.collect();
        keys.sort_unstable();
        keys.dedup();
        let mut read = Self {
            answered: answered(db, jobs, now).await?,
            default_zones: default_zones(db, jobs).await?,
            ..Self::default()
        };
        for loaded in load::load(db, &keys, lock).await? {
            let key = load::key_of(&loaded);
            read.rows
                .insert((WorkspaceId(key.workspace_id), key.id), loaded);
        }
        if lock == Lock::Skip && read.rows.len() < keys.len() {
            let skipped = keys
                .iter()
                .map(ScheduleKey::pair)
                .filter(|(workspace, id)| !read.rows.contains_key(&(WorkspaceId(*workspace), *id)));
            let skipped: Vec<(i32, Uuid)> = skipped.collect();
            let locked = load::read_rows(db, &skipped, Lock::None).await?;
            read.locked = locked
                .iter()
                .map(|row| (WorkspaceId(row.workspace_id), row.id))
                .collect();
        }
        // After the rows: a cut-off commit that lands before they are read is found here; one that
        // lands later moves a version, so that this round's write is refused.
        read.settled = settled(db, jobs).await?;
        Ok(read)
    }
}

fn changes(jobs: &[Job]) -> impl Iterator<Item = (WorkspaceId, Uuid)> {
    jobs.iter()
        .filter(|job| matches!(job.work, Work::Change(..)))
        .map(Job::key)
}

/// First answers to the jobs' request ids. An answer older than [`REQUEST_KEPT`] is removed, so
/// that its id can be used again.
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

/// Which of the commits that were cut off the database has after all.
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
