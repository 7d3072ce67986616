//! Connections that cannot be made: their cause is named at once, and a process waits for its
//! database.

use std::net::{Ipv6Addr, TcpListener};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::cuts::insist;
use super::database::{Database, own_postgres, test_name};
use super::full_tablespace::{not_ready, ready};
use super::load::{schedules, unique_time};
use super::postgres::process::{Running, run};
use super::postgres::{Postgres, ports};
use super::proxy::Proxy;
use super::recorded_load::RecordedLoad;
use super::recorder::Recorder;
use super::server::{Lines, PATIENCE, Server, command, key, migrate};

/// A URL with another user.
fn url_as(postgres: &Postgres, user: &str, database: &str) -> String {
    postgres
        .url(database)
        .replace("postgres@", &format!("{user}@"))
}

/// Waits until the errors of a command contain this text, and ends the command.
async fn says(args: &[&str], wanted: &str) {
    let mut command = command(args);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    for addr in [
        "CANVAS_SCHEDULER_GRPC_ADDR",
        "CANVAS_SCHEDULER_GATEWAY_ADDR",
    ] {
        command.env(addr, "127.0.0.1:0");
    }
    let mut running = Running::start(&mut command).unwrap();
    let errors = Lines::of_output(running.child().stderr.take().unwrap());
    let began = Instant::now();
    let line = errors
        .first(|line| line.contains(wanted).then(|| line.to_owned()))
        .await;
    println!(
        "{}: {args:?} after {:?}: {line}",
        test_name(),
        began.elapsed()
    );
    running.kill();
}

#[tokio::test]
async fn a_connection_that_fails_names_its_cause_postgres() {
    let Some(postgres) = own_postgres(&[]) else {
        return;
    };
    postgres.createdb("test").unwrap();
    migrate(&postgres.url("test"));
    let sql =
        "CREATE ROLE secured LOGIN PASSWORD 'right'; CREATE ROLE full_up LOGIN CONNECTION LIMIT 0";
    postgres.psql("postgres", sql).unwrap();
    postgres.require_password("secured").unwrap();
    let closed = ports::lasting().unwrap();
    let url = postgres.url("test");
    let causes = [
        (
            format!("postgres://postgres@127.0.0.1:{closed}/test"),
            "refused",
        ),
        (
            "postgres://postgres@no-such-host.invalid/test".to_owned(),
            "lookup",
        ),
        (format!("{url}?sslmode=require"), "TLS"),
        (
            url_as(&postgres, "secured:wrong", "test"),
            "password authentication failed",
        ),
        (postgres.url("absent"), "does not exist"),
        (url_as(&postgres, "full_up", "test"), "too many connections"),
    ];
    for (url, cause) in &causes {
        for program in ["migrate", "serve"] {
            says(&[program, "--database-url", url], cause).await;
        }
    }
    // A process that starts although the database does not let it in now.
    let server = Server::listening(&causes[0].0, &[]).await;
    not_ready(&server, causes[0].1).await;
}

#[tokio::test]
async fn a_command_that_waits_says_so_and_goes_on_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (postgres, name) = database.server();
    let proxy = Proxy::start(postgres.port());
    proxy.refuse();
    let mut command = command(&["migrate", "--database-url", &proxy.url(name)]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = Running::start(&mut command).unwrap();
    let errors = Lines::of_output(running.child().stderr.take().unwrap());
    let line = errors
        .first(|line| line.contains("wait").then(|| line.to_owned()))
        .await;
    println!("{}: {line}", test_name());
    proxy.accept();
    let ended = running.wait(PATIENCE).expect("it ends");
    assert!(ended.success(), "{:?}", errors.all());
}

