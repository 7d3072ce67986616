//! Each sink against a consumer on loopback that the test controls.

mod grpc;
mod log;
mod nats;
pub(crate) mod tls;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use canvas_scheduler::clock::SystemClock;
use canvas_scheduler::config::Secret;
use canvas_scheduler::domain::{
    CanvasId, DispatchId, DispatchMessage, Identifier, Properties, Recipient, ScheduleId, Target,
    Wave, WaveMode, Zone, ZoneSet,
};
use canvas_scheduler::sink::{self, DeliveryOutcome, SharedSink, SinkEndpoint, SinkSettings};
use chrono::TimeDelta;
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::support::{instant, soon};

/// The timeout of a delivery in tests that reach it.
const SHORT: Duration = Duration::from_millis(300);
/// The timeout of a delivery in other tests.
const LONG: Duration = Duration::from_secs(60);

/// The trace of the dispatch.
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Settings to reach `url` within `timeout`.
fn endpoint(url: &str, timeout: Duration) -> SinkEndpoint {
    SinkEndpoint {
        url: Secret(url.parse().expect(url)),
        timeout,
        connect_timeout: LONG,
        ca: None,
    }
}

async fn open(settings: SinkSettings) -> SharedSink {
    sink::open(&settings, Arc::new(SystemClock))
        .await
        .expect("good settings")
}

/// Delivers `dispatch` and returns the sink's answer.
async fn deliver(sink: &SharedSink, dispatch: &DispatchMessage) -> DeliveryOutcome {
    soon(sink.deliver(dispatch)).await
}

/// Delivers until the answer is as expected: a timeout of [`SHORT`] may be too short on a busy
/// machine.
async fn until(
    sink: &SharedSink,
    dispatch: &DispatchMessage,
    expected: impl Fn(&DeliveryOutcome) -> bool,
) {
    soon(async { while !expected(&deliver(sink, dispatch).await) {} }).await;
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

/// A dispatch with a value in every field.
fn dispatch() -> DispatchMessage {
    let recipient = |identifier| Recipient {
        identifier,
        prioritization: vec![],
        trigger_properties: Some(Properties(object(
            json!({ "greeting": "hello", "name": "Ada" }),
        ))),
        send_to_existing_only: None,
        attributes: None,
    };
    let alias = Identifier::UserAlias {
        alias_name: "ada".to_owned(),
        alias_label: "nick".to_owned(),
    };
    let first = Recipient {
        prioritization: vec!["most_recently_updated".to_owned()],
        send_to_existing_only: Some(false),
        attributes: Some(object(json!({ "time_zone": "Europe/Paris" }))),
        ..recipient(Identifier::Email("ada@example.org".to_owned()))
    };
    let schedule_id = ScheduleId::parse("0198c5a0-7d2e-7c64-9f0b-2f1a0c9d3b11").expect("an id");
    DispatchMessage {
        id: DispatchId::of(schedule_id, 2),
        workspace: "default".to_owned(),
        canvas_id: CanvasId::parse("spring-sale").expect("an id"),
        schedule_id,
        revision: 3,
        number: 2,
        wave: Wave {
            time: instant("2026-03-20T08:00:00Z"),
            zones: ["Europe/Paris", "Europe/Berlin"]
                .iter()
                .map(|name| Zone::parse(name).expect("a zone"))
                .collect::<ZoneSet>(),
            includes_unlisted_zones: true,
            mode: WaveMode::AtTime,
        },
        target: Target {
            recipients: vec![
                first,
                recipient(Identifier::ExternalUserId("user-2".to_owned())),
                recipient(alias),
            ],
            audience: Some(object(json!({ "AND": [{ "plan": "gold" }] }))),
            broadcast: false,
        },
        properties: Properties(object(
            json!({ "greeting": "hello", "nested": { "list": [1, 2.5, null] } }),
        )),
        lateness: TimeDelta::milliseconds(1500),
        attempt: 4,
        traceparent: Some(TRACEPARENT.to_owned()),
    }
}

/// The same as a broadcast, by optimal time.
fn broadcast() -> DispatchMessage {
    let mut dispatch = dispatch();
    dispatch.wave.mode = WaveMode::OptimalTime;
    dispatch.target = Target {
        broadcast: true,
        ..Target::default()
    };
    dispatch
}

/// A port that refuses connections: a socket occupies it but does not listen.
fn refusing() -> (tokio::net::TcpSocket, String) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let addr = socket.local_addr().expect("bound").to_string();
    (socket, addr)
}

/// A listener and its address.
async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let addr = listener.local_addr().expect("bound").to_string();
    (listener, addr)
}

/// Accepts connections and stays silent until the test ends.
async fn silent(listener: TcpListener) {
    let mut held: Vec<TcpStream> = Vec::new();
    while let Ok((stream, _)) = listener.accept().await {
        held.push(stream);
    }
}

/// Asserts that the dispatch was not taken, without a retry delay.
fn assert_not_taken(answer: &DeliveryOutcome) {
    assert!(
        matches!(answer, DeliveryOutcome::NotTaken { retry_after: None, why } if !why.is_empty()),
        "{answer:?}"
    );
}

/// Asserts that the outcome is unknown.
fn assert_unknown(answer: &DeliveryOutcome) {
    assert!(is_unknown(answer), "{answer:?}");
}

fn is_unknown(answer: &DeliveryOutcome) -> bool {
    matches!(answer, DeliveryOutcome::Unknown { why } if !why.is_empty())
}
