//! The disk of a SQLite file is full under load, with cancellations, and has space again.

use std::time::Instant;

use super::consumer::Consumer;
use super::database::{Folder, required, test_name};
use super::delivery::sender_over;
use super::full_tablespace::{not_ready, ready, refused};
use super::load::unique_time;
use super::postgres::Disk;
use super::recorded_load::{RecordedLoad, quiet};
use super::recorder::Recorder;
use super::server::{Server, migrate};

const CALLERS: usize = 16;
/// Acknowledged changes between two faults.
const BETWEEN: u64 = 100;
/// The disk holds the `-wal` file before its first checkpoint, 1.6 MB, and some thousand schedules.
const MEGABYTES: u32 = 3;

#[tokio::test]
async fn a_full_disk_is_reported_and_loses_nothing_sqlite() {
    fill_and_free(3).await;
}

#[tokio::test]
#[ignore = "a minute: .ci/full runs it"]
async fn a_disk_that_is_full_ten_times_loses_nothing_sqlite() {
    fill_and_free(10).await;
}

async fn fill_and_free(times: usize) {
    let folder = Folder::new();
    let place = folder.path().join("disk");
    let Some(disk) = Disk::mount_here(place.clone(), MEGABYTES).unwrap() else {
        assert!(!required(), "a file system cannot be mounted");
        println!("skipped: {} may not mount a file system", test_name());
        return;
    };
    let url = format!("sqlite://{}?mode=rwc", place.join("test.db").display());
    migrate(&url);
    let consumer = Consumer::start().await;
    let mut server = sender_over(&url, &consumer).await;
    let (access, recorder) = (server.access().clone(), Recorder::new());
    let mut client = server.connect().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let made = recorder
            .create_with_id(&mut client, unique_time(), "")
            .await;
        ids.push(made.1.expect("created"));
    }
    let mut load = RecordedLoad::start(&access, &recorder, &ids, CALLERS, 0).await;
    let mut recovery = Vec::new();
    for _ in 0..times {
        load.acknowledged(BETWEEN).await;
        let before = recorder.records().len();
        disk.fill();
        refused(&recorder, before).await;
        not_ready(&server, "full").await;
        disk.free();
        let began = Instant::now();
        load.acknowledged(BETWEEN).await;
        ready(&server).await;
        recovery.push(began.elapsed());
    }
    load.stop().await;
    quiet(&mut client).await;
    server.kill9();
    let server = Server::start_with_key(&url, &[], server.key().to_owned()).await;
    let mut client = server.connect().await;
    let differing = recorder.replay(&mut client, 0).await;
    assert_eq!(differing, Vec::<String>::new());
    let verdict = recorder.check(&mut client, &consumer.came()).await;
    println!("{}: recovered after {recovery:?}, {verdict:?}", test_name());
    verdict.assert_clean();
}
