//! Delivery by several processes, of which one is stopped past its leases or killed; and a consumer
//! that is down in every way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use canvas_scheduler::pb::v1;
use tokio::task::JoinSet;

use super::consumer::{Consumer, Mode, Received};
use super::database::{Database, own_postgres, test_name};
use super::load::{Callers, Mix, now_ms, schedule_at, schedules};
use super::postgres::process::run;
use super::server::{Client, PATIENCE, Server, command, migrate};

/// The key that signs the webhooks. The consumer does not check it.
pub(crate) const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz";
/// The lease. The test stops a process for longer than this.
const LEASE: Duration = Duration::from_secs(2);
const CONNECTIONS: usize = 4;

/// The flags of a process that sends to a consumer.
pub(crate) fn flags(consumer: &Consumer, workers: &str) -> Vec<String> {
    let url = consumer.url();
    [
        "--sink",
        "webhook",
        "--sink-url",
        &url,
        "--sink-secret",
        SECRET,
        "--sink-timeout",
        "1s",
        "--lease",
        "2s",
        "--workers",
        workers,
    ]
    .map(str::to_owned)
    .to_vec()
}

async fn sender(database: &Database, consumer: &Consumer) -> Server {
    sender_over(&database.url(), consumer).await
}

pub(crate) async fn sender_over(url: &str, consumer: &Consumer) -> Server {
    sender_with_workers(url, consumer, "32").await
}

pub(crate) async fn sender_with_workers(url: &str, consumer: &Consumer, workers: &str) -> Server {
    let flags = flags(consumer, workers);
    Server::start(url, &flags.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// Creates `n` schedules that become due one after the other, from `first_ms` on, over `span_ms`.
pub(crate) async fn due(
    clients: &[Client],
    n: usize,
    first_ms: i64,
    span_ms: i64,
) -> BTreeSet<String> {
    let mut calls = JoinSet::new();
    for (c, client) in clients.iter().enumerate() {
        let mut client = client.clone();
        let own: Vec<i64> = (c..n)
            .step_by(clients.len())
            .map(|one| one as i64)
            .collect();
        calls.spawn(async move {
            let mut ids = Vec::new();
            for one in own {
                let request = v1::CreateCanvasScheduleRequest {
                    canvas_id: "sent".to_owned(),
                    schedule: schedule_at(first_ms + one * span_ms / n as i64),
                    recipients: vec![in_utc()],
                    ..Default::default()
                };
                let made = client
                    .create_canvas_schedule(request)
                    .await
                    .expect("created")
                    .into_inner();
                ids.push(made.canvas_schedule.expect("a schedule").schedule_id);
            }
            ids
        });
    }
    calls.join_all().await.concat().into_iter().collect()
}

/// A recipient with one zone, so that lists of dispatches stay short.
pub(crate) fn in_utc() -> v1::Recipient {
    in_zone("UTC")
}

/// A recipient in this zone.
pub(crate) fn in_zone(name: &str) -> v1::Recipient {
    let zone = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(name.to_owned())),
    };
    v1::Recipient {
        identifier: Some(v1::recipient::Identifier::ExternalUserId(format!(
            "user in {name}"
        ))),
        attributes: Some(prost_types::Struct {
            fields: [("time_zone".to_owned(), zone)].into(),
        }),
        ..Default::default()
    }
}

pub(crate) fn arrived(came: &[Received]) -> BTreeSet<String> {
    came.iter()
        .filter(|one| one.taken)
        .map(|one| one.schedule_id.clone())
        .collect()
}

