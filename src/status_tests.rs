use super::*;
use crate::domain::Permission;
use crate::error::StoreOutage;

fn violation() -> Violation {
    Violation::new("schedule.time", "\"x\" is wrong")
}

type ExpectedRow = (Error, Code, &'static str, fn(&ErrorDetails) -> bool);

const SECOND: Duration = Duration::from_secs(1);

fn has_bad(details: &ErrorDetails) -> bool {
    details
        .bad_request()
        .is_some_and(|bad| !bad.field_violations.is_empty())
}

fn has_resource(details: &ErrorDetails) -> bool {
    details.resource_info().is_some()
}

fn has_precondition(details: &ErrorDetails) -> bool {
    details.precondition_failure().is_some()
}

fn has_retry(details: &ErrorDetails) -> bool {
    details.retry_info().is_some()
}

fn id() -> String {
    "id".to_owned()
}

/// The errors of fields: code, reason, and what the details must hold.
fn field_errors() -> Vec<ExpectedRow> {
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
            has_bad,
        ),
        (
            Error::BeyondHorizon(violation()),
            Code::InvalidArgument,
            "SCHEDULE_BEYOND_HORIZON",
            has_bad,
        ),
    ]
}

/// The errors that the stored state causes.
fn state_errors() -> Vec<ExpectedRow> {
    vec![
        (
            Error::NotFound { schedule_id: id() },
            Code::NotFound,
            "SCHEDULE_NOT_FOUND",
            has_resource,
        ),
        (
            Error::NoOpenSchedule { canvas_id: id() },
            Code::NotFound,
            "NO_OPEN_SCHEDULE",
            has_resource,
        ),
        (
            Error::ScheduleIdNeeded {
                canvas_id: id(),
                open: 2,
            },
            Code::FailedPrecondition,
            "SCHEDULE_ID_NEEDED",
            has_precondition,
        ),
        (
            Error::StaleEtag {
                schedule_id: id(),
                revision: 3,
            },
            Code::Aborted,
            "ETAG_STALE",
            has_precondition,
        ),
        (
            Error::Cancelled {
                schedule_id: id(),
                since: id(),
            },
            Code::FailedPrecondition,
            "SCHEDULE_CANCELLED",
            has_precondition,
        ),
        (
            Error::NothingLeft {
                schedule_id: id(),
                since: id(),
            },
            Code::FailedPrecondition,
            "NOTHING_LEFT_TO_CHANGE",
            has_precondition,
        ),
        (
            Error::NotAll {
                schedule_id: id(),
                taken: 1,
                missed: 2,
            },
            Code::FailedPrecondition,
            "NOTHING_LEFT_TO_CHANGE",
            has_precondition,
        ),
        (
            Error::DispatchNotFound { dispatch_id: id() },
            Code::NotFound,
            "DISPATCH_NOT_FOUND",
            has_resource,
        ),
        (
            Error::NotDead { dispatch_id: id() },
            Code::FailedPrecondition,
            "DISPATCH_NOT_DEAD",
            has_precondition,
        ),
        (
            Error::RequestIdReused { request_id: id() },
            Code::AlreadyExists,
            "REQUEST_ID_REUSED",
            |_| true,
        ),
    ]
}

/// The errors of the service itself.
fn service_errors() -> Vec<ExpectedRow> {
    vec![
        (
            Error::Busy {
                retry_after: SECOND,
            },
            Code::Unavailable,
            "BUSY",
            has_retry,
        ),
        (Error::Draining, Code::Unavailable, "DRAINING", has_retry),
        (
            Error::StoreUnavailable {
                why: StoreOutage::DiskFull,
                retry_after: SECOND,
            },
            Code::Unavailable,
            "STORE_UNAVAILABLE",
            has_retry,
        ),
        (
            Error::OutcomeUnknown,
            Code::Unknown,
            "OUTCOME_UNKNOWN",
            |_| true,
        ),
        (
            Error::DeadlineExceeded,
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
            |_| true,
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
    for (error, code, reason, holds) in [field_errors(), state_errors(), service_errors()].concat()
    {
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

type ExpectedRefusal = (Refusal, Code, &'static str, &'static str);

/// The refusals of keys: code, reason and a part of the text.
fn key_refusals() -> Vec<ExpectedRefusal> {
    vec![
        (
            Refusal::KeyMissing,
            Code::Unauthenticated,
            "KEY_MISSING",
            "Bearer KEY",
        ),
        (
            Refusal::KeyMalformed,
            Code::Unauthenticated,
            "KEY_MALFORMED",
            "Bearer KEY",
        ),
        (
            Refusal::Key(KeyRefusal::Unknown),
            Code::Unauthenticated,
            "KEY_UNKNOWN",
            "does not exist",
        ),
        (
            Refusal::Key(KeyRefusal::Revoked),
            Code::Unauthenticated,
            "KEY_REVOKED",
            "revoked",
        ),
        (
            Refusal::Key(KeyRefusal::Expired),
            Code::Unauthenticated,
            "KEY_EXPIRED",
            "expired",
        ),
        (
            Refusal::Key(KeyRefusal::Address),
            Code::PermissionDenied,
            "ADDRESS_NOT_ALLOWED",
            "address",
        ),
        (
            Refusal::Key(KeyRefusal::Permission(Permission::Read)),
            Code::PermissionDenied,
            "PERMISSION_MISSING",
            Permission::Read.name(),
        ),
    ]
}

/// The refusals of calls that a key allows.
fn call_refusals() -> Vec<ExpectedRefusal> {
    let quota = QuotaStatus {
        limit: 3,
        remaining: 0,
        resets_ms: 4_000,
    };
    vec![
        (
            Error::Draining.into(),
            Code::Unavailable,
            "DRAINING",
            "shutting down",
        ),
        (
            Refusal::RateLimited {
                counted: QuotaKind::Requests,
                quota,
                wait: SECOND,
            },
            Code::ResourceExhausted,
            "RATE_LIMITED",
            "quota of 3 requests; the next window begins in 2 s",
        ),
        (
            Refusal::Overloaded {
                retry_after: SECOND,
            },
            Code::Unavailable,
            "OVERLOADED",
            "retry later",
        ),
        (
            Refusal::Stopped,
            Code::Unavailable,
            "DRAINING",
            "may or may not",
        ),
        (
            Refusal::DeadlineExceeded {
                after: SECOND,
                set_by_caller: true,
            },
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
            "within 1s, the timeout in grpc-timeout",
        ),
        (
            Refusal::TimeoutMalformed("1s".into()),
            Code::InvalidArgument,
            "TIMEOUT_MALFORMED",
            "\"1s\"",
        ),
        (
            Refusal::MethodUnknown("/x".into()),
            Code::Unimplemented,
            "METHOD_UNKNOWN",
            "method \"/x\" does not exist",
        ),
        (
            Refusal::Undecodable("why".into()),
            Code::InvalidArgument,
            "MESSAGE_NOT_DECODABLE",
            "why",
        ),
        (
            Refusal::TooManyMessages(7),
            Code::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
            "more than 7",
        ),
    ]
}

#[test]
fn every_refusal_has_its_code_reason_and_text() {
    for (refusal, code, reason, text) in key_refusals().into_iter().chain(call_refusals()) {
        let status = Status::from(refusal);
        let info = status.get_details_error_info().expect("an ErrorInfo");
        assert_eq!(
            (status.code(), info.reason.as_str(), info.domain.as_str()),
            (code, reason, DOMAIN)
        );
        assert!(
            status.message().contains(text),
            "{reason}: {}",
            status.message()
        );
    }
}
