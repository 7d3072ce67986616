//! From a firing to what a sink hands over: with whom it is for and the properties that were fixed when it was fired.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbErr};
use uuid::Uuid;

use crate::domain::{CanvasSchedule, Dispatch, DispatchMessage, Properties, Target, WorkspaceId};
use crate::store::dispatch::rows::ScheduleKey;
use crate::store::schema::codec;
use crate::store::schema::row::{Row, row};
use crate::store::schema::statement::OverBatch;

/// A dispatch in the hand of whoever took it, until its lease ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Leased {
    /// The tenant.
    pub workspace: WorkspaceId,
    /// What is handed over.
    pub dispatch: DispatchMessage,
    /// From then on somebody else may have it too.
    pub until: DateTime<Utc>,
    /// How long after it was due this attempt begins: after its time, or after its schedule was accepted if that was later.
    pub lag: TimeDelta,
}

/// A firing that was taken, before its payload is read.
pub(crate) struct Taking {
    /// The tenant.
    pub workspace: WorkspaceId,
    /// Its name.
    pub workspace_name: String,
    /// The schedule.
    pub schedule: CanvasSchedule,
    /// The firing.
    pub firing: Dispatch,
}

impl Taking {
    fn key(&self) -> ScheduleKey {
        ScheduleKey {
            id: self.schedule.id.0,
            workspace_id: self.workspace.0,
        }
    }
}

/// What firings carry.
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
             JOIN canvas_schedule_target t ON t.schedule_id = k.id AND t.workspace_id = k.workspace_id",
    )
});

static PROPERTIES: LazyLock<OverBatch<PropertiesKey>> = LazyLock::new(|| {
    OverBatch::new(
        "SELECT p.id, p.body FROM batch AS k \
             JOIN canvas_schedule_properties p ON p.id = k.id AND p.workspace_id = k.workspace_id",
    )
});

impl Payloads {
    /// Reads what these firings carry.
    ///
    /// # Errors
    /// What the database says.
    pub(crate) async fn read<'a, C: ConnectionTrait>(
        db: &C,
        taken: impl Iterator<Item = &'a Taking> + Clone,
    ) -> Result<Self, DbErr> {
        let keys: Vec<ScheduleKey> = taken.clone().map(Taking::key).collect();
        let carried = taken.filter_map(|taking| {
            let id = taking.firing.properties?.0;
            Some(PropertiesKey {
                workspace_id: taking.workspace.0,
                id,
            })
        });
        let carried: Vec<PropertiesKey> = carried.collect();
        Ok(Self {
            targets: bodies(db, &TARGETS, &keys).await?,
            properties: bodies(db, &PROPERTIES, &carried).await?,
        })
    }

    /// What is handed over of `taking` by an attempt that begins at `now`.
    ///
    /// # Errors
    /// A stored value that this build cannot read.
    pub(crate) fn lease(&self, taking: &Taking, now: DateTime<Utc>) -> Result<Leased, DbErr> {
        let (schedule, firing) = (&taking.schedule, &taking.firing);
        let target = self
            .targets
            .get(&schedule.id.0)
            .ok_or_else(|| codec::broken("the target is missing"))?;
        let target: Target = serde_json::from_str(target).map_err(codec::broken)?;
        let properties = match firing.properties {
            None => Properties::default(),
            Some(id) => {
                let body = self
                    .properties
                    .get(&id.0)
                    .ok_or_else(|| codec::broken("the properties are missing"))?;
                serde_json::from_str(body).map_err(codec::broken)?
            }
        };
        let dispatch = DispatchMessage {
            id: firing.id(schedule.id),
            workspace: taking.workspace_name.clone(),
            canvas_id: schedule.canvas_id.clone(),
            schedule_id: schedule.id,
            revision: firing.revision,
            n: firing.n,
            wave: firing.wave.clone(),
            target: target.within(&firing.wave.zones, &properties),
            properties,
            lateness: (now - firing.wave.time).max(TimeDelta::zero()),
            attempt: firing.attempt,
            traceparent: None,
        };
        let until = firing.again_at.unwrap_or(now);
        let lag = (now - firing.wave.time.max(schedule.updated_at)).max(TimeDelta::zero());
        Ok(Leased {
            workspace: taking.workspace,
            dispatch,
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
