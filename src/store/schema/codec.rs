//! Converts rows to domain values and back.

use chrono::{DateTime, Utc};
use sea_orm::DbErr;

use crate::domain::{
    CanvasId, CanvasSchedule, Dispatch, DispatchState, PropertiesId, Revision, RevisionKind,
    Schedule, ScheduleId, ScheduleState, Wave, WaveMode, WorkspaceId, Zone, ZoneSet, zone,
};
use crate::store::schema::answered::Answered;
use crate::store::schema::tables::{canvas_schedule, dispatch, request, revision};

/// A schedule's state as it is stored.
pub(crate) fn state_code(state: ScheduleState) -> i16 {
    match state {
        ScheduleState::Pending => 0,
        ScheduleState::Dispatching => 1,
        ScheduleState::Dispatched => 2,
        ScheduleState::Cancelled => 3,
    }
}

/// The kind of a revision as it is stored.
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

/// The instant of a number of milliseconds since 1970.
pub(crate) fn instant(millis: i64) -> Result<DateTime<Utc>, DbErr> {
    DateTime::from_timestamp_millis(millis).ok_or_else(|| broken(millis))
}

fn unsigned(number: i32) -> Result<u32, DbErr> {
    u32::try_from(number).map_err(broken)
}

/// A number as it is stored.
pub(crate) fn signed(number: u32) -> Result<i32, DbErr> {
    i32::try_from(number).map_err(broken)
}

/// A dispatch's state as it is stored.
pub(crate) fn dispatch_state_code(state: DispatchState) -> i16 {
    match state {
        DispatchState::InFlight => 0,
        DispatchState::Unknown => 1,
        DispatchState::Delivered => 2,
        DispatchState::Dead => 3,
        DispatchState::Abandoned => 4,
    }
}

fn dispatch_state(code: i16) -> Result<DispatchState, DbErr> {
    match code {
        0 => Ok(DispatchState::InFlight),
        1 => Ok(DispatchState::Unknown),
        2 => Ok(DispatchState::Delivered),
        3 => Ok(DispatchState::Dead),
        4 => Ok(DispatchState::Abandoned),
        other => Err(broken(format!("dispatch state {other}"))),
    }
}

fn zones(names: Option<&str>) -> Result<Option<ZoneSet>, DbErr> {
    names.map(serde_json::from_str).transpose().map_err(broken)
}

/// A dispatch of the schedule `of`.
pub(crate) fn dispatch(row: dispatch::Model, of: &CanvasSchedule) -> Result<Dispatch, DbErr> {
    let zones = zones(row.zones.as_deref())?;
    let mode = if row.optimal_time {
        WaveMode::OptimalTime
    } else {
        WaveMode::AtTime
    };
    Ok(Dispatch {
        number: unsigned(row.n)?,
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
        retry_at: row.retry_ms.map(instant).transpose()?,
        claimed_at: instant(row.fired_ms)?,
        finished_at: row.finished_ms.map(instant).transpose()?,
        why: row.why,
    })
}

/// The row of a dispatch of the schedule `of`, as the claim or retry with this id leases it.
pub(crate) fn dispatch_row(
    workspace: WorkspaceId,
    of: &CanvasSchedule,
    dispatch: &Dispatch,
    claim_id: i64,
) -> Result<dispatch::Model, DbErr> {
    let every_zone = dispatch.wave.zones == of.zones();
    let zones = (!every_zone)
        .then(|| serde_json::to_string(&dispatch.wave.zones))
        .transpose()
        .map_err(broken)?;
    Ok(dispatch::Model {
        workspace_id: workspace.0,
        schedule_id: of.id.0,
        n: signed(dispatch.number)?,
        revision: dispatch.revision,
        wave_ms: dispatch.wave.time.timestamp_millis(),
        retry_ms: dispatch.retry_at.map(|at| at.timestamp_millis()),
        fired_ms: dispatch.claimed_at.timestamp_millis(),
        finished_ms: dispatch.finished_at.map(|at| at.timestamp_millis()),
        attempt: signed(dispatch.attempt)?,
        last_attempt: signed(dispatch.last_attempt)?,
        state: dispatch_state_code(dispatch.state),
        optimal_time: dispatch.wave.mode == WaveMode::OptimalTime,
        includes_unlisted: dispatch.wave.includes_unlisted_zones,
        properties_id: dispatch.properties.map(|id| id.0),
        zones,
        why: dispatch.why.clone(),
        claim_id,
    })
}

/// A schedule, without its dispatches.
pub(crate) fn schedule(row: &canvas_schedule::Model) -> Result<CanvasSchedule, DbErr> {
    let at = Schedule::from_parts(row.time_ms, row.in_local_time, row.at_optimal_time)
        .ok_or_else(|| broken(row.time_ms))?;
    Ok(CanvasSchedule {
        id: ScheduleId(row.id),
        canvas_id: CanvasId::parse(&row.canvas_id).map_err(broken)?,
        schedule: at,
        default_zone: Zone::parse(&row.default_zone).map_err(broken)?,
        stated_zones: zones(row.stated_zones.as_deref())?,
        claimed: ZoneSet::empty(),
        last_claimed_at: None,
        last_number: unsigned(row.fired)?,
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

/// The row of a schedule as it is to be written: a new one, or one that a change makes of the row
/// `before`.
pub(crate) fn schedule_row(
    workspace: WorkspaceId,
    schedule: &CanvasSchedule,
    before: Option<&canvas_schedule::Model>,
) -> Result<canvas_schedule::Model, DbErr> {
    let next_wave_ms = schedule.next_wave.map(|at| at.timestamp_millis());
    let earlier_wake_ms = before.and_then(|row| row.wake_ms);
    Ok(canvas_schedule::Model {
        workspace_id: workspace.0,
        id: schedule.id.0,
        canvas_id: schedule.canvas_id.as_str().to_owned(),
        revision: schedule.revision,
        // That of the row that was read; the statement that writes it adds one.
        version: before.map_or(1, |row| row.version),
        time_ms: schedule.schedule.millis(),
        in_local_time: schedule.schedule.in_local_time,
        at_optimal_time: schedule.schedule.at_optimal_time,
        state: state_code(schedule.state()),
        next_wave_ms,
        // Never later than it was: the entry in the queue stays.
        wake_ms: earlier_wake_ms.into_iter().chain(next_wave_ms).min(),
        missed_before_ms: schedule.missed_before.timestamp_millis(),
        created_ms: schedule.created_at.timestamp_millis(),
        updated_ms: schedule.updated_at.timestamp_millis(),
        cancelled_ms: schedule.cancelled_at.map(|at| at.timestamp_millis()),
        default_zone: schedule.default_zone.name().to_owned(),
        stated_zones: match before {
            Some(row) => row.stated_zones.clone(),
            None => stated_zones(schedule)?,
        },
        properties_id: schedule.properties.map(|id| id.0),
        fired: before.map_or(0, |row| row.fired),
        zone_rules: before.map_or_else(zone::data_number, |row| row.zone_rules),
        finished_ms: before.and_then(|row| row.finished_ms),
    })
}

fn stated_zones(schedule: &CanvasSchedule) -> Result<Option<String>, DbErr> {
    let zones = schedule.stated_zones.as_ref();
    zones.map(serde_json::to_string).transpose().map_err(broken)
}

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

pub(crate) fn answered(row: request::Model) -> Result<Answered, DbErr> {
    Ok(Answered {
        digest: row.digest,
        outcome: serde_json::from_str(&row.outcome).map_err(broken)?,
    })
}
