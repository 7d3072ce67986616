//! PostgreSQL's disk is full under load, with cancellations, and has space again.

use std::time::Instant;

use serde_json::Value;

use super::cuts::Proxied;
use super::database::{own_postgres, test_name};
use super::load::BACK_OFF;
use super::recorded_load::{RecordedLoad, quiet};
use super::recorder::{Answer, Recorder};
use super::server::{PATIENCE, Server};

const CALLERS: usize = 16;
/// Acknowledged changes between two faults.
const BETWEEN: u64 = 100;
/// The disk holds an empty database and some thousand schedules.
const MEGABYTES: u32 = 48;

#[tokio::test]
async fn a_full_disk_is_reported_and_loses_nothing_postgres() {
    fill_and_free(2).await;
}

#[tokio::test]
#[ignore = "a minute: .ci/full runs it"]
async fn a_disk_that_is_full_ten_times_loses_nothing_postgres() {
    fill_and_free(10).await;
}

async fn fill_and_free(times: usize) {
    let Some(postgres) = own_postgres(&[]) else {
        return;
    };
    let Some(disk) = postgres.createdb_on_disk("test", MEGABYTES).unwrap() else {
        println!("skipped: {} may not mount a file system", test_name());
        return;
    };
    super::server::migrate(&postgres.url("test"));
    let mut service = Proxied::start(&postgres, "test").await;
    let ids = [service.create().await, service.create().await];
    let (access, recorder) = (service.server.access().clone(), service.recorder.clone());
    let mut load = RecordedLoad::start(&access, &recorder, &ids, CALLERS, 0).await;
    let mut recovery = Vec::new();
    for _ in 0..times {
        load.acknowledged(BETWEEN).await;
        let before = recorder.records().len();
        disk.fill();
        refused(&recorder, before).await;
        not_ready(&service.server, "full").await;
        disk.free();
        let began = Instant::now();
        load.acknowledged(BETWEEN).await;
        ready(&service.server).await;
        recovery.push(began.elapsed());
    }
    load.stop().await;
    quiet(&mut service.client).await;
    service.server.kill9();
    let server = Server::start(&postgres.url("test"), &[]).await;
    let mut client = server.connect().await;
    let differing = recorder.replay(&mut client, 0).await;
    assert_eq!(differing, Vec::<String>::new());
    let verdict = recorder.check(&mut client, &service.consumer.came()).await;
    println!("{}: recovered after {recovery:?}, {verdict:?}", test_name());
    verdict.assert_clean();
}

/// Waits until a change is refused, and asserts that it names the cause.
pub(crate) async fn refused(recorder: &Recorder, from: usize) {
    let began = Instant::now();
    loop {
        let records = recorder.records();
        let refusal = records[from..].iter().find_map(|one| match &one.answer {
            Answer::Refused(text) => Some(text.clone()),
            _ => None,
        });
        if let Some(text) = refusal {
            assert!(
                text.contains("STORE_UNAVAILABLE") && text.contains("full"),
                "{text}"
            );
            return;
        }
        assert!(began.elapsed() < PATIENCE, "no change was refused");
        // A copy of all records costs more than a turn of the runtime.
        tokio::time::sleep(BACK_OFF).await;
    }
}

/// Waits until the process is not ready for a reason with this text.
pub(crate) async fn not_ready(server: &Server, reason: &str) {
    readiness(server, false, reason).await;
}

/// Waits until the process is ready.
pub(crate) async fn ready(server: &Server) {
    readiness(server, true, "").await;
}

async fn readiness(server: &Server, wanted: bool, text: &str) {
    let began = Instant::now();
    loop {
        let (_, body) = server.ask("/readyz").await;
        let parsed: Value = serde_json::from_str(&body).unwrap();
        if parsed["ready"] == wanted && body.contains(text) {
            println!("{}: {body}", test_name());
            return;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "not {wanted} with {text:?}: {body}"
        );
        tokio::task::yield_now().await;
    }
}