/// The number of dispatches in each state.
async fn states(client: &mut Client) -> BTreeMap<v1::DispatchState, usize> {
    let (mut found, mut page_token) = (BTreeMap::new(), String::new());
    loop {
        let request = v1::ListDispatchesRequest {
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let page = client
            .list_dispatches(request)
            .await
            .expect("a page")
            .into_inner();
        page.dispatches
            .iter()
            .for_each(|one| *found.entry(one.state()).or_default() += 1);
        if page.next_page_token.is_empty() {
            return found;
        }
        page_token = page.next_page_token;
    }
}

/// Waits until every dispatch has the state `DELIVERED`.
pub(crate) async fn settled(client: &mut Client, all: usize) {
    let only_delivered = BTreeMap::from([(v1::DispatchState::Delivered, all)]);
    let delivered = async { while states(client).await != only_delivered {} };
    tokio::time::timeout(PATIENCE, delivered)
        .await
        .expect("every dispatch must be delivered in time");
}

/// Counts dispatches that arrived more than once, and asserts that each kept its id.
fn repeated(came: &[Received]) -> usize {
    let mut ids: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for one in came {
        ids.entry(&one.schedule_id)
            .or_default()
            .push(&one.dispatch_id);
    }
    assert!(
        ids.values().all(|ids| ids.iter().all(|id| *id == ids[0])),
        "a wave must keep its id"
    );
    ids.values().filter(|ids| ids.len() > 1).count()
}

#[tokio::test]
async fn a_dispatcher_that_is_stopped_past_its_leases_loses_nothing_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let consumer = Consumer::start().await;
    consumer.set(Mode::TakeSlowly);
    let mut servers = [
        sender(&database, &consumer).await,
        sender(&database, &consumer).await,
    ];
    let clients = servers[0].connections(CONNECTIONS).await;
    let ids = due(&clients, 1500, now_ms() + 2_000, 4_000).await;
    consumer.until(|came| came.len() > 200).await;
    servers[1].signal("STOP");
    tokio::time::sleep(LEASE * 2).await;
    servers[1].signal("CONT");
    let came = consumer.until(|came| arrived(came) == ids).await;
    settled(&mut clients[0].clone(), ids.len()).await;
    println!(
        "{}: {} schedules, {} delivered more than once",
        test_name(),
        ids.len(),
        repeated(&came)
    );
}

#[tokio::test]
async fn a_dispatcher_that_is_killed_loses_nothing_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let consumer = Consumer::start().await;
    consumer.set(Mode::TakeSlowly);
    let mut servers = [
        sender(&database, &consumer).await,
        sender(&database, &consumer).await,
    ];
    let clients = servers[0].connections(CONNECTIONS).await;
    let ids = due(&clients, 1500, now_ms() + 2_000, 4_000).await;
    consumer.until(|came| came.len() > 200).await;
    servers[1].kill9();
    let came = consumer.until(|came| arrived(came) == ids).await;
    settled(&mut clients[0].clone(), ids.len()).await;
    println!(
        "{}: {} schedules, {} delivered more than once",
        test_name(),
        ids.len(),
        repeated(&came)
    );
}

#[tokio::test]
async fn a_dispatcher_that_is_killed_and_started_again_loses_nothing_sqlite() {
    let database = Database::sqlite();
    let consumer = Consumer::start().await;
    consumer.set(Mode::TakeSlowly);
    let mut server = sender(&database, &consumer).await;
    let ids = due(
        &server.connections(CONNECTIONS).await,
        300,
        now_ms() + 1_500,
        2_000,
    )
    .await;
    consumer.until(|came| came.len() > 50).await;
    server.kill9();
    let server = sender(&database, &consumer).await;
    let came = consumer.until(|came| arrived(came) == ids).await;
    settled(&mut server.connect().await, ids.len()).await;
    println!(
        "{}: {} schedules, {} delivered more than once",
        test_name(),
        ids.len(),
        repeated(&came)
    );
}

