//! Builds the message that a sink delivers: a dispatch with its target and the properties that were
//! fixed when it was claimed.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{DbErr, QueryResult};
use serde::de::DeserializeOwned;

use crate::domain::{CanvasSchedule, Dispatch, DispatchMessage, Properties, Target, WorkspaceId};
use crate::store::schema::codec;
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

/// The target and the properties of a dispatch as they are stored, as JSON.
pub(crate) struct Payload {
    target: Option<String>,
    properties: Option<String>,
}

/// Joins [`Payload::COLUMNS`] of the schedule `s` with the properties named `properties`.
pub(crate) fn joined_payload(properties: &str) -> String {
    format!(
        "LEFT JOIN canvas_schedule_target g \
           ON g.schedule_id = s.id AND g.workspace_id = s.workspace_id \
         LEFT JOIN canvas_schedule_properties p \
           ON p.id = {properties} AND p.workspace_id = s.workspace_id"
    )
}

impl Payload {
    /// The columns of [`joined_payload`].
    pub(crate) const COLUMNS: &str = "g.body, p.body";

    /// Decodes the columns that begin at `first`.
    pub(crate) fn from_row(row: &QueryResult, first: usize) -> Result<Self, DbErr> {
        Ok(Self {
            target: row.try_get_by_index(first)?,
            properties: row.try_get_by_index(first + 1)?,
        })
    }
}

/// A dispatch to be leased.
pub(crate) struct PendingLease {
    /// The tenant.
    pub workspace: WorkspaceId,
    pub workspace_name: String,
    /// The schedule.
    pub schedule: CanvasSchedule,
    /// The dispatch, as it is to be written.
    pub dispatch: Dispatch,
    pub payload: Payload,
}

impl PendingLease {
    /// Its row, written by the claim or retry with this id.
    pub(crate) fn row(&self, claim_id: i64) -> Result<dispatch::Model, DbErr> {
        codec::dispatch_row(self.workspace, &self.schedule, &self.dispatch, claim_id)
    }

    /// The lease of an attempt that begins at `now`.
    pub(crate) fn lease(&self, now: DateTime<Utc>) -> Result<Leased, DbErr> {
        let (schedule, dispatch) = (&self.schedule, &self.dispatch);
        let target: Target = decode(self.payload.target.as_deref(), "the target is missing")?;
        let properties: Properties = match dispatch.properties {
            None => Properties::default(),
            Some(_) => {
                let body = self.payload.properties.as_deref();
                decode(body, "the properties are missing")?
            }
        };
        let message = DispatchMessage {
            id: dispatch.id(schedule.id),
            workspace: self.workspace_name.clone(),
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
            workspace: self.workspace,
            dispatch: message,
            until,
            lag,
        })
    }
}

fn decode<T: DeserializeOwned>(body: Option<&str>, missing: &str) -> Result<T, DbErr> {
    let body = body.ok_or_else(|| codec::broken(missing))?;
    serde_json::from_str(body).map_err(codec::broken)
}
