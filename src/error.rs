//! The error of every use case, independent of transport and database. Callers may read every field
//! except the cause in [`Error::Internal`], which is for operators.

pub mod panic;

use std::fmt;
use std::time::Duration;

/// A violation of one field of a request or of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field in the request, as in `schedule.time` or `recipients[3].email`.
    pub field: String,
    /// What is wrong, with the value (shortened), and what to send.
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

/// Collects violations in the order in which they are found, so that all are reported together.
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

    /// Puts the violations that a transport found before these, and drops those of the same fields:
    /// a field that the transport could not read is not also missing.
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

    /// `value`, if there are no violations.
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

/// Whether two paths are equal, or one is a part of the other.
fn overlap(one: &str, other: &str) -> bool {
    let within = |long: &str, short: &str| {
        long.strip_prefix(short)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    within(one, other) || within(other, one)
}

/// Why the database cannot be used. The texts are for callers, who must not learn where the database
/// is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreOutage {
    /// It cannot be reached, or its schema is not ready.
    Unreachable,
    /// Its disk is full.
    DiskFull,
    /// It is read-only: a standby, or demoted.
    ReadOnly,
    /// Another session holds a lock for too long.
    Locked,
    /// It accepts no further connection.
    TooManyConnections,
    /// It is out of memory.
    OutOfMemory,
    /// It reports an I/O error or damaged data.
    Faulty,
}

impl fmt::Display for StoreOutage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "the database is unavailable",
            Self::DiskFull => "the disk of the database is full",
            Self::ReadOnly => "the database is read-only",
            Self::Locked => "another session holds a lock in the database",
            Self::TooManyConnections => "the database accepts no further connection",
            Self::OutOfMemory => "the database is out of memory",
            Self::Faulty => "the database reports an I/O error or damaged data",
        })
    }
}

/// Why a call failed. Nothing has changed, except perhaps after [`Error::OutcomeUnknown`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// Every invalid field. Does not depend on the state of the service.
    Invalid(Vec<Violation>),
    /// The time of every zone is too far in the past.
    TimePast(Violation),
    /// The time is beyond the horizon.
    BeyondHorizon(Violation),
    /// No such schedule in this workspace.
    NotFound {
        /// The requested id.
        schedule_id: String,
    },
    /// An update without `schedule_id`, and the Canvas has no schedule that can still change.
    NoOpenSchedule {
        /// The requested Canvas.
        canvas_id: String,
    },
    /// An update without `schedule_id`, and the Canvas has more than one schedule that can still
    /// change.
    ScheduleIdNeeded {
        /// The requested Canvas.
        canvas_id: String,
        /// The number of those schedules.
        open: u64,
    },
    /// The etag belongs to an older revision.
    StaleEtag {
        /// The schedule.
        schedule_id: String,
        /// Its current revision.
        revision: i64,
    },
    /// The schedule was cancelled.
    Cancelled {
        /// The schedule.
        schedule_id: String,
        /// When that happened, in RFC 3339.
        since: String,
    },
    /// No zone is open.
    NothingLeft {
        /// The schedule.
        schedule_id: String,
        /// When that happened, in RFC 3339.
        since: String,
    },
    /// No such dispatch of this schedule.
    DispatchNotFound {
        /// The requested id.
        dispatch_id: String,
    },
    /// A caller can retry only a dead letter.
    NotDead {
        /// The dispatch.
        dispatch_id: String,
    },
    /// The request has `require_all`, and the change would not reach every zone.
    NotAll {
        /// The schedule.
        schedule_id: String,
        /// The number of zones already handed over.
        taken: usize,
        /// The number of zones whose new time is too far in the past.
        missed: usize,
    },
    /// The request id was used for a different request within the last 24 hours.
    RequestIdReused {
        /// The id.
        request_id: String,
    },
    /// A queue is full; nothing was begun.
    Busy {
        /// When to retry.
        retry_after: Duration,
    },
    /// The process is stopping; nothing was begun.
    Draining,
    /// The database cannot be used now, or its schema is not ready; nothing was written.
    StoreUnavailable {
        /// What is wrong with it.
        why: StoreOutage,
        /// When to retry.
        retry_after: Duration,
    },
    /// The connection was lost during commit, and the outcome could not be determined in time: the
    /// change may have been made.
    OutcomeUnknown,
    /// The deadline passed before the work began.
    DeadlineExceeded,
    /// An internal error. The cause is for the log only.
    Internal(String),
}

