//! The rows that a round reads before it decides.

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

/// The stored rows that the jobs of a batch depend on.
#[derive(Default)]
pub(crate) struct Snapshot {
    pub rows: HashMap<ScheduleKey, Result<Loaded, Unreadable>>,
    /// Rows that another session has locked.
    pub locked: HashSet<ScheduleKey>,
    pub answered: HashMap<(WorkspaceId, RequestId), Answered>,
    /// Commits that were cut off but carried out, each with its schedule.
    pub settled: HashSet<(Uuid, i64)>,
    pub default_zones: HashMap<WorkspaceId, Zone>,
}

impl Snapshot {
    /// Reads what the jobs need. Usually these are only the rows, in one statement.
    pub(crate) async fn read<C: ConnectionTrait>(
        db: &C,
        jobs: &[Job],
        now: DateTime<Utc>,
        lock: Lock,
    ) -> Result<Self, DbErr> {
        let changes = jobs
            .iter()
            .filter(|job| matches!(job.work, Work::Change(..)));
        let mut keys: Vec<ScheduleKey> = changes.map(Job::key).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut read = Self {
            answered: answered(db, jobs, now).await?,
            default_zones: default_zones(db, jobs).await?,
            ..Self::default()
        };
        for loaded in load::load(db, &keys, lock).await? {
            read.rows.insert(load::key_of(&loaded), loaded);
        }
        if lock == Lock::Skip && read.rows.len() < keys.len() {
            let skipped = |key: &ScheduleKey| !read.rows.contains_key(key);
            let skipped: Vec<ScheduleKey> = keys.into_iter().filter(skipped).collect();
            read.locked = load::locked(db, &skipped).await?;
        }
        // After the rows: a cut-off commit that lands before they are read is found here; one that
        // lands later moves a version, so that this round's write is refused.
        read.settled = settled(db, jobs).await?;
        Ok(read)
    }
}

/// First answers to the jobs' request ids. An answer older than [`REQUEST_KEPT`] is removed, so
/// that its id can be used again.
async fn answered<C: ConnectionTrait>(
    db: &C,
    jobs: &[Job],
    now: DateTime<Utc>,
) -> Result<HashMap<(WorkspaceId, RequestId), Answered>, DbErr> {
    let mut ids: HashMap<WorkspaceId, Vec<&str>> = HashMap::new();
    for job in jobs {
        if let Some(request) = &job.request {
            let of_workspace = ids.entry(job.caller.workspace).or_default();
            of_workspace.push(request.id.as_str());
        }
    }
    let oldest = now - TimeDelta::from_std(REQUEST_KEPT).unwrap_or_default();
    let oldest = oldest.timestamp_millis();
    let mut found = HashMap::new();
    for (workspace, ids) in ids {
        let named = request::Column::RequestId.is_in(ids);
        let rows = request::Entity::within(workspace).filter(named.clone());
        let rows = rows.all(db).await?.into_iter();
        let (recent, too_old): (Vec<_>, Vec<_>) = rows.partition(|row| row.created_ms > oldest);
        if !too_old.is_empty() {
            request::Entity::delete_within(workspace)
                .filter(named)
                .filter(request::Column::CreatedMs.lte(oldest))
                .exec(db)
                .await?;
        }
        for row in recent {
            let id = RequestId::parse(&row.request_id).map_err(codec::broken)?;
            found.insert((workspace, id), codec::answered(row)?);
        }
    }
    Ok(found)
}

/// Which of the commits that were cut off were carried out.
async fn settled<C: ConnectionTrait>(db: &C, jobs: &[Job]) -> Result<HashSet<(Uuid, i64)>, DbErr> {
    let mut settled = HashSet::new();
    for job in jobs.iter().filter(|job| !job.unsettled.is_empty()) {
        let key = job.key();
        let commits: Vec<i64> = job.unsettled.iter().map(|cut| cut.commit_id).collect();
        let found = history::written_by(db, key, &commits).await?;
        settled.extend(found.into_iter().map(|commit| (key.id, commit)));
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
    let zone = |row: workspace::Model| {
        let zone = Zone::parse(&row.default_time_zone).map_err(codec::broken)?;
        Ok((WorkspaceId(row.id), zone))
    };
    rows.into_iter().map(zone).collect()
}
