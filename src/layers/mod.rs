//! The layers that every call passes, from the network and in process. From the outermost: trace,
//! concurrency limit, error details, panic, drain, deadline, authentication, rate limit, body
//! limit. Each layer is a function from the future of the inner call to the response, so a call
//! costs one allocation.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::TcpConnectInfo;
use tower::{Service, ServiceExt};

use self::auth::Authenticator;
use self::body_limit::BodyLimit;
use self::concurrency_limit::{ConcurrencyLimit, HealthChecks};
use self::drain::Phase;
use self::measure::CallDurations;
pub use self::settings::CallSettings;
use self::unsent::{ProcessUnsent, UnsentResponses};
use crate::methods::{self, MethodKind, RpcMethod, UNKNOWN_METHOD};
use crate::status::Refusal;
use crate::telemetry::traces::{Span, Traces};

mod address;
pub mod auth;
mod body;
pub mod body_limit;
pub mod concurrency_limit;
pub mod deadline;
pub mod drain;
mod error_details;
pub mod measure;
mod overload;
mod panic;
pub mod rate_limit;
mod settings;
mod trace;
pub mod unsent;
pub mod violations;

/// The parts that the layers share. Two servers in one process have a stack each.
#[derive(Clone)]
pub struct Stack {
    /// The phase of the process. Keep the sender: dropping it ends the calls that wait, as
    /// [`Phase::Ending`] does.
    pub phase: watch::Receiver<Phase>,
    /// The longest that a unary call may take.
    pub max_call: Duration,
    /// Limits the calls in flight.
    pub concurrency: ConcurrencyLimit,
    /// Limits the bytes of the requests in flight.
    pub bodies: BodyLimit,
    /// Counts the responses of all connections that are not sent yet.
    pub unsent: ProcessUnsent,
    /// Authenticates callers.
    pub authenticator: Authenticator,
    /// Metrics of call durations.
    pub durations: CallDurations,
    /// Traces of calls.
    pub traces: Traces,
}

impl Stack {
    /// Puts the layers around `inner`.
    pub fn wrap<S>(self, inner: S) -> Layered<S> {
        Layered {
            inner,
            stack: Arc::new(self),
        }
    }
}

/// A service inside the layers: what a server serves, and what a generated client takes instead of
/// a channel.
#[derive(Clone)]
pub struct Layered<S> {
    inner: S,
    stack: Arc<Stack>,
}

impl<S> Layered<S> {
    /// The stack around the service.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }
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
        // The call itself waits for the inner service, so that the deadline bounds that too.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (inner, stack) = (self.inner.clone(), self.stack.clone());
        Box::pin(async move {
            let call = Call::new(&request, &stack.traces);
            let permit = match stack.concurrency.enter(&call) {
                Ok(permit) => permit,
                Err(overloaded) => {
                    let refused = pin!(async { overloaded.response() });
                    return Ok(trace::record(refused, &call, &stack).await);
                }
            };
            let limit = deadline::read(&mut request, &call, stack.max_call);
            // Each future is pinned once and borrowed by the layers: moving it would double its
            // size at each layer.
            let mut handled = pin!(async {
                let charged = match admit(&mut request, &call, &stack.authenticator).await {
                    Ok(charged) => charged,
                    Err(refusal) => return Status::from(refusal).into_http(),
                };
                let bytes = body_limit::count_request(&mut request, &call, &stack.bodies);
                let Ok(mut response) = inner.oneshot(request).await;
                body_limit::mark_overloaded(&mut response, bytes, &stack.bodies);
                rate_limit::add_headers(&mut response, &charged).await;
                response
            });
            let mut limited = pin!(deadline::enforce(handled.as_mut(), limit, &call));
            let mut drained = pin!(drain::enforce(limited.as_mut(), &stack.phase, &call));
            let mut caught = pin!(panic::catch(drained.as_mut()));
            let mut detailed = pin!(error_details::complete(caught.as_mut(), &call));
            let response = trace::record(detailed.as_mut(), &call, &stack).await;
            // The work of a unary call is done; a stream is in flight until it ends.
            let permit = permit.filter(|_| call.streams());
            Ok(unsent::track(response, permit, call.unsent.as_ref()))
        })
    }
}

/// Authenticates the caller and counts the call against the quota of its workspace.
async fn admit(
    request: &mut Request<Body>,
    call: &Call,
    authenticator: &Authenticator,
) -> Result<rate_limit::Charged, Refusal> {
    let key = auth::authenticate(request, call, authenticator).await?;
    rate_limit::charge(request, call, key, authenticator).await
}

/// A call as the layers see it.
#[derive(Debug, Clone)]
struct Call {
    uri: Uri,
    /// Absent when no method has the path.
    method: Option<&'static RpcMethod>,
    kind: MethodKind,
    began: Instant,
    peer: Option<SocketAddr>,
    /// Counts the response until it is sent; absent for a stream, which may take its time.
    unsent: Option<Arc<UnsentResponses>>,
    /// The health checks of the connection; absent unless this is one.
    checks: Option<HealthChecks>,
    /// The span of the trace; empty for a stream and for a health check.
    span: Span,
}

impl Call {
    fn new(request: &Request<Body>, traces: &Traces) -> Self {
        let extensions = request.extensions();
        let peer = extensions
            .get::<TcpConnectInfo>()
            .and_then(TcpConnectInfo::remote_addr);
        let method = methods::find(request.uri().path());
        let kind = methods::kind_of(request.uri().path());
        let unsent = extensions
            .get::<Arc<UnsentResponses>>()
            .filter(|_| kind != MethodKind::Stream)
            .cloned();
        let checks = extensions
            .get::<HealthChecks>()
            .filter(|_| kind == MethodKind::Health)
            .cloned();
        let span = if kind == MethodKind::Unary {
            let name = method.map_or(UNKNOWN_METHOD, RpcMethod::name);
            traces.call_span(name, request.headers())
        } else {
            Span::default()
        };
        Self {
            uri: request.uri().clone(),
            method,
            kind,
            began: Instant::now(),
            peer,
            unsent,
            checks,
            span,
        }
    }

    fn streams(&self) -> bool {
        self.kind == MethodKind::Stream
    }
}

#[cfg(test)]
pub(crate) mod support;
#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
