//! One answer shows one state of the database.

use std::time::Duration;

use canvas_scheduler::pb::v1;
use canvas_scheduler::pb::v1::CanvasScheduleState::{Dispatched, Dispatching, Pending};
use chrono::DateTime;
use tokio::task::JoinSet;

use super::consumer::Consumer;
use super::database::{Database, test_name};
use super::delivery::{flags, in_zone};
use super::load::now_ms;
use super::proxy::Proxy;
use super::server::{Client, Server};

const SCHEDULES: usize = 40;
/// The zones of a schedule, whose waves are an hour apart.
const ZONES: usize = 12;
/// The waves of all zones are due when the schedule is created.
const LATENESS: [&str; 2] = ["--lateness", "24h"];
/// The delay of a message of the process that reads: claims and outcomes fall between two
/// statements of one answer.
const READS_DELAY: Duration = Duration::from_millis(50);
/// The same of the process that sends, whose claims then spread over seconds.
const CLAIMS_DELAY: Duration = Duration::from_millis(5);

#[tokio::test]
async fn a_schedule_and_its_dispatches_are_of_one_state_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (postgres, name) = database.server();
    let [reads, claims] = [(); 2].map(|()| Proxy::start(postgres.port()));
    let api = ["--roles", "api", "--read-connections", "40"];
    let server = Server::start(&reads.url(name), &[&api, &LATENESS[..]].concat()).await;
    let clients = server.connections(4).await;
    let mut ids = Vec::new();
    for _ in 0..SCHEDULES {
        ids.push(in_many_zones(&mut clients[0].clone()).await);
    }
    reads.delay(READS_DELAY);
    claims.delay(CLAIMS_DELAY);
    let mut readers = JoinSet::new();
    for (reader, id) in ids.into_iter().enumerate() {
        readers.spawn(read(clients[reader % clients.len()].clone(), id));
    }
    let consumer = Consumer::start().await;
    let webhook = flags(&consumer, "32");
    let mut sending: Vec<&str> = webhook.iter().map(String::as_str).collect();
    sending.extend(LATENESS);
    sending.extend(["--roles", "dispatcher"]);
    let _sender = Server::listening(&claims.url(name), &sending).await;
    let (mut reads, mut wrong) = (0, vec![]);
    for (count, violations) in readers.join_all().await {
        reads += count;
        wrong.extend(violations);
    }
    let some = &wrong[..wrong.len().min(5)];
    println!("{}: {reads} reads, {} wrong", test_name(), wrong.len());
    assert!(wrong.is_empty(), "{} of {reads}: {some:#?}", wrong.len());
}

/// Creates a schedule for now on the clocks of [`ZONES`] zones, from UTC eastwards.
async fn in_many_zones(client: &mut Client) -> String {
    let now = DateTime::from_timestamp_millis(now_ms()).expect("an instant");
    let zones = (0..ZONES).map(|hours| format!("Etc/GMT-{hours}"));
    let request = v1::CreateCanvasScheduleRequest {
        canvas_id: "zones".to_owned(),
        schedule: Some(v1::Schedule {
            time: now.format("%Y-%m-%dT%H:%M:%S").to_string(),
            in_local_time: true,
            at_optimal_time: false,
        }),
        recipients: zones.map(|zone| in_zone(&zone)).collect(),
        ..Default::default()
    };
    let made = client.create_canvas_schedule(request).await;
    let schedule = made.expect("created").into_inner().canvas_schedule;
    schedule.expect("a schedule").schedule_id
}

/// Reads a schedule until it is sent in every zone. Returns the number of reads, and the answers
/// that show a state that never existed.
async fn read(mut client: Client, id: String) -> (usize, Vec<String>) {
    let (mut reads, mut wrong) = (0, vec![]);
    loop {
        let request = v1::GetCanvasScheduleRequest {
            schedule_id: id.clone(),
        };
        let answer = client.get_canvas_schedule(request).await;
        let answer = answer.expect("it exists").into_inner();
        reads += 1;
        if !existed(&answer) {
            wrong.push(format!("{answer:?}"));
        }
        let delivered = answer.dispatches.unwrap_or_default().delivered;
        if usize::try_from(delivered).expect("a count") == ZONES {
            return (reads, wrong);
        }
    }
}

/// Each zone is open, with a wave, or handed over in one dispatch.
fn existed(answer: &v1::GetCanvasScheduleResponse) -> bool {
    let schedule = answer.canvas_schedule.as_ref().expect("a schedule");
    let counts = answer.dispatches.unwrap_or_default();
    let dispatches = counts.in_hand + counts.unknown + counts.delivered;
    let (open, total) = (schedule.open_zones, schedule.total_zones);
    let state = match open {
        0 => Dispatched,
        open if open == total => Pending,
        _ => Dispatching,
    };
    let waves = i32::try_from(answer.waves.len()).expect("few waves");
    schedule.state() == state
        && waves == open
        && dispatches == total - open
        && schedule.next_wave_time.is_some() == (open > 0)
}
