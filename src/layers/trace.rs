//! A request id for every call, and one line in the log and one duration in the metrics when it ends; its span ends then too.

use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Response, Uri};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};

use super::concurrency_limit::Overloaded;
use super::{Call, Stack, body, name_of};
use crate::telemetry::traces::Span;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Starts anywhere, so that two processes hardly ever use the same ids.
static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(0)));

tokio::task_local! {
    static REQUEST_ID: u64;
}

/// The id of the call that this code runs for, 16 hex digits. None outside of a call, and in a task that a call has spawned.
pub fn current_request_id() -> Option<String> {
    REQUEST_ID.try_with(|id| format!("{id:016x}")).ok()
}

/// The answer of `inner` with its id in `x-request-id`; logged when the answer, or its body if that streams, has ended.
pub(super) async fn record<F>(inner: Pin<&mut F>, call: &Call, stack: &Arc<Stack>) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let (uri, streams, stack) = (call.uri.clone(), call.streams(), stack.clone());
    let (began, peer, span) = (call.began, call.peer, call.span.clone());
    let mut line = CallRecord {
        uri,
        streams,
        began,
        peer,
        id,
        stack,
        span,
        shed: false,
        written: false,
    };
    let mut response = REQUEST_ID.scope(id, inner).await;
    if let Ok(id) = HeaderValue::try_from(format!("{id:016x}")) {
        response.headers_mut().insert(HEADER, id);
    }
    if !call.streams() || http_body::Body::is_end_stream(response.body()) {
        let cause = response
            .extensions()
            .get::<Status>()
            .and_then(Error::source);
        line.shed = response.extensions().get::<Overloaded>().is_some();
        if line.shed {
            line.stack.authenticator.calls.count_shed(line.streams);
        }
        line.write(code_of(response.headers()), cause);
        return response;
    }
    body::see_trailers(response, move |trailers| {
        line.write(code_of(trailers), None)
    })
}

fn code_of(headers: &HeaderMap) -> Code {
    headers
        .get(Status::GRPC_STATUS)
        .map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

/// The end of one call; written as CANCELLED when the call is dropped before it has ended.
struct CallRecord {
    uri: Uri,
    streams: bool,
    began: Instant,
    peer: Option<SocketAddr>,
    id: u64,
    stack: Arc<Stack>,
    span: Span,
    /// Refused before anything was done; logged elsewhere, once for many.
    shed: bool,
    written: bool,
}

impl CallRecord {
    /// `cause` is what an operator may read and the caller may not: the source of the [`Status`] that a handler answered.
    fn write(&mut self, code: Code, cause: Option<&(dyn Error + 'static)>) {
        self.written = true;
        self.stack
            .durations
            .ended(self.uri.path(), code, self.began.elapsed());
        end(&self.span, code);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    method = self.uri.path().trim_start_matches('/'),
                    code = name_of(code),
                    // To the microsecond.
                    duration_ms = (self.began.elapsed().as_secs_f64() * 1e6).round() / 1e3,
                    request_id = format_args!("{:016x}", self.id),
                    peer = self.peer.map(tracing::field::display),
                    cause = cause.map(tracing::field::display),
                    "call ended"
                )
            };
        }
        match code {
            Code::Internal | Code::Unknown | Code::DataLoss => line!(error),
            // That a stream ends at its deadline or when we stop is its ordinary end.
            Code::Unavailable | Code::DeadlineExceeded if self.streams || self.shed => line!(debug),
            Code::Unavailable | Code::DeadlineExceeded => line!(warn),
            Code::Ok
            | Code::Cancelled
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            // One caller's, and perhaps very many.
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => line!(debug),
        }
    }
}

/// Ends the span of a call: as a failure where the fault is the server's, as OpenTelemetry's conventions have it.
fn end(span: &Span, code: Code) {
    span.set("rpc.response.status_code", || name_of(code));
    if matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    ) {
        span.fail(name_of(code));
    }
    span.end();
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        if !self.written {
            self.write(Code::Cancelled, None);
        }
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
