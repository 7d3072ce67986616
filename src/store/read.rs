//! Reads for callers, which need no writer. Every query names the workspace.

use std::collections::HashMap;

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ColumnTrait, DatabaseConnection, DbErr, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect,
};
use uuid::Uuid;

use crate::clock::SharedClock;
use crate::domain::{
    CanvasId, CanvasSchedule, Dispatch, DispatchState, Properties, PropertiesId, RequestId,
    Revision, ScheduleId, ScheduleState, Target, WorkspaceId, Zone,
};
use crate::error::Error;
use crate::store::schema::answered::{Answered, REQUEST_KEPT};
use crate::store::schema::codec;
use crate::store::schema::history;
use crate::store::schema::load::{self, Lock, ScheduleKey};
use crate::store::schema::tables::{
    canvas_schedule, dispatch, properties, request, target, workspace,
};
use crate::store::schema::tenant::{Key, Tenant};
use crate::store::session::error::public;

/// A schedule with its target, its properties and its dispatches.
#[derive(Debug, Clone, PartialEq)]
pub struct Details {
    /// The schedule.
    pub schedule: CanvasSchedule,
    /// Its dispatches.
    pub dispatches: Vec<Dispatch>,
    /// Its recipients, audience or broadcast.
    pub target: Target,
    /// The values that the message is filled with.
    pub properties: Option<Properties>,
}

/// Which schedules a list is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those of this Canvas.
    pub canvas_id: Option<CanvasId>,
    /// Only those in this state.
    pub state: Option<ScheduleState>,
}

/// Which dispatches a list is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DispatchFilter {
    /// Only those of this schedule.
    pub schedule_id: Option<ScheduleId>,
    /// Only those in this state.
    pub state: Option<DispatchState>,
}

/// Reads for callers. A schedule of another workspace is [`Error::NotFound`].
#[derive(Clone)]
pub struct Reads {
    pub(super) db: DatabaseConnection,
    pub(super) clock: SharedClock,
    /// The newest revisions of a schedule that are shown.
    pub(super) revisions_kept: i64,
}

impl Reads {
    /// One schedule.
    pub async fn schedule(&self, key: Key) -> Result<CanvasSchedule, Error> {
        Ok(self.schedule_with_dispatches(key).await?.0)
    }

    /// One schedule and its dispatches, in their order.
    pub async fn schedule_with_dispatches(
        &self,
        key: Key,
    ) -> Result<(CanvasSchedule, Vec<Dispatch>), Error> {
        let found = self.find(key).await.map_err(public)?;
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
            .one(&self.db)
            .await?
        else {
            return Ok(None);
        };
        let loaded = load::with_dispatches(&self.db, vec![row]).await?.pop();
        let loaded = loaded.transpose()?;
        Ok(loaded.map(|one| (one.schedule, one.dispatches)))
    }

    /// One schedule with its target, its properties and its dispatches.
    pub async fn details(&self, key: Key) -> Result<Details, Error> {
        let (schedule, dispatches) = self.schedule_with_dispatches(key).await?;
        let (workspace, id) = key;
        let read = async {
            let target = target::Entity::within(workspace)
                .filter(target::Column::ScheduleId.eq(id.0))
                .one(&self.db)
                .await?;
            let target = target.ok_or_else(|| codec::broken("the target is missing"))?;
            let target = serde_json::from_str(&target.body).map_err(codec::broken)?;
            let mut bodies = self
                .find_properties(workspace, schedule.properties.into_iter().collect())
                .await?;
            let properties = schedule.properties.and_then(|id| bodies.remove(&id));
            Ok(Details {
                schedule,
                dispatches,
                target,
                properties,
            })
        };
        read.await.map_err(public)
    }

    /// The properties of these ids.
    pub async fn properties(
        &self,
        workspace: WorkspaceId,
        ids: Vec<PropertiesId>,
    ) -> Result<HashMap<PropertiesId, Properties>, Error> {
        self.find_properties(workspace, ids).await.map_err(public)
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
            .all(&self.db)
            .await?;
        let body = |row: properties::Model| {
            Ok((
                PropertiesId(row.id),
                serde_json::from_str(&row.body).map_err(codec::broken)?,
            ))
        };
        rows.into_iter().map(body).collect()
    }

    /// The one schedule of a Canvas that can still change; [`Error::NoOpenSchedule`] if there is
    /// none, [`Error::ScheduleIdNeeded`] if there are several.
    pub async fn open_schedule(
        &self,
        workspace: WorkspaceId,
        canvas_id: &CanvasId,
    ) -> Result<ScheduleId, Error> {
        let open = canvas_schedule::Entity::within(workspace)
            .filter(canvas_schedule::Column::CanvasId.eq(canvas_id.as_str()))
            // The text of the partial index's own condition.
            .filter(
                canvas_schedule::Column::State.lte(codec::state_code(ScheduleState::Dispatching)),
            );
        let first = open
            .clone()
            .order_by_asc(canvas_schedule::Column::Id)
            .limit(2)
            .all(&self.db)
            .await
            .map_err(public)?;
        match first.as_slice() {
            [] => Err(Error::NoOpenSchedule {
                canvas_id: canvas_id.as_str().to_owned(),
            }),
            [one] => Ok(ScheduleId(one.id)),
            _ => {
                let open = open.count(&self.db).await.map_err(public)?;
                Err(Error::ScheduleIdNeeded {
                    canvas_id: canvas_id.as_str().to_owned(),
                    open,
                })
            }
        }
    }

