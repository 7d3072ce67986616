use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, DiscardPolicy};

use super::*;
use crate::support::database::postgres::ports;
use crate::support::database::postgres::process::Running;

/// Debian's path of the server, and its name in PATH elsewhere.
const SERVERS: [&str; 2] = ["/usr/sbin/nats-server", "nats-server"];

/// A NATS server with JetStream in a temporary folder, removed on drop.
struct Server {
    program: &'static str,
    running: Running,
    folder: PathBuf,
    port: u16,
}

impl Server {
    /// Returns `None`, and reports `test` as skipped, where NATS is not installed; with
    /// `REQUIRE_NATS=1` the test fails.
    async fn start(test: &str, flags: &[&str]) -> Option<Self> {
        let Some(program) = SERVERS
            .into_iter()
            .find(|program| Command::new(program).arg("--version").output().is_ok())
        else {
            assert!(
                !nats_is_required(),
                "{test} needs nats-server, which is not installed, and REQUIRE_NATS=1 is set"
            );
            // Written to stderr directly, since the test harness captures the output of passing
            // tests.
            let _written = writeln!(std::io::stderr(), "skipped: {test} needs nats-server");
            return None;
        };
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "canvas-scheduler-nats-{}-{}",
            std::process::id(),
            MADE.fetch_add(1, Ordering::Relaxed)
        );
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        let port = ports::lasting().expect("a free port");
        let running = run(program, &folder, port, flags);
        soon(listens(&folder)).await;
        Some(Self {
            program,
            running,
            folder,
            port,
        })
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Restarts it on the same port.
    fn restart(&mut self) {
        self.running = run(self.program, &self.folder, self.port, &[]);
    }

    /// Creates a stream for all dispatches.
    async fn stream(&self, config: Config) -> jetstream::stream::Stream {
        let client = async_nats::connect(self.url()).await.expect("it runs");
        let config = Config {
            name: "CANVAS".to_owned(),
            subjects: vec!["canvas.trigger.>".to_owned()],
            ..config
        };
        jetstream::new(client)
            .create_stream(config)
            .await
            .expect("a stream")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.kill();
        // A folder that cannot be removed is left to the system's cleaner.
        let _removed = std::fs::remove_dir_all(&self.folder);
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a setting of the tests, not of the service"
)]
fn nats_is_required() -> bool {
    std::env::var("REQUIRE_NATS").is_ok_and(|value| value == "1")
}

fn run(program: &str, folder: &Path, port: u16, flags: &[&str]) -> Running {
    let mut command = Command::new(program);
    command
        .args([
            "--addr",
            "127.0.0.1",
            "--jetstream",
            "--port",
            &port.to_string(),
        ])
        .args(flags);
    command
        .arg("--store_dir")
        .arg(folder)
        .arg("--ports_file_dir")
        .arg(folder);
    Running::start(command.stdout(Stdio::null()).stderr(Stdio::null())).expect("it starts")
}

/// Waits for the file in which the server writes its port.
async fn listens(folder: &Path) {
    let mut look = tokio::time::interval(Duration::from_millis(5));
    let is_listening = || {
        std::fs::read_dir(folder).expect("a folder").any(|file| {
            file.expect("a file")
                .path()
                .extension()
                .is_some_and(|extension| extension == "ports")
        })
    };
    while !is_listening() {
        look.tick().await;
    }
}

async fn nats(url: &str, timeout: Duration, connect_timeout: Duration) -> SharedSink {
    let endpoint = SinkEndpoint {
        connect_timeout,
        ..endpoint(url, timeout)
    };
    open(SinkSettings::Nats {
        endpoint,
        token: Some(Secret("t0ken".to_owned())),
        subject: "canvas.trigger".to_owned(),
    })
    .await
}

#[tokio::test]
async fn a_dispatch_is_stored_once_under_its_id() {
    let Some(server) =
        Server::start("sinks::nats::a_dispatch_is_stored_once_under_its_id", &[]).await
    else {
        return;
    };
    let mut stream = server.stream(Config::default()).await;
    let sink = nats(&server.url(), LONG, LONG).await;
    for _ in 0..2 {
        assert_eq!(
            deliver(&sink, &dispatch()).await,
            DeliveryOutcome::Delivered
        );
    }
    assert_eq!(
        stream.info().await.expect("it exists").state.messages,
        1,
        "the server must recognize the repeated id"
    );
    let message = stream.get_raw_message(1).await.expect("it exists");
    assert_eq!(message.subject.as_str(), "canvas.trigger.default");
    assert_eq!(
        message.headers.get("Nats-Msg-Id").expect("an id").as_str(),
        dispatch().id.to_string()
    );
    assert_eq!(
        message
            .headers
            .get("traceparent")
            .expect("a trace")
            .as_str(),
        TRACEPARENT
    );
    let body: Value = serde_json::from_slice(&message.payload).expect("JSON");
    assert_eq!(body, webhook::expected_body());
}

