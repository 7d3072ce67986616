//! PgBouncer between the service and PostgreSQL.

use std::time::Instant;

use super::database::{Database, required, test_name};
use super::load::{schedules, unique_time, update};
use super::lock_holder::Locked;
use super::pgbouncer::PgBouncer;
use super::postgres::Problem;
use super::postgres::process::run;
use super::server::{PATIENCE, Server, command, migrate};
use super::silent_connections::{note_settings, noted};

/// A database and a pooler in front of its server. Returns `None`, and reports the test as skipped,
/// where one of them is not installed.
fn pooled(mode: &str, ignored: &str) -> Option<(Database, PgBouncer)> {
    let database = Database::postgres_empty()?;
    let (postgres, _) = database.server();
    match PgBouncer::start(postgres, mode, ignored) {
        Ok(pooler) => Some((database, pooler)),
        Err(Problem::NotInstalled) if !required() => {
            println!("skipped: {} needs PgBouncer", test_name());
            None
        }
        Err(problem) => panic!("{problem}"),
    }
}

#[tokio::test]
async fn a_pooler_in_session_mode_serves_postgres() {
    serves_behind("extra_float_digits").await;
}

#[tokio::test]
async fn a_pooler_that_drops_options_keeps_no_limit_from_the_sessions_postgres() {
    serves_behind("extra_float_digits,options").await;
}

async fn serves_behind(ignored: &str) {
    let Some((database, pooler)) = pooled("session", ignored) else {
        return;
    };
    let (postgres, name) = database.server();
    migrate(&pooler.url(name));
    note_settings(postgres, name);
    let server = Server::start(&pooler.url(name), &["--writers", "1"]).await;
    let mut client = server.connect().await;
    let (ids, _) = schedules(&mut client, 40).await;
    let settings = noted(postgres, name, "canvas_schedule_revision");
    for (setting, at_most_ms) in [("lock_timeout", 2_000), ("statement_timeout", 15_000)] {
        let value: u32 = settings[setting].parse().unwrap();
        assert!((1..=at_most_ms).contains(&value), "{setting}: {value} ms");
    }
    let locked = Locked::row(&database, &ids[0]).await;
    let (mut own, id) = (client.clone(), ids[0].clone());
    let waiting =
        tokio::spawn(async move { update(&mut own, &id, unique_time(), String::new()).await });
    let began = Instant::now();
    for id in &ids[1..] {
        update(&mut client, id, unique_time(), String::new())
            .await
            .expect("its row is not locked");
    }
    let took = began.elapsed();
    assert!(!waiting.is_finished(), "its row is locked");
    drop(locked);
    let updated = tokio::time::timeout(PATIENCE, waiting).await;
    updated.expect("the lock is gone").unwrap().unwrap();
    println!("{}: 39 others in {took:?}", test_name());
}

#[test]
fn a_pooler_in_transaction_mode_is_refused_by_name_postgres() {
    refused_behind("transaction");
}

#[test]
fn a_pooler_in_statement_mode_is_refused_by_name_postgres() {
    refused_behind("statement");
}

fn refused_behind(mode: &str) {
    let Some((database, pooler)) = pooled(mode, "extra_float_digits,options") else {
        return;
    };
    let (_, name) = database.server();
    migrate(&database.url());
    let url = pooler.url(name);
    for program in ["migrate", "serve"] {
        let mut command = command(&[program, "--database-url", &url]);
        command.env("CANVAS_SCHEDULER_GRPC_ADDR", "127.0.0.1:0");
        command.env("CANVAS_SCHEDULER_GATEWAY_ADDR", "127.0.0.1:0");
        let refused = run(&mut command, PATIENCE).expect_err("it is refused");
        println!("{}: {program}: {refused}", test_name());
        assert!(
            refused.contains(&format!("{mode} mode")),
            "{program} does not name the mode: {refused}"
        );
    }
}
