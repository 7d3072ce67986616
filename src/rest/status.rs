//! Errors as HTTP responses, by one exhaustive table of gRPC codes.

use std::time::Duration;

use axum::response::Response;
use http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt};
use utoipa::ToSchema;

use super::call::CallError;
use super::json_reader::CanvasIdName;
use super::responses::{self, PASSED_HEADERS};

/// The HTTP status for a gRPC code.
pub(super) fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound | Code::Unimplemented => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        // Not 503, which clients retry: after UNKNOWN the change may have been made.
        Code::Unknown | Code::Internal | Code::DataLoss | Code::Cancelled => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// The body of every error response.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Refusal)]
pub(super) struct ErrorBody {
    /// Everything that is wrong, in one text.
    message: String,
    /// Everything that is wrong, one by one; absent when it is one thing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
    /// `none` when the schedule has nothing left to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^none$")]
    applied: Option<&'static str>,
}

impl ErrorBody {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            errors: vec![],
            applied: None,
        }
    }
}

/// The response to a call that failed, on a route with this name of `canvas_id`. The first
/// `transport_violations` have paths that use that name already.
pub(super) fn error_response(
    error: CallError,
    canvas_id: CanvasIdName,
    transport_violations: usize,
) -> Response {
    let status = match error {
        CallError::Status(status) => status,
        CallError::Request(error, metadata) => {
            let response = responses::json(error.status, &ErrorBody::new(error.message));
            let response = with_headers(response, &metadata.into_headers());
            return with_retry_after(response, Duration::ZERO);
        }
    };
    let details = status.get_error_details();
    let reason = details.error_info().map_or("", |info| &info.reason);
    let code = if reason == "MESSAGE_TOO_LARGE" {
        StatusCode::PAYLOAD_TOO_LARGE
    } else {
        http_status(status.code())
    };
    let mut errors = violations(&details, canvas_id, transport_violations);
    let message = if errors.is_empty() {
        status.message().to_owned()
    } else {
        joined(&errors, &details)
    };
    if errors.len() < 2 {
        errors.clear();
    }
    let applied = ["NOTHING_LEFT_TO_CHANGE", "SCHEDULE_CANCELLED"]
        .contains(&reason)
        .then_some("none");
    let body = ErrorBody {
        message,
        errors,
        applied,
    };
    let mut response = with_headers(responses::json(code, &body), status.metadata().as_ref());
    if code == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    let wait = details.retry_info().and_then(|info| info.retry_delay);
    with_retry_after(response, wait.unwrap_or_default())
}

/// Adds `Retry-After` to a 503, in whole seconds and at least 1.
fn with_retry_after(mut response: Response, wait: Duration) -> Response {
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
}

fn violations(
    details: &ErrorDetails,
    canvas_id: CanvasIdName,
    transport_violations: usize,
) -> Vec<String> {
    let all = details
        .bad_request()
        .map_or(&[][..], |bad| &bad.field_violations);
    let path = |n, path| {
        if n < transport_violations {
            path
        } else {
            canvas_id.json_name(path)
        }
    };
    all.iter()
        .enumerate()
        .map(|(n, one)| format!("{}: {}", path(n, &*one.field), one.description))
        .collect()
}

/// All errors as one text, with the number of those that did not fit into the status.
fn joined(errors: &[String], details: &ErrorDetails) -> String {
    let text = errors.join("; ");
    let all = details
        .error_info()
        .and_then(|info| info.metadata.get("violations")?.parse::<usize>().ok());
    match all.filter(|all| *all > errors.len()) {
        Some(all) => format!("{text}; and {} more", all - errors.len()),
        None => text,
    }
}

/// Adds the headers of the RPC's response that are meant for the caller.
pub(super) fn with_headers(mut response: Response, from: &HeaderMap) -> Response {
    for name in &PASSED_HEADERS {
        if let Some(value) = from.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_grpc_has_one_of_http() {
        for (code, expected) in [
            (Code::Ok, 200),
            (Code::Cancelled, 500),
            (Code::Unknown, 500),
            (Code::InvalidArgument, 400),
            (Code::DeadlineExceeded, 504),
            (Code::NotFound, 404),
            (Code::AlreadyExists, 409),
            (Code::PermissionDenied, 403),
            (Code::ResourceExhausted, 429),
            (Code::FailedPrecondition, 409),
            (Code::Aborted, 409),
            (Code::OutOfRange, 400),
            (Code::Unimplemented, 404),
            (Code::Internal, 500),
            (Code::Unavailable, 503),
            (Code::DataLoss, 500),
            (Code::Unauthenticated, 401),
        ] {
            assert_eq!(http_status(code).as_u16(), expected, "{code:?}");
        }
    }
}
