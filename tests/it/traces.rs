//! Traces in a collector: an update from its caller to its commit, and a dispatch from its claim to
//! its consumer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use canvas_scheduler::config::Secret;
use canvas_scheduler::pb::v1::canvas_trigger_service_server::{
    CanvasTriggerService, CanvasTriggerServiceServer,
};
use canvas_scheduler::pb::v1::{TriggerCanvasRequest, TriggerCanvasResponse};
use canvas_scheduler::sink::{SinkEndpoint, SinkSettings};
use canvas_scheduler::telemetry::CollectorSettings;
use canvas_scheduler::telemetry::traces::Traces;
use chrono::TimeDelta;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};

use crate::sinks::tls;
use crate::support::*;

on_both![one_update_and_one_dispatch_are_each_one_trace];

const CALLER: (&str, &str) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
const NOT_SAMPLED: (&str, &str) = ("1bf7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");

/// A collector that keeps every span.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let spans = resources
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans);
        self.0.lock().expect("no panic").extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// The only span of a trace with this name.
    fn span(&self, trace: &str, name: &str) -> Span {
        let spans = self.0.lock().expect("no panic");
        let mut found = spans
            .iter()
            .filter(|span| hex(&span.trace_id) == trace && span.name == name);
        let span = found
            .next()
            .unwrap_or_else(|| panic!("{name} of {trace} in {spans:#?}"))
            .clone();
        assert!(found.next().is_none(), "{name} is there twice");
        span
    }
}

/// A consumer that accepts everything, and reports the trace of each call.
struct Engine(mpsc::UnboundedSender<String>);

#[tonic::async_trait]
impl CanvasTriggerService for Engine {
    async fn trigger_canvas(
        &self,
        request: Request<TriggerCanvasRequest>,
    ) -> Result<Response<TriggerCanvasResponse>, Status> {
        let traceparent = request
            .metadata()
            .get("traceparent")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        self.0.send(traceparent.to_owned()).expect("the test waits");
        Ok(Response::new(TriggerCanvasResponse {}))
    }
}

