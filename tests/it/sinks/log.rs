use std::io;
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

use super::*;

/// A writer that keeps the log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .expect("no panic under the lock")
            .extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_dispatch_is_one_line_without_recipients_and_properties() {
    let lines = Lines::default();
    let log = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(lines.clone())
        .finish();
    let logging = tracing::subscriber::set_default(log);
    let sink = open(SinkSettings::Log).await;
    assert_eq!(
        deliver(&sink, &dispatch()).await,
        DeliveryOutcome::Delivered
    );
    drop(logging);
    let text =
        String::from_utf8(lines.0.lock().expect("no panic under the lock").clone()).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "{text}");
    for hidden in ["ada", "Ada", "user-2", "hello", "gold"] {
        assert!(!text.contains(hidden), "{hidden}: {text}");
    }
    let mut line: Value = serde_json::from_str(&text).expect("JSON");
    line.as_object_mut()
        .expect("an object")
        .retain(|name, _| !["timestamp", "level", "target"].contains(&name.as_str()));
    let expected = json!({
        "message": "dispatch",
        "dispatch_id": dispatch().id.to_string(),
        "workspace": "default",
        "canvas_id": "spring-sale",
        "schedule_id": "0198c5a0-7d2e-7c64-9f0b-2f1a0c9d3b11",
        "revision": 3,
        "n": 2,
        "time": "2026-03-20T08:00:00Z",
        "mode": "AT_TIME",
        "zones_count": 2,
        "zones": "Europe/Berlin,Europe/Paris",
        "includes_unlisted_zones": true,
        "recipients_count": 3,
        "audience": true,
        "broadcast": false,
        "lateness_ms": 1500,
        "attempt": 4,
    });
    assert_eq!(line, expected);
}
