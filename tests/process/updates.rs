//! Many callers and no fault: every acknowledged update is in the history.

use std::time::{Duration, Instant};

use super::database::{Database, test_name};
use super::history::History;
use super::load::{Callers, Mix, schedules};
use super::server::Server;

/// How long the callers work.
const LOAD: Duration = Duration::from_secs(10);
const CALLERS: usize = 64;
const CONNECTIONS: usize = 8;
const SCHEDULES: usize = 100;

#[tokio::test]
async fn every_acknowledged_update_is_in_the_history_sqlite() {
    updates(&Database::sqlite()).await;
}

#[tokio::test]
async fn every_acknowledged_update_is_in_the_history_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    updates(&database).await;
}

async fn updates(database: &Database) {
    let server = Server::start(&database.url(), &[]).await;
    let mut client = server.connect().await;
    let (ids, mut calls) = schedules(&mut client, SCHEDULES).await;
    let clients = server.connections(CONNECTIONS).await;
    let began = Instant::now();
    let mut callers = Callers::start(&clients, &ids, CALLERS, Mix::default());
    tokio::time::sleep(LOAD).await;
    callers.acknowledged(1).await;
    let took = began.elapsed().as_secs_f64();
    calls.extend(callers.stop().await);
    for call in &calls {
        assert!(
            call.end.is_ok(),
            "without a fault every call must succeed: {call:?}"
        );
    }
    let tally = History::read(&mut client).await.check(&calls);
    println!(
        "{}: {:.0} updates/s, {tally:?}",
        test_name(),
        tally.done as f64 / took
    );
}
