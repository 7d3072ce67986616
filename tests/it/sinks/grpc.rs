use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Mutex;

use canvas_scheduler::pb::v1::canvas_trigger_service_server::{
    CanvasTriggerService, CanvasTriggerServiceServer,
};
use canvas_scheduler::pb::v1::{
    self, TriggerCanvasRequest, TriggerCanvasResponse, recipient::Identifier,
};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost_types::Duration as ProtoDuration;
use tokio::sync::oneshot;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::*;

/// How an engine handles one call.
enum Act {
    Take,
    Refuse(Status),
    Hang,
}

/// An engine that handles each call as the test sets, and records it.
#[derive(Clone, Default)]
struct Engine {
    acts: Arc<Mutex<VecDeque<Act>>>,
    got: Arc<Mutex<Vec<(MetadataMap, TriggerCanvasRequest)>>>,
}

#[tonic::async_trait]
impl CanvasTriggerService for Engine {
    async fn trigger_canvas(
        &self,
        request: Request<TriggerCanvasRequest>,
    ) -> Result<Response<TriggerCanvasResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        self.got.lock().expect("no panic").push((metadata, message));
        let act = self
            .acts
            .lock()
            .expect("no panic")
            .pop_front()
            .expect("no more calls than acts");
        match act {
            Act::Take => Ok(Response::new(TriggerCanvasResponse {})),
            Act::Refuse(status) => Err(status),
            Act::Hang => std::future::pending().await,
        }
    }
}

impl Engine {
    fn acting(acts: Vec<Act>) -> Self {
        Self {
            acts: Arc::new(Mutex::new(acts.into())),
            got: Arc::default(),
        }
    }

    async fn start(acts: Vec<Act>) -> (Self, String) {
        let (listener, addr) = listener().await;
        let engine = Self::acting(acts);
        engine.clone().serve(listener);
        (engine, format!("http://{addr}"))
    }

    fn serve(self, listener: TcpListener) {
        let server = Server::builder().add_service(CanvasTriggerServiceServer::new(self));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    }
}

async fn grpc(url: &str, timeout: Duration) -> SharedSink {
    open(SinkSettings::Grpc {
        endpoint: endpoint(url, timeout),
        token: Some(Secret("t0ken".to_owned())),
        connections: 2,
    })
    .await
}

#[tokio::test]
async fn a_dispatch_is_sent_with_every_field_and_the_token() {
    let (engine, url) = Engine::start(vec![Act::Take]).await;
    assert_eq!(
        deliver(&grpc(&url, LONG).await, &dispatch()).await,
        DeliveryOutcome::Delivered
    );
    let (metadata, got) = engine.got.lock().expect("no panic").pop().expect("a call");
    assert_eq!(
        metadata.get("authorization").expect("a token"),
        "Bearer t0ken"
    );
    assert_eq!(metadata.get("traceparent").expect("a trace"), TRACEPARENT);
    assert!(
        metadata.contains_key("grpc-timeout"),
        "the call must carry a deadline"
    );
    let wave = v1::Wave {
        time: Some(prost_types::Timestamp {
            seconds: dispatch().wave.time.timestamp(),
            nanos: 0,
        }),
        zones: vec!["Europe/Berlin".to_owned(), "Europe/Paris".to_owned()],
        includes_unlisted_zones: true,
        mode: v1::WaveMode::AtTime.into(),
    };
    let reply = (
        got.dispatch_id,
        got.workspace,
        got.canvas_id,
        got.schedule_id,
        got.revision,
        got.n,
        got.wave,
        got.attempt,
    );
    let id = dispatch().id.to_string();
    let schedule_id = "0198c5a0-7d2e-7c64-9f0b-2f1a0c9d3b11".to_owned();
    assert_eq!(
        reply,
        (
            id,
            "default".to_owned(),
            "spring-sale".to_owned(),
            schedule_id,
            3,
            2,
            Some(wave),
            4
        )
    );
    assert_eq!(
        got.lateness,
        Some(ProtoDuration {
            seconds: 1,
            nanos: 500_000_000
        })
    );
    assert_eq!(
        keys(got.trigger_properties),
        Some(vec!["greeting".to_owned(), "nested".to_owned()])
    );
    assert_eq!(
        (keys(got.audience), got.broadcast),
        (Some(vec!["AND".to_owned()]), false)
    );
    assert_recipients(&got.recipients);
}

/// The keys of an object.
fn keys(object: Option<prost_types::Struct>) -> Option<Vec<String>> {
    object.map(|object| object.fields.into_keys().collect())
}

fn assert_recipients(recipients: &[v1::Recipient]) {
    let first = recipients[0].clone();
    assert_eq!(
        first.identifier,
        Some(Identifier::Email("ada@example.org".to_owned()))
    );
    assert_eq!(
        (first.prioritization, first.send_to_existing_only),
        (vec!["most_recently_updated".to_owned()], Some(false))
    );
    assert_eq!(keys(first.attributes), Some(vec!["time_zone".to_owned()]));
    for recipient in recipients {
        assert_eq!(
            keys(recipient.trigger_properties.clone()),
            Some(vec!["greeting".to_owned(), "name".to_owned()]),
            "merged"
        );
    }
    assert_eq!(recipients.len(), 3);
}

#[tokio::test]
async fn a_broadcast_by_optimal_time_has_its_mode_and_no_recipients() {
    let (engine, url) = Engine::start(vec![Act::Take]).await;
    assert_eq!(
        deliver(&grpc(&url, LONG).await, &broadcast()).await,
        DeliveryOutcome::Delivered
    );
    let (_, got) = engine.got.lock().expect("no panic").pop().expect("a call");
    assert_eq!(
        (got.broadcast, got.audience, got.recipients),
        (true, None, vec![])
    );
    assert_eq!(got.wave.expect("a wave").mode(), v1::WaveMode::OptimalTime);
}

