//! The connection with PostgreSQL is cut at the n-th message of a fixed workload, for every n.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use canvas_scheduler::pb::v1;

use super::consumer::Consumer;
use super::database::{Database, test_name};
use super::delivery::sender_over;
use super::load::{BACK_OFF, now_ms, unique_time};
use super::postgres::Postgres;
use super::proxy::{Action, Message, Proxy, Side};
use super::recorder::{Answer, Recorder};
use super::server::{Client, PATIENCE, Server};

/// The normal suite tries one message in this many, so that the run is short.
const STRIDE: u64 = 41;

/// A service whose connections with PostgreSQL lead through a proxy.
pub(crate) struct Proxied {
    pub(crate) proxy: Proxy,
    pub(crate) server: Server,
    pub(crate) consumer: Consumer,
    pub(crate) recorder: Recorder,
    pub(crate) client: Client,
}

impl Proxied {
    /// Migrates `database` and starts a service that sends to a webhook.
    pub(crate) async fn start(postgres: &Postgres, database: &str) -> Self {
        let proxy = Proxy::start(postgres.port());
        let consumer = Consumer::start().await;
        let server = sender_over(&proxy.url(database), &consumer).await;
        let client = server.connect().await;
        Self {
            proxy,
            server,
            consumer,
            recorder: Recorder::new(),
            client,
        }
    }

    /// Creates a schedule, repeating the call until it succeeds.
    pub(crate) async fn create(&mut self) -> String {
        create(
            &self.recorder,
            &mut self.client,
            |_| String::new(),
            unique_time,
        )
        .await
    }

    /// One of each call. Each is repeated until it succeeds.
    async fn work(&mut self, ids: &[String]) {
        let recorder = self.recorder.clone();
        let client = &mut self.client;
        let named = || format!("request-{}", unique_time());
        let first = create(&recorder, client, |_| String::new(), unique_time).await;
        let second = create(&recorder, client, |_| named(), unique_time).await;
        insist(async || recorder.update(client, &ids[0], "").await).await;
        insist(async || recorder.update(client, &ids[0], &named()).await).await;
        insist(async || recorder.batch(client, ids).await.remove(0)).await;
        recorder.cancel(client, &first, &named()).await;
        recorder.cancel(client, &second, "").await;
        for id in [&ids[0], &first] {
            insist(async || recorder.get(client, id).await).await;
        }
        let due = create(&recorder, client, |at| format!("due-{at}"), due_time).await;
        self.consumer
            .until(|came| came.iter().any(|one| one.schedule_id == due))
            .await;
        lists(client, &due).await;
    }
}

/// Creates a schedule at a new time with a request id for that time, repeating the call until it
/// succeeds.
async fn create(
    recorder: &Recorder,
    client: &mut Client,
    request_id: impl Fn(i64) -> String,
    time: fn() -> i64,
) -> String {
    let mut id = None;
    insist(async || {
        let time_ms = time();
        let (answer, created) = recorder
            .create_with_id(client, time_ms, &request_id(time_ms))
            .await;
        id = created;
        answer
    })
    .await;
    id.expect("it was created")
}

/// A unique time that has passed already, so that its wave is sent at once.
pub(crate) fn due_time() -> i64 {
    static LAST: Mutex<i64> = Mutex::new(0);
    let mut last = LAST.lock().unwrap();
    *last = (*last + 1).max(now_ms() - 1_000);
    *last
}

/// Repeats a call until its effect is certain.
pub(crate) async fn insist(mut call: impl AsyncFnMut() -> Answer) -> Answer {
    let began = Instant::now();
    loop {
        let answer = call().await;
        if !matches!(answer, Answer::Refused(_) | Answer::Unknown(_)) {
            return answer;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "it does not recover: {answer:?}"
        );
        tokio::time::sleep(BACK_OFF).await;
    }
}

