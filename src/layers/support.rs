//! A stack around handlers that the tests write in place.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::{ServiceExt, service_fn};

use super::auth::Authenticator;
use super::body_limit::BodyLimit;
use super::concurrency_limit::{ConcurrencyLimit, HealthChecks};
use super::measure::CallDurations;
use super::unsent::ProcessUnsent;
use super::{Phase, Stack};
use crate::clock::{Clock, SystemClock};
use crate::domain::key::RANDOM_BYTES;
use crate::domain::{ApiKey, NewKey};
use crate::service::access::Access;
use crate::status::DOMAIN;
use crate::telemetry::metrics::CallMetrics;
use crate::telemetry::traces::Traces;

pub(crate) const UNARY: &str = "/canvas.schedule.v1.CanvasScheduleService/GetCanvasSchedule";
pub(crate) const STREAM: &str = "/grpc.health.v1.Health/Watch";
pub(crate) const CHECK: &str = "/grpc.health.v1.Health/Check";

pub(crate) struct TestServer {
    stack: Stack,
    begin: mpsc::UnboundedSender<()>,
    begins: mpsc::UnboundedReceiver<()>,
    _phase: Option<watch::Sender<Phase>>,
}

impl TestServer {
    pub(crate) fn of(stack: Stack) -> Self {
        let (begin, begins) = mpsc::unbounded_channel();
        Self {
            stack,
            begin,
            begins,
            _phase: None,
        }
    }

    /// CallMetrics `path`, which `handler` answers.
    pub(crate) async fn call(
        &mut self,
        path: &str,
        handler: impl Future<Output = Response<Body>> + Send + 'static,
    ) -> Response<Body> {
        pass(self.stack.clone(), request(path), |_| handler).await
    }

    /// As [`Self::call`], in a task.
    pub(crate) fn start(
        &self,
        path: &str,
        handler: impl Future<Output = Response<Body>> + Send + 'static,
    ) -> JoinHandle<Response<Body>> {
        let begin = self.begin.clone();
        tokio::spawn(pass(self.stack.clone(), request(path), |_| async move {
            begin.send(()).expect("the test waits");
            handler.await
        }))
    }

    /// Asks for the health over the connection that these checks are of.
    pub(crate) fn check_over<F>(
        &self,
        checks: &HealthChecks,
        handler: F,
    ) -> impl Future<Output = Response<Body>> + use<F>
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let mut request = request(CHECK);
        request.extensions_mut().insert(checks.clone());
        pass(self.stack.clone(), request, |_| handler)
    }

    /// Returns once a call that was started has reached its handler.
    pub(crate) async fn begun(&mut self) {
        self.begins.recv().await.expect("a handler");
    }
}

impl Default for TestServer {
    fn default() -> Self {
        let (sender, phase) = watch::channel(Phase::Serving);
        Self {
            _phase: Some(sender),
            ..Self::of(Stack::new(phase))
        }
    }
}

impl Stack {
    /// A stack with a bound of 60 s for a unary call, and the one key that [`request`] states.
    pub fn new(phase: watch::Receiver<Phase>) -> Self {
        let access = Access::of_keys(
            vec![ApiKey::of_tests(&key(), SystemClock.now())],
            Arc::new(SystemClock),
        );
        Self {
            phase,
            max_call: Duration::from_secs(60),
            concurrency: ConcurrencyLimit::new(1_000),
            bodies: BodyLimit::new(usize::MAX),
            unsent: ProcessUnsent::default(),
            authenticator: Authenticator {
                access,
                trusted_proxies: [].into(),
                clock: Arc::new(SystemClock),
                calls: CallMetrics::default(),
            },
            durations: CallDurations::new(CallMetrics::default()),
            traces: Traces::default(),
        }
    }
}

fn key() -> NewKey {
    NewKey::from_random(&[7; RANDOM_BYTES])
}

/// `request` through `stack` to `handler`.
pub(crate) async fn pass<H, F>(stack: Stack, request: Request<Body>, handler: H) -> Response<Body>
where
    H: FnOnce(Request<Body>) -> F + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let handler = Arc::new(Mutex::new(Some(handler)));
    let service = service_fn(move |request| {
        let handler = handler.lock().take().expect("called once");
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let Ok(response) = stack.wrap(service).oneshot(request).await;
    response
}

pub(crate) fn request(path: &str) -> Request<Body> {
    let request =
        Request::post(format!("http://host{path}")).header("content-type", "application/grpc");
    request
        .header("authorization", format!("Bearer {}", key().reveal()))
        .body(Body::empty())
        .expect("a request")
}

/// A successful answer without a message.
pub(crate) fn done() -> Response<Body> {
    Status::ok("").into_http()
}

/// A body that says nothing and does not end.
pub(crate) fn endless() -> Body {
    struct Endless;
    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Status;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
            std::task::Poll::Pending
        }
    }
    Body::new(Endless)
}

/// The code and the reason in the headers of `response`.
pub(crate) fn verdict(response: &Response<Body>) -> (Code, String) {
    verdict_of(response.headers())
}

/// The code and the reason at the end of the body of `response`.
pub(crate) async fn verdict_of_stream(response: Response<Body>) -> (Code, String) {
    let ended = response.into_body().collect().await.expect("a body");
    verdict_of(ended.trailers().expect("trailers"))
}

fn verdict_of(headers: &HeaderMap) -> (Code, String) {
    let Some(status) = Status::from_header_map(headers) else {
        return (Code::Ok, String::new());
    };
    let reason = status.get_details_error_info().map(|info| {
        assert_eq!(info.domain, DOMAIN);
        info.reason
    });
    (status.code(), reason.unwrap_or_default())
}
