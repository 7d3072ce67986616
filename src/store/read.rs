//! Reads for callers, which need no writer. Every query names the workspace.

use std::collections::HashMap;

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder,
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
use crate::store::session::sessions::Sessions;

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
    pub(super) sessions: Sessions,
    /// Makes durable what was read back.
    pub(super) confirming: Sessions,
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
        let find = async {
            let db = self.sessions.snapshot().await?;
            let found = find(&db, key).await;
            db.finish(found).await
        };
        let found = self.sessions.run(find).await?;
        found.ok_or_else(|| Error::NotFound {
            schedule_id: key.1.to_string(),
        })
    }

    /// One schedule with its target, its properties and its dispatches.
    pub async fn details(&self, key: Key) -> Result<Details, Error> {
        let read = async {
            let db = self.sessions.snapshot().await?;
            let details = details(&db, key).await;
            db.finish(details).await
        };
        let found = self.sessions.run(read).await?;
        found.ok_or_else(|| Error::NotFound {
            schedule_id: key.1.to_string(),
        })
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
        let read = async {
            let db = self.sessions.snapshot().await?;
            let read = async {
                let first = open
                    .clone()
                    .order_by_asc(canvas_schedule::Column::Id)
                    .limit(2);
                let first = first.all(&db).await?;
                let all = if first.len() < 2 {
                    0
                } else {
                    open.count(&db).await?
                };
                Ok((first, all))
            };
            let read = read.await;
            db.finish(read).await
        };
        let canvas_id = canvas_id.as_str().to_owned();
        let (first, open) = self.sessions.run(read).await?;
        match first.as_slice() {
            [] => Err(Error::NoOpenSchedule { canvas_id }),
            [one] => Ok(ScheduleId(one.id)),
            _ => Err(Error::ScheduleIdNeeded { canvas_id, open }),
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
        let query = query.order_by_asc(canvas_schedule::Column::Id).limit(limit);
        let read = async {
            let db = self.sessions.snapshot().await?;
            let read = async {
                let rows = query.all(&db).await?;
                let loaded = load::with_dispatches(&db, rows).await?.into_iter();
                loaded.map(|one| Ok(one?.schedule)).collect()
            };
            let read = read.await;
            db.finish(read).await
        };
        self.sessions.run(read).await
    }

    /// Up to `limit` of the stored revisions before `before`, the newest first, with their
    /// properties.
    pub async fn revisions(
        &self,
        key: Key,
        before: Option<i64>,
        limit: u64,
    ) -> Result<(Vec<Revision>, HashMap<PropertiesId, Properties>), Error> {
        let before = before.unwrap_or(i64::MAX);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let read = async {
            let db = self.sessions.snapshot().await?;
            let read = async {
                let Some((schedule, _)) = find(&db, key).await? else {
                    return Ok(None);
                };
                let oldest = schedule.revision - self.revisions_kept;
                let row = ScheduleKey::new(key.0.0, key.1.0);
                let rows = history::newest(&db, row, before, oldest, limit).await?;
                let revisions = rows.into_iter().map(codec::revision);
                let revisions = revisions.collect::<Result<Vec<_>, DbErr>>()?;
                let ids = revisions.iter().filter_map(|one| one.properties).collect();
                let properties = find_properties(&db, key.0, ids).await?;
                Ok(Some((revisions, properties)))
            };
            let read = read.await;
            db.finish(read).await
        };
        let found = self.sessions.run(read).await?;
        found.ok_or_else(|| Error::NotFound {
            schedule_id: key.1.to_string(),
        })
    }

    /// The first answer to a request id, if it was answered within 24 hours. It is durable: what is
    /// only visible might be lost with this server.
    pub async fn answered(
        &self,
        workspace: WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Answered>, Error> {
        let read = async {
            let named = request::Entity::within(workspace)
                .filter(request::Column::RequestId.eq(id.as_str()));
            let db = self.sessions.acquire().await?;
            let row = named.one(&db).await?;
            drop(db);
            let Some(row) = row else {
                return Ok(None);
            };
            let age = self.clock.now().timestamp_millis() - row.created_ms;
            if u128::try_from(age).is_ok_and(|age| age >= REQUEST_KEPT.as_millis()) {
                return Ok(None);
            }
            self.confirming.confirm().await?;
            codec::answered(row).map(Some)
        };
        self.sessions.run(read).await
    }

    /// The zone that new schedules of a workspace apply to users without one.
    pub async fn default_zone(&self, id: WorkspaceId) -> Result<Zone, Error> {
        let read = async {
            let db = self.sessions.acquire().await?;
            let row = workspace::Entity::find_by_id(id.0).one(&db).await?;
            let row = row.ok_or_else(|| codec::broken("the workspace does not exist"))?;
            Zone::parse(&row.default_time_zone).map_err(codec::broken)
        };
        self.sessions.run(read).await
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
                .order_by_asc(dispatch::Column::N)
                .limit(limit);
            let db = self.sessions.snapshot().await?;
            let read = async { with_schedules(&db, query.all(&db).await?).await };
            let read = read.await;
            db.finish(read).await
        };
        self.sessions.run(read).await
    }
}