/// Reads the dispatches of a schedule until the list is available.
async fn lists(client: &mut Client, id: &str) {
    let request = v1::ListDispatchesRequest {
        schedule_id: id.to_owned(),
        ..Default::default()
    };
    super::load::when_available(async || client.list_dispatches(request.clone()).await)
        .await
        .expect("a page");
}

/// Injects a fault at the `n`-th message from now on. Returns the statement that it met, once it
/// has.
pub(crate) fn inject_at(
    proxy: &Proxy,
    n: u64,
    mut fault: impl FnMut(&Message<'_>) -> Action + Send + 'static,
) -> Arc<Mutex<Option<String>>> {
    let met = Arc::new(Mutex::new(None));
    let (reached, mut count) = (met.clone(), 0);
    proxy.set_rule(move |message| {
        count += 1;
        if count != n {
            return Action::Forward;
        }
        *reached.lock().unwrap() = Some(label(message));
        fault(message)
    });
    met
}

/// The kind of statement and the direction of a message.
pub(crate) fn label(message: &Message<'_>) -> String {
    let words: Vec<&str> = message.statement.split_whitespace().collect();
    let table = words
        .windows(2)
        .find(|two| ["FROM", "INTO", "UPDATE"].contains(&two[0]))
        .map_or("", |two| two[1].trim_matches('"'));
    let side = match message.side {
        Side::ToServer => "request",
        Side::ToClient => "answer",
    };
    format!("{} {table} ({side})", words.first().unwrap_or(&"connect"))
}

#[tokio::test]
async fn a_connection_cut_at_some_messages_loses_and_repeats_nothing_postgres() {
    everywhere(STRIDE, cut).await;
}

#[tokio::test]
#[ignore = "minutes: .ci/full runs it"]
async fn a_connection_cut_at_every_message_loses_and_repeats_nothing_postgres() {
    everywhere(1, cut).await;
}

/// Cuts before and after a message, in turn.
fn cut(_: &Postgres, n: u64) -> Fault {
    let action = if n.is_multiple_of(2) {
        Action::CutBefore
    } else {
        Action::CutAfter
    };
    Box::new(move |_| action)
}

/// What happens at a message.
pub(crate) type Fault = Box<dyn FnMut(&Message<'_>) -> Action + Send>;

/// Runs the workload once for every `stride`-th half of a message, with the fault for this half.
pub(crate) async fn everywhere(stride: u64, fault: fn(&Postgres, u64) -> Fault) {
    let Some(database) = Database::postgres() else {
        return;
    };
    let Database::Postgres { server, name } = &database else {
        unreachable!()
    };
    let mut service = Proxied::start(server, name).await;
    let ids = [service.create().await, service.create().await];
    service.work(&ids).await;
    let measured = Arc::new(Mutex::new(0));
    let count = measured.clone();
    service.proxy.set_rule(move |_| {
        *count.lock().unwrap() += 1;
        Action::Forward
    });
    service.work(&ids).await;
    let messages: u64 = *measured.lock().unwrap();
    let (mut points, mut missed): (BTreeMap<String, usize>, _) = (BTreeMap::new(), 0);
    // Another part of the messages in each run.
    let first = fastrand::u64(0..stride);
    for half in (first..2 * messages).step_by(usize::try_from(stride).unwrap()) {
        let skip = service.recorder.records().len();
        let met = inject_at(&service.proxy, 1 + half / 2, fault(server, half));
        service.work(&ids).await;
        service.proxy.clear_rule();
        match met.lock().unwrap().take() {
            Some(label) => *points.entry(label).or_default() += 1,
            None => missed += 1,
        }
        let differing = service.recorder.replay(&mut service.client, skip).await;
        assert_eq!(differing, Vec::<String>::new(), "half {half} of a message");
    }
    let recorder = service.recorder.clone();
    let verdict = recorder
        .check(&mut service.client, &service.consumer.came())
        .await;
    println!(
        "{}: {messages} messages, {missed} faults were not reached, {points:#?}, {verdict:?}",
        test_name()
    );
    verdict.assert_clean();
    assert!(
        points.values().sum::<usize>() > missed,
        "most faults happen"
    );
}
