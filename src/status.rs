//! The one table from [`Error`] and `Refusal` to [`Status`]: code, reason, text and details.
//! Nothing else on the server's side builds a status.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::domain::{KeyRefusal, QuotaKind, QuotaStatus};
use crate::error::{Error, Violation, quote, reported};

/// The domain of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "canvas-scheduler";

/// The header, or metadata key, with the caller's timeout.
pub(crate) const TIMEOUT_HEADER: &str = "grpc-timeout";

/// The types of resources in `google.rpc.ResourceInfo`.
const CANVAS_SCHEDULE: &str = "canvas.schedule.v1.CanvasSchedule";
const DISPATCH: &str = "canvas.schedule.v1.Dispatch";

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

tokio::task_local! {
    static REQUEST_ID: u64;
}

/// Runs `call` with this request id.
pub(crate) async fn with_request_id<F: Future>(id: u64, call: F) -> F::Output {
    REQUEST_ID.scope(id, call).await
}

/// The id of the call that this code runs for, 16 hex digits. None outside of a call, and in a task
/// that a call has spawned.
pub fn current_request_id() -> Option<String> {
    REQUEST_ID.try_with(|id| format!("{id:016x}")).ok()
}

/// Why a call was refused or ended before its handler answered.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// An error that handlers also return.
    Error(Error),
    /// No `authorization` header.
    KeyMissing,
    /// An `authorization` header that is not one bearer key.
    KeyMalformed,
    /// The key does not allow the call.
    Key(KeyRefusal),
    /// A quota is used up.
    RateLimited {
        /// The quota.
        counted: QuotaKind,
        /// Its status.
        quota: QuotaStatus,
        /// The time until its next window.
        wait: Duration,
    },
    /// Too many calls, or too many bytes of requests, are in flight; nothing was begun.
    Overloaded {
        /// When to retry.
        retry_after: Duration,
    },
    /// The process stopped while the call ran.
    Stopped,
    /// The call took longer than its timeout.
    DeadlineExceeded {
        /// The timeout.
        after: Duration,
        /// Whether the caller set it.
        set_by_caller: bool,
    },
    /// The value of `grpc-timeout` is malformed.
    TimeoutMalformed(String),
    /// No method has this path.
    MethodUnknown(String),
    /// The message cannot be decoded.
    Undecodable(String),
    /// The message contains more nested messages than this.
    TooManyMessages(usize),
    /// A status without details, built by tonic, with the code and the reason that it should have.
    Bare {
        /// The code.
        code: Code,
        /// The reason.
        reason: &'static str,
        /// Tonic's text.
        message: String,
    },
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The code and the reason of an error.
fn error_code(error: &Error) -> (Code, &'static str) {
    match error {
        Error::Invalid(_) => (Code::InvalidArgument, "INVALID_FIELDS"),
        Error::TimePast(_) => (Code::InvalidArgument, "SCHEDULE_TIME_PAST"),
        Error::BeyondHorizon(_) => (Code::InvalidArgument, "SCHEDULE_BEYOND_HORIZON"),
        Error::NotFound { .. } => (Code::NotFound, "SCHEDULE_NOT_FOUND"),
        Error::NoOpenSchedule { .. } => (Code::NotFound, "NO_OPEN_SCHEDULE"),
        Error::ScheduleIdNeeded { .. } => (Code::FailedPrecondition, "SCHEDULE_ID_NEEDED"),
        Error::DispatchNotFound { .. } => (Code::NotFound, "DISPATCH_NOT_FOUND"),
        Error::NotDead { .. } => (Code::FailedPrecondition, "DISPATCH_NOT_DEAD"),
        Error::StaleEtag { .. } => (Code::Aborted, "ETAG_STALE"),
        Error::Cancelled { .. } => (Code::FailedPrecondition, "SCHEDULE_CANCELLED"),
        Error::NothingLeft { .. } | Error::NotAll { .. } => {
            (Code::FailedPrecondition, "NOTHING_LEFT_TO_CHANGE")
        }
        Error::RequestIdReused { .. } => (Code::AlreadyExists, "REQUEST_ID_REUSED"),
        Error::Busy { .. } => (Code::Unavailable, "BUSY"),
        Error::Draining => (Code::Unavailable, "DRAINING"),
        Error::StoreUnavailable { .. } => (Code::Unavailable, "STORE_UNAVAILABLE"),
        // Not UNAVAILABLE, which a client's retry policy would repeat: a creation would be made
        // twice.
        Error::OutcomeUnknown => (Code::Unknown, "OUTCOME_UNKNOWN"),
        Error::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        Error::Internal(_) => (Code::Internal, "INTERNAL"),
    }
}

