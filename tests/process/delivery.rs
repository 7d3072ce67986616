//! Two processes that send: one of them stopped past its leases and continued, one killed; and a consumer that is down in each
//! way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use canvas_scheduler::pb::v1;
use tokio::task::JoinSet;

use super::consumer::{Came, Consumer, Mode};
use super::database::{Database, own_postgres, test_name};
use super::load::{Callers, Mix, now_ms, schedule_at, schedules};
use super::postgres::process::run;
use super::server::{Client, PATIENCE, Server, command, migrate};

/// A key of the webhooks' signature; nobody checks it here.
const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz";
/// The lease, over which a stopped process is held.
const LEASE: Duration = Duration::from_secs(2);
const CONNECTIONS: usize = 4;

fn flags(consumer: &Consumer) -> Vec<String> {
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
        "32",
    ]
    .map(str::to_owned)
    .to_vec()
}

async fn sender(database: &Database, consumer: &Consumer) -> Server {
    sender_over(&database.url(), consumer).await
}

pub(crate) async fn sender_over(url: &str, consumer: &Consumer) -> Server {
    let flags = flags(consumer);
    Server::start(url, &flags.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// Makes `n` schedules that come due one after the other from `first_ms` on, over `span_ms`.
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

/// Somebody for whom a schedule has one zone, so that lists of dispatches are short.
fn in_utc() -> v1::Recipient {
    let utc = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue("UTC".to_owned())),
    };
    v1::Recipient {
        identifier: Some(v1::recipient::Identifier::ExternalUserId("user".to_owned())),
        attributes: Some(prost_types::Struct {
            fields: [("time_zone".to_owned(), utc)].into(),
        }),
        ..Default::default()
    }
}

pub(crate) fn arrived(came: &[Came]) -> BTreeSet<String> {
    came.iter()
        .filter(|one| one.taken)
        .map(|one| one.schedule_id.clone())
        .collect()
}

/// How many dispatches there are in each state.
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

/// Waits until every dispatch is written as delivered.
async fn settled(client: &mut Client, all: usize) {
    let only_delivered = BTreeMap::from([(v1::DispatchState::Delivered, all)]);
    let delivered = async { while states(client).await != only_delivered {} };
    tokio::time::timeout(PATIENCE, delivered)
        .await
        .expect("every dispatch is delivered in time");
}

/// How many dispatches came more than once. Each of them had the same id each time.
fn twice(came: &[Came]) -> usize {
    let mut ids: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for one in came {
        ids.entry(&one.schedule_id)
            .or_default()
            .push(&one.dispatch_id);
    }
    assert!(
        ids.values().all(|ids| ids.iter().all(|id| *id == ids[0])),
        "one wave, one id"
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
        "{}: {} schedules, {} handed over more than once",
        test_name(),
        ids.len(),
        twice(&came)
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
        "{}: {} schedules, {} handed over more than once",
        test_name(),
        ids.len(),
        twice(&came)
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
        "{}: {} schedules, {} handed over more than once",
        test_name(),
        ids.len(),
        twice(&came)
    );
}

#[tokio::test]
async fn a_database_that_is_killed_and_comes_back_loses_nothing_that_was_to_be_sent_postgres() {
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
        "{}: {} schedules, {} handed over more than once",
        test_name(),
        ids.len(),
        twice(&came)
    );
}

/// How long the consumer is down in each way, in seconds, unless `DOWN_SECONDS` says otherwise.
const DOWN: u64 = 4;
/// Between two looks at what is on the way.
const LOOK: Duration = Duration::from_millis(250);
/// The most of which may be in hand or unknown meanwhile: the workers', and what shows that the consumer is down.
const ON_THE_WAY: usize = 2 * 32;
/// So much more memory the server may hold than before, in kB: what callers' connections and the database's come to.
const MORE_MEMORY: u64 = 64 * 1024;

#[allow(
    clippy::disallowed_methods,
    reason = "a setting of the tests, not of the product"
)]
fn down() -> Duration {
    Duration::from_secs(
        std::env::var("DOWN_SECONDS").map_or(DOWN, |value| value.parse().expect("DOWN_SECONDS")),
    )
}

/// The memory that a process holds, in kB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a resident size");
    line.trim().trim_end_matches(" kB").parse().expect("kB")
}

/// What was seen over [`down()`] of callers at work.
struct Seen {
    updates_per_second: u64,
    /// The most dispatches in hand or unknown.
    on_the_way: usize,
    /// The most memory that the server held, in kB.
    memory: u64,
}

/// Lets callers update schedules that are not due, and looks now and then at what is on the way. No update may be refused.
async fn watch(clients: &[Client], others: &[String], server: &Server) -> Seen {
    let callers = Callers::start(clients, others, 8, Mix::default());
    let (mut on_the_way, mut memory) = (0, 0);
    let until = tokio::time::Instant::now() + down();
    while tokio::time::Instant::now() < until {
        on_the_way = on_the_way.max(unfinished(&mut clients[0].clone()).await);
        memory = memory.max(resident(server.pid()));
        tokio::time::sleep(LOOK).await;
    }
    let calls = callers.stop().await;
    assert!(
        calls.iter().all(|call| call.end.is_ok()),
        "an update was refused"
    );
    Seen {
        updates_per_second: calls.len() as u64 / down().as_secs(),
        on_the_way,
        memory,
    }
}

/// How many dispatches are in hand or unknown. Only they are asked for: a list of all would take ever more of the processors.
async fn unfinished(client: &mut Client) -> usize {
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
async fn a_consumer_that_is_down_holds_up_no_update_and_gets_everything_after_postgres() {
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
        let Seen {
            updates_per_second,
            on_the_way,
            memory,
        } = watch(&clients, &others, &server).await;
        assert!(on_the_way <= ON_THE_WAY, "{way:?}: {on_the_way} on the way");
        assert!(memory <= up.memory + MORE_MEMORY, "{way:?}: {memory} kB");
        let open = update_all(&mut clients[0].clone(), &ids).await;
        assert!(
            open >= ids.len() - ON_THE_WAY,
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
            "{} {way:?}: {updates_per_second} updates/s, at most {on_the_way} on the way and {memory} kB, {open} open, {attempts} attempts",
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

/// Moves every schedule to now, and answers how many were open: all of their zones, as they are told.
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
                    "nothing of it was taken"
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
async fn the_brake_stops_a_running_server_and_lets_it_go_on_sqlite() {
    the_brake(&Database::sqlite()).await;
}

#[tokio::test]
async fn the_brake_stops_a_running_server_and_lets_it_go_on_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    the_brake(&database).await;
}

/// How often the dispatcher is woken while it may not send.
const LOOKS: usize = 20;

async fn the_brake(database: &Database) {
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
        // Each of these updates makes a schedule due at once and wakes the dispatcher; each finds it open.
        for _ in 0..LOOKS {
            assert_eq!(
                update_all(&mut server.connect().await, &ids).await,
                ids.len(),
                "{whose}: updates go on"
            );
        }
        assert_eq!(consumer.came().len(), before, "{whose}: paused");
        set(whose, "on").unwrap();
        consumer.until(|came| ids.is_subset(&arrived(came))).await;
    }
    assert!(
        set("nobody", "paused")
            .expect_err("no such workspace")
            .contains("nobody")
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
