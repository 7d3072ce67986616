//! [`Error`] to [`Status`]: one exhaustive table of code, reason and details.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::{Error, Violation, told};
use crate::layers::DOMAIN;
use crate::layers::trace::current_request_id;

/// The types of resources in `google.rpc.ResourceInfo`.
const CANVAS_SCHEDULE: &str = "canvas.schedule.v1.CanvasSchedule";

const DISPATCH: &str = "canvas.schedule.v1.Dispatch";

/// The code and the reason of an error: the first half of the table.
pub fn code_and_reason(error: &Error) -> (Code, &'static str) {
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
        // Not UNAVAILABLE: that would be repeated by a client's retry policy, and a creation would be made twice.
        Error::OutcomeUnknown => (Code::Unknown, "OUTCOME_UNKNOWN"),
        Error::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        Error::Internal(_) => (Code::Internal, "INTERNAL"),
    }
}

/// The cause of an internal fault: the trace layer logs it with the call, and no caller sees it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cause(String);

/// The error as a caller gets it. Of an internal fault the caller gets the request id to name it by, the log its cause.
pub fn status(error: &Error) -> Status {
    let (code, reason) = code_and_reason(error);
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, metadata(error));
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
            details.set_resource_info(
                CANVAS_SCHEDULE,
                format!("canvases/{canvas_id}/schedules/-"),
                "",
                &message,
            );
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
        Error::Busy { retry_after } | Error::StoreUnavailable { retry_after } => {
            details.set_retry_info(Some(*retry_after));
        }
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
    for one in told(all) {
        details.add_bad_request_violation(&one.field, &one.message);
    }
}

fn metadata(error: &Error) -> HashMap<String, String> {
    let entries: Vec<(&str, String)> = match error {
        Error::Invalid(all) if told(all).len() < all.len() => {
            vec![("violations", all.len().to_string())]
        }
        Error::NoOpenSchedule { .. } => vec![("open_schedules", "0".to_owned())],
        Error::ScheduleIdNeeded { open, .. } => vec![("open_schedules", open.to_string())],
        Error::StaleEtag { revision, .. } => vec![("revision", revision.to_string())],
        Error::Cancelled { since, .. } | Error::NothingLeft { since, .. } => {
            vec![("since", since.clone())]
        }
        // The same reason as when nothing is left at all; these say that something is.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn violation() -> Violation {
        Violation::new("schedule.time", "\"x\" is wrong")
    }

    type Row = (Error, Code, &'static str, fn(&ErrorDetails) -> bool);

    /// One row for each error: code, reason, and what its details must hold.
    fn table() -> Vec<Row> {
        let id = || "id".to_owned();
        let second = Duration::from_secs(1);
        let bad: fn(&ErrorDetails) -> bool = |details| {
            details
                .bad_request()
                .is_some_and(|bad| !bad.field_violations.is_empty())
        };
        let resource: fn(&ErrorDetails) -> bool = |details| details.resource_info().is_some();
        let precondition: fn(&ErrorDetails) -> bool =
            |details| details.precondition_failure().is_some();
        let retry: fn(&ErrorDetails) -> bool = |details| details.retry_info().is_some();
        let nothing: fn(&ErrorDetails) -> bool = |_| true;
        vec![
            (
                Error::Invalid(vec![violation(), violation()]),
                Code::InvalidArgument,
                "INVALID_FIELDS",
                |details| {
                    details
                        .bad_request()
                        .is_some_and(|bad| bad.field_violations.len() == 2)
                },
            ),
            (
                Error::TimePast(violation()),
                Code::InvalidArgument,
                "SCHEDULE_TIME_PAST",
                bad,
            ),
            (
                Error::BeyondHorizon(violation()),
                Code::InvalidArgument,
                "SCHEDULE_BEYOND_HORIZON",
                bad,
            ),
            (
                Error::NotFound { schedule_id: id() },
                Code::NotFound,
                "SCHEDULE_NOT_FOUND",
                resource,
            ),
            (
                Error::NoOpenSchedule { canvas_id: id() },
                Code::NotFound,
                "NO_OPEN_SCHEDULE",
                resource,
            ),
            (
                Error::ScheduleIdNeeded {
                    canvas_id: id(),
                    open: 2,
                },
                Code::FailedPrecondition,
                "SCHEDULE_ID_NEEDED",
                precondition,
            ),
            (
                Error::StaleEtag {
                    schedule_id: id(),
                    revision: 3,
                },
                Code::Aborted,
                "ETAG_STALE",
                precondition,
            ),
            (
                Error::Cancelled {
                    schedule_id: id(),
                    since: id(),
                },
                Code::FailedPrecondition,
                "SCHEDULE_CANCELLED",
                precondition,
            ),
            (
                Error::NothingLeft {
                    schedule_id: id(),
                    since: id(),
                },
                Code::FailedPrecondition,
                "NOTHING_LEFT_TO_CHANGE",
                precondition,
            ),
            (
                Error::NotAll {
                    schedule_id: id(),
                    taken: 1,
                    missed: 2,
                },
                Code::FailedPrecondition,
                "NOTHING_LEFT_TO_CHANGE",
                precondition,
            ),
            (
                Error::DispatchNotFound { dispatch_id: id() },
                Code::NotFound,
                "DISPATCH_NOT_FOUND",
                resource,
            ),
            (
                Error::NotDead { dispatch_id: id() },
                Code::FailedPrecondition,
                "DISPATCH_NOT_DEAD",
                precondition,
            ),
            (
                Error::RequestIdReused { request_id: id() },
                Code::AlreadyExists,
                "REQUEST_ID_REUSED",
                nothing,
            ),
            (
                Error::Busy {
                    retry_after: second,
                },
                Code::Unavailable,
                "BUSY",
                retry,
            ),
            (Error::Draining, Code::Unavailable, "DRAINING", retry),
            (
                Error::StoreUnavailable {
                    retry_after: second,
                },
                Code::Unavailable,
                "STORE_UNAVAILABLE",
                retry,
            ),
            (
                Error::OutcomeUnknown,
                Code::Unknown,
                "OUTCOME_UNKNOWN",
                nothing,
            ),
            (
                Error::DeadlineExceeded,
                Code::DeadlineExceeded,
                "DEADLINE_EXCEEDED",
                nothing,
            ),
            (
                Error::Internal("password".to_owned()),
                Code::Internal,
                "INTERNAL",
                |details| details.request_info().is_some(),
            ),
        ]
    }

    #[test]
    fn every_error_has_its_code_reason_and_details() {
        for (error, code, reason, holds) in table() {
            let status = status(&error);
            let details = status.get_error_details();
            let info = details.error_info().expect("always an ErrorInfo");
            assert_eq!(
                (status.code(), info.reason.as_str(), info.domain.as_str()),
                (code, reason, DOMAIN),
                "{error:?}"
            );
            assert!(holds(&details), "{error:?}: {details:?}");
            assert!(
                !status.message().is_empty() && !status.message().contains("password"),
                "{status:?}"
            );
        }
    }
}
