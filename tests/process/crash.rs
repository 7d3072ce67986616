//! SIGKILL of a server under load.

use super::database::{Database, test_name};
use super::history::History;
use super::load::{Callers, Mix, schedules, unique_time, update};
use super::server::Server;

/// Acknowledged calls before the kill.
const BEFORE: u64 = 1_000;
const CALLERS: usize = 64;
const CONNECTIONS: usize = 8;
const SCHEDULES: usize = 100;
const MIX: Mix = Mix {
    create_every: 20,
    request_id_every: 0,
    until_refused: false,
};

#[tokio::test]
async fn a_killed_server_loses_nothing_acknowledged_sqlite() {
    killed_server(&Database::sqlite()).await;
}

#[tokio::test]
async fn a_killed_server_loses_nothing_acknowledged_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    killed_server(&database).await;
}

async fn killed_server(database: &Database) {
    let mut server = Server::start(&database.url(), &[]).await;
    let (ids, mut calls) = schedules(&mut server.connect().await, SCHEDULES).await;
    let mut callers = Callers::start(
        &server.connections(CONNECTIONS).await,
        &ids,
        CALLERS,
        Mix {
            until_refused: true,
            ..MIX
        },
    );
    callers.acknowledged(BEFORE).await;
    server.kill9();
    // Calls in flight end with their connection.
    calls.extend(callers.ended().await);
    database.wait_for_sessions_to_end();

    let server = Server::start(&database.url(), &[]).await;
    let mut client = server.connect().await;
    let tally = History::read(&mut client).await.check(&calls);
    let (_, revision) = update(&mut client, &ids[0], unique_time(), String::new())
        .await
        .expect("the restarted server works");
    assert_eq!(History::read(&mut client).await.newest(&ids[0]), revision);
    println!("{}: {tally:?}", test_name());
}
