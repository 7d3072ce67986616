//! The command line: settings, exit codes, migrations.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Output, Stdio};
use std::time::Duration;

use canvas_scheduler::cli::CommandLine;
use clap::CommandFactory;
use tonic_health::pb::health_check_response::ServingStatus;

use super::database::{Database, Folder, own_postgres};
use super::database_urls::CommandOutput;
use super::load::schedules;
use super::postgres::process::{Running, run, send};
use super::server::{PATIENCE, Server, command, key, migrate, next_status};

/// Runs the binary and waits for its end.
pub(crate) fn run_to_end(args: &[&str]) -> Output {
    let folder = Folder::new();
    let mut command = command(args);
    command
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = Running::start(&mut command).unwrap();
    assert!(running.wait(PATIENCE).is_some(), "{args:?} does not end");
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0, "{args:?} left child processes");
    let [mut stdout, mut stderr] = [vec![], vec![]];
    std::io::Read::read_to_end(&mut running.child().stdout.take().unwrap(), &mut stdout).unwrap();
    std::io::Read::read_to_end(&mut running.child().stderr.take().unwrap(), &mut stderr).unwrap();
    Output {
        status: running.wait(PATIENCE).unwrap(),
        stdout,
        stderr,
    }
}

/// Runs `serve`, which must refuse to start, and returns its error output.
fn refused(args: &[&str]) -> String {
    let output = run_to_end(&[&["serve"], args].concat());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && !errors.is_empty(),
        "{args:?}: {} {errors}",
        output.status
    );
    assert!(!errors.contains("listening"), "{errors}");
    errors
}

#[test]
fn every_invalid_setting_is_reported_at_once_before_a_port_is_bound() {
    let bad = [
        ("log-level", "=x="),
        ("log-format", "xml"),
        ("database-url", "mysql://u:hidden@h/d"),
        ("grpc-addr", "here"),
        ("gateway-addr", "there"),
        ("gateway", "yes"),
        ("sink", "stdout"),
        ("sink-timeout", "x"),
        ("sink-connect-timeout", "0s"),
        ("sink-connections", "0"),
        ("sink-subject", "a b"),
        ("sink-ca-file", "no/such/file"),
        ("sink-secret-file", "no/such/file"),
        ("tls-client-ca", "alone"),
        ("plaintext", "yes"),
        ("trusted-proxies", "10.0.0.0/33"),
        ("reflection", "maybe"),
        ("cores", "-1"),
        ("writers", "0"),
        ("commit-max", "many"),
        ("queue-max", "0"),
        ("read-connections", "0"),
        ("lateness", "soon"),
        ("horizon-days", "0"),
        ("revisions-kept", "0"),
        ("max-connections", "0"),
        ("max-connections-per-address", "0"),
        ("max-in-flight", "0"),
        ("first-byte-timeout", "x"),
        ("max-connection-age", "0s"),
        ("max-call-time", "-1s"),
        ("drain", "20"),
    ];
    let args: Vec<String> = bad
        .iter()
        .map(|(flag, value)| format!("--{flag}={value}"))
        .collect();
    let errors = refused(&args.iter().map(String::as_str).collect::<Vec<_>>());
    for (flag, _) in bad {
        assert!(
            errors.contains(&format!("--{flag}:")),
            "{flag} is missing: {errors}"
        );
    }
    assert!(!errors.contains("hidden"), "{errors}");
}