#[tokio::test]
async fn a_database_that_is_killed_and_restarted_loses_no_dispatch_postgres() {
    let Some(mut postgres) = own_postgres(&[]) else {
        return;
    };
    postgres.createdb("test").unwrap();
    migrate(&postgres.url("test"));
    let consumer = Consumer::start().await;
    consumer.set(Mode::TakeSlowly);
    let server = sender_over(&postgres.url("test"), &consumer).await;
    let ids = due(
        &server.connections(CONNECTIONS).await,
        600,
        now_ms() + 1_500,
        4_000,
    )
    .await;
    consumer.until(|came| came.len() > 100).await;
    postgres.kill9();
    // What was in flight is answered while nothing can be written.
    server.log().times(1, "dispatching failed").await;
    consumer.idle().await;
    postgres.restart().unwrap();
    let came = consumer.until(|came| arrived(came) == ids).await;
    settled(&mut server.connect().await, ids.len()).await;
    println!(
        "{}: {} schedules, {} delivered more than once",
        test_name(),
        ids.len(),
        repeated(&came)
    );
}

/// The seconds for which the consumer is down in each way; `DOWN_SECONDS` overrides them.
const DEFAULT_DOWN_SECONDS: u64 = 4;
/// The interval at which the test counts unfinished dispatches.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// The bound of dispatches in hand or unknown meanwhile: those of the workers, and those that
/// revealed the outage.
const MAX_UNFINISHED: usize = 2 * 32;
/// The growth of the server's memory that the connections of callers and the database explain, in
/// kB.
const MAX_MEMORY_GROWTH: u64 = 64 * 1024;

#[allow(
    clippy::disallowed_methods,
    reason = "a setting of the tests, not of the service"
)]
fn down() -> Duration {
    Duration::from_secs(
        std::env::var("DOWN_SECONDS").map_or(DEFAULT_DOWN_SECONDS, |value| {
            value.parse().expect("DOWN_SECONDS")
        }),
    )
}

/// The resident memory of a process, in kB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a resident size");
    line.trim().trim_end_matches(" kB").parse().expect("kB")
}

/// What was measured over [`down()`] while callers worked.
struct Measured {
    updates_per_second: u64,
    /// The peak of dispatches in hand or unknown.
    unfinished: usize,
    /// The server's peak memory, in kB.
    memory: u64,
}

/// Updates schedules that are not due, and counts unfinished dispatches meanwhile. No update may be
/// refused.
async fn watch(clients: &[Client], others: &[String], server: &Server) -> Measured {
    let callers = Callers::start(clients, others, 8, Mix::default());
    let (mut unfinished, mut memory) = (0, 0);
    let until = tokio::time::Instant::now() + down();
    while tokio::time::Instant::now() < until {
        unfinished = unfinished.max(count_unfinished(&mut clients[0].clone()).await);
        memory = memory.max(resident(server.pid()));
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
    let calls = callers.stop().await;
    assert!(
        calls.iter().all(|call| call.end.is_ok()),
        "an update was refused"
    );
    Measured {
        updates_per_second: calls.len() as u64 / down().as_secs(),
        unfinished,
        memory,
    }
}

/// The number of dispatches in hand or unknown. Lists only these, since a list of all of them would
/// grow with the test.
async fn count_unfinished(client: &mut Client) -> usize {
    let mut found = 0;
    for state in [v1::DispatchState::InHand, v1::DispatchState::Unknown] {
        let request = v1::ListDispatchesRequest {
            page_size: 1000,
            state: state.into(),
            ..Default::default()
        };
        found += client
            .list_dispatches(request)
            .await
            .expect("a page")
            .into_inner()
            .dispatches
            .len();
    }
    found
}

#[tokio::test]
async fn a_consumer_that_is_down_delays_no_update_and_receives_everything_later_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let mut consumer = Consumer::start().await;
    let server = sender(&database, &consumer).await;
    let clients = server.connections(CONNECTIONS).await;
    let (others, _) = schedules(&mut clients[0].clone(), 20).await;
    let up = watch(&clients, &others, &server).await;
    println!(
        "{} up for {:?}: {} updates/s, {} kB",
        test_name(),
        down(),
        up.updates_per_second,
        up.memory
    );
    for way in [
        None,
        Some(Mode::Say(503)),
        Some(Mode::Say(500)),
        Some(Mode::Hang),
        Some(Mode::HalfClose),
    ] {
        match way {
            None => consumer.refuse().await,
            Some(mode) => consumer.set(mode),
        }
        let ids = due(&clients, 200, now_ms() + 500, 1_000).await;
        let Measured {
            updates_per_second,
            unfinished,
            memory,
        } = watch(&clients, &others, &server).await;
        assert!(
            unfinished <= MAX_UNFINISHED,
            "{way:?}: {unfinished} unfinished"
        );
        assert!(
            memory <= up.memory + MAX_MEMORY_GROWTH,
            "{way:?}: {memory} kB"
        );
        let open = update_all(&mut clients[0].clone(), &ids).await;
        assert!(
            open >= ids.len() - MAX_UNFINISHED,
            "{way:?}: {open} of {} were open to an update",
            ids.len()
        );
        consumer.recover().await;
        let came = consumer.until(|came| ids.is_subset(&arrived(came))).await;
        let attempts = came
            .iter()
            .filter(|one| ids.contains(&one.schedule_id))
            .count();
        println!(
            "{} {way:?}: {updates_per_second} updates/s, at most {unfinished} unfinished and {memory} kB, {open} open, {attempts} attempts",
            test_name()
        );
    }
    let up = watch(&clients, &others, &server).await;
    println!(
        "{} up again for {:?}: {} updates/s, {} kB",
        test_name(),
        down(),
        up.updates_per_second,
        up.memory
    );
}

