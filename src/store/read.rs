//! What is read without a writer. Every query names the workspace.

use std::collections::HashMap;

use sea_orm::{
    ColumnTrait, DbErr, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
};

use crate::domain::{
    CanvasId, CanvasSchedule, Dispatch, Properties, PropertiesId, RequestId, Revision, ScheduleId,
    State, Target, WorkspaceId, Zone,
};
use crate::error::Error;
use crate::store::Key;
use crate::store::REQUEST_KEPT;
use crate::store::Store;
use crate::store::commit::batch::Answered;
use crate::store::commit::history;
use crate::store::dispatch::rows;
use crate::store::schema::codec;
use crate::store::schema::tables::{canvas_schedule, properties, request, target, workspace};
use crate::store::schema::tenant::Tenant;
use crate::store::session::error::public;

/// A schedule and what it carries.
#[derive(Debug, Clone, PartialEq)]
pub struct Details {
    /// The schedule.
    pub schedule: CanvasSchedule,
    /// The waves of it that were fired.
    pub firings: Vec<Dispatch>,
    /// Whom it is for.
    pub target: Target,
    /// The values for the message.
    pub properties: Option<Properties>,
}

/// Which schedules a list is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those of this Canvas.
    pub canvas_id: Option<CanvasId>,
    /// Only those in this state.
    pub state: Option<State>,
}

impl Store {
    /// One schedule.
    ///
    /// # Errors
    /// [`Error::NotFound`], also when it is another workspace's.
    pub async fn schedule(&self, key: Key) -> Result<CanvasSchedule, Error> {
        Ok(self.schedule_and_firings(key).await?.0)
    }

    /// One schedule and its firings, in their order.
    ///
    /// # Errors
    /// [`Error::NotFound`], also when it is another workspace's.
    pub async fn schedule_and_firings(
        &self,
        key: Key,
    ) -> Result<(CanvasSchedule, Vec<Dispatch>), Error> {
        let found = self.find(key).await.map_err(|fault| public(&fault))?;
        found.ok_or_else(|| Error::NotFound {
            schedule_id: key.1.to_string(),
        })
    }

    async fn find(
        &self,
        (workspace, id): Key,
    ) -> Result<Option<(CanvasSchedule, Vec<Dispatch>)>, DbErr> {
        let Some(row) = canvas_schedule::Entity::within(workspace)
            .filter(canvas_schedule::Column::Id.eq(id.0))
            .one(&self.reads)
            .await?
        else {
            return Ok(None);
        };
        let mut dispatches = rows::of_rows(&self.reads, std::iter::once(&row)).await?;
        let of_row = dispatches.remove(&row.id).unwrap_or_default();
        rows::schedule(row, of_row).map(Some)
    }

    /// One schedule and what it carries.
    ///
    /// # Errors
    /// [`Error::NotFound`], also when it is another workspace's.
    pub async fn details(&self, key: Key) -> Result<Details, Error> {
        let (schedule, firings) = self.schedule_and_firings(key).await?;
        let (workspace, id) = key;
        let read = async {
            let target = target::Entity::within(workspace)
                .filter(target::Column::ScheduleId.eq(id.0))
                .one(&self.reads)
                .await?;
            let target = target.ok_or_else(|| codec::broken("the target is missing"))?;
            let target = serde_json::from_str(&target.body).map_err(codec::broken)?;
            let mut bodies = self
                .find_properties(workspace, schedule.properties.into_iter().collect())
                .await?;
            let properties = schedule.properties.and_then(|id| bodies.remove(&id));
            Ok(Details {
                schedule,
                firings,
                target,
                properties,
            })
        };
        read.await.map_err(|fault: DbErr| public(&fault))
    }

