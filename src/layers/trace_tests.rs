use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::layers::support::{STREAM, TestServer, UNARY, done, endless};
use crate::status::{Refusal, current_request_id};

/// What was logged.
#[derive(Clone, Default)]
struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl LogBuffer {
    fn lines(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.0.lock().split_off(0)).expect("UTF-8");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

impl io::Write for LogBuffer {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogBuffer {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn every_call_has_its_own_id_which_its_handler_can_read() {
    assert_eq!(current_request_id(), None);
    let mut server = TestServer::default();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let (send, seen) = tokio::sync::oneshot::channel();
        let response = server
            .call(UNARY, async move {
                tokio::task::yield_now().await;
                send.send(current_request_id()).expect("the test waits");
                done()
            })
            .await;
        let id = response.headers()["x-request-id"]
            .to_str()
            .expect("ASCII")
            .to_owned();
        assert_eq!(seen.await.expect("sent"), Some(id.clone()));
        assert!(
            id.len() == 16 && id.bytes().all(|digit| digit.is_ascii_hexdigit()),
            "{id}"
        );
        ids.push(id);
    }
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_call_is_logged_once_when_it_ends() {
    let log = LogBuffer::default();
    // With a single dispatcher tracing asks that of whichever thread meets a line first, here
    // another test's, which has none.
    let _second = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish());
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(log.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut server = TestServer::default();

    for (code, level) in [
        (Code::Ok, "DEBUG"),
        (Code::InvalidArgument, "DEBUG"),
        (Code::Unavailable, "WARN"),
        (Code::DeadlineExceeded, "WARN"),
        (Code::ResourceExhausted, "DEBUG"),
        (Code::Internal, "ERROR"),
        (Code::Unknown, "ERROR"),
        (Code::DataLoss, "ERROR"),
    ] {
        let mut status: Status = if code == Code::Ok {
            Status::ok("")
        } else {
            Refusal::Bare {
                code,
                reason: "REASON",
                message: "public".to_owned(),
            }
            .into()
        };
        status.set_source(Arc::new(io::Error::other("cause")));
        let response = server.call(UNARY, async { status.into_http() }).await;
        let lines = log.lines();
        assert_eq!(lines.len(), 1, "{code:?}: {lines:?}");
        let fields = &lines[0]["fields"];
        assert_eq!(lines[0]["level"], level, "{code:?}");
        assert_eq!(fields["code"], code_name(code));
        assert_eq!(fields["method"], &UNARY[1..]);
        assert_eq!(fields["cause"], "cause");
        assert_eq!(
            fields["request_id"].as_str(),
            response.headers()["x-request-id"].to_str().ok()
        );
        assert!(fields["duration_ms"].is_f64(), "{fields}");
    }

    server
        .call(UNARY, async { panic!("dropped the ball") })
        .await;
    let lines = log.lines();
    assert_eq!(
        (lines.len(), &lines[0]["level"]),
        (1, &"ERROR".into()),
        "{lines:?}"
    );
    assert_eq!(
        lines[0]["fields"]["cause"],
        "the handler panicked: dropped the ball"
    );

    let stream = server
        .call(STREAM, async { Response::new(endless()) })
        .await;
    assert_eq!(log.lines().len(), 0, "a stream goes on after its headers");
    drop(stream);
    assert_eq!(log.lines()[0]["fields"]["code"], "CANCELLED");

    let call = server.start(UNARY, std::future::pending());
    server.begun().await;
    call.abort();
    assert!(call.await.is_err());
    assert_eq!(log.lines()[0]["fields"]["code"], "CANCELLED");
}