    /// Up to `limit` schedules after `after`, in the order of their ids.
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
                .all(&self.db)
                .await?;
            let loaded = load::with_dispatches(&self.db, rows).await?.into_iter();
            loaded
                .map(|one| Ok(one?.schedule))
                .collect::<Result<_, DbErr>>()
        };
        read.await.map_err(public)
    }

    /// Up to `limit` of the stored revisions before `before`, the newest first.
    pub async fn revisions(
        &self,
        key: Key,
        before: Option<i64>,
        limit: u64,
    ) -> Result<Vec<Revision>, Error> {
        let newest = self.schedule(key).await?.revision;
        let key = ScheduleKey::new(key.0.0, key.1.0);
        let (before, oldest) = (before.unwrap_or(i64::MAX), newest - self.revisions_kept);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = history::newest(&self.db, key, before, oldest, limit).await;
        let revisions = rows.and_then(|rows| rows.into_iter().map(codec::revision).collect());
        revisions.map_err(public)
    }

    /// The first answer to a request id, if it was answered within 24 hours.
    pub async fn answered(
        &self,
        workspace: WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Answered>, Error> {
        let read = async {
            let named = request::Entity::within(workspace)
                .filter(request::Column::RequestId.eq(id.as_str()));
            let Some(row) = named.one(&self.db).await? else {
                return Ok(None);
            };
            let age = self.clock.now().timestamp_millis() - row.created_ms;
            if u128::try_from(age).is_ok_and(|age| age >= REQUEST_KEPT.as_millis()) {
                return Ok(None);
            }
            codec::answered(row).map(Some)
        };
        read.await.map_err(public)
    }

    /// The zone that new schedules of a workspace apply to users without one.
    pub async fn default_zone(&self, id: WorkspaceId) -> Result<Zone, Error> {
        let read = async {
            let row = workspace::Entity::find_by_id(id.0).one(&self.db).await?;
            let row = row.ok_or_else(|| codec::broken("the workspace does not exist"))?;
            Zone::parse(&row.default_time_zone).map_err(codec::broken)
        };
        read.await.map_err(public)
    }

    /// Up to `limit` dispatches after `after`, in the order of schedule and number.
    pub async fn dispatches(
        &self,
        workspace: WorkspaceId,
        filter: DispatchFilter,
        after: Option<(ScheduleId, u32)>,
        limit: u64,
    ) -> Result<Vec<(ScheduleId, Dispatch)>, Error> {
        let read = async {
            let mut query = dispatch::Entity::within(workspace);
            if let Some(schedule) = filter.schedule_id {
                query = query.filter(dispatch::Column::ScheduleId.eq(schedule.0));
            }
            if let Some(state) = filter.state {
                // In its text, as the partial indexes have it.
                query = query.filter(Expr::cust(format!(
                    "state = {}",
                    codec::dispatch_state_code(state)
                )));
            }
            if filter.state == Some(DispatchState::InFlight) {
                query = query.filter(dispatch::Column::RetryMs.is_not_null());
            }
            if let Some((schedule, n)) = after {
                let key = Expr::tuple([
                    Expr::col(dispatch::Column::ScheduleId),
                    Expr::col(dispatch::Column::N),
                ]);
                query = query.filter(key.gt(Expr::tuple([
                    Expr::value(schedule.0),
                    Expr::value(codec::signed(n)?),
                ])));
            }
            let query = query
                .order_by_asc(dispatch::Column::ScheduleId)
                .order_by_asc(dispatch::Column::N);
            self.with_schedules(query.limit(limit).all(&self.db).await?)
                .await
        };
        read.await.map_err(public)
    }

    /// Decodes dispatches, whose zones may be those of their schedules.
    async fn with_schedules(
        &self,
        rows: Vec<dispatch::Model>,
    ) -> Result<Vec<(ScheduleId, Dispatch)>, DbErr> {
        let key = |row: &dispatch::Model| ScheduleKey::new(row.workspace_id, row.schedule_id);
        let mut keys: Vec<ScheduleKey> = rows.iter().map(key).collect();
        keys.dedup();
        let mut schedules: HashMap<Uuid, CanvasSchedule> = HashMap::new();
        for row in load::read_rows(&self.db, &keys, Lock::None).await? {
            schedules.insert(row.id, codec::schedule(&row)?);
        }
        // One whose schedule was removed meanwhile is gone, too.
        let of = |row: dispatch::Model| {
            let schedule = schedules.get(&row.schedule_id)?;
            Some(codec::dispatch(row, schedule).map(|dispatch| (schedule.id, dispatch)))
        };
        rows.into_iter().filter_map(of).collect()
    }
}