/// Moves every schedule to now, and returns how many were open in all of their zones.
async fn update_all(client: &mut Client, ids: &BTreeSet<String>) -> usize {
    let mut open = 0;
    for id in ids {
        let request = v1::UpdateCanvasScheduleRequest {
            canvas_id: "sent".to_owned(),
            schedule_id: id.clone(),
            schedule: schedule_at(now_ms()),
            ..Default::default()
        };
        match client.update_canvas_schedule(request).await {
            Ok(answer) => {
                assert_eq!(
                    answer.into_inner().applied(),
                    v1::Applied::All,
                    "a schedule that was not open for all zones must be closed for all"
                );
                open += 1;
            }
            Err(status) => assert_eq!(
                super::load::reason(&status),
                "NOTHING_LEFT_TO_CHANGE",
                "{status:?}"
            ),
        }
    }
    open
}

#[tokio::test]
async fn a_pause_stops_a_running_server_until_it_ends_sqlite() {
    pause_and_resume(&Database::sqlite()).await;
}

#[tokio::test]
async fn a_pause_stops_a_running_server_until_it_ends_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    pause_and_resume(&database).await;
}

/// How often an update wakes the dispatcher during the pause.
const WAKEUPS: usize = 20;

async fn pause_and_resume(database: &Database) {
    let consumer = Consumer::start().await;
    let server = sender(database, &consumer).await;
    let set = |whose: &str, sending: &str| {
        run(
            &mut command(&[
                "workspace",
                "set",
                whose,
                "--sending",
                sending,
                "--database-url",
                &database.url(),
            ]),
            PATIENCE,
        )
    };
    for whose in ["default", "--all"] {
        let before = consumer.came().len();
        set(whose, "paused").unwrap();
        let ids = due(&server.connections(1).await, 5, now_ms() + 200, 100).await;
        // Each of these updates makes a schedule due and wakes the dispatcher, which must leave it
        // open.
        for _ in 0..WAKEUPS {
            assert_eq!(
                update_all(&mut server.connect().await, &ids).await,
                ids.len(),
                "{whose}: updates must be accepted"
            );
        }
        assert_eq!(consumer.came().len(), before, "{whose}: paused");
        set(whose, "on").unwrap();
        consumer.until(|came| ids.is_subset(&arrived(came))).await;
    }
    assert!(
        set("missing", "paused")
            .expect_err("an unknown workspace")
            .contains("missing")
    );
    let faults = run(
        &mut command(&["workspace", "set", "--sending", "off"]),
        PATIENCE,
    )
    .expect_err("two faults");
    assert!(
        faults.contains("paused or on") && faults.contains("--all"),
        "{faults}"
    );
}