#[test]
fn help_lists_every_setting_with_its_variable() {
    let output = run_to_end(&["serve", "--help"]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    let flags = [
        "database-url",
        "database-url-file",
        "grpc-addr",
        "gateway-addr",
        "gateway",
        "sink",
        "sink-url",
        "sink-secret",
        "sink-secret-file",
        "sink-ca-file",
        "sink-timeout",
        "sink-connect-timeout",
        "sink-connections",
        "sink-subject",
        "tls-cert",
        "tls-key",
        "tls-client-ca",
        "plaintext",
        "trusted-proxies",
        "reflection",
        "cores",
        "writers",
        "commit-max",
        "queue-max",
        "read-connections",
        "lateness",
        "horizon-days",
        "revisions-kept",
        "max-connections",
        "max-connections-per-address",
        "max-in-flight",
        "first-byte-timeout",
        "max-connection-age",
        "max-call-time",
        "drain",
        "log-level",
        "log-format",
    ];
    for flag in flags {
        let variable = format!("CANVAS_SCHEDULER_{}", flag.replace('-', "_").to_uppercase());
        assert!(
            help.contains(&format!("--{flag} ")) && help.contains(&variable),
            "{flag}: {help}"
        );
    }
}

/// Every variable of every command, hidden ones included.
fn variables() -> BTreeSet<String> {
    fn collect(command: &clap::Command, variables: &mut BTreeSet<String>) {
        let names = command.get_arguments().filter_map(|arg| arg.get_env());
        variables.extend(names.map(|name| name.to_str().unwrap().to_owned()));
        for subcommand in command.get_subcommands() {
            collect(subcommand, variables);
        }
    }
    let mut variables = BTreeSet::new();
    collect(&CommandLine::command(), &mut variables);
    variables
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let variables = variables();
    for name in ["CANVAS_SCHEDULER_LEASE", "OTEL_SDK_DISABLED", "PGPORT"] {
        assert!(variables.contains(name), "{name}: {variables:?}");
    }
    let refused = ["serve", "--grpc-addr", "192.0.2.1:1"];
    let errors = |set: &[&str]| {
        let mut command = command(&refused);
        command.env_clear().envs(set.iter().map(|name| (name, "")));
        run(&mut command, PATIENCE).expect_err("a public address needs TLS")
    };
    let unset = errors(&[]);
    assert!(unset.contains("--grpc-addr"), "{unset}");
    for name in &variables {
        assert_eq!(errors(&[name]), unset, "{name}");
    }
    let all: Vec<&str> = variables.iter().map(String::as_str).collect();
    assert_eq!(errors(&all), unset);
    for args in [
        &["migrate", "--database-url", "sqlite::memory:"][..],
        &["healthcheck", "--grpc-addr", "127.0.0.1:1"],
    ] {
        let mut command = command(args);
        command.envs(all.iter().map(|name| (name, "")));
        let ended = run(&mut command, PATIENCE);
        assert_eq!(ended.is_ok(), args[0] == "migrate", "{ended:?}");
        let errors = ended.err().unwrap_or_default();
        assert!(!errors.contains("--"), "{errors}");
    }
}

#[tokio::test]
async fn an_https_collector_in_the_environment_does_not_stop_the_server() {
    let folder = Folder::new();
    let pem = folder.path().join("ca.pem");
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&pem, certified.cert.pem()).unwrap();
    let pem = pem.to_str().unwrap();
    let database = Database::sqlite();
    let url = database.url();
    let endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT";
    for variables in [
        [
            (endpoint, "https://127.0.0.1:1"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", pem),
        ],
        [(endpoint, "no URL"), ("OTEL_SDK_DISABLED", "true")],
    ] {
        let ports = ["--grpc-addr", "127.0.0.1:0", "--gateway", "off"];
        let mut serve = command(&[&["serve", "--database-url", &url][..], &ports].concat());
        let output = CommandOutput::of(serve.envs(variables));
        let is_listening = |line: &str| line.contains("\"listening\"");
        let all = output.until(is_listening).await;
        assert!(
            all.iter().any(|line| is_listening(line)),
            "{variables:?}: {all:?}"
        );
    }
}

#[test]
fn an_unknown_log_level_is_refused_with_the_known_ones() {
    for level in ["warning", "info,verbose", "canvas_scheduler", "a=loud", ""] {
        let errors = refused(&["--log-level", level]);
        assert!(
            errors.contains("--log-level") && errors.contains("error, warn, info, debug, trace"),
            "{level:?}: {errors}"
        );
    }
}

#[test]
fn an_address_beyond_loopback_needs_tls_or_plaintext_on() {
    for addr in ["0.0.0.0:0", "[::]:0", "192.0.2.1:50051"] {
        for flag in ["--grpc-addr", "--gateway-addr"] {
            let errors = refused(&[flag, addr]);
            assert!(
                errors.contains(flag)
                    && errors.contains(addr)
                    && errors.contains("loopback")
                    && errors.contains("--plaintext on"),
                "{errors}"
            );
        }
    }
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let database = Database::sqlite();
    let errors = refused(&[
        "--grpc-addr",
        &addr,
        "--gateway",
        "off",
        "--database-url",
        &database.url(),
    ]);
    assert!(
        errors.contains("--grpc-addr") && errors.contains(&addr) && errors.contains("in use"),
        "{errors}"
    );
    let errors = refused(&[
        "--grpc-addr",
        "127.0.0.1:0",
        "--gateway-addr",
        &addr,
        "--database-url",
        &database.url(),
    ]);
    assert!(
        errors.contains("--gateway-addr") && errors.contains(&addr) && errors.contains("in use"),
        "{errors}"
    );
}

#[test]
fn a_database_that_cannot_be_opened_is_a_clear_error() {
    let errors = refused(&[
        "--database-url",
        "sqlite://no/such/folder/x.db?mode=rwc",
        "--grpc-addr",
        "127.0.0.1:0",
        "--gateway",
        "off",
    ]);
    assert!(errors.contains("--database-url"), "{errors}");
}

#[test]
fn a_postgres_without_fsync_is_refused() {
    let Some(postgres) = own_postgres(&["fsync=off"]) else {
        return;
    };
    postgres.createdb("test").unwrap();
    migrate(&postgres.url("test"));
    let errors = refused(&[
        "--database-url",
        &postgres.url("test"),
        "--grpc-addr",
        "127.0.0.1:0",
        "--gateway",
        "off",
    ]);
    assert!(errors.contains("fsync=off"), "{errors}");
}

/// Runs `healthcheck` and returns its exit code.
fn healthcheck(addr: &str) -> Option<i32> {
    let output = run_to_end(&["healthcheck", "--timeout", "60s", "--grpc-addr", addr]);
    let silent = output.stderr.is_empty();
    assert_eq!(
        silent,
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.status.code()
}

#[tokio::test]
async fn it_serves_once_the_schema_is_there_without_a_restart_sqlite() {
    let folder = Folder::new();
    let url = format!(
        "sqlite://{}?mode=rwc",
        folder.path().join("test.db").display()
    );
    until_migrated(&url).await;
}

#[tokio::test]
async fn it_serves_once_the_schema_is_there_without_a_restart_postgres() {
    let Some(database) = Database::postgres_empty() else {
        return;
    };
    until_migrated(&database.url()).await;
}

async fn until_migrated(url: &str) {
    let mut server = Server::listening(url, &[]).await;
    let mut health = server.watch().await;
    assert_eq!(
        next_status(&mut health).await,
        Some(ServingStatus::NotServing)
    );
    assert_eq!(healthcheck(server.addr()), Some(1));
    let mut client = server.connect().await;
    let refused = super::load::create(&mut client, super::load::unique_time(), String::new())
        .await
        .expect_err("not ready");
    assert_eq!(super::load::reason(&refused), "STORE_UNAVAILABLE");
    migrate(url);
    let serving = tokio::time::timeout(PATIENCE, next_status(&mut health))
        .await
        .expect("it checks again");
    assert_eq!(serving, Some(ServingStatus::Serving));
    assert_eq!(healthcheck(server.addr()), Some(0));
    assert_eq!(
        healthcheck(&server.addr().replace("127.0.0.1", "localhost")),
        Some(0),
        "by name"
    );
    assert_eq!(healthcheck("localhost"), Some(1), "without a port");
    server
        .log()
        .first(|line| line.contains("no API key exists yet").then_some(()))
        .await;
    server.set_key(key(url));
    schedules(&mut server.connect().await, 1).await;
    server.signal("TERM");
    assert!(server.ended(PATIENCE).await.expect("it ends").success());
    assert_eq!(healthcheck(server.addr()), Some(1), "no server listens");
}

/// Longer than an API call waits for a connection.
const DATABASE_PAUSE: Duration = Duration::from_secs(4);

#[test]
fn a_command_waits_for_a_stopped_database_postgres() {
    let Some(postgres) = own_postgres(&[]) else {
        return;
    };
    postgres.createdb("test").unwrap();
    let postmaster = [postgres.pid().unwrap()];
    send("STOP", &postmaster);
    let mut migrating = Running::start(&mut command(&[
        "migrate",
        "--database-url",
        &postgres.url("test"),
    ]))
    .unwrap();
    assert_eq!(migrating.wait(DATABASE_PAUSE), None, "it waits");
    send("CONT", &postmaster);
    assert!(migrating.wait(PATIENCE).expect("it ends").success());
}

#[test]
fn several_migrations_at_once_all_succeed_postgres() {
    let Some(database) = Database::postgres_empty() else {
        return;
    };
    let url = database.url();
    let migrate = || run(&mut command(&["migrate", "--database-url", &url]), PATIENCE);
    let ended: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..4).map(|_| scope.spawn(migrate)).collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for one in ended {
        one.unwrap();
    }
    migrate().unwrap();
}
