//! The one error of the house: no transport, no ORM. What a caller may read is in the fields; a cause that only an operator
//! may read is in [`Error::Internal`] alone.

pub mod panic;

use std::fmt;
use std::time::Duration;

/// One thing wrong with one field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field in the request, as in `schedule.time` or `recipients[3].email`.
    pub field: String,
    /// The value that was sent (shortened) and what would be right.
    pub message: String,
}

impl Violation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Collects violations in the order in which they are found, so that all are reported at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violations {
    found: Vec<Violation>,
    max: usize,
}

impl Violations {
    /// A collector that drops what exceeds `max` violations.
    pub fn with_max(max: usize) -> Self {
        Self {
            found: Vec::new(),
            max,
        }
    }

    /// Adds a violation of `field`.
    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        if self.found.len() < self.max {
            self.found.push(Violation::new(field, message));
        }
    }

    /// The parsed value of `field`; an error is added as a violation.
    pub fn check<T>(&mut self, field: &str, parsed: Result<T, String>) -> Option<T> {
        parsed.map_err(|message| self.add(field, message)).ok()
    }

    /// How many more violations are collected.
    pub fn remaining(&self) -> usize {
        self.max - self.found.len()
    }

    /// Puts the violations that a transport found before these, and drops those of the same fields: a field that the
    /// transport could not read is not also missing.
    #[must_use]
    pub fn after(self, transport: &[Violation]) -> Self {
        let own = self
            .found
            .into_iter()
            .filter(|own| !transport.iter().any(|one| overlap(&one.field, &own.field)));
        Self {
            found: transport.iter().cloned().chain(own).collect(),
            max: self.max,
        }
    }

    /// `value`, if there is no violation.
    ///
    /// # Errors
    /// The violations; also when `value` is absent.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.is_empty() => Ok(value),
            _ => Err(self),
        }
    }
}

impl Default for Violations {
    /// A collector without a maximum.
    fn default() -> Self {
        Self::with_max(usize::MAX)
    }
}

impl std::ops::Deref for Violations {
    type Target = [Violation];

    fn deref(&self) -> &[Violation] {
        &self.found
    }
}

impl From<Violations> for Vec<Violation> {
    fn from(violations: Violations) -> Self {
        violations.found
    }
}

impl From<Violations> for Error {
    fn from(violations: Violations) -> Self {
        Self::Invalid(violations.found)
    }
}

/// Whether one of two paths is the other or a part of it.
fn overlap(one: &str, other: &str) -> bool {
    let within = |long: &str, short: &str| {
        long.strip_prefix(short)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    within(one, other) || within(other, one)
}

/// Why a call was refused. Every variant leaves everything as it was, except [`Error::OutcomeUnknown`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// Fields that are wrong whatever the state of the service; all of them.
    Invalid(Vec<Violation>),
    /// Every zone's time is further past than what still goes at once.
    TimePast(Violation),
    /// The time is further ahead than the horizon.
    BeyondHorizon(Violation),
    /// No such schedule in this workspace.
    NotFound {
        /// The id that was asked for.
        schedule_id: String,
    },
    /// An update without `schedule_id`, and the Canvas has no schedule that can still change.
    NoOpenSchedule {
        /// The Canvas that was asked for.
        canvas_id: String,
    },
    /// An update without `schedule_id`, and the Canvas has more than one schedule that can still change.
    ScheduleIdNeeded {
        /// The Canvas that was asked for.
        canvas_id: String,
        /// How many schedules it could have meant.
        open: u64,
    },
    /// The etag stands for an older revision.
    StaleEtag {
        /// The schedule.
        schedule_id: String,
        /// The revision that it has now.
        revision: i64,
    },
    /// The schedule was cancelled.
    Cancelled {
        /// The schedule.
        schedule_id: String,
        /// Since when, RFC 3339.
        since: String,
    },
    /// No zone is open any more.
    NothingLeft {
        /// The schedule.
        schedule_id: String,
        /// Since when, RFC 3339.
        since: String,
    },
    /// No such dispatch of this schedule.
    DispatchNotFound {
        /// The id that was asked for.
        dispatch_id: String,
    },
    /// Only a dead letter can be tried again by hand.
    NotDead {
        /// The dispatch.
        dispatch_id: String,
    },
    /// `require_all` was asked for and the change would not have reached every zone.
    NotAll {
        /// The schedule.
        schedule_id: String,
        /// Zones handed over before.
        taken: usize,
        /// Zones whose new time is too long past.
        missed: usize,
    },
    /// The request id was used within 24 hours for another request.
    RequestIdReused {
        /// The id.
        request_id: String,
    },
    /// A bound is reached; nothing was begun.
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// The process is stopping; nothing was begun.
    Draining,
    /// The database cannot be reached or its schema is not ready; nothing was written.
    StoreUnavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// The connection was lost at commit and could not be settled in time: the change may have been made.
    OutcomeUnknown,
    /// The caller's time ran out before the work began.
    DeadlineExceeded,
    /// A fault of the service. The text is for the log only.
    Internal(String),
}

