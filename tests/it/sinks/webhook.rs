use std::collections::VecDeque;
use std::sync::Mutex;

use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use standardwebhooks::Webhook as Verifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// The base64 of 24 bytes each.
const SECRETS: [&str; 2] = [
    "whsec_MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0",
    "whsec_YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4",
];

async fn webhook(url: &str, timeout: Duration) -> SharedSink {
    let keys = vec![
        Secret(b"123456789012345678901234".to_vec()),
        Secret(b"abcdefghijklmnopqrstuvwx".to_vec()),
    ];
    open(SinkSettings::Webhook {
        endpoint: endpoint(url, timeout),
        keys,
    })
    .await
}

/// A received request.
struct Got {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// A consumer that sends these responses one after another, and records requests.
#[derive(Clone, Default)]
struct Consumer {
    answers: Arc<Mutex<VecDeque<Response<Full<Bytes>>>>>,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Consumer {
    async fn start(answers: Vec<Response<Full<Bytes>>>) -> (Self, String) {
        let (listener, addr) = listener().await;
        let consumer = Self {
            answers: Arc::new(Mutex::new(answers.into())),
            got: Arc::default(),
        };
        let serving = consumer.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = serving.clone();
                let service = service_fn(move |request| serving.clone().answer(request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        (consumer, format!("http://{addr}/hook?code=1"))
    }

    async fn answer(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        self.got.lock().expect("no panic").push(Got {
            path: head.uri.to_string(),
            headers: head.headers,
            body,
        });
        Ok(self
            .answers
            .lock()
            .expect("no panic")
            .pop_front()
            .expect("no more requests than answers"))
    }
}

fn status(status: u16) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .body(Full::default())
        .expect("a response")
}

#[tokio::test]
async fn a_dispatch_is_posted_as_json_signed_by_each_secret() {
    let (consumer, url) = Consumer::start(vec![status(204)]).await;
    assert_eq!(
        deliver(&webhook(&url, LONG).await, &dispatch()).await,
        DeliveryOutcome::Delivered
    );
    let got = consumer
        .got
        .lock()
        .expect("no panic")
        .pop()
        .expect("a request");
    assert_eq!(got.path, "/hook?code=1");
    assert_eq!(got.headers["content-type"], "application/json");
    assert_eq!(got.headers["webhook-id"], dispatch().id.to_string());
    assert_eq!(got.headers["traceparent"], TRACEPARENT);
    for secret in SECRETS {
        Verifier::new(secret)
            .expect("a secret")
            .verify(&got.body, &got.headers)
            .expect(secret);
    }
    let mut forged = got.body.to_vec();
    forged[0] = b' ';
    Verifier::new(SECRETS[0])
        .expect("a secret")
        .verify(&forged, &got.headers)
        .expect_err("another body");
    let other = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    Verifier::new(other)
        .expect("a secret")
        .verify(&got.body, &got.headers)
        .expect_err("another secret");
    let body: Value = serde_json::from_slice(&got.body).expect("JSON");
    assert_eq!(body, expected_body());
}

pub(super) fn expected_body() -> Value {
    let merged = json!({ "greeting": "hello", "name": "Ada" });
    json!({
        "dispatch_id": dispatch().id.to_string(),
        "workspace": "default",
        "canvas_id": "spring-sale",
        "schedule_id": "0198c5a0-7d2e-7c64-9f0b-2f1a0c9d3b11",
        "revision": 3,
        "n": 2,
        "wave": {
            "time": "2026-03-20T08:00:00Z",
            "zones": ["Europe/Berlin", "Europe/Paris"],
            "includes_unlisted_zones": true,
            "mode": "AT_TIME",
        },
        "trigger_properties": { "greeting": "hello", "nested": { "list": [1, 2.5, null] } },
        "recipients": [
            {
                "email": "ada@example.org",
                "prioritization": ["most_recently_updated"],
                "trigger_properties": merged,
                "send_to_existing_only": false,
                "attributes": { "time_zone": "Europe/Paris" },
            },
            { "external_user_id": "user-2", "trigger_properties": merged },
            { "user_alias": { "alias_name": "ada", "alias_label": "nick" }, "trigger_properties": merged },
        ],
        "audience": { "AND": [{ "plan": "gold" }] },
        "lateness_ms": 1500,
        "attempt": 4,
    })
}

#[tokio::test]
async fn a_broadcast_by_optimal_time_has_its_mode_and_no_recipients() {
    let (consumer, url) = Consumer::start(vec![status(200)]).await;
    assert_eq!(
        deliver(&webhook(&url, LONG).await, &broadcast()).await,
        DeliveryOutcome::Delivered
    );
    let got = consumer
        .got
        .lock()
        .expect("no panic")
        .pop()
        .expect("a request");
    let body: Value = serde_json::from_slice(&got.body).expect("JSON");
    assert_eq!(
        (&body["broadcast"], &body["wave"]["mode"]),
        (&json!(true), &json!("OPTIMAL_TIME"))
    );
    assert_eq!((body.get("recipients"), body.get("audience")), (None, None));
}

#[tokio::test]
async fn the_status_determines_the_answer_and_redirects_are_not_followed() {
    let moved = Response::builder()
        .status(307)
        .header("location", "/elsewhere")
        .body(Full::default())
        .expect("a response");
    let busy = Response::builder()
        .status(503)
        .header("retry-after", "7")
        .body(Full::default())
        .expect("a response");
    // The reason must not repeat the body, which may name a user.
    let refused = Response::builder()
        .status(422)
        .body(Full::from("user-1 is unknown"))
        .expect("a response");
    let answers = vec![
        status(202),
        moved,
        busy,
        status(429),
        refused,
        status(500),
        status(200),
    ];
    let (consumer, url) = Consumer::start(answers).await;
    let sink = webhook(&url, LONG).await;
    let why = |status: u16| format!("HTTP status {status}");
    let expected = [
        DeliveryOutcome::Delivered,
        DeliveryOutcome::Rejected { why: why(307) },
        DeliveryOutcome::NotTaken {
            why: why(503),
            retry_after: Some(Duration::from_secs(7)),
        },
        DeliveryOutcome::NotTaken {
            why: why(429),
            retry_after: None,
        },
        DeliveryOutcome::Rejected { why: why(422) },
        DeliveryOutcome::Unknown { why: why(500) },
        DeliveryOutcome::Delivered,
    ];
    for expected in expected {
        assert_eq!(deliver(&sink, &dispatch()).await, expected);
    }
    let paths: Vec<_> = consumer
        .got
        .lock()
        .expect("no panic")
        .iter()
        .map(|got| got.path.clone())
        .collect();
    assert_eq!(paths, ["/hook?code=1"; 7]);
}

#[tokio::test]
async fn an_endless_response_costs_only_its_connection() {
    let endless = Response::builder()
        .status(StatusCode::OK)
        .body(Full::from(vec![b'x'; 10 * 1024 * 1024]))
        .expect("a response");
    let (_consumer, url) = Consumer::start(vec![endless, status(200)]).await;
    let sink = webhook(&url, LONG).await;
    assert_eq!(
        deliver(&sink, &dispatch()).await,
        DeliveryOutcome::Delivered
    );
    assert_eq!(
        deliver(&sink, &dispatch()).await,
        DeliveryOutcome::Delivered
    );
}

#[tokio::test]
async fn a_refused_connection_is_not_taken() {
    let (_held, addr) = refusing();
    assert_not_taken(
        &deliver(
            &webhook(&format!("http://{addr}/"), LONG).await,
            &dispatch(),
        )
        .await,
    );
}

#[tokio::test]
async fn a_consumer_that_hangs_is_unknown_within_the_timeout() {
    let (listener, addr) = listener().await;
    tokio::spawn(silent(listener));
    until(
        &webhook(&format!("http://{addr}/"), SHORT).await,
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
            &tls::webhook(&format!("https://{addr}/"), SHORT).await,
            &dispatch(),
        )
        .await,
    );
}

/// Reads the start of a request, writes `then`, and closes the connection, or only its own half.
async fn cut_off(listener: TcpListener, then: &'static str, half: bool) {
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut seen = [0; 1024];
    assert!(stream.read(&mut seen).await.expect("a request") > 0);
    stream
        .write_all(then.as_bytes())
        .await
        .expect("the client reads");
    if half {
        stream.shutdown().await.expect("it is open");
        // The other half stays open until the client closes it.
        while stream.read(&mut seen).await.is_ok_and(|bytes| bytes > 0) {}
    }
}

#[tokio::test]
async fn a_connection_lost_after_sending_is_unknown() {
    let (nothing, part, status) = (
        "",
        "HTTP/1.1 200 O",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
    );
    for (then, half) in [
        (nothing, false),
        (nothing, true),
        (part, false),
        (part, true),
    ] {
        let (listener, addr) = listener().await;
        tokio::spawn(cut_off(listener, then, half));
        let answer = deliver(
            &webhook(&format!("http://{addr}/"), LONG).await,
            &dispatch(),
        )
        .await;
        assert!(
            matches!(answer, DeliveryOutcome::Unknown { .. }),
            "{then:?} {half}: {answer:?}"
        );
    }
    // A complete head is a response, even if the body is lost.
    let (listener, addr) = listener().await;
    tokio::spawn(cut_off(listener, status, true));
    assert_eq!(
        deliver(
            &webhook(&format!("http://{addr}/"), LONG).await,
            &dispatch()
        )
        .await,
        DeliveryOutcome::Delivered
    );
}
