//! A row or a file that another session locks for long, and a database server that is read-only.

use std::time::Instant;

use tonic::Code;

use super::consumer::Consumer;
use super::database::{Database, test_name};
use super::delivery::{arrived, due, sender_with_workers};
use super::load::{create, now_ms, reason, schedules, unique_time, update, when_available};
use super::lock_holder::Locked;
use super::readiness::until;
use super::server::{PATIENCE, Server, key};

#[tokio::test]
async fn a_locked_row_does_not_delay_others_of_its_batch_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    // One writer, so that all schedules share its batches.
    let server = Server::start(&database.url(), &["--writers", "1"]).await;
    let mut client = server.connect().await;
    let (ids, _) = schedules(&mut client, 40).await;
    let locked = Locked::row(&database, &ids[0]).await;
    let mut own = client.clone();
    let id = ids[0].clone();
    let waiting = tokio::spawn(async move {
        let first = update(&mut own, &id, unique_time(), String::new()).await;
        (
            first,
            update(&mut own, &id, unique_time(), String::new()).await,
        )
    });
    let began = Instant::now();
    for id in &ids[1..] {
        let (_, revision) = update(&mut client, id, unique_time(), String::new())
            .await
            .expect("its row is not locked");
        assert_eq!(revision, 2);
    }
    let took = began.elapsed();
    assert!(!waiting.is_finished(), "its row is locked");
    drop(locked);
    let (first, second) = tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("the lock is gone")
        .unwrap();
    assert_eq!((first.unwrap().1, second.unwrap().1), (2, 3));
    println!(
        "{}: {} other schedules in {took:?}",
        test_name(),
        ids.len() - 1
    );
}

/// One worker, so that each claim takes one wave.
#[tokio::test]
async fn a_locked_due_schedule_keeps_no_other_from_being_sent_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let consumer = Consumer::start().await;
    let api = Server::start(&database.url(), &["--roles", "api"]).await;
    let ids = due(&api.connections(1).await, 20, now_ms() - 2_000, 1_000).await;
    // Ids grow with the time of the creation: this one is due before all others.
    let first = ids.first().expect("an id").clone();
    let locked = Locked::row(&database, &first).await;
    let _sender = sender_with_workers(&database.url(), &consumer, "1").await;
    let mut others = ids.clone();
    others.remove(&first);
    consumer.until(|came| arrived(came) == others).await;
    drop(locked);
    consumer.until(|came| arrived(came) == ids).await;
}

#[tokio::test]
async fn a_file_that_another_process_writes_to_is_unavailable_not_an_internal_error_sqlite() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let mut client = server.connect().await;
    let (ids, _) = schedules(&mut client, 1).await;
    let locked = Locked::file(&database).await;
    let refused = update(&mut client, &ids[0], unique_time(), String::new())
        .await
        .expect_err("the file is locked");
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unavailable, "STORE_UNAVAILABLE"),
        "{refused:?}"
    );
    let waiting =
        when_available(async || update(&mut client, &ids[0], unique_time(), String::new()).await);
    let (updated, ()) = tokio::join!(waiting, async { drop(locked) });
    assert_eq!(updated.expect("the lock is gone").1, 2);
}

#[tokio::test]
async fn a_read_only_server_is_reported_and_used_once_it_accepts_writes_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let Database::Postgres {
        server: postgres,
        name,
    } = &database
    else {
        unreachable!()
    };
    let read_only = |value: &str| {
        postgres
            .psql(
                "postgres",
                &format!("ALTER DATABASE {name} SET default_transaction_read_only = {value}"),
            )
            .unwrap();
    };
    let key = key(&database.url());
    read_only("on");
    let mut server = Server::listening(&database.url(), &[]).await;
    server.set_key(key);
    until(&server, &["schema_unknown", "database_read_only"]).await;
    read_only("off");
    until(&server, &[]).await;
    let mut client = server.connect().await;
    create(&mut client, unique_time(), String::new())
        .await
        .expect("the server accepts writes");
}
