//! PostgreSQL backends that an operator terminates while the service uses them.

use std::sync::Arc;

use super::database::{own_postgres, test_name};
use super::history::History;
use super::load::{Callers, Mix, schedules};
use super::server::{Server, migrate};

const CALLERS: usize = 32;
const CONNECTIONS: usize = 8;
const SCHEDULES: usize = 20;
/// How often the test terminates the backends.
const TERMINATIONS: usize = 40;
/// Acknowledged calls between two terminations.
const BETWEEN: u64 = 50;
const MIX: Mix = Mix {
    create_every: 8,
    request_id_every: 5,
    until_refused: false,
};
/// Terminates the backend of every writer.
const TERMINATE: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'canvas-scheduler writer'";

#[tokio::test]
async fn terminated_backends_neither_lose_nor_repeat_a_change_postgres() {
    // A commit takes longer, so that a termination is likelier to interrupt one.
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
    for _ in 0..TERMINATIONS {
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
    assert!(
        terminated >= TERMINATIONS / 2,
        "{terminated} backends were terminated"
    );
    for call in &calls {
        assert!(call.is_documented(), "{call:?}");
    }
    let tally = History::read(&mut server.connect().await)
        .await
        .check(&calls);
    println!(
        "{}: {terminated} backends were terminated, {tally:?}",
        test_name()
    );
}
