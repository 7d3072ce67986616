//! Domain values to answers.

use crate::domain::{
    Applied, CanvasSchedule, Dispatch, DispatchState, Outcome, Plan, Properties, Revision,
    RevisionKind, Schedule, ScheduleId, ScheduleState,
};
use crate::pb::v1;
use crate::pb::values::{names, object, properties, recipient, timestamp, wave};
use crate::service::{Creation, Details};

/// A count of zones; there are some six hundred.
fn count(zones: usize) -> i32 {
    i32::try_from(zones).unwrap_or(i32::MAX)
}

fn schedule(value: &Schedule) -> v1::Schedule {
    v1::Schedule {
        time: value.to_string(),
        in_local_time: value.in_local_time,
        at_optimal_time: value.at_optimal_time,
    }
}

fn state(state: ScheduleState) -> v1::CanvasScheduleState {
    match state {
        ScheduleState::Pending => v1::CanvasScheduleState::Pending,
        ScheduleState::Dispatching => v1::CanvasScheduleState::Dispatching,
        ScheduleState::Dispatched => v1::CanvasScheduleState::Dispatched,
        ScheduleState::Cancelled => v1::CanvasScheduleState::Cancelled,
    }
}

fn applied(applied: Applied) -> i32 {
    let applied = match applied {
        Applied::All => v1::Applied::All,
        Applied::Some => v1::Applied::Some,
    };
    applied.into()
}

/// A schedule.
pub(super) fn canvas_schedule(value: &CanvasSchedule) -> v1::CanvasSchedule {
    v1::CanvasSchedule {
        schedule_id: value.id.to_string(),
        canvas_id: value.canvas_id.as_str().to_owned(),
        schedule: Some(schedule(&value.schedule)),
        state: state(value.state()).into(),
        revision: value.revision,
        etag: value.etag().as_str().to_owned(),
        create_time: Some(timestamp(value.created_at)),
        update_time: Some(timestamp(value.updated_at)),
        cancel_time: value.cancelled_at.map(timestamp),
        default_time_zone: value.default_zone.name().to_owned(),
        next_wave_time: value.next_wave.map(timestamp),
        total_zones: count(value.zones().len()),
        open_zones: count(value.open_zones().len()),
    }
}

fn waves(plan: &Plan) -> Vec<v1::Wave> {
    plan.waves.iter().map(wave).collect()
}

/// A creation; one that was only validated has no id, and says its waves.
pub(super) fn created(created: &Creation, validate_only: bool) -> v1::CreateCanvasScheduleResponse {
    let after = &created.outcome.after;
    let mut value = canvas_schedule(after);
    if validate_only {
        (value.schedule_id, value.etag) = (String::new(), String::new());
        (value.create_time, value.update_time) = (None, None);
    }
    v1::CreateCanvasScheduleResponse {
        canvas_schedule: Some(value),
        dispatch_id: if validate_only {
            String::new()
        } else {
            created.first_dispatch.to_string()
        },
        missed_zones: names(&created.outcome.missed),
        waves: if validate_only {
            waves(&after.plan())
        } else {
            vec![]
        },
    }
}

/// An update; one that was only validated says its waves.
pub(super) fn updated(outcome: &Outcome, validate_only: bool) -> v1::UpdateCanvasScheduleResponse {
    v1::UpdateCanvasScheduleResponse {
        canvas_schedule: Some(canvas_schedule(&outcome.after)),
        applied: applied(outcome.applied),
        applied_zones: count(outcome.applied_zones),
        missed_zones: names(&outcome.missed),
        waves: if validate_only {
            waves(&outcome.after.plan())
        } else {
            vec![]
        },
    }
}

/// A cancellation.
pub(super) fn cancelled(outcome: &Outcome) -> v1::CancelCanvasScheduleResponse {
    v1::CancelCanvasScheduleResponse {
        canvas_schedule: Some(canvas_schedule(&outcome.after)),
        applied: applied(outcome.applied),
        applied_zones: count(outcome.applied_zones),
        abandoned_dispatches: count(outcome.after.unknown),
    }
}

/// A schedule, what it carries, and the waves to come.
pub(super) fn details(details: &Details) -> v1::GetCanvasScheduleResponse {
    let plan = details.schedule.plan();
    v1::GetCanvasScheduleResponse {
        canvas_schedule: Some(canvas_schedule(&details.schedule)),
        trigger_properties: details.properties.as_ref().map(properties),
        recipients: details.target.recipients.iter().map(recipient).collect(),
        audience: details.target.audience.as_ref().map(object),
        broadcast: details.target.broadcast,
        waves: waves(&plan),
        missed_zones: names(&plan.missed),
        dispatches: Some(counts(&details.dispatches)),
    }
}

fn counts(dispatches: &[Dispatch]) -> v1::DispatchCounts {
    let of = |state| {
        count(
            dispatches
                .iter()
                .filter(|dispatch| dispatch.state == state)
                .count(),
        )
    };
    v1::DispatchCounts {
        in_hand: of(DispatchState::InFlight),
        unknown: of(DispatchState::Unknown),
        delivered: of(DispatchState::Delivered),
        dead: of(DispatchState::Dead),
        abandoned: of(DispatchState::Abandoned),
    }
}

/// A dispatch of a schedule.
pub(super) fn dispatch(schedule: ScheduleId, dispatch: &Dispatch) -> v1::Dispatch {
    let state = match dispatch.state {
        DispatchState::InFlight => v1::DispatchState::InHand,
        DispatchState::Unknown => v1::DispatchState::Unknown,
        DispatchState::Delivered => v1::DispatchState::Delivered,
        DispatchState::Dead => v1::DispatchState::Dead,
        DispatchState::Abandoned => v1::DispatchState::Abandoned,
    };
    let next_attempt = dispatch
        .retry_at
        .filter(|_| dispatch.state == DispatchState::Unknown);
    v1::Dispatch {
        dispatch_id: dispatch.id(schedule).to_string(),
        schedule_id: schedule.to_string(),
        number: number(dispatch.number),
        revision: dispatch.revision,
        wave: Some(wave(&dispatch.wave)),
        state: state.into(),
        attempt: number(dispatch.attempt),
        fire_time: Some(timestamp(dispatch.claimed_at)),
        finish_time: dispatch.finished_at.map(timestamp),
        next_attempt_time: next_attempt.map(timestamp),
        detail: dispatch.why.clone(),
    }
}

/// A number that counts from 1, and never comes near what does not fit.
fn number(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// A revision and the properties after it.
pub(super) fn revision(
    value: &Revision,
    carried: Option<&Properties>,
) -> v1::CanvasScheduleRevision {
    let kind = match value.kind {
        RevisionKind::Create => v1::RevisionKind::Create,
        RevisionKind::Update => v1::RevisionKind::Update,
        RevisionKind::Cancel => v1::RevisionKind::Cancel,
    };
    v1::CanvasScheduleRevision {
        revision: value.number,
        kind: kind.into(),
        create_time: Some(timestamp(value.created_at)),
        actor: value.actor.clone(),
        schedule: Some(schedule(&value.schedule)),
        trigger_properties: carried.map(properties),
    }
}