impl Error {
    /// A fault of the service with its cause, for the log.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::Internal(cause.to_string())
    }
}

impl fmt::Display for Error {
    /// The public text. Says nothing of an internal cause.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(all) => write_violations(f, all),
            Self::TimePast(one) | Self::BeyondHorizon(one) => write!(f, "{one}"),
            Self::NotFound { schedule_id } => write!(f, "canvas schedule {} does not exist", quote(schedule_id)),
            Self::NoOpenSchedule { canvas_id } => {
                write!(f, "Canvas {} has 0 schedules that can still change; state a schedule_id to learn what became of one", quote(canvas_id))
            }
            Self::ScheduleIdNeeded { canvas_id, open } => {
                write!(f, "Canvas {} has {open} schedules that can still change; state the schedule_id of the one that is meant", quote(canvas_id))
            }
            Self::StaleEtag { schedule_id, revision } => {
                write!(f, "the etag is stale: canvas schedule {schedule_id} is at revision {revision}; read it again and decide anew")
            }
            Self::Cancelled { schedule_id, since } => write!(f, "canvas schedule {schedule_id} was cancelled at {since}"),
            Self::NothingLeft { schedule_id, since } => {
                write!(f, "nothing is left to change: every zone of canvas schedule {schedule_id} was handed over by {since}")
            }
            Self::DispatchNotFound { dispatch_id } => write!(f, "dispatch {} does not exist", quote(dispatch_id)),
            Self::NotDead { dispatch_id } => {
                write!(f, "dispatch {dispatch_id} is not a dead letter; only those can be tried again by hand")
            }
            Self::NotAll { schedule_id, taken, missed } => write!(
                f,
                "require_all: the change of canvas schedule {schedule_id} would not reach {taken} zones that were handed over and {missed} zones whose new time is too long past; nothing was changed"
            ),
            Self::RequestIdReused { request_id } => {
                write!(f, "request_id {} was used for another request within the last 24 hours; choose a new one", quote(request_id))
            }
            Self::Busy { .. } => f.write_str("too much is waiting; try again later"),
            Self::Draining => f.write_str("the service is stopping; try again on another connection"),
            Self::StoreUnavailable { .. } => f.write_str("the database is not available; try again later"),
            Self::OutcomeUnknown => f.write_str(
                "the connection to the database was lost while committing: the change may or may not have been made; read the schedule, or repeat the call with its request_id",
            ),
            Self::DeadlineExceeded => f.write_str("the deadline passed before the work began; nothing was changed"),
            Self::Internal(_) => f.write_str("internal error"),
        }
    }
}

impl std::error::Error for Error {}

/// The violations of one refusal that fit its text and its details, which travel in headers: many clients take 8 KB of those,
/// and one that gets more gives up the connection with all its calls. At least one.
pub fn told(all: &[Violation]) -> &[Violation] {
    const MOST_BYTES: usize = 1024;
    let mut bytes = 0;
    let fits = all.iter().take_while(|one| {
        bytes += one.field.len() + one.message.len();
        bytes <= MOST_BYTES
    });
    &all[..fits.count().max(1).min(all.len())]
}

fn write_violations(f: &mut fmt::Formatter<'_>, all: &[Violation]) -> fmt::Result {
    let told = told(all);
    for (n, one) in told.iter().enumerate() {
        let separator = if n == 0 { "" } else { "; " };
        write!(f, "{separator}{one}")?;
    }
    if told.len() < all.len() {
        write!(f, "; and {} more", all.len() - told.len())
    } else {
        Ok(())
    }
}

/// The value in quotes for an error text: control characters escaped, cut after 64 characters.
pub fn quote(value: &str) -> String {
    let mut short: String = value.chars().take(64).collect();
    if short.len() < value.len() {
        short.push('…');
    }
    format!("{short:?}")
}
