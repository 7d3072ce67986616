//! Refusals as HTTP: one exhaustive table of gRPC's codes.

use std::time::Duration;

use axum::response::Response;
use http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt};
use utoipa::ToSchema;

use super::answer::{self, MESSAGE_HEADERS};
use super::call::Refused;
use super::read::Naming;

/// The code of HTTP for one of gRPC.
pub(super) fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound | Code::Unimplemented => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        // Not 503, which clients repeat: what UNKNOWN stands for may have been done.
        Code::Unknown | Code::Internal | Code::DataLoss | Code::Cancelled => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// The body of every refusal.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Refusal {
    /// Everything that is wrong, in one text.
    pub message: String,
    /// The same one by one, when there is more than one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// `none` when nothing of a schedule was left to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^none$")]
    pub applied: Option<&'static str>,
}

impl Refusal {
    /// A refusal with one thing to tell.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            errors: vec![],
            applied: None,
        }
    }
}

/// A refusal as callers of a path with this naming get it. The first `found` violations name fields as the caller wrote them.
pub(super) fn refusal(refused: Refused, naming: Naming, found: usize) -> Response {
    let status = match refused {
        Refused::Status(status) => status,
        Refused::Fault(fault, metadata) => {
            let response = with_headers(
                answer::json(fault.status, &Refusal::new(fault.message)),
                &metadata.into_headers(),
            );
            return when_again(response, Duration::ZERO);
        }
    };
    let details = status.get_error_details();
    let reason = details.error_info().map_or("", |info| &info.reason);
    let code = if reason == "MESSAGE_TOO_LARGE" {
        StatusCode::PAYLOAD_TOO_LARGE
    } else {
        http_status(status.code())
    };
    let mut errors = violations(&details, naming, found);
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
    let mut response = with_headers(
        answer::json(
            code,
            &Refusal {
                message,
                errors,
                applied,
            },
        ),
        status.metadata().as_ref(),
    );
    if code == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    when_again(
        response,
        details
            .retry_info()
            .and_then(|info| info.retry_delay)
            .unwrap_or_default(),
    )
}

/// A refusal that may be repeated says when: in whole seconds, and never at once.
fn when_again(mut response: Response, wait: Duration) -> Response {
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(
            RETRY_AFTER,
            HeaderValue::from((wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)),
        );
    }
    response
}

fn violations(details: &ErrorDetails, naming: Naming, found: usize) -> Vec<String> {
    let all = details
        .bad_request()
        .map_or(&[][..], |bad| &bad.field_violations);
    let field = |n, path| {
        if n < found {
            path
        } else {
            naming.outer_path(path)
        }
    };
    all.iter()
        .enumerate()
        .map(|(n, one)| format!("{}: {}", field(n, &*one.field), one.description))
        .collect()
}

/// One text of all, and of how many more there are.
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

/// `response` with the headers of the call's answer that are meant for the caller.
pub(super) fn with_headers(mut response: Response, from: &HeaderMap) -> Response {
    for name in &MESSAGE_HEADERS {
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
