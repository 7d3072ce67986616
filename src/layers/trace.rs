//! A request id for each call. When the call ends, one log line, one duration in the metrics, and
//! the end of its span.

use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Response, Uri};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};

use super::overload::Overloaded;
use super::{Call, Stack, body};
use crate::methods::RpcMethod;
use crate::status::{code_name, with_request_id};
use crate::telemetry::traces::Span;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The response of `inner` with the request id in `x-request-id`. The call is logged when the
/// response, or its body if that streams, has ended.
pub(super) async fn record<F>(inner: Pin<&mut F>, call: &Call, stack: &Arc<Stack>) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    let id = fastrand::u64(..);
    let mut record = CallRecord {
        uri: call.uri.clone(),
        method: call.method,
        streams: call.streams(),
        began: call.began,
        peer: call.peer,
        id,
        stack: stack.clone(),
        span: call.span.clone(),
        overloaded: false,
        written: false,
    };
    let mut response = with_request_id(id, inner).await;
    if let Ok(id) = HeaderValue::try_from(format!("{id:016x}")) {
        response.headers_mut().insert(HEADER, id);
    }
    if !call.streams() || http_body::Body::is_end_stream(response.body()) {
        let cause = response
            .extensions()
            .get::<Status>()
            .and_then(Error::source);
        record.overloaded = response.extensions().get::<Overloaded>().is_some();
        if record.overloaded {
            stack.authenticator.calls.count_shed(record.streams);
        }
        record.write(code_of(response.headers()), cause);
        return response;
    }
    body::see_trailers(response, move |trailers| {
        record.write(code_of(trailers), None)
    })
}

fn code_of(headers: &HeaderMap) -> Code {
    headers
        .get(Status::GRPC_STATUS)
        .map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

/// The log line and the metrics of one call. A call that is dropped before it has ended is recorded
/// as CANCELLED.
struct CallRecord {
    uri: Uri,
    method: Option<&'static RpcMethod>,
    streams: bool,
    began: Instant,
    peer: Option<SocketAddr>,
    id: u64,
    stack: Arc<Stack>,
    span: Span,
    /// Refused because too much is in flight; logged by the limit, once for many.
    overloaded: bool,
    written: bool,
}

impl CallRecord {
    /// `cause` is the source of the [`Status`] that a handler answered, which only the log shows.
    fn write(&mut self, code: Code, cause: Option<&(dyn Error + 'static)>) {
        self.written = true;
        self.stack
            .durations
            .record(self.method, code, self.began.elapsed());
        end(&self.span, code);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    method = self.uri.path().trim_start_matches('/'),
                    code = code_name(code),
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
            // A stream usually ends at its deadline or when the process stops.
            Code::Unavailable | Code::DeadlineExceeded if self.streams || self.overloaded => {
                line!(debug)
            }
            Code::Unavailable | Code::DeadlineExceeded => line!(warn),
            Code::Ok
            | Code::Cancelled
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            // One caller can cause very many.
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => line!(debug),
        }
    }
}

/// Ends the span of a call, as failed when the server is at fault, following OpenTelemetry's
/// conventions.
fn end(span: &Span, code: Code) {
    span.set("rpc.response.status_code", || code_name(code));
    if matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    ) {
        span.fail(code_name(code));
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