#[tokio::test]
async fn a_process_waits_for_a_database_that_is_not_there_yet_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (postgres, name) = database.server();
    let (key, proxy) = (key(&database.url()), Proxy::start(postgres.port()));
    proxy.refuse();
    let mut server = Server::listening(&proxy.url(name), &[]).await;
    server.set_key(key);
    not_ready(&server, "refused").await;
    // Longer than a process waited before it gave up.
    let ended = server.ended(Duration::from_secs(5)).await;
    assert!(ended.is_none(), "{ended:?}");
    proxy.accept();
    ready(&server).await;
    schedules(&mut server.connect().await, 1).await;
}

#[tokio::test]
async fn a_literal_of_ipv6_is_a_host_postgres() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return println!("skipped: {} needs IPv6", test_name());
    }
    let Some(postgres) = own_postgres(&["listen_addresses=127.0.0.1,::1"]) else {
        return;
    };
    postgres.createdb("test").unwrap();
    let url = format!("postgres://postgres@[::1]:{}/test", postgres.port());
    migrate(&url);
    let server = Server::start(&url, &[]).await;
    schedules(&mut server.connect().await, 1).await;
}

#[test]
fn a_database_with_another_encoding_is_refused_postgres() {
    let Some(database) = Database::postgres_empty() else {
        return;
    };
    let (postgres, name) = database.server();
    for encoding in ["SQL_ASCII", "LATIN1"] {
        let other = format!("{name}_{encoding}").to_lowercase();
        let sql = format!(
            "CREATE DATABASE {other} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' \
             LC_CTYPE 'C'"
        );
        postgres.psql("postgres", &sql).unwrap();
        for program in ["migrate", "serve"] {
            let mut command = command(&[program, "--database-url", &postgres.url(&other)]);
            command.env("CANVAS_SCHEDULER_GRPC_ADDR", "127.0.0.1:0");
            command.env("CANVAS_SCHEDULER_GATEWAY_ADDR", "127.0.0.1:0");
            let refused = run(&mut command, PATIENCE).expect_err("it is refused");
            assert!(
                refused.contains(encoding) && refused.contains("UTF8"),
                "{program}: {refused}"
            );
        }
    }
}

/// The first one is slow, because its messages are delayed.
#[test]
fn two_migrations_survive_a_limit_of_idle_transactions_postgres() {
    let Some(database) = Database::postgres_empty() else {
        return;
    };
    let (postgres, name) = database.server();
    let limit = "idle_in_transaction_session_timeout = '500ms'";
    postgres
        .psql("postgres", &format!("ALTER DATABASE {name} SET {limit}"))
        .unwrap();
    let proxy = Proxy::start(postgres.port());
    proxy.delay(Duration::from_millis(30));
    let start = |url: &str| {
        let mut command = command(&["migrate", "--database-url", url]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Running::start(&mut command).unwrap()
    };
    let mut slow = start(&proxy.url(name));
    let began = Instant::now();
    while proxy.counts("").round_trips < 10 {
        assert!(began.elapsed() < PATIENCE, "it does not begin");
        std::thread::yield_now();
    }
    for running in [&mut slow, &mut start(&postgres.url(name))] {
        let ended = running.wait(PATIENCE).expect("it ends");
        let mut errors = String::new();
        let mut pipe = running.child().stderr.take().unwrap();
        std::io::Read::read_to_string(&mut pipe, &mut errors).unwrap();
        assert!(ended.success(), "{errors}");
    }
    println!("{}: {:?}", test_name(), proxy.counts(""));
}

#[tokio::test]
async fn a_role_with_too_few_connections_is_reported_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (postgres, name) = database.server();
    let role = format!("limited_{name}");
    let sql = format!(
        "CREATE ROLE {role} LOGIN CONNECTION LIMIT 3; \
         GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"
    );
    postgres.psql(name, &sql).unwrap();
    let mut server = Server::listening(&url_as(postgres, &role, name), &[]).await;
    server.set_key(key(&database.url()));
    not_ready(&server, "too many connections").await;
    postgres
        .psql(name, &format!("ALTER ROLE {role} CONNECTION LIMIT -1"))
        .unwrap();
    ready(&server).await;
    schedules(&mut server.connect().await, 1).await;
}

