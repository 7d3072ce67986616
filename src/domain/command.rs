//! The commands of callers: create, overwrite and cancel a schedule (docs/api.md). Each decides on
//! the current schedule and returns an [`Outcome`].

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::canvas_schedule::{
    Applied, CanvasSchedule, Outcome, RevisionKind, SchedulePolicy, rfc3339,
};
use super::id::{CanvasId, Etag, ScheduleId};
use super::payload::{Properties, Target};
use super::schedule::Schedule;
use super::wave::{Plan, plan};
use super::zone::{Zone, ZoneSet};
use crate::error::{Error, Violation};

/// Creates a schedule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Create {
    /// The Canvas.
    pub canvas_id: CanvasId,
    /// When it is sent.
    pub schedule: Schedule,
    /// Values for the message's templates.
    pub properties: Option<Properties>,
    /// The target, without duplicates.
    pub target: Target,
}

/// Replaces the schedule completely, for every open zone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overwrite {
    /// The Canvas; a schedule of another Canvas is not found.
    pub canvas_id: CanvasId,
    /// The new schedule; it replaces the old one as a whole.
    pub schedule: Schedule,
    /// The new properties, which replace the stored ones as a whole; None keeps the stored ones.
    pub properties: Option<Properties>,
    /// The etag of the revision that the caller read; a stale one is rejected.
    pub etag: Option<Etag>,
    /// Rejects a change that would not reach every zone.
    pub require_all: bool,
}

/// Cancels every open zone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cancel {
    /// The Canvas; a schedule of another Canvas is not found.
    pub canvas_id: CanvasId,
    /// The etag of the revision that the caller read; a stale one is rejected.
    pub etag: Option<Etag>,
    /// Rejects a cancellation that would not reach every zone.
    pub require_all: bool,
}

/// A change of a schedule that exists.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Command {
    /// Replace the schedule.
    Overwrite(Overwrite),
    /// Cancel it.
    Cancel(Cancel),
}

impl Command {
    /// Decides the change of `current` at `now`. After an error nothing is written.
    pub fn decide(
        &self,
        current: &CanvasSchedule,
        now: DateTime<Utc>,
        policy: &SchedulePolicy,
    ) -> Result<Outcome, Error> {
        match self {
            Self::Overwrite(overwrite) => overwrite.decide(current, now, policy),
            Self::Cancel(cancel) => cancel.decide(current, now),
        }
    }
}

impl Create {
    /// Decides the creation as `id` at `now`.
    ///
    /// # Errors
    /// [`Error::TimePast`] and [`Error::BeyondHorizon`].
    pub fn decide(
        &self,
        id: ScheduleId,
        default_zone: Zone,
        now: DateTime<Utc>,
        policy: &SchedulePolicy,
    ) -> Result<Outcome, Error> {
        let stated_zones = self.target.stated_zones();
        let open = stated_zones.unwrap_or_else(ZoneSet::all);
        let accepted = accept(&self.schedule, &open, default_zone, now, policy)?;
        let new_properties = self
            .properties
            .as_ref()
            .map(|properties| (properties.id(id), properties.canonical()));
        let after = CanvasSchedule {
            id,
            canvas_id: self.canvas_id.clone(),
            schedule: self.schedule,
            default_zone,
            stated_zones,
            claimed: ZoneSet::empty(),
            last_claimed_at: None,
            last_number: 0,
            unknown: 0,
            revision: 1,
            created_at: now,
            updated_at: now,
            cancelled_at: None,
            properties: new_properties.as_ref().map(|(id, _)| *id),
            missed_before: accepted.missed_before,
            next_wave: accepted.next_wave,
        };
        let missed = accepted.missed;
        Ok(Outcome {
            after,
            kind: RevisionKind::Create,
            applied: Applied::All,
            applied_zones: open.len(),
            missed,
            new_properties,
        })
    }
}

impl Overwrite {
    fn decide(
        &self,
        current: &CanvasSchedule,
        now: DateTime<Utc>,
        policy: &SchedulePolicy,
    ) -> Result<Outcome, Error> {
        check_canvas(current, &self.canvas_id)?;
        let open = current.open_zones();
        current.check_changeable(!open.is_empty(), self.etag.as_ref())?;
        let accepted = accept(&self.schedule, &open, current.default_zone, now, policy)?;
        if self.require_all {
            check_all(current, accepted.missed.len())?;
        }
        let new_properties = self
            .properties
            .as_ref()
            .map(|properties| (properties.id(current.id), properties.canonical()));
        let after = CanvasSchedule {
            schedule: self.schedule,
            revision: current.revision + 1,
            updated_at: now,
            properties: new_properties
                .as_ref()
                .map(|(id, _)| *id)
                .or(current.properties),
            missed_before: accepted.missed_before,
            next_wave: accepted.next_wave,
            ..current.clone()
        };
        let (applied, missed) = (current.applied(), accepted.missed);
        Ok(Outcome {
            after,
            kind: RevisionKind::Update,
            applied,
            applied_zones: open.len(),
            missed,
            new_properties,
        })
    }
}

