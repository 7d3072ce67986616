//! Rows to domain values and back.

use chrono::{DateTime, Utc};
use sea_orm::DbErr;

use super::entity::{canvas_schedule, revision};
use crate::domain::{
    CanvasId, CanvasSchedule, PropertiesId, Revision, RevisionKind, Schedule, ScheduleId, State, WorkspaceId, Zone, ZoneSet,
};

/// The value that `state` has for a filter.
pub fn state_code(state: State) -> i16 {
    match state {
        State::Pending => 0,
        State::Dispatching => 1,
        State::Dispatched => 2,
        State::Cancelled => 3,
    }
}

/// The value that `kind` has in the history.
pub fn kind_code(kind: RevisionKind) -> i16 {
    match kind {
        RevisionKind::Create => 0,
        RevisionKind::Update => 1,
        RevisionKind::Cancel => 2,
    }
}

fn kind_of(code: i16) -> Result<RevisionKind, DbErr> {
    match code {
        0 => Ok(RevisionKind::Create),
        1 => Ok(RevisionKind::Update),
        2 => Ok(RevisionKind::Cancel),
        other => Err(broken(format!("revision kind {other}"))),
    }
}

/// A row that this build cannot read.
pub fn broken(what: impl std::fmt::Display) -> DbErr {
    DbErr::Custom(format!("stored value cannot be read: {what}"))
}

/// # Errors
/// A value that is no instant.
pub fn instant(millis: i64) -> Result<DateTime<Utc>, DbErr> {
    DateTime::from_timestamp_millis(millis).ok_or_else(|| broken(millis))
}

/// # Errors
/// A stored value that this build cannot read.
pub fn schedule(row: canvas_schedule::Model) -> Result<CanvasSchedule, DbErr> {
    let at = Schedule::from_parts(row.time_ms, row.in_local_time, row.at_optimal_time).ok_or_else(|| broken(row.time_ms))?;
    let stated_zones: Option<ZoneSet> = row.stated_zones.as_deref().map(serde_json::from_str).transpose().map_err(broken)?;
    Ok(CanvasSchedule {
        id: ScheduleId(row.id),
        canvas_id: CanvasId::parse(&row.canvas_id).map_err(broken)?,
        schedule: at,
        default_zone: Zone::parse(&row.default_zone).map_err(broken)?,
        stated_zones,
        taken: ZoneSet::empty(),
        revision: row.revision,
        created_at: instant(row.created_ms)?,
        updated_at: instant(row.updated_ms)?,
        cancelled_at: row.cancelled_ms.map(instant).transpose()?,
        properties: row.properties_id.map(PropertiesId),
        missed_before: instant(row.missed_before_ms)?,
        next_wave: row.next_wave_ms.map(instant).transpose()?,
    })
}

/// The row of a new schedule.
///
/// # Errors
/// Never in practice: zone names always make JSON.
pub fn new_row(workspace: WorkspaceId, new: &CanvasSchedule) -> Result<canvas_schedule::Model, DbErr> {
    let next_wave_ms = new.next_wave.map(|at| at.timestamp_millis());
    Ok(canvas_schedule::Model {
        workspace_id: workspace.0,
        id: new.id.0,
        canvas_id: new.canvas_id.as_str().to_owned(),
        revision: new.revision,
        version: 1,
        time_ms: new.schedule.millis(),
        in_local_time: new.schedule.in_local_time,
        at_optimal_time: new.schedule.at_optimal_time,
        state: state_code(new.state()),
        next_wave_ms,
        wake_ms: next_wave_ms,
        missed_before_ms: new.missed_before.timestamp_millis(),
        created_ms: new.created_at.timestamp_millis(),
        updated_ms: new.updated_at.timestamp_millis(),
        cancelled_ms: new.cancelled_at.map(|at| at.timestamp_millis()),
        default_zone: new.default_zone.name().to_owned(),
        stated_zones: new.stated_zones.map(|zones| serde_json::to_string(&zones)).transpose().map_err(broken)?,
        properties_id: new.properties.map(|id| id.0),
    })
}

/// # Errors
/// A stored value that this build cannot read.
pub fn revision(row: revision::Model) -> Result<Revision, DbErr> {
    Ok(Revision {
        number: row.revision,
        kind: kind_of(row.kind)?,
        created_at: instant(row.created_ms)?,
        schedule: Schedule::from_parts(row.time_ms, row.in_local_time, row.at_optimal_time).ok_or_else(|| broken(row.time_ms))?,
        properties: row.properties_id.map(PropertiesId),
        actor: row.actor,
    })
}