async fn listener() -> (TcpIncoming, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    (TcpIncoming::from(listener), url)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, name: &str) -> String {
    let found = span
        .attributes
        .iter()
        .find(|one| one.key == name)
        .and_then(|one| one.value.clone()?.value);
    match found {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{name}: {other:?} in {span:#?}"),
    }
}

/// A request within a trace.
fn within<T>(message: T, (trace, span): (&str, &str), sampled: bool) -> Request<T> {
    let mut request = Request::new(message);
    let traceparent = format!("00-{trace}-{span}-0{}", u8::from(sampled));
    request
        .metadata_mut()
        .insert("traceparent", traceparent.parse().expect("ASCII"));
    request
}

async fn one_update_and_one_dispatch_are_each_one_trace(database: &Database) {
    let (collector, (incoming, url)) = (Collector::default(), listener().await);
    tokio::spawn(
        Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(incoming),
    );
    let (endpoint, mut dispatches) = start_engine().await;
    let app = TestApp::start_with(database, |settings| {
        settings.collector = Some(collector_at(&url, None));
        settings.sink = Some(SinkSettings::Grpc {
            endpoint,
            token: None,
            connections: 1,
        });
    })
    .await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let mut client = app.client();
    let update = |time| update(&schedule, at(time));
    client
        .update_canvas_schedule(within(update("2026-03-01T12:00:05Z"), CALLER, true))
        .await
        .expect("updated");
    client
        .update_canvas_schedule(within(update("2026-03-01T12:00:05Z"), NOT_SAMPLED, false))
        .await
        .expect("updated");
    let mut stale = update("2026-03-01T12:00:05Z");
    stale.etag = schedule.etag.clone();
    let refused = client
        .update_canvas_schedule(within(
            stale,
            ("2cf7651916cd43dd8448eb211c80319c", CALLER.1),
            true,
        ))
        .await;
    assert_eq!(refused.expect_err("stale").code(), Code::Aborted);
    app.clock.advance(TimeDelta::seconds(6));
    let traceparent = soon(dispatches.recv()).await.expect("a dispatch");
    app.stop().await;

    assert_update_traced(&collector);
    assert_dispatch_traced(&collector, &traceparent);
    let spans = collector.0.lock().expect("no panic");
    assert!(
        spans
            .iter()
            .all(|span| hex(&span.trace_id) != NOT_SAMPLED.0),
        "an unsampled call must not be sampled"
    );
}

fn collector_at(url: &str, ca: Option<Vec<u8>>) -> CollectorSettings {
    CollectorSettings {
        url: Secret(url.parse().expect("a URL")),
        ca,
    }
}

/// A collector that reports the name of each span.
#[derive(Clone)]
struct SpanNames(mpsc::UnboundedSender<String>);

#[tonic::async_trait]
impl TraceService for SpanNames {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        for span in scopes.flat_map(|scope| scope.spans) {
            self.0.send(span.name).expect("the test waits");
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Serves a collector over TLS, on any number of connections.
async fn serve_over_tls(listener: TcpListener, acceptor: TlsAcceptor, collector: SpanNames) {
    while let Ok((stream, _)) = listener.accept().await {
        let service = TraceServiceServer::new(collector.clone());
        let routes = tonic::service::Routes::new(service).prepare();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let stream = acceptor.accept(stream).await.ok()?;
            let service = hyper_util::service::TowerToHyperService::new(routes);
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await
                .ok()
        });
    }
}

#[tokio::test]
async fn traces_reach_a_collector_over_tls_if_its_certificate_is_trusted() {
    let (ca, acceptor) = tls::certificate(&["h2"]);
    let (other_ca, _) = tls::certificate(&["h2"]);
    for (ca, trusted) in [(ca, true), (other_ca, false)] {
        let (names, mut received) = mpsc::unbounded_channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        tokio::spawn(serve_over_tls(listener, acceptor.clone(), SpanNames(names)));
        let traces = Traces::export_to(&collector_at(&url, Some(ca))).expect("a collector");
        traces.root_span("over-tls", traces.now()).end();
        if trusted {
            assert_eq!(soon(received.recv()).await.as_deref(), Some("over-tls"));
        }
        // Ends once an export has succeeded or failed.
        traces.flush().await;
        assert!(received.try_recv().is_err(), "no other span");
    }
    let invalid = Traces::export_to(&collector_at(
        "https://127.0.0.1:1",
        Some(b"no PEM".to_vec()),
    ));
    let error = invalid.err().expect("a file without certificates");
    assert!(error.contains("OTEL_EXPORTER_OTLP_CERTIFICATE"), "{error}");
}

/// Starts a consumer. Returns its endpoint and the traces of the dispatches that it receives.
async fn start_engine() -> (SinkEndpoint, mpsc::UnboundedReceiver<String>) {
    let ((sender, dispatches), (incoming, url)) = (mpsc::unbounded_channel(), listener().await);
    tokio::spawn(
        Server::builder()
            .add_service(CanvasTriggerServiceServer::new(Engine(sender)))
            .serve_with_incoming(incoming),
    );
    let timeout = Duration::from_secs(30);
    let endpoint = SinkEndpoint {
        url: Secret(url.parse().expect("a URL")),
        timeout,
        connect_timeout: timeout,
        ca: None,
    };
    (endpoint, dispatches)
}

fn assert_update_traced(collector: &Collector) {
    let method = "canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule";
    let call = collector.span(CALLER.0, method);
    assert_eq!(
        (hex(&call.parent_span_id), call.kind()),
        (CALLER.1.to_owned(), SpanKind::Server),
        "it must continue the caller's trace"
    );
    assert_eq!(
        (
            attribute(&call, "rpc.method"),
            attribute(&call, "rpc.response.status_code")
        ),
        (method.to_owned(), "OK".to_owned())
    );
    let (queue, round) = (
        collector.span(CALLER.0, "commit.queue"),
        collector.span(CALLER.0, "commit.round"),
    );
    assert_eq!(
        (&queue.parent_span_id, &round.parent_span_id),
        (&call.span_id, &call.span_id)
    );
    assert_eq!(attribute(&round, "commit.batch_size"), "1");
    let moments = [
        call.start_time_unix_nano,
        queue.start_time_unix_nano,
        round.start_time_unix_nano,
        round.end_time_unix_nano,
    ];
    assert!(
        moments.is_sorted() && round.end_time_unix_nano <= call.end_time_unix_nano,
        "{moments:?}"
    );
    let refused = collector.span("2cf7651916cd43dd8448eb211c80319c", method);
    assert_eq!(attribute(&refused, "rpc.response.status_code"), "ABORTED");
}

fn assert_dispatch_traced(collector: &Collector, traceparent: &str) {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let [_, trace, parent, "01"] = parts[..] else {
        panic!("{traceparent:?}")
    };
    let (dispatch, fire, deliver) = (
        collector.span(trace, "dispatch"),
        collector.span(trace, "dispatch.fire"),
        collector.span(trace, "dispatch.deliver"),
    );
    assert_eq!(
        (
            dispatch.parent_span_id.len(),
            hex(&deliver.span_id).as_str()
        ),
        (0, parent),
        "the consumer must continue the delivery's trace"
    );
    assert_eq!(
        (&fire.parent_span_id, &deliver.parent_span_id),
        (&dispatch.span_id, &dispatch.span_id)
    );
    assert_eq!(
        (deliver.kind(), attribute(&deliver, "dispatch.answer")),
        (SpanKind::Client, "delivered".to_owned())
    );
    assert!(
        fire.start_time_unix_nano <= deliver.start_time_unix_nano
            && attribute(&dispatch, "dispatch.id").len() == 32
    );
}