#[tokio::test]
async fn the_status_determines_the_answer() {
    let wait = ErrorDetails::with_retry_info(Some(Duration::from_secs(7)));
    let busy = Status::with_error_details(tonic::Code::Unavailable, "busy", wait);
    let full = Status::resource_exhausted("full");
    let refused = Status::invalid_argument("user-1 is unknown");
    let acts = vec![
        Act::Refuse(busy),
        Act::Refuse(full),
        Act::Refuse(refused),
        Act::Refuse(Status::internal("a fault")),
        Act::Take,
    ];
    let (_engine, url) = Engine::start(acts).await;
    let sink = grpc(&url, LONG).await;
    let why = |code: &str| format!("gRPC status {code}");
    let expected = [
        DeliveryOutcome::NotTaken {
            why: why("Unavailable"),
            retry_after: Some(Duration::from_secs(7)),
        },
        DeliveryOutcome::NotTaken {
            why: why("ResourceExhausted"),
            retry_after: None,
        },
        DeliveryOutcome::Rejected {
            why: why("InvalidArgument"),
        },
        DeliveryOutcome::Unknown {
            why: why("Internal"),
        },
        DeliveryOutcome::Delivered,
    ];
    for expected in expected {
        assert_eq!(deliver(&sink, &dispatch()).await, expected);
    }
}

#[tokio::test]
async fn a_refused_connection_is_not_taken_and_is_retried() {
    let (held, addr) = refusing();
    let sink = grpc(&format!("http://{addr}"), LONG).await;
    // More deliveries than connections, so that each connection is refused more than once.
    for _ in 0..5 {
        assert_not_taken(&deliver(&sink, &dispatch()).await);
    }
    let engine = Engine::acting(vec![Act::Take, Act::Take]);
    engine.serve(held.listen(16).expect("it listens"));
    for _ in 0..2 {
        assert_eq!(
            deliver(&sink, &dispatch()).await,
            DeliveryOutcome::Delivered
        );
    }
}

#[tokio::test]
async fn an_engine_that_hangs_is_unknown_within_the_timeout() {
    let (engine, url) = Engine::start((0..1000).map(|_| Act::Hang).collect()).await;
    until(&grpc(&url, SHORT).await, &dispatch(), is_unknown).await;
    assert!(
        !engine.got.lock().expect("no panic").is_empty(),
        "the engine must have received it"
    );
    // A peer that does not speak HTTP/2 may have received the request too.
    let (listener, addr) = listener().await;
    tokio::spawn(silent(listener));
    until(
        &grpc(&format!("http://{addr}"), SHORT).await,
        &dispatch(),
        is_unknown,
    )
    .await;
}

#[tokio::test]
async fn a_handshake_that_hangs_is_not_taken_within_the_timeout() {
    let (listener, addr) = listener().await;
    tokio::spawn(silent(listener));
    assert_not_taken(
        &deliver(
            &tls::grpc(&format!("https://{addr}"), SHORT, tls::certificate(&[]).0).await,
            &dispatch(),
        )
        .await,
    );
}

#[tokio::test]
async fn a_connection_lost_after_sending_is_unknown() {
    let (listener, addr) = listener().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let (read, has_read) = oneshot::channel();
        let read = Arc::new(Mutex::new(Some(read)));
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let read = read.clone();
            async move {
                request
                    .into_body()
                    .collect()
                    .await
                    .expect("a whole request");
                read.lock()
                    .expect("no panic")
                    .take()
                    .expect("one request")
                    .send(())
                    .expect("a receiver");
                std::future::pending::<Result<http::Response<Full<Bytes>>, Infallible>>().await
            }
        });
        tokio::select! {
            _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service) => {}
            _ = has_read => {}
        }
    });
    assert_unknown(&deliver(&grpc(&format!("http://{addr}"), LONG).await, &dispatch()).await);
}

#[tokio::test]
async fn a_response_that_is_not_grpc_counts_by_its_http_status() {
    for (status, expected) in [(502, "Unknown"), (503, "NotTaken"), (404, "Rejected")] {
        let (listener, addr) = listener().await;
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let service = service_fn(
                move |request: http::Request<hyper::body::Incoming>| async move {
                    request
                        .into_body()
                        .collect()
                        .await
                        .expect("a whole request");
                    let answer = http::Response::builder()
                        .status(status)
                        .body(Full::<Bytes>::default());
                    Ok::<_, Infallible>(answer.expect("a response"))
                },
            );
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await
        });
        let answer = deliver(&grpc(&format!("http://{addr}"), LONG).await, &dispatch()).await;
        assert!(
            format!("{answer:?}").starts_with(expected),
            "{status}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn calls_go_over_tls() {
    let (ca, acceptor) = tls::certificate(&["h2"]);
    let (listener, addr) = listener().await;
    let engine = Engine::acting(vec![Act::Take]);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let stream = acceptor.accept(stream).await.expect("a handshake");
        let routes = tonic::service::Routes::new(CanvasTriggerServiceServer::new(engine)).prepare();
        let service = hyper_util::service::TowerToHyperService::new(routes);
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await
    });
    assert_eq!(
        deliver(
            &tls::grpc(&format!("https://{addr}"), LONG, ca).await,
            &dispatch()
        )
        .await,
        DeliveryOutcome::Delivered
    );
}
