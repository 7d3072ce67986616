//! The stack that every call passes, from the network and in process alike. Outermost first: trace, in flight, details, panic,
//! drain, deadline, auth, limit, weight. Each layer is a function from the future of the call within to the answer, so a call costs one allocation.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tower::{Service, ServiceExt};

use self::auth::Authenticator;
use self::concurrency_limit::{ConcurrencyLimit, HealthChecks};
use self::drain::Phase;
use self::measure::CallDurations;
pub use self::settings::CallSettings;
use self::unsent::UnsentResponses;
use crate::error::Error;
use crate::telemetry::traces::{Span, Traces};

mod address;
pub mod auth;
mod body;
pub mod body_limit;
pub mod concurrency_limit;
pub mod deadline;
pub mod drain;
pub mod error_details;
pub mod measure;
pub mod panic;
pub mod rate_limit;
mod settings;
pub mod trace;
pub mod unsent;
pub mod violations;

/// The domain of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "canvas-scheduler";

/// What the layers need to know of the process.
#[derive(Clone)]
pub struct Stack {
    /// Where the process stands. Keep the sender: once it is dropped, calls that wait are ended as in [`Phase::Ending`].
    pub phase: watch::Receiver<Phase>,
    /// The longest that a unary call may take.
    pub max_call: Duration,
    /// How many calls may be under way.
    pub in_flight: ConcurrencyLimit,
    /// Who is let in.
    pub authenticator: Authenticator,
    /// Where it is told how long calls take.
    pub durations: CallDurations,
    /// Where it is told which way they took.
    pub traces: Traces,
}

impl Stack {
    /// `inner` within the layers.
    pub fn wrap<S>(self, inner: S) -> Layered<S> {
        Layered {
            inner,
            stack: Arc::new(self),
        }
    }
}

/// A service within the layers; what a server serves and what a generated client takes in place of a channel.
#[derive(Clone)]
pub struct Layered<S> {
    inner: S,
    stack: Arc<Stack>,
}

impl<S> Service<Request<Body>> for Layered<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The call itself waits until the service within is ready, so that the deadline bounds that too.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (inner, stack) = (self.inner.clone(), self.stack.clone());
        Box::pin(async move {
            let call = Call::of(&request, &stack.traces);
            let place = match stack.in_flight.enter(&call) {
                Ok(place) => place,
                Err(shed) => {
                    return Ok(trace::record(pin!(async { shed.refusal() }), &call, &stack).await);
                }
            };
            let bound = deadline::read(&mut request, &call, stack.max_call);
            // Each future is pinned once and the layers borrow it: passing them on by value would double their size each time.
            let mut handled = pin!(async {
                let count = match admit(&mut request, &call, &stack.authenticator).await {
                    Ok(count) => count,
                    Err(refused) => return refused.into_http(),
                };
                let weight = body_limit::count_body(&mut request, &call, &stack.in_flight);
                let Ok(mut response) = inner.oneshot(request).await;
                body_limit::mark_overloaded(&mut response, weight, &stack.in_flight);
                rate_limit::add_headers(&mut response, &count).await;
                response
            });
            let mut bounded = pin!(deadline::enforce(handled.as_mut(), bound, &call));
            let mut drained = pin!(drain::heed(bounded.as_mut(), &stack.phase, &call));
            let mut caught = pin!(panic::catch(drained.as_mut()));
            let mut detailed = pin!(error_details::complete(caught.as_mut(), &call));
            let response = trace::record(detailed.as_mut(), &call, &stack).await;
            // The work of a unary call is done; a stream is under way until it ends.
            let place = place.filter(|_| call.streams());
            Ok(unsent::track(response, place, call.unsent.as_ref()))
        })
    }
}

/// Whether the call may be made: by whom, and how often.
async fn admit(
    request: &mut Request<Body>,
    call: &Call,
    authenticator: &Authenticator,
) -> Result<rate_limit::Charged, Status> {
    let held = auth::admit(request, call, authenticator).await?;
    rate_limit::charge(request, call, held, authenticator).await
}

/// What kind of call a path stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One request, one answer.
    Unary,
    /// The answer goes on: `Health/Watch`, reflection, and whatever is not known to be unary.
    Stream,
    /// A unary health call, which is never refused for what others do.
    Health,
}

/// What the layers know of a call.
#[derive(Debug, Clone)]
struct Call {
    uri: Uri,
    kind: Kind,
    began: Instant,
    peer: Option<SocketAddr>,
    /// Where an answer counts until it is sent; none of a stream, which may take its time.
    unsent: Option<Arc<UnsentResponses>>,
    /// Among which a health check counts.
    checks: Option<HealthChecks>,
    /// Of its trace; of a stream, or of a health check, there is none.
    span: Span,
}

impl Call {
    fn of(request: &Request<Body>, traces: &Traces) -> Self {
        let peer = request
            .extensions()
            .get::<TcpConnectInfo>()
            .and_then(TcpConnectInfo::remote_addr);
        let kind = kind_of(request.uri().path());
        let unsent = request
            .extensions()
            .get::<Arc<UnsentResponses>>()
            .filter(|_| kind != Kind::Stream)
            .cloned();
        let checks = request
            .extensions()
            .get::<HealthChecks>()
            .filter(|_| kind == Kind::Health)
            .cloned();
        let span = if kind == Kind::Unary {
            traces.call_span(measure::method_of(request.uri().path()), request.headers())
        } else {
            Span::default()
        };
        Self {
            uri: request.uri().clone(),
            kind,
            began: Instant::now(),
            peer,
            unsent,
            checks,
            span,
        }
    }

    fn streams(&self) -> bool {
        self.kind == Kind::Stream
    }
}

fn kind_of(path: &str) -> Kind {
    if path.starts_with("/canvas.schedule.v1.") {
        Kind::Unary
    } else if path.starts_with("/grpc.health.v1.Health/") && !path.ends_with("/Watch") {
        Kind::Health
    } else {
        Kind::Stream
    }
}

/// A status with its `ErrorInfo`.
fn refusal(code: Code, reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(
        code,
        message,
        ErrorDetails::with_error_info(reason, DOMAIN, []),
    )
}

/// A refusal of a call that nothing was begun of, as the handlers would have it.
fn unavailable(error: &Error) -> Status {
    let (Error::Busy { retry_after } | Error::StoreUnavailable { retry_after }) = error else {
        // Nothing else comes up before a handler, but for a fault of ours; its cause is for the log.
        tracing::error!(?error, "a call could not be admitted");
        return refusal(Code::Internal, "INTERNAL", "internal error");
    };
    let reason = if matches!(error, Error::Busy { .. }) {
        "BUSY"
    } else {
        "STORE_UNAVAILABLE"
    };
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, []);
    details.set_retry_info(Some(*retry_after));
    Status::with_error_details(Code::Unavailable, error.to_string(), details)
}

/// The name of a code as the gRPC documents write it.
fn name_of(code: Code) -> &'static str {
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
pub(crate) mod support;
#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