impl Refusal {
    /// The code and the reason.
    fn code(&self) -> (Code, &'static str) {
        match self {
            Self::Error(error) => error_code(error),
            Self::KeyMissing => (Code::Unauthenticated, "KEY_MISSING"),
            Self::KeyMalformed => (Code::Unauthenticated, "KEY_MALFORMED"),
            Self::Key(KeyRefusal::Unknown) => (Code::Unauthenticated, "KEY_UNKNOWN"),
            Self::Key(KeyRefusal::Revoked) => (Code::Unauthenticated, "KEY_REVOKED"),
            Self::Key(KeyRefusal::Expired) => (Code::Unauthenticated, "KEY_EXPIRED"),
            Self::Key(KeyRefusal::Address) => (Code::PermissionDenied, "ADDRESS_NOT_ALLOWED"),
            Self::Key(KeyRefusal::Permission(_)) => (Code::PermissionDenied, "PERMISSION_MISSING"),
            Self::RateLimited { .. } => (Code::ResourceExhausted, "RATE_LIMITED"),
            Self::Overloaded { .. } => (Code::Unavailable, "OVERLOADED"),
            Self::Stopped => (Code::Unavailable, "DRAINING"),
            Self::DeadlineExceeded { .. } => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
            Self::TimeoutMalformed(_) => (Code::InvalidArgument, "TIMEOUT_MALFORMED"),
            Self::MethodUnknown(_) => (Code::Unimplemented, "METHOD_UNKNOWN"),
            Self::Undecodable(_) => (Code::InvalidArgument, "MESSAGE_NOT_DECODABLE"),
            Self::TooManyMessages(_) => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
            Self::Bare { code, reason, .. } => (*code, reason),
        }
    }

    /// The reason in `google.rpc.ErrorInfo`.
    pub(crate) fn reason(&self) -> &'static str {
        self.code().1
    }

    fn message(&self) -> String {
        match self {
            Self::Error(error) => error.to_string(),
            Self::KeyMissing => "no API key was sent; send `authorization: Bearer KEY`".into(),
            // The value is not repeated: it may be a key with a typing error.
            Self::KeyMalformed => "`authorization` must be `Bearer KEY` with a single key, as \
                `api-key create` printed it"
                .into(),
            Self::Key(KeyRefusal::Unknown) => "the key does not exist".into(),
            Self::Key(KeyRefusal::Revoked) => "the key was revoked".into(),
            Self::Key(KeyRefusal::Expired) => "the key has expired".into(),
            Self::Key(KeyRefusal::Address) => "the key is not allowed from the caller's \
                address"
                .into(),
            Self::Key(KeyRefusal::Permission(needed)) => {
                format!("the key lacks permission {}", needed.name())
            }
            Self::RateLimited {
                counted,
                quota,
                wait,
            } => {
                let what = match counted {
                    QuotaKind::Requests => "requests",
                    QuotaKind::Broadcasts => "creations with broadcast or audience",
                    QuotaKind::SameAudience => "creations with the same audience",
                };
                format!(
                    "the workspace has used up its quota of {} {what}; the next window begins in \
                     {} s",
                    quota.limit,
                    wait.as_secs() + 1
                )
            }
            Self::Overloaded { .. } => "too many calls are in flight; retry later".into(),
            Self::Stopped => "the service stopped before the call finished: the change may or may \
                not have been made; read the schedule on another connection, or repeat the call \
                with its request_id"
                .into(),
            Self::DeadlineExceeded {
                after,
                set_by_caller,
            } => {
                let limit = if *set_by_caller {
                    "the timeout in grpc-timeout"
                } else {
                    "the maximum duration of a call"
                };
                format!(
                    "the call did not finish within {after:?}, {limit}; the change may or may \
                    not have been made"
                )
            }
            Self::TimeoutMalformed(value) => {
                format!("{TIMEOUT_HEADER}: {}", timeout_malformed(value))
            }
            Self::MethodUnknown(path) => format!("method {} does not exist", quote(path)),
            Self::Undecodable(why) => format!(
                "the message cannot be decoded: {why}; it must be the request message of this \
                 method, with strings in UTF-8, nested at most 30 levels deep"
            ),
            Self::TooManyMessages(max) => {
                format!("the message contains more than {max} nested messages; send fewer")
            }
            Self::Bare { message, .. } => message.clone(),
        }
    }
}

fn timeout_malformed(value: &str) -> String {
    format!(
        "{} is not a valid timeout; it must be one to eight digits and a unit (H hours, M minutes, \
         S seconds, m milliseconds, u microseconds, n nanoseconds), for example 500m",
        quote(value)
    )
}

