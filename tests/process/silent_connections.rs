//! Connections that a NAT or a firewall forgets without a word, and processes that stop inside a
//! transaction.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::cuts::{Proxied, due_time};
use super::database::{Database, test_name};
use super::load::unique_time;
use super::postgres::Postgres;
use super::postgres::process::send;
use super::proxy::{Action, Side};
use super::recorder::Answer;
use super::server::PATIENCE;

/// How long connections are idle before they are forgotten: longer than a service may trust one
/// without a check.
const IDLE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn connections_that_were_forgotten_while_idle_cost_no_call_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (postgres, name) = database.server();
    let mut service = Proxied::start(postgres, name).await;
    let id = service.create().await;
    tokio::time::sleep(IDLE).await;
    service.proxy.forget_open();
    let (recorder, client) = (service.recorder.clone(), &mut service.client);
    let (mut took, began) = (vec![], Instant::now());
    let updated = recorder.update(client, &id, "").await;
    took.push(("update", began.elapsed()));
    assert!(matches!(updated, Answer::Done { .. }), "{updated:?}");
    let read = recorder.get(client, &id).await;
    took.push(("get", began.elapsed()));
    assert!(matches!(read, Answer::Read { .. }), "{read:?}");
    let (created, due) = recorder.create_with_id(client, due_time(), "").await;
    assert!(matches!(created, Answer::Done { .. }), "{created:?}");
    let due = due.unwrap();
    service
        .consumer
        .until(|came| came.iter().any(|one| one.schedule_id == due))
        .await;
    took.push(("delivery", began.elapsed()));
    println!("{}: {took:?}", test_name());
    let recorder = service.recorder.clone();
    let came = service.consumer.came();
    recorder
        .check(&mut service.client, &came)
        .await
        .assert_clean();
}

/// The connection is forgotten when the transaction of a creation has written.
#[tokio::test]
async fn a_transaction_whose_connection_is_forgotten_ends_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (postgres, name) = database.server();
    let mut service = Proxied::start(postgres, name).await;
    let backend = in_transaction(&service, || Action::Forget);
    let (recorder, client) = (service.recorder.clone(), &mut service.client);
    let began = Instant::now();
    let ending = ended_within_patience(postgres, name, &backend);
    let (answer, ended) = tokio::join!(recorder.create(client, unique_time(), "request"), ending);
    println!("{}: {answer:?} after {:?}", test_name(), began.elapsed());
    assert!(ended, "its backend is still there");
    assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
    let came = service.consumer.came();
    recorder.check(client, &came).await.assert_clean();
}

/// The process is stopped when the transaction of a creation has written.
#[tokio::test]
async fn the_transaction_of_a_stopped_process_ends_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (postgres, name) = database.server();
    let mut service = Proxied::start(postgres, name).await;
    let pid = service.server.pid();
    let backend = in_transaction(&service, move || {
        send("STOP", &[pid]);
        Action::Forward
    });
    let (recorder, mut client) = (service.recorder.clone(), service.client.clone());
    let creating =
        tokio::spawn(async move { recorder.create(&mut client, unique_time(), "request").await });
    let began = Instant::now();
    let ended = ended_within_patience(postgres, name, &backend).await;
    println!("{}: {ended} after {:?}", test_name(), began.elapsed());
    service.server.signal("CONT");
    assert!(ended, "its backend is still there");
    let answer = creating.await.unwrap();
    assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
    let (recorder, came) = (service.recorder.clone(), service.consumer.came());
    let verdict = recorder.check(&mut service.client, &came).await;
    verdict.assert_clean();
}

/// Injects a fault once, when a transaction of the writer has written. Returns where the process id
/// of its backend will be.
fn in_transaction(
    service: &Proxied,
    mut fault: impl FnMut() -> Action + Send + 'static,
) -> Arc<Mutex<u32>> {
    let backend = Arc::new(Mutex::new(0));
    let met = backend.clone();
    service.proxy.set_rule(move |message| {
        let mut met = met.lock().unwrap();
        let written = message.side == Side::ToClient
            && message.kind == b'Z'
            && message.in_transaction
            && message.application.contains("writer")
            && message.statement.contains("INSERT");
        if *met != 0 || !written {
            return Action::Forward;
        }
        *met = message.backend;
        fault()
    });
    backend
}

/// Waits until the backend with this id has ended.
async fn ended_within_patience(postgres: &Postgres, name: &str, backend: &Mutex<u32>) -> bool {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let pid = *backend.lock().unwrap();
        let there = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
        if pid != 0 && postgres.psql(name, &there).unwrap() == "0" {
            return true;
        }
    }
    assert!(*backend.lock().unwrap() != 0, "no transaction was met");
    false
}

/// The settings by which PostgreSQL ends what a process left behind.
const SETTINGS: [&str; 7] = [
    "idle_in_transaction_session_timeout",
    "lock_timeout",
    "statement_timeout",
    "tcp_user_timeout",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_keepalives_count",
];

/// Makes triggers note the [`SETTINGS`] of the sessions that write, in their base units.
pub(crate) fn note_settings(postgres: &Postgres, name: &str) {
    let names = SETTINGS.map(|name| format!("'{name}'")).join(", ");
    let mut sql = format!(
        "CREATE TABLE noted (writes text, name text, value text); \
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO noted SELECT TG_TABLE_NAME, name, setting FROM pg_settings \
         WHERE name IN ({names}); RETURN NEW; END $$;"
    );
    for table in ["canvas_schedule_revision", "dispatch"] {
        sql += &format!(
            "CREATE TRIGGER note BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION note();"
        );
    }
    postgres.psql(name, &sql).unwrap();
}

/// What [`note_settings`] noted for the writes to a table.
pub(crate) fn noted(postgres: &Postgres, name: &str, table: &str) -> BTreeMap<String, String> {
    let sql = format!("SELECT DISTINCT name, value FROM noted WHERE writes = '{table}'");
    let pair = |line: &str| {
        let (name, value) = line.split_once('|').unwrap();
        (name.to_owned(), value.to_owned())
    };
    postgres
        .psql(name, &sql)
        .unwrap()
        .lines()
        .map(pair)
        .collect()
}

#[tokio::test]
async fn sessions_of_a_process_that_disappears_end_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (postgres, name) = database.server();
    note_settings(postgres, name);
    let service = Proxied::start(postgres, name).await;
    let (recorder, mut client) = (service.recorder.clone(), service.client.clone());
    recorder.create(&mut client, due_time(), "").await;
    service.consumer.until(|came| !came.is_empty()).await;
    for table in ["canvas_schedule_revision", "dispatch"] {
        let settings = noted(postgres, name, table);
        println!("{}: {table}: {settings:?}", test_name());
        for setting in SETTINGS {
            assert_ne!(settings[setting], "0", "{table}: {setting} has no limit");
        }
        // The system's default is two hours.
        let idle: u32 = settings["tcp_keepalives_idle"].parse().unwrap();
        assert!(idle <= 60, "{table}: {idle} s");
    }
}
