//! The time that a call may take: what the caller states in `grpc-timeout`, and for unary calls our own bound too.

use std::pin::Pin;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tokio::time::{Instant, sleep_until};
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{Call, DOMAIN, body, refusal};
use crate::error::quote;

const HEADER: &str = "grpc-timeout";

/// When the call is given up; in the extensions of the request, for handlers to pass on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub Instant);

/// How long a call may take, by whose word.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    after: Duration,
    /// None when it is too far away for an instant.
    at: Option<Instant>,
    stated: bool,
}

/// The bound of `call`, left in the request for its handler too. None for a stream whose caller states none.
pub(super) fn read(
    request: &mut Request<Body>,
    call: &Call,
    max_call: Duration,
) -> Result<Option<Bound>, Status> {
    let stated = timeout(request.headers())?;
    let after = match stated {
        Some(stated) if call.streams() => stated,
        None if call.streams() => return Ok(None),
        Some(stated) => stated.min(max_call),
        None => max_call,
    };
    let at = call.began.checked_add(after);
    if let Some(at) = at {
        request.extensions_mut().insert(Deadline(at));
    }
    Ok(Some(Bound {
        after,
        at,
        stated: stated == Some(after),
    }))
}

/// The answer of `inner`, or DEADLINE_EXCEEDED when the bound passes first. The body of a stream is bounded too.
pub(super) async fn enforce<F>(
    inner: Pin<&mut F>,
    bound: Result<Option<Bound>, Status>,
    call: &Call,
) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    let bound = match bound {
        Ok(Some(bound)) if bound.after.is_zero() => return exceeded(bound).into_http(),
        Ok(Some(bound)) => bound,
        Ok(None) => return inner.await,
        Err(malformed) => return malformed.into_http(),
    };
    let Some(at) = bound.at else {
        return inner.await;
    };
    let response = tokio::select! {
        // The call first: one that need not wait costs no timer.
        biased;
        response = inner => response,
        () = sleep_until(at) => return exceeded(bound).into_http(),
    };
    if !call.streams() || http_body::Body::is_end_stream(response.body()) {
        return response;
    }
    body::end_when(response, async move {
        sleep_until(at).await;
        exceeded(bound)
    })
}

fn exceeded(bound: Bound) -> Status {
    let after = bound.after;
    let whose = if bound.stated {
        "which grpc-timeout allows"
    } else {
        "the longest that a call may take"
    };
    refusal(
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        format!(
            "the call was not finished within {after:?}, {whose}; what it asked for may or may not have been done"
        ),
    )
}

fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(None);
    };
    parse(value.as_bytes())
        .map(Some)
        .ok_or_else(|| malformed(&String::from_utf8_lossy(value.as_bytes())))
}

/// One to eight digits and a unit.
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = digits
        .iter()
        .fold(0_u64, |n, digit| n * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(n * 3600)),
        b'M' => Some(Duration::from_secs(n * 60)),
        b'S' => Some(Duration::from_secs(n)),
        b'm' => Some(Duration::from_millis(n)),
        b'u' => Some(Duration::from_micros(n)),
        b'n' => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

fn malformed(value: &str) -> Status {
    let wrong = format!(
        "{} is no timeout; it must be one to eight digits and a unit (H hours, M minutes, S seconds, m milliseconds, u microseconds, n nanoseconds), as in 500m",
        quote(value)
    );
    let message = format!("{HEADER}: {wrong}");
    let mut details = ErrorDetails::with_error_info("TIMEOUT_MALFORMED", DOMAIN, []);
    details.add_bad_request_violation(HEADER, wrong);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

#[cfg(test)]
#[path = "deadline_tests.rs"]
mod tests;