    /// The properties of these ids.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn properties(
        &self,
        workspace: WorkspaceId,
        ids: Vec<PropertiesId>,
    ) -> Result<HashMap<PropertiesId, Properties>, Error> {
        self.find_properties(workspace, ids)
            .await
            .map_err(|fault| public(&fault))
    }

    async fn find_properties(
        &self,
        workspace: WorkspaceId,
        ids: Vec<PropertiesId>,
    ) -> Result<HashMap<PropertiesId, Properties>, DbErr> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = properties::Entity::within(workspace)
            .filter(properties::Column::Id.is_in(ids.iter().map(|id| id.0)))
            .all(&self.reads)
            .await?;
        let body = |row: properties::Model| {
            Ok((
                PropertiesId(row.id),
                serde_json::from_str(&row.body).map_err(codec::broken)?,
            ))
        };
        rows.into_iter().map(body).collect()
    }

    /// The schedule of a Canvas that can still change, when there is exactly one.
    ///
    /// # Errors
    /// [`Error::NoOpenSchedule`] and [`Error::ScheduleIdNeeded`].
    pub async fn open_schedule(
        &self,
        workspace: WorkspaceId,
        canvas_id: &CanvasId,
    ) -> Result<ScheduleId, Error> {
        let open = canvas_schedule::Entity::within(workspace)
            .filter(canvas_schedule::Column::CanvasId.eq(canvas_id.as_str()))
            // The text of the partial index's own condition.
            .filter(canvas_schedule::Column::State.lte(codec::state_code(State::Dispatching)));
        let first = open
            .clone()
            .order_by_asc(canvas_schedule::Column::Id)
            .limit(2)
            .all(&self.reads)
            .await
            .map_err(|fault| public(&fault))?;
        match first.as_slice() {
            [] => Err(Error::NoOpenSchedule {
                canvas_id: canvas_id.as_str().to_owned(),
            }),
            [one] => Ok(ScheduleId(one.id)),
            _ => {
                let open = open
                    .count(&self.reads)
                    .await
                    .map_err(|fault| public(&fault))?;
                Err(Error::ScheduleIdNeeded {
                    canvas_id: canvas_id.as_str().to_owned(),
                    open,
                })
            }
        }
    }

    /// Up to `limit` schedules after `after`, in the order of their ids.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn list(
        &self,
        workspace: WorkspaceId,
        filter: &Filter,
        after: Option<ScheduleId>,
        limit: u64,
    ) -> Result<Vec<CanvasSchedule>, Error> {
        let mut query = canvas_schedule::Entity::within(workspace);
        if let Some(canvas_id) = &filter.canvas_id {
            query = query.filter(canvas_schedule::Column::CanvasId.eq(canvas_id.as_str()));
        }
        if let Some(state) = filter.state {
            query = query.filter(canvas_schedule::Column::State.eq(codec::state_code(state)));
        }
        if let Some(after) = after {
            query = query.filter(canvas_schedule::Column::Id.gt(after.0));
        }
        let read = async {
            let rows = query
                .order_by_asc(canvas_schedule::Column::Id)
                .limit(limit)
                .all(&self.reads)
                .await?;
            let mut dispatches = rows::of_rows(&self.reads, rows.iter()).await?;
            let schedule = |row: canvas_schedule::Model| {
                let of_row = dispatches.remove(&row.id).unwrap_or_default();
                Ok(rows::schedule(row, of_row)?.0)
            };
            rows.into_iter().map(schedule).collect::<Result<_, DbErr>>()
        };
        read.await.map_err(|fault| public(&fault))
    }

    /// Up to `limit` of the kept revisions before `before`, the newest first.
    ///
    /// # Errors
    /// [`Error::NotFound`], also when the schedule is another workspace's.
    pub async fn revisions(
        &self,
        key: Key,
        before: Option<i64>,
        limit: u64,
    ) -> Result<Vec<Revision>, Error> {
        let newest = self.schedule(key).await?.revision;
        let (workspace, id) = key;
        let (before, oldest) = (before.unwrap_or(i64::MAX), newest - self.revisions_kept);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = history::newest(&self.reads, (workspace.0, id.0), before, oldest, limit).await;
        let revisions = rows.and_then(|rows| rows.into_iter().map(codec::revision).collect());
        revisions.map_err(|fault: DbErr| public(&fault))
    }

    /// The first answer to a request id, if it was answered within 24 hours.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn answered(
        &self,
        workspace: WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Answered>, Error> {
        let read = async {
            let named = request::Entity::within(workspace)
                .filter(request::Column::RequestId.eq(id.as_str()));
            let Some(row) = named.one(&self.reads).await? else {
                return Ok(None);
            };
            let age = self.clock.now().timestamp_millis() - row.created_ms;
            if u128::try_from(age).is_ok_and(|age| age >= REQUEST_KEPT.as_millis()) {
                return Ok(None);
            }
            let outcome = serde_json::from_str(&row.outcome).map_err(codec::broken)?;
            Ok(Some(Answered {
                digest: row.digest,
                outcome,
            }))
        };
        read.await.map_err(|fault: DbErr| public(&fault))
    }

    /// The zone that new schedules of a workspace take for users with none.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn default_zone(&self, id: WorkspaceId) -> Result<Zone, Error> {
        let read = async {
            let row = workspace::Entity::find_by_id(id.0).one(&self.reads).await?;
            let row = row.ok_or_else(|| codec::broken("the workspace does not exist"))?;
            Zone::parse(&row.default_time_zone).map_err(codec::broken)
        };
        read.await.map_err(|fault: DbErr| public(&fault))
    }

    /// Removes up to `most` first answers that are older than a day, and answers how many.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn remove_old_answers(&self, most: u64) -> Result<usize, Error> {
        let oldest = self.clock.now().timestamp_millis()
            - i64::try_from(REQUEST_KEPT.as_millis()).unwrap_or(i64::MAX);
        let remove = async {
            let too_old = request::Column::CreatedMs.lte(oldest);
            let rows = request::Entity::across_workspaces()
                .filter(too_old.clone())
                .order_by_asc(request::Column::CreatedMs)
                .limit(most);
            let rows = rows.all(&self.reads).await?;
            for row in &rows {
                // Its age again: the id may have been used anew since it was read.
                request::Entity::delete_within(WorkspaceId(row.workspace_id))
                    .filter(request::Column::RequestId.eq(row.request_id.as_str()))
                    .filter(too_old.clone())
                    .exec(&self.reads)
                    .await?;
            }
            Ok(rows.len())
        };
        remove.await.map_err(|fault: DbErr| public(&fault))
    }
}
