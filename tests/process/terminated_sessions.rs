//! PostgreSQL backends that an operator terminates while the service uses them.

use std::sync::Arc;

use super::cuts::{Fault, everywhere};
use super::database::{own_postgres, test_name};
use super::history::History;
use super::load::{Callers, Mix, schedules};
use super::postgres::Postgres;
use super::proxy::Action;
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

/// The normal suite ends the backend at one message in about this many.
const STRIDE: u64 = 83;

#[tokio::test]
async fn a_backend_ended_at_some_messages_loses_and_repeats_nothing_postgres() {
    everywhere(STRIDE, end_backend).await;
}

#[tokio::test]
#[ignore = "minutes: .ci/full runs it"]
async fn a_backend_ended_at_every_message_loses_and_repeats_nothing_postgres() {
    everywhere(1, end_backend).await;
}

/// Terminates the backend, or cancels its statement, in turn, before a message passes.
fn end_backend(postgres: &Postgres, n: u64) -> Fault {
    let function = if n.is_multiple_of(2) {
        "pg_terminate_backend"
    } else {
        "pg_cancel_backend"
    };
    let mut psql = postgres.client("psql", "postgres");
    Box::new(move |message| {
        let sql = format!("SELECT {function}({})", message.backend);
        let ended = psql.args(["-X", "-q", "-c", &sql]).output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        Action::Forward
    })
}

/// Limits that an administrator sets for other programs.
#[tokio::test]
async fn limits_of_the_database_do_not_reach_the_sessions_of_the_service_postgres() {
    let Some(postgres) = own_postgres(&[]) else {
        return;
    };
    postgres.createdb("test").unwrap();
    for limit in [
        "statement_timeout = '1ms'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '1ms'",
        "default_transaction_isolation = 'serializable'",
    ] {
        postgres
            .psql("postgres", &format!("ALTER DATABASE test SET {limit}"))
            .unwrap();
    }
    migrate(&postgres.url("test"));
    let server = Server::start(&postgres.url("test"), &[]).await;
    let (ids, mut calls) = schedules(&mut server.connect().await, SCHEDULES).await;
    let mut callers = Callers::start(&server.connections(CONNECTIONS).await, &ids, CALLERS, MIX);
    callers.acknowledged(20 * BETWEEN).await;
    calls.extend(callers.stop().await);
    let tally = History::read(&mut server.connect().await)
        .await
        .check(&calls);
    for call in &calls {
        assert!(call.end.is_ok(), "{call:?}");
    }
    println!("{}: {tally:?}", test_name());
}