/// The cause of an internal error: the trace layer logs it with the call, and no caller sees it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cause(String);

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, reason) = refusal.code();
        let mut message = refusal.message();
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, []);
        let mut headers = HeaderMap::new();
        match &refusal {
            Refusal::Error(error) => return status(error),
            Refusal::Key(KeyRefusal::Permission(needed)) => {
                let metadata = [("permission".to_owned(), needed.name().to_owned())];
                details.set_error_info(reason, DOMAIN, metadata);
            }
            Refusal::RateLimited {
                counted,
                quota,
                wait,
            } => {
                let metadata = [
                    ("quota".to_owned(), counted.name().to_owned()),
                    ("limit".to_owned(), quota.limit.to_string()),
                ];
                details.set_error_info(reason, DOMAIN, metadata);
                details.set_retry_info(Some(*wait));
                details.add_quota_failure_violation(counted.name(), &message);
                write_quota(&mut headers, *quota);
                headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
            }
            Refusal::Overloaded { retry_after } => {
                details.set_retry_info(Some(*retry_after));
            }
            Refusal::TimeoutMalformed(value) => {
                details.add_bad_request_violation(TIMEOUT_HEADER, timeout_malformed(value));
            }
            Refusal::MethodUnknown(_)
            | Refusal::KeyMissing
            | Refusal::KeyMalformed
            | Refusal::Key(_)
            // No RetryInfo: the change may have been made.
            | Refusal::Stopped
            | Refusal::DeadlineExceeded { .. }
            | Refusal::Undecodable(_)
            | Refusal::TooManyMessages(_) => {}
            Refusal::Bare { message: own, .. } => message.clone_from(own),
        }
        let metadata = MetadataMap::from_headers(headers);
        Self::with_error_details_and_metadata(code, message, details, metadata)
    }
}

/// Writes the headers that show a quota's status.
pub(crate) fn write_quota(headers: &mut HeaderMap, quota: QuotaStatus) {
    headers.insert(LIMIT, HeaderValue::from(quota.limit));
    headers.insert(REMAINING, HeaderValue::from(quota.remaining));
    headers.insert(RESET, HeaderValue::from(quota.resets_ms / 1000));
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        status(&error)
    }
}

/// The status that a caller gets. For an internal error, the caller gets only the request id; the
/// log gets the cause.
pub fn status(error: &Error) -> Status {
    let (code, reason) = error_code(error);
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata(error));
    let mut message = error.to_string();
    match error {
        Error::Invalid(all) => violations(&mut details, all),
        Error::TimePast(one) | Error::BeyondHorizon(one) => {
            violations(&mut details, std::slice::from_ref(one))
        }
        Error::NotFound { schedule_id } => {
            details.set_resource_info(CANVAS_SCHEDULE, schedule_id, "", &message);
        }
        Error::NoOpenSchedule { canvas_id } => {
            let name = format!("canvases/{canvas_id}/schedules/-");
            details.set_resource_info(CANVAS_SCHEDULE, name, "", &message);
        }
        Error::DispatchNotFound { dispatch_id } => {
            details.set_resource_info(DISPATCH, dispatch_id, "", &message);
        }
        Error::ScheduleIdNeeded {
            canvas_id: subject, ..
        }
        | Error::NotDead {
            dispatch_id: subject,
        }
        | Error::Cancelled {
            schedule_id: subject,
            ..
        }
        | Error::NothingLeft {
            schedule_id: subject,
            ..
        }
        | Error::NotAll {
            schedule_id: subject,
            ..
        } => {
            details.add_precondition_failure_violation(reason, subject, &message);
        }
        Error::StaleEtag { schedule_id, .. } => {
            details.add_precondition_failure_violation("ETAG", schedule_id, &message);
        }
        Error::Busy { retry_after } | Error::StoreUnavailable { retry_after, .. } => {
            details.set_retry_info(Some(*retry_after));
        }
        // Nothing was begun: the call can be repeated immediately.
        Error::Draining => {
            details.set_retry_info(Some(Duration::ZERO));
        }
        Error::Internal(_) => {
            let request_id = current_request_id().unwrap_or_default();
            message = format!("internal error; request id {request_id}");
            details.set_request_info(request_id, "");
        }
        Error::RequestIdReused { .. } | Error::OutcomeUnknown | Error::DeadlineExceeded => {}
    }
    let mut status = Status::with_error_details(code, message, details);
    if let Error::Internal(cause) = error {
        status.set_source(Arc::new(Cause(cause.clone())));
    }
    status
}

fn violations(details: &mut ErrorDetails, all: &[Violation]) {
    for one in reported(all) {
        details.add_bad_request_violation(&one.field, &one.message);
    }
}

fn metadata(error: &Error) -> HashMap<String, String> {
    let entries = match error {
        Error::Invalid(all) if reported(all).len() < all.len() => {
            vec![("violations", all.len().to_string())]
        }
        Error::NoOpenSchedule { .. } => vec![("open_schedules", "0".to_owned())],
        Error::ScheduleIdNeeded { open, .. } => vec![("open_schedules", open.to_string())],
        Error::StaleEtag { revision, .. } => vec![("revision", revision.to_string())],
        Error::Cancelled { since, .. } | Error::NothingLeft { since, .. } => {
            vec![("since", since.clone())]
        }
        // The reason is that of NothingLeft; these entries say that zones are left.
        Error::NotAll { taken, missed, .. } => {
            vec![
                ("require_all", "true".to_owned()),
                ("taken_zones", taken.to_string()),
                ("missed_zones", missed.to_string()),
            ]
        }
        _ => vec![],
    };
    entries
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// The name of a code as the gRPC documents write it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
