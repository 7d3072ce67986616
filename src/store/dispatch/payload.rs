//! Builds the message that a sink delivers: a dispatch with its target and the properties that were
//! fixed when it was claimed.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbErr};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::domain::{CanvasSchedule, Dispatch, DispatchMessage, Properties, Target, WorkspaceId};
use crate::store::schema::codec;
use crate::store::schema::load::ScheduleKey;
use crate::store::schema::row::{Row, row};
use crate::store::schema::statement::OverBatch;
use crate::store::schema::tables::dispatch;

/// A dispatch that is leased to the caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Leased {
    /// The tenant.
    pub workspace: WorkspaceId,
    /// The message to deliver.
    pub dispatch: DispatchMessage,
    /// When the lease expires; from then on another worker may deliver it.
    pub until: DateTime<Utc>,
    /// How long after it was due this attempt begins: after its time, or after its schedule was
    /// accepted if that was later.
    pub lag: TimeDelta,
}

/// A dispatch to be leased, before its payload is read.
pub(crate) struct PendingLease {
    /// The tenant.
    pub workspace: WorkspaceId,
    pub workspace_name: String,
    /// The schedule.
    pub schedule: CanvasSchedule,
    /// The dispatch, as it is to be written.
    pub dispatch: Dispatch,
}

impl PendingLease {
    pub(crate) fn row(&self) -> Result<dispatch::Model, DbErr> {
        codec::dispatch_row(self.workspace, &self.schedule, &self.dispatch)
    }

    fn key(&self) -> ScheduleKey {
        ScheduleKey::new(self.workspace.0, self.schedule.id.0)
    }
}

/// The targets and properties of dispatches, as JSON.
pub(crate) struct Payloads {
    targets: HashMap<Uuid, String>,
    properties: HashMap<Uuid, String>,
}

row! {
    struct PropertiesKey {
        workspace_id: i32,
        id: Uuid,
    }
}

static TARGETS: LazyLock<OverBatch<ScheduleKey>> = LazyLock::new(|| {
    OverBatch::new(
        "SELECT t.schedule_id, t.body FROM batch AS k \
             JOIN canvas_schedule_target t \
               ON t.schedule_id = k.id AND t.workspace_id = k.workspace_id",
    )
});

static PROPERTIES: LazyLock<OverBatch<PropertiesKey>> = LazyLock::new(|| {
    OverBatch::new(
        "SELECT p.id, p.body FROM batch AS k \
             JOIN canvas_schedule_properties p ON p.id = k.id AND p.workspace_id = k.workspace_id",
    )
});

impl Payloads {
    /// Reads those of these dispatches.
    pub(crate) async fn read<'a, C: ConnectionTrait>(
        db: &C,
        leases: impl Iterator<Item = &'a PendingLease> + Clone,
    ) -> Result<Self, DbErr> {
        let keys: Vec<ScheduleKey> = leases.clone().map(PendingLease::key).collect();
        let properties = leases.filter_map(|pending| {
            let id = pending.dispatch.properties?.0;
            Some(PropertiesKey {
                workspace_id: pending.workspace.0,
                id,
            })
        });
        let properties: Vec<PropertiesKey> = properties.collect();
        Ok(Self {
            targets: bodies(db, &TARGETS, &keys).await?,
            properties: bodies(db, &PROPERTIES, &properties).await?,
        })
    }

    /// The lease of an attempt that begins at `now`.
    pub(crate) fn lease(
        &self,
        pending: &PendingLease,
        now: DateTime<Utc>,
    ) -> Result<Leased, DbErr> {
        let (schedule, dispatch) = (&pending.schedule, &pending.dispatch);
        let target: Target = decode(&self.targets, schedule.id.0, "the target is missing")?;
        let properties: Properties = match dispatch.properties {
            None => Properties::default(),
            Some(id) => decode(&self.properties, id.0, "the properties are missing")?,
        };
        let message = DispatchMessage {
            id: dispatch.id(schedule.id),
            workspace: pending.workspace_name.clone(),
            canvas_id: schedule.canvas_id.clone(),
            schedule_id: schedule.id,
            revision: dispatch.revision,
            number: dispatch.number,
            wave: dispatch.wave.clone(),
            target: target.within(&dispatch.wave.zones, &properties),
            properties,
            lateness: (now - dispatch.wave.time).max(TimeDelta::zero()),
            attempt: dispatch.attempt,
            traceparent: None,
        };
        let until = dispatch.retry_at.unwrap_or(now);
        let lag = (now - dispatch.wave.time.max(schedule.updated_at)).max(TimeDelta::zero());
        Ok(Leased {
            workspace: pending.workspace,
            dispatch: message,
            until,
            lag,
        })
    }
}

async fn bodies<C: ConnectionTrait, R: Row>(
    db: &C,
    statement: &OverBatch<R>,
    keys: &[R],
) -> Result<HashMap<Uuid, String>, DbErr> {
    let rows = statement.query(db, keys).await?;
    rows.iter()
        .map(|row| Ok((row.try_get_by_index(0)?, row.try_get_by_index(1)?)))
        .collect()
}

fn decode<T: DeserializeOwned>(
    bodies: &HashMap<Uuid, String>,
    id: Uuid,
    missing: &str,
) -> Result<T, DbErr> {
    let body = bodies.get(&id).ok_or_else(|| codec::broken(missing))?;
    serde_json::from_str(body).map_err(codec::broken)
}
