//! How often a pass of the dispatcher waits for the database, over a long link.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use canvas_scheduler::clock::Clock;
use canvas_scheduler::dispatcher::{Dispatcher, Pass};
use canvas_scheduler::domain::{DeliveryPolicy, SchedulePolicy};
use canvas_scheduler::service::Service;
use canvas_scheduler::telemetry::metrics::DispatchMetrics;
use canvas_scheduler::telemetry::traces::Traces;
use chrono::{DateTime, TimeDelta, Utc};

use crate::support::database::proxy::{Action, Message, Proxy, Side};
use crate::support::sink::{RecordingSink, Reply};
use crate::support::stores::{TestStore, unknown};
use crate::support::*;

on_postgres![
    a_claim_of_a_known_wave_takes_four_round_trips,
    a_known_retry_takes_four_round_trips,
];

/// The time that each message takes. The tests count, and do not measure.
const MESSAGE_DELAY: Duration = Duration::from_millis(8);

/// A dispatcher whose passes the test runs, behind a proxy that records its round trips.
struct Passes {
    test: TestStore,
    dispatcher: Dispatcher,
    sink: Arc<RecordingSink>,
    proxy: Proxy,
    /// The statements of the dispatcher's connections that were answered.
    answered: Arc<Mutex<Vec<String>>>,
}

impl Passes {
    async fn start(database: &Database) -> Self {
        let (server, name) = database.url().rsplit_once('/').expect("a database");
        let port = server.rsplit(':').next().expect("a port");
        let proxy = Proxy::start(port.parse().expect("a port"));
        let answered = Arc::new(Mutex::new(vec![]));
        let record = answered.clone();
        proxy.set_rule(move |message: &Message<'_>| {
            let is_answered = message.side == Side::ToClient && message.kind == b'Z';
            // A connection that was idle for a second is checked.
            let is_check = message.statement.starts_with("SHOW");
            if is_answered && !is_check && message.application.ends_with("dispatcher") {
                let statement = message.statement.to_owned();
                record.lock().expect("no panic").push(statement);
            }
            Action::Forward
        });
        let test = TestStore::open_at(&proxy.url(name), SchedulePolicy::default()).await;
        let service = Service::new(
            test.store.clone(),
            test.clock.clone(),
            SchedulePolicy::default(),
            DeliveryPolicy::default(),
        );
        let sink = RecordingSink::new();
        let dispatcher = Dispatcher::new(
            service,
            sink.clone(),
            test.clock.clone(),
            8,
            DispatchMetrics::default(),
            Traces::default(),
        );
        Self {
            test,
            dispatcher,
            sink,
            proxy,
            answered,
        }
    }

    async fn pass(&mut self) -> Pass {
        let now = self.test.clock.now();
        self.dispatcher.run_once(now).await.expect("a pass")
    }

    /// Runs the pass that the last one waited for, over a long link. Returns the first words of each
    /// statement that it waited for.
    async fn pass_at(&mut self, at: DateTime<Utc>) -> Vec<String> {
        let waits_until = |pass| match pass {
            Pass::Idle(until) => until,
            other => panic!("something is due: {other:?}"),
        };
        // The last passes may have found more.
        while self.pass().await == Pass::More {}
        assert!(waits_until(self.pass().await) <= at);
        self.test.move_to(at);
        self.answered.lock().expect("no panic").clear();
        self.proxy.delay(MESSAGE_DELAY);
        self.pass().await;
        self.proxy.delay(Duration::ZERO);
        let answered = self.answered.lock().expect("no panic");
        let words = answered.iter().map(|sql| {
            let words = sql.split_whitespace().take(2);
            words.collect::<Vec<_>>().join(" ")
        });
        words.collect()
    }
}

async fn a_claim_of_a_known_wave_takes_four_round_trips(database: &Database) {
    let mut passes = Passes::start(database).await;
    passes.sink.reply(|_| Reply::Hang);
    for n in 1..=2 {
        passes
            .test
            .create(&format!("2026-03-20T08:00:0{n}Z"), false)
            .await;
    }
    // Prepares the statements.
    passes.test.at("2026-03-20T08:00:01Z");
    passes.pass().await;
    assert_eq!(passes.sink.at_least(1).await.len(), 1);
    let trips = passes.pass_at(instant("2026-03-20T08:00:02Z")).await;
    assert_eq!(trips, ["BEGIN", "SELECT w.wake_ms,", "WITH i", "COMMIT"]);
    assert_eq!(passes.sink.at_least(2).await.len(), 2);
}

async fn a_known_retry_takes_four_round_trips(database: &Database) {
    let mut passes = Passes::start(database).await;
    passes.sink.say(unknown());
    passes.test.create("2026-03-20T08:00:00Z", false).await;
    passes.test.at("2026-03-20T08:00:00Z");
    passes.pass().await;
    for attempt in [2, 3] {
        passes.sink.at_least(attempt - 1).await;
        let settled = "SELECT count(*) FROM dispatch WHERE state = 1";
        soon(async { while database.count(settled).await == 0 {} }).await;
        // At most two seconds after the second attempt.
        let later = passes.test.clock.now() + TimeDelta::seconds(3);
        let trips = passes.pass_at(later).await;
        if attempt == 3 {
            let read = "SELECT d.workspace_id,";
            assert_eq!(trips, ["BEGIN", read, "WITH batch", "COMMIT"]);
        }
    }
    assert_eq!(passes.sink.at_least(3).await.len(), 3);
}