#[tokio::test]
async fn keys_that_were_never_read_are_reported_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (postgres, name) = database.server();
    let (role, key) = (format!("app_{name}"), key(&database.url()));
    let sql = format!(
        "CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; \
         REVOKE ALL ON api_key FROM {role}"
    );
    postgres.psql(name, &sql).unwrap();
    let mut server = Server::listening(&url_as(postgres, &role, name), &[]).await;
    server.set_key(key);
    not_ready(&server, "keys_unknown").await;
    postgres
        .psql(name, &format!("GRANT ALL ON api_key TO {role}"))
        .unwrap();
    ready(&server).await;
    schedules(&mut server.connect().await, 1).await;
}

/// docs/operations.md has the formula.
#[tokio::test]
async fn connections_stay_within_the_formula_during_outages_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (postgres, name) = database.server();
    let (read_connections, writers) = (4, 3);
    let formula = read_connections + writers + 6;
    let proxy = Proxy::start(postgres.port());
    let flags = ["--read-connections", "4", "--writers", "3", "--sink", "log"];
    let server = Server::start(&proxy.url(name), &flags).await;
    let (mut client, recorder) = (server.connect().await, Recorder::new());
    let mut ids = Vec::new();
    for _ in 0..8 {
        let (_, id) = recorder
            .create_with_id(&mut client, unique_time(), "")
            .await;
        ids.push(id.expect("created"));
    }
    let mut load = RecordedLoad::start(server.access(), &recorder, &ids, 24, 0).await;
    let of_service =
        format!("FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()");
    let most = |sql: &str| {
        postgres
            .psql("postgres", sql)
            .unwrap()
            .parse::<usize>()
            .unwrap()
    };
    let mut seen = 0;
    for round in 0..30 {
        load.acknowledged(20).await;
        match round % 3 {
            0 => proxy.cut_all(),
            1 => {
                most(&format!(
                    "SELECT count(pg_terminate_backend(pid)) {of_service}"
                ));
            }
            _ => {
                proxy.refuse();
                proxy.cut_all();
                proxy.accept();
            }
        }
        for _ in 0..5 {
            // Those that have ended, and are not gone yet, do not count.
            seen = seen.max(most(&format!(
                "SELECT count(*) {of_service} AND state IS NOT NULL"
            )));
            tokio::task::yield_now().await;
        }
    }
    load.stop().await;
    println!("{}: {seen} of {formula}", test_name());
    assert!(seen <= formula, "{seen} connections, {formula} documented");
    insist(async || recorder.update(&mut client, &ids[0], "").await).await;
}

/// The tables are created where the sessions look for them.
#[tokio::test]
async fn settings_of_the_url_hold_for_migrations_and_sessions_postgres() {
    let Some(database) = Database::postgres_empty() else {
        return;
    };
    let (postgres, name) = database.server();
    postgres.psql(name, "CREATE SCHEMA elsewhere").unwrap();
    let url = format!(
        "{}?options=-c%20search_path%3Delsewhere&application_name=elsewhere",
        database.url()
    );
    migrate(&url);
    let tables = "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'canvas%'";
    assert_eq!(postgres.psql(name, tables).unwrap(), "elsewhere");
    let server = Server::start(&url, &[]).await;
    schedules(&mut server.connect().await, 1).await;
    let writers =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'elsewhere writer'";
    assert_ne!(postgres.psql(name, writers).unwrap(), "0");
    let unknown = format!("{}?options=-c%20no_such_setting%3D1", database.url());
    let refused = run(
        &mut command(&["migrate", "--database-url", &unknown]),
        PATIENCE,
    );
    let refused = refused.expect_err("the server does not know the setting");
    assert!(refused.contains("no_such_setting"), "{refused}");
}
