//! Rows to domain values and back.

use chrono::{DateTime, Utc};
use sea_orm::DbErr;

use crate::domain::{
    CanvasId, CanvasSchedule, Dispatch, DispatchState, PropertiesId, Revision, RevisionKind,
    Schedule, ScheduleId, State, Wave, WaveMode, WorkspaceId, Zone, ZoneSet, zone,
};
use crate::store::schema::tables::{canvas_schedule, dispatch, revision};

/// The value that `state` has for a filter.
pub(crate) fn state_code(state: State) -> i16 {
    match state {
        State::Pending => 0,
        State::Dispatching => 1,
        State::Dispatched => 2,
        State::Cancelled => 3,
    }
}

/// The value that `kind` has in the history.
pub(crate) fn kind_code(kind: RevisionKind) -> i16 {
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
pub(crate) fn broken(what: impl std::fmt::Display) -> DbErr {
    DbErr::Custom(format!("stored value cannot be read: {what}"))
}

/// # Errors
/// A value that is no instant.
pub(crate) fn instant(millis: i64) -> Result<DateTime<Utc>, DbErr> {
    DateTime::from_timestamp_millis(millis).ok_or_else(|| broken(millis))
}

fn unsigned(number: i32) -> Result<u32, DbErr> {
    u32::try_from(number).map_err(broken)
}

/// # Errors
/// Never in practice: nothing is fired two thousand million times.
pub(crate) fn signed(number: u32) -> Result<i32, DbErr> {
    i32::try_from(number).map_err(broken)
}

/// The value that `state` has in a dispatch.
pub(crate) fn dispatch_state_code(state: DispatchState) -> i16 {
    match state {
        DispatchState::InHand => 0,
        DispatchState::Unknown => 1,
        DispatchState::Delivered => 2,
        DispatchState::Dead => 3,
        DispatchState::Abandoned => 4,
    }
}

fn dispatch_state(code: i16) -> Result<DispatchState, DbErr> {
    match code {
        0 => Ok(DispatchState::InHand),
        1 => Ok(DispatchState::Unknown),
        2 => Ok(DispatchState::Delivered),
        3 => Ok(DispatchState::Dead),
        4 => Ok(DispatchState::Abandoned),
        other => Err(broken(format!("dispatch state {other}"))),
    }
}

/// A firing of `of`.
///
/// # Errors
/// A stored value that this build cannot read.
pub(crate) fn firing(row: dispatch::Model, of: &CanvasSchedule) -> Result<Dispatch, DbErr> {
    let zones = row
        .zones
        .as_deref()
        .map(serde_json::from_str)
        .transpose()
        .map_err(broken)?;
    let mode = if row.optimal_time {
        WaveMode::OptimalTime
    } else {
        WaveMode::AtTime
    };
    Ok(Dispatch {
        n: unsigned(row.n)?,
        revision: row.revision,
        wave: Wave {
            time: instant(row.wave_ms)?,
            zones: zones.unwrap_or_else(|| of.zones()),
            includes_unlisted_zones: row.includes_unlisted,
            mode,
        },
        properties: row.properties_id.map(PropertiesId),
        state: dispatch_state(row.state)?,
        attempt: unsigned(row.attempt)?,
        last_attempt: unsigned(row.last_attempt)?,
        again_at: row.retry_ms.map(instant).transpose()?,
        fired_at: instant(row.fired_ms)?,
        finished_at: row.finished_ms.map(instant).transpose()?,
        why: row.why,
    })
}

/// The row of a firing of `of`.
///
/// # Errors
/// Never in practice: zone names always make JSON.
pub(crate) fn dispatch_row(
    workspace: WorkspaceId,
    of: &CanvasSchedule,
    firing: &Dispatch,
) -> Result<dispatch::Model, DbErr> {
    let every_zone = firing.wave.zones == of.zones();
    let zones = (!every_zone)
        .then(|| serde_json::to_string(&firing.wave.zones))
        .transpose()
        .map_err(broken)?;
    Ok(dispatch::Model {
        workspace_id: workspace.0,
        schedule_id: of.id.0,
        n: signed(firing.n)?,
        revision: firing.revision,
        wave_ms: firing.wave.time.timestamp_millis(),
        retry_ms: firing.again_at.map(|at| at.timestamp_millis()),
        fired_ms: firing.fired_at.timestamp_millis(),
        finished_ms: firing.finished_at.map(|at| at.timestamp_millis()),
        attempt: signed(firing.attempt)?,
        last_attempt: signed(firing.last_attempt)?,
        state: dispatch_state_code(firing.state),
        optimal_time: firing.wave.mode == WaveMode::OptimalTime,
        includes_unlisted: firing.wave.includes_unlisted_zones,
        properties_id: firing.properties.map(|id| id.0),
        zones,
        why: firing.why.clone(),
    })
}

/// A schedule whose firings, if it has any, are still to be added.
///
/// # Errors
/// A stored value that this build cannot read.
pub(crate) fn schedule(row: canvas_schedule::Model) -> Result<CanvasSchedule, DbErr> {
    let at = Schedule::from_parts(row.time_ms, row.in_local_time, row.at_optimal_time)
        .ok_or_else(|| broken(row.time_ms))?;
    let stated_zones: Option<ZoneSet> = row
        .stated_zones
        .as_deref()
        .map(serde_json::from_str)
        .transpose()
        .map_err(broken)?;
    Ok(CanvasSchedule {
        id: ScheduleId(row.id),
        canvas_id: CanvasId::parse(&row.canvas_id).map_err(broken)?,
        schedule: at,
        default_zone: Zone::parse(&row.default_zone).map_err(broken)?,
        stated_zones,
        taken: ZoneSet::empty(),
        last_taken: None,
        fired: unsigned(row.fired)?,
        unknown: 0,
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
pub(crate) fn new_row(
    workspace: WorkspaceId,
    new: &CanvasSchedule,
) -> Result<canvas_schedule::Model, DbErr> {
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
        stated_zones: new
            .stated_zones
            .map(|zones| serde_json::to_string(&zones))
            .transpose()
            .map_err(broken)?,
        properties_id: new.properties.map(|id| id.0),
        fired: 0,
        zone_rules: zone::data_number(),
        finished_ms: None,
    })
}

/// # Errors
/// A stored value that this build cannot read.
pub(crate) fn revision(row: revision::Model) -> Result<Revision, DbErr> {
    Ok(Revision {
        number: row.revision,
        kind: kind_of(row.kind)?,
        created_at: instant(row.created_ms)?,
        schedule: Schedule::from_parts(row.time_ms, row.in_local_time, row.at_optimal_time)
            .ok_or_else(|| broken(row.time_ms))?,
        properties: row.properties_id.map(PropertiesId),
        actor: row.actor,
    })
}
