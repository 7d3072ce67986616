//! The aggregate: one scheduled send of one Canvas, and its state (docs/api.md).

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::id::{CanvasId, Etag, PropertiesId, ScheduleId};
use super::schedule::Schedule;
use super::wave::{Plan, plan};
use super::zone::{Zone, ZoneSet};
use crate::config::{defaults, values};
use crate::error::Error;

/// The rules of schedules that operators set.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Rules")]
pub struct SchedulePolicy {
    /// How far in the past a time may be and still be sent immediately, such as 1h or 90m
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_LATENESS",
        default_value = "1h",
        value_parser = values::time_delta
    )]
    pub lateness: TimeDelta,
    /// Maximum days from now to a wave (1 to 3660)
    #[arg(
        long = "horizon-days",
        env = "CANVAS_SCHEDULER_HORIZON_DAYS",
        default_value = "366",
        value_name = "HORIZON_DAYS",
        value_parser = values::days(1..=3660)
    )]
    pub horizon: TimeDelta,
    /// Days for which a schedule is kept after it was sent or cancelled (1 to 3660)
    #[arg(
        long = "retention-days",
        env = "CANVAS_SCHEDULER_RETENTION_DAYS",
        default_value = "90",
        value_name = "RETENTION_DAYS",
        value_parser = values::days(1..=3660)
    )]
    pub retention: TimeDelta,
}

impl Default for SchedulePolicy {
    fn default() -> Self {
        defaults()
    }
}

/// The progress of sending; computed from the zones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScheduleState {
    /// Every zone is open.
    Pending,
    /// Some zones are open.
    Dispatching,
    /// No zone is open.
    Dispatched,
    /// Cancelled.
    Cancelled,
}

/// The kind of change that created a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RevisionKind {
    /// The creation.
    Create,
    /// A replaced schedule.
    Update,
    /// The cancellation.
    Cancel,
}

/// Which zones a change reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// Every zone was open.
    All,
    /// Some zones had been claimed before.
    Some,
}

/// One scheduled send of one Canvas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanvasSchedule {
    /// Its id.
    pub id: ScheduleId,
    /// The Canvas.
    pub canvas_id: CanvasId,
    /// When it is sent.
    pub schedule: Schedule,
    /// The zone of users without one; copied from the workspace at creation.
    pub default_zone: Zone,
    /// The zones that its recipients state, if every recipient states one; otherwise it has all
    /// zones.
    pub stated_zones: Option<ZoneSet>,
    /// The zones of its dispatches.
    #[serde(rename = "taken")]
    pub claimed: ZoneSet,
    /// When the latest of them was claimed.
    #[serde(default, rename = "last_taken")]
    pub last_claimed_at: Option<DateTime<Utc>>,
    /// The highest number of a dispatch so far; numbers are never reused.
    #[serde(default, rename = "fired")]
    pub last_number: u32,
    /// The number of its dispatches with an unknown outcome.
    #[serde(default)]
    pub unknown: usize,
    /// 1 at creation, +1 for each accepted change.
    pub revision: i64,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was cancelled.
    pub cancelled_at: Option<DateTime<Utc>>,
    /// The properties that it carries.
    pub properties: Option<PropertiesId>,
    /// Zones whose last instant is before this were missed when the schedule was accepted.
    pub missed_before: DateTime<Utc>,
    /// When the next wave is due; none when nothing is left to send.
    pub next_wave: Option<DateTime<Utc>>,
}

/// One accepted change in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// 1 at creation, +1 for each accepted change.
    pub number: i64,
    /// The kind of change.
    pub kind: RevisionKind,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// The key or command that made it.
    pub actor: String,
    /// The schedule after it.
    pub schedule: Schedule,
    /// The properties after it.
    pub properties: Option<PropertiesId>,
}

/// The outcome of an accepted change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The schedule after the change.
    pub after: CanvasSchedule,
    /// The kind of change.
    pub kind: RevisionKind,
    /// Which zones it reached.
    pub applied: Applied,
    /// The number of zones that it applies to.
    pub applied_zones: usize,
    /// Open zones that no wave will serve.
    pub missed: ZoneSet,
    /// New properties to store: their id and canonical JSON.
    #[serde(skip)]
    pub new_properties: Option<(PropertiesId, String)>,
}

impl CanvasSchedule {
    /// All zones of the schedule.
    pub fn zones(&self) -> ZoneSet {
        self.stated_zones.unwrap_or_else(ZoneSet::all)
    }

    /// The zones that are not claimed.
    pub fn open_zones(&self) -> ZoneSet {
        self.zones().without(&self.claimed)
    }

    /// The progress of sending.
    pub fn state(&self) -> ScheduleState {
        if self.cancelled_at.is_some() {
            ScheduleState::Cancelled
        } else if self.claimed.is_empty() {
            ScheduleState::Pending
        } else if self.open_zones().is_empty() {
            ScheduleState::Dispatched
        } else {
            ScheduleState::Dispatching
        }
    }

    /// The etag of the current revision.
    pub fn etag(&self) -> Etag {
        Etag::of(self.id, self.revision)
    }

    /// The pending waves and the missed zones; empty once cancelled.
    pub fn plan(&self) -> Plan {
        match self.cancelled_at {
            Some(_) => Plan::default(),
            None => plan(
                &self.schedule,
                &self.open_zones(),
                self.default_zone,
                self.missed_before,
            ),
        }
    }

    /// Which zones the next change reaches.
    pub(super) fn applied(&self) -> Applied {
        if self.claimed.is_empty() {
            Applied::All
        } else {
            Applied::Some
        }
    }

    /// Rejects a change that the state does not allow, or a stale etag. `reaches` is whether the
    /// change would have any effect.
    pub(super) fn check_changeable(&self, reaches: bool, etag: Option<&Etag>) -> Result<(), Error> {
        let schedule_id = self.id.to_string();
        if let Some(since) = self.cancelled_at {
            return Err(Error::Cancelled {
                schedule_id,
                since: rfc3339(since),
            });
        }
        if !reaches {
            return Err(Error::NothingLeft {
                schedule_id,
                since: rfc3339(self.last_claimed_at.unwrap_or(self.updated_at)),
            });
        }
        match etag {
            Some(etag) if *etag != self.etag() => Err(Error::StaleEtag {
                schedule_id,
                revision: self.revision,
            }),
            _ => Ok(()),
        }
    }
}

/// An instant for an error text, to the millisecond.
pub(super) fn rfc3339(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(SecondsFormat::Millis, true)
}
