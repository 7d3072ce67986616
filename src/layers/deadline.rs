//! The time that a call may take: the caller's `grpc-timeout`, and the maximum of the process for
//! unary calls.

use std::pin::Pin;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tonic::body::Body;

use super::{Call, body};
use crate::status::{Refusal, TIMEOUT_HEADER};

/// The latest end of the call; in the extensions of the request, for its handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(pub Instant);

/// The time limit of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeLimit {
    after: Duration,
    /// Absent when it is too far away for an instant.
    at: Option<Instant>,
    /// Whether the caller set it.
    set_by_caller: bool,
}

/// The time limit of `call`, put into the request for its handler too. Absent for a stream whose
/// caller sets none.
pub(super) fn read(
    request: &mut Request<Body>,
    call: &Call,
    max_call: Duration,
) -> Result<Option<TimeLimit>, Refusal> {
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
    Ok(Some(TimeLimit {
        after,
        at,
        set_by_caller: stated == Some(after),
    }))
}

/// The response of `inner`, or DEADLINE_EXCEEDED when the time limit passes first. It holds for the
/// body of a stream too.
pub(super) async fn enforce<F>(
    inner: Pin<&mut F>,
    limit: Result<Option<TimeLimit>, Refusal>,
    call: &Call,
) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    let limit = match limit {
        Ok(Some(limit)) if limit.after.is_zero() => return exceeded(limit).into_http(),
        Ok(Some(limit)) => limit,
        Ok(None) => return inner.await,
        Err(malformed) => return Status::from(malformed).into_http(),
    };
    let Some(at) = limit.at else {
        return inner.await;
    };
    let response = tokio::select! {
        // The call first: a call that does not wait costs no timer.
        biased;
        response = inner => response,
        () = sleep_until(at) => return exceeded(limit).into_http(),
    };
    if !call.streams() || http_body::Body::is_end_stream(response.body()) {
        return response;
    }
    body::end_when(response, async move {
        sleep_until(at).await;
        exceeded(limit)
    })
}

fn exceeded(limit: TimeLimit) -> Status {
    let TimeLimit {
        after,
        set_by_caller,
        ..
    } = limit;
    Refusal::DeadlineExceeded {
        after,
        set_by_caller,
    }
    .into()
}

fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let Some(value) = headers.get(TIMEOUT_HEADER) else {
        return Ok(None);
    };
    parse(value.as_bytes()).map(Some).ok_or_else(|| {
        Refusal::TimeoutMalformed(String::from_utf8_lossy(value.as_bytes()).into_owned())
    })
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

#[cfg(test)]
#[path = "deadline_tests.rs"]
mod tests;
