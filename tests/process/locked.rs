//! A row that another session holds for long.

use std::time::Instant;

use super::database::{Database, test_name};
use super::load::{schedules, unique_time, update};
use super::lock::Locked;
use super::server::{PATIENCE, Server};

#[tokio::test]
async fn a_locked_row_does_not_hold_up_its_neighbours_postgres() {
    let Some(database) = Database::postgres() else { return };
    // One writer, so that all schedules are neighbours.
    let server = Server::start(&database.url(), &["--writers", "1"]).await;
    let mut client = server.connect().await;
    let (ids, _) = schedules(&mut client, 40).await;
    let locked = Locked::row(&database, &ids[0]).await;
    let mut own = client.clone();
    let id = ids[0].clone();
    let waiting = tokio::spawn(async move {
        let first = update(&mut own, &id, unique_time(), String::new()).await;
        (first, update(&mut own, &id, unique_time(), String::new()).await)
    });
    let began = Instant::now();
    for id in &ids[1..] {
        let (_, revision) = update(&mut client, id, unique_time(), String::new()).await.expect("its own row is free");
        assert_eq!(revision, 2);
    }
    let took = began.elapsed();
    assert!(!waiting.is_finished(), "its row is locked");
    drop(locked);
    let (first, second) = tokio::time::timeout(PATIENCE, waiting).await.expect("the lock is gone").unwrap();
    assert_eq!((first.unwrap().1, second.unwrap().1), (2, 3));
    println!("{}: {} neighbours in {took:?}", test_name(), ids.len() - 1);
}