impl Cancel {
    fn decide(&self, current: &CanvasSchedule, now: DateTime<Utc>) -> Result<Outcome, Error> {
        check_canvas(current, &self.canvas_id)?;
        // Without an open zone a cancellation still stops the retries of unknown dispatches.
        let applied_zones = current.open_zones().len();
        current.check_changeable(applied_zones > 0 || current.unknown > 0, self.etag.as_ref())?;
        if self.require_all {
            check_all(current, 0)?;
        }
        let (revision, cancelled_at) = (current.revision + 1, Some(now));
        let after = CanvasSchedule {
            revision,
            updated_at: now,
            cancelled_at,
            next_wave: None,
            ..current.clone()
        };
        let applied = current.applied();
        let missed = ZoneSet::empty();
        Ok(Outcome {
            after,
            kind: RevisionKind::Cancel,
            applied,
            applied_zones,
            missed,
            new_properties: None,
        })
    }
}

/// Reports a schedule of another Canvas as not found, so that a caller learns nothing about it.
fn check_canvas(current: &CanvasSchedule, canvas_id: &CanvasId) -> Result<(), Error> {
    if current.canvas_id == *canvas_id {
        Ok(())
    } else {
        Err(Error::NotFound {
            schedule_id: current.id.to_string(),
        })
    }
}

fn check_all(current: &CanvasSchedule, missed: usize) -> Result<(), Error> {
    let taken = current.claimed.len();
    if taken == 0 && missed == 0 {
        Ok(())
    } else {
        Err(Error::NotAll {
            schedule_id: current.id.to_string(),
            taken,
            missed,
        })
    }
}

/// The times of an accepted schedule.
struct AcceptedTimes {
    missed_before: DateTime<Utc>,
    next_wave: Option<DateTime<Utc>>,
    missed: ZoneSet,
}

/// More than the offset of any zone from UTC: a wall-clock time further away from `now` is rejected
/// without zone rules.
const MAX_ZONE_OFFSET: TimeDelta = TimeDelta::hours(48);

/// Checks `schedule` against the lateness and the horizon. It does not depend on an earlier
/// schedule.
fn accept(
    schedule: &Schedule,
    open: &ZoneSet,
    default_zone: Zone,
    now: DateTime<Utc>,
    policy: &SchedulePolicy,
) -> Result<AcceptedTimes, Error> {
    let wall = schedule.time().and_utc();
    // An optimal-time wave is on time until its local day ends, any other wave until the lateness
    // is over.
    let missed_before = if schedule.at_optimal_time {
        now
    } else {
        now - policy.lateness
    };
    if wall > now + policy.horizon + MAX_ZONE_OFFSET {
        return Err(beyond(schedule, now, policy));
    }
    if wall < missed_before - MAX_ZONE_OFFSET {
        return Err(past(schedule, now, policy));
    }
    let Plan { waves, missed } = plan(schedule, open, default_zone, missed_before);
    let next_wave = waves.first().map(|wave| wave.time);
    match waves.last() {
        None => Err(past(schedule, now, policy)),
        Some(last) if last.time > now + policy.horizon => Err(beyond(schedule, now, policy)),
        Some(_) => Ok(AcceptedTimes {
            missed_before,
            next_wave,
            missed,
        }),
    }
}

fn past(schedule: &Schedule, now: DateTime<Utc>, policy: &SchedulePolicy) -> Error {
    let bound = if schedule.at_optimal_time {
        "a local day that has not ended".to_owned()
    } else {
        format!(
            "a time at most {} minutes in the past",
            policy.lateness.num_minutes()
        )
    };
    let message = format!(
        "\"{schedule}\" has passed in every open zone (it is now {}); send {bound}",
        rfc3339(now)
    );
    Error::TimePast(Violation::new("schedule.time", message))
}

fn beyond(schedule: &Schedule, now: DateTime<Utc>, policy: &SchedulePolicy) -> Error {
    let latest = rfc3339(now + policy.horizon);
    let days = policy.horizon.num_days();
    let message = format!(
        "\"{schedule}\" is more than {days} days ahead; every wave must be at or before {latest}"
    );
    Error::BeyondHorizon(Violation::new("schedule.time", message))
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
