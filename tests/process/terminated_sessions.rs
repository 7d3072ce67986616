//! Backends of PostgreSQL that an operator ends while they work for the server.

use std::sync::Arc;

use super::database::{own_postgres, test_name};
use super::history::History;
use super::load::{Callers, Mix, schedules};
use super::server::{Server, migrate};

const CALLERS: usize = 32;
const CONNECTIONS: usize = 8;
const SCHEDULES: usize = 20;
/// How often connections are cut.
const CUTS: usize = 40;
/// Acknowledged calls between two cuts.
const BETWEEN: u64 = 50;
const MIX: Mix = Mix {
    create_every: 8,
    request_id_every: 5,
    until_refused: false,
};
/// Every backend of a writer is ended.
const TERMINATE: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'canvas-scheduler writer'";

#[tokio::test]
async fn terminated_backends_lose_nothing_and_double_nothing_postgres() {
    // A commit takes longer, so that a cut is likelier to meet one.
    let Some(postgres) = own_postgres(&["commit_delay=2000", "commit_siblings=0"]) else {
        return;
    };
    postgres.createdb("test").unwrap();
    migrate(&postgres.url("test"));
    let server = Server::start(&postgres.url("test"), &[]).await;
    let (ids, mut calls) = schedules(&mut server.connect().await, SCHEDULES).await;
    let mut callers = Callers::start(&server.connections(CONNECTIONS).await, &ids, CALLERS, MIX);
    let postgres = Arc::new(postgres);
    let mut terminated = 0;
    for _ in 0..CUTS {
        callers.acknowledged(BETWEEN).await;
        let postgres = postgres.clone();
        let ended = tokio::task::spawn_blocking(move || postgres.psql("postgres", TERMINATE))
            .await
            .unwrap()
            .unwrap();
        terminated += ended.parse::<usize>().unwrap();
    }
    callers.acknowledged(BETWEEN).await;
    calls.extend(callers.stop().await);
    assert!(terminated >= CUTS / 2, "{terminated} backends were ended");
    for call in &calls {
        assert!(call.is_documented(), "{call:?}");
    }
    let tally = History::read(&mut server.connect().await)
        .await
        .check(&calls);
    println!(
        "{}: {terminated} backends were ended, {tally:?}",
        test_name()
    );
}