impl Error {
    /// One invalid field.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation::new(field, message)])
    }

    /// An internal error with its cause, for the log.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::Internal(cause.to_string())
    }
}

impl fmt::Display for Error {
    /// The text for callers, without the cause of an internal error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(all) => write_violations(f, all),
            Self::TimePast(one) | Self::BeyondHorizon(one) => write!(f, "{one}"),
            Self::NotFound { schedule_id } => {
                write!(f, "canvas schedule {} does not exist", quote(schedule_id))
            }
            Self::NoOpenSchedule { canvas_id } => write!(
                f,
                "Canvas {} has no schedule that can still be changed; set schedule_id to see the \
                 state of a schedule",
                quote(canvas_id)
            ),
            Self::ScheduleIdNeeded { canvas_id, open } => write!(
                f,
                "Canvas {} has {open} schedules that can still be changed; set schedule_id to \
                 choose one",
                quote(canvas_id)
            ),
            Self::StaleEtag {
                schedule_id,
                revision,
            } => write!(
                f,
                "the etag is stale: canvas schedule {schedule_id} is at revision {revision}; read \
                 it again before you change it"
            ),
            Self::Cancelled { schedule_id, since } => {
                write!(f, "canvas schedule {schedule_id} was cancelled at {since}")
            }
            Self::NothingLeft { schedule_id, since } => write!(
                f,
                "canvas schedule {schedule_id} can no longer be changed: every zone was handed \
                 over by {since}"
            ),
            Self::DispatchNotFound { dispatch_id } => {
                write!(f, "dispatch {} does not exist", quote(dispatch_id))
            }
            Self::NotDead { dispatch_id } => write!(
                f,
                "dispatch {dispatch_id} is not a dead letter; only dead letters can be retried"
            ),
            Self::NotAll {
                schedule_id,
                taken,
                missed,
            } => write!(
                f,
                "require_all: the change of canvas schedule {schedule_id} would not reach {taken} \
                 zones that were already handed over and {missed} zones whose new time is too far \
                 in the past; nothing was changed"
            ),
            Self::RequestIdReused { request_id } => write!(
                f,
                "request_id {} was used for a different request within the last 24 hours; choose a \
                 new one",
                quote(request_id)
            ),
            Self::Busy { .. } => f.write_str("too many requests are queued; retry later"),
            Self::Draining => {
                f.write_str("the service is shutting down; retry on another connection")
            }
            Self::StoreUnavailable { why, .. } => write!(f, "{why}; retry later"),
            Self::OutcomeUnknown => f.write_str(
                "the connection to the database was lost during commit: the change may or may not \
                 have been made; read the schedule, or repeat the call with its request_id",
            ),
            Self::DeadlineExceeded => {
                f.write_str("the deadline passed before the work began; nothing was changed")
            }
            Self::Internal(_) => f.write_str("internal error"),
        }
    }
}

impl std::error::Error for Error {}

/// The first violations, as many as the text and the details of an error report, at least one. Both
/// travel in headers, of which many clients accept 8 KB; a client that gets more closes the
/// connection with all its calls.
pub fn reported(all: &[Violation]) -> &[Violation] {
    const MAX_BYTES: usize = 1024;
    let mut bytes = 0;
    let fits = all.iter().take_while(|one| {
        bytes += one.field.len() + one.message.len();
        bytes <= MAX_BYTES
    });
    &all[..fits.count().max(1).min(all.len())]
}

fn write_violations(f: &mut fmt::Formatter<'_>, all: &[Violation]) -> fmt::Result {
    let reported = reported(all);
    for (n, one) in reported.iter().enumerate() {
        let separator = if n == 0 { "" } else { "; " };
        write!(f, "{separator}{one}")?;
    }
    if reported.len() < all.len() {
        write!(f, "; and {} more", all.len() - reported.len())
    } else {
        Ok(())
    }
}

/// The value in quotes for an error text, with control characters escaped, shortened to 64
/// characters.
pub fn quote(value: &str) -> String {
    let mut short: String = value.chars().take(64).collect();
    if short.len() < value.len() {
        short.push('…');
    }
    format!("{short:?}")
}