#[tokio::test]
async fn a_dispatch_that_jetstream_cannot_store_is_not_taken_or_rejected() {
    let Some(server) = Server::start(
        "sinks::nats::a_dispatch_that_jetstream_cannot_store_is_not_taken_or_rejected",
        &[],
    )
    .await
    else {
        return;
    };
    let sink = nats(&server.url(), LONG, LONG).await;
    // No stream has the subject.
    assert_not_taken(&deliver(&sink, &dispatch()).await);
    let bounds = Config {
        max_messages: 1,
        discard: DiscardPolicy::New,
        max_message_size: 10_000,
        ..Config::default()
    };
    server.stream(bounds).await;
    let of_size = |bytes: usize| {
        let mut dispatch = broadcast();
        dispatch.properties = Properties(object(json!({ "text": "x".repeat(bytes) })));
        dispatch.id = DispatchId::of(dispatch.schedule_id, u32::try_from(bytes).expect("it fits"));
        dispatch
    };
    // Larger than the server accepts, and larger than the stream does.
    for bytes in [2_000_000, 20_000] {
        let answer = deliver(&sink, &of_size(bytes)).await;
        assert!(
            matches!(answer, DeliveryOutcome::Rejected { .. }),
            "{bytes}: {answer:?}"
        );
    }
    assert_eq!(
        deliver(&sink, &of_size(1)).await,
        DeliveryOutcome::Delivered
    );
    assert_not_taken(&deliver(&sink, &of_size(2)).await);
}

#[tokio::test]
async fn a_server_that_hangs_is_unknown_within_the_timeout() {
    let Some(mut server) = Server::start(
        "sinks::nats::a_server_that_hangs_is_unknown_within_the_timeout",
        &[],
    )
    .await
    else {
        return;
    };
    let mut stream = server.stream(Config::default()).await;
    let sink = nats(&server.url(), SHORT, SHORT).await;
    until(&sink, &dispatch(), |answer| {
        *answer == DeliveryOutcome::Delivered
    })
    .await;
    server.running.signal("STOP");
    let mut second = dispatch();
    second.id = DispatchId::of(second.schedule_id, 3);
    assert_unknown(&deliver(&sink, &second).await);
    server.running.signal("CONT");
    until(&sink, &second, |answer| {
        *answer == DeliveryOutcome::Delivered
    })
    .await;
    assert_eq!(
        stream.info().await.expect("it exists").state.messages,
        2,
        "the attempt that seemed lost must not be stored twice"
    );
}

#[tokio::test]
async fn a_stopped_server_takes_nothing_and_is_used_again_after_a_restart() {
    let Some(mut server) = Server::start(
        "sinks::nats::a_stopped_server_takes_nothing_and_is_used_again_after_a_restart",
        &[],
    )
    .await
    else {
        return;
    };
    server.stream(Config::default()).await;
    let sink = nats(&server.url(), SHORT, SHORT).await;
    until(&sink, &dispatch(), |answer| {
        *answer == DeliveryOutcome::Delivered
    })
    .await;
    server.running.kill();
    until(&sink, &dispatch(), |answer| {
        matches!(answer, DeliveryOutcome::NotTaken { .. })
    })
    .await;
    // Once the loss is noticed, the answer stays the same.
    assert_not_taken(&deliver(&sink, &dispatch()).await);
    server.restart();
    until(&sink, &dispatch(), |answer| {
        *answer == DeliveryOutcome::Delivered
    })
    .await;
}

#[tokio::test]
async fn a_refused_connection_is_not_taken() {
    let (_held, addr) = refusing();
    assert_not_taken(
        &deliver(
            &nats(&format!("nats://{addr}"), LONG, SHORT).await,
            &dispatch(),
        )
        .await,
    );
}

#[tokio::test]
async fn only_the_right_token_is_accepted() {
    let name = "sinks::nats::only_the_right_token_is_accepted";
    let Some(right) = Server::start(name, &["--auth", "t0ken"]).await else {
        return;
    };
    let sink = nats(&right.url(), LONG, LONG).await;
    // The token is accepted; there is no stream.
    assert!(
        matches!(deliver(&sink, &dispatch()).await, DeliveryOutcome::NotTaken { why, .. } if why.contains("stream"))
    );
    let Some(wrong) = Server::start(name, &["--auth", "another"]).await else {
        return;
    };
    let sink = nats(&wrong.url(), LONG, SHORT).await;
    assert!(
        matches!(deliver(&sink, &dispatch()).await, DeliveryOutcome::NotTaken { why, .. } if why.contains("not connected"))
    );
}