async fn find<C: ConnectionTrait>(
    db: &C,
    (workspace, id): Key,
) -> Result<Option<(CanvasSchedule, Vec<Dispatch>)>, DbErr> {
    let row = canvas_schedule::Entity::within(workspace)
        .filter(canvas_schedule::Column::Id.eq(id.0))
        .one(db)
        .await?;
    let loaded = load::with_dispatches(db, Vec::from_iter(row)).await?.pop();
    let loaded = loaded.transpose()?;
    Ok(loaded.map(|one| (one.schedule, one.dispatches)))
}

async fn details<C: ConnectionTrait>(db: &C, key: Key) -> Result<Option<Details>, DbErr> {
    let Some((schedule, dispatches)) = find(db, key).await? else {
        return Ok(None);
    };
    let (workspace, id) = key;
    let target = target::Entity::within(workspace)
        .filter(target::Column::ScheduleId.eq(id.0))
        .one(db)
        .await?;
    let target = target.ok_or_else(|| codec::broken("the target is missing"))?;
    let target = serde_json::from_str(&target.body).map_err(codec::broken)?;
    let ids = schedule.properties.into_iter().collect();
    let mut bodies = find_properties(db, workspace, ids).await?;
    let properties = schedule.properties.and_then(|id| bodies.remove(&id));
    Ok(Some(Details {
        schedule,
        dispatches,
        target,
        properties,
    }))
}

async fn find_properties<C: ConnectionTrait>(
    db: &C,
    workspace: WorkspaceId,
    ids: Vec<PropertiesId>,
) -> Result<HashMap<PropertiesId, Properties>, DbErr> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = properties::Entity::within(workspace)
        .filter(properties::Column::Id.is_in(ids.iter().map(|id| id.0)))
        .all(db)
        .await?;
    let body = |row: properties::Model| {
        Ok((
            PropertiesId(row.id),
            serde_json::from_str(&row.body).map_err(codec::broken)?,
        ))
    };
    rows.into_iter().map(body).collect()
}

/// Decodes dispatches, whose zones may be those of their schedules.
async fn with_schedules<C: ConnectionTrait>(
    db: &C,
    rows: Vec<dispatch::Model>,
) -> Result<Vec<(ScheduleId, Dispatch)>, DbErr> {
    let key = |row: &dispatch::Model| ScheduleKey::new(row.workspace_id, row.schedule_id);
    let mut keys: Vec<ScheduleKey> = rows.iter().map(key).collect();
    keys.dedup();
    let mut schedules: HashMap<Uuid, CanvasSchedule> = HashMap::new();
    for row in load::read_rows(db, &keys, Lock::None).await? {
        schedules.insert(row.id, codec::schedule(&row)?);
    }
    // One whose schedule was removed meanwhile is gone, too.
    let of = |row: dispatch::Model| {
        let schedule = schedules.get(&row.schedule_id)?;
        Some(codec::dispatch(row, schedule).map(|dispatch| (schedule.id, dispatch)))
    };
    rows.into_iter().filter_map(of).collect()
}
