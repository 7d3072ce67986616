//! The commands for keys and workspaces.

use std::time::{Duration, Instant};

use canvas_scheduler::pb::v1;
use tonic::Code;

use super::command_line::run_to_end;
use super::database::{Database, test_name};
use super::load::reason;
use super::server::{PATIENCE, Server, key};

/// Runs the binary on a database. Returns its output, or its error output.
fn run_command(database: &Database, args: &[&str]) -> Result<String, String> {
    let output = run_to_end(&[args, &["--database-url", &database.url()]].concat());
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    if output.status.success() {
        Ok(stdout)
    } else {
        Err(stderr)
    }
}

#[test]
fn a_key_is_shown_once_listed_without_its_secret_and_revoked_sqlite() {
    life_of_a_key(&Database::sqlite());
}

#[test]
fn a_key_is_shown_once_listed_without_its_secret_and_revoked_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    life_of_a_key(&database);
}

fn life_of_a_key(database: &Database) {
    run_command(
        database,
        &[
            "workspace",
            "create",
            "team",
            "--default-time-zone",
            "Europe/Paris",
            "--requests",
            "5/minute",
        ],
    )
    .unwrap();
    let order = [
        "api-key",
        "create",
        "--workspace",
        "team",
        "--name",
        "a",
        "--permissions",
        "update,read",
    ];
    let limits = [
        "--expires",
        "2099-01-31T00:00:00Z",
        "--allow",
        "10.1.2.3/8,192.0.2.7",
    ];
    let printed = run_command(database, &[&order[..], &limits].concat()).unwrap();
    let key = printed.strip_suffix('\n').expect("a line");
    assert!(
        key.starts_with("cs_") && key.len() == 68 && !key.contains(char::is_whitespace),
        "nothing but the key: {printed:?}"
    );
    let (id, secret) = key.split_at(19);

    let line = |text: String| {
        text.lines()
            .find(|line| line.starts_with(id))
            .map(str::to_owned)
            .expect("it is listed")
    };
    let listed = line(run_command(database, &["api-key", "list"]).unwrap());
    let permissions = "canvas.trigger.schedule.update,canvas.trigger.schedule.read";
    for part in [
        "\tteam\ta\tgood\t",
        permissions,
        "\t10.0.0.0/8,192.0.2.7/32\t",
        "\t2099-01-31T00:00:00Z\t-",
    ] {
        assert!(listed.contains(part), "{part:?} in {listed:?}");
    }
    assert!(
        !listed.contains(&secret[1..]),
        "a list must not contain the secret"
    );

    let duplicate = run_command(database, &order).unwrap_err();
    assert!(
        duplicate.contains("--name") && duplicate.contains("already"),
        "{duplicate}"
    );
    assert!(
        run_command(database, &["api-key", "revoke", key])
            .unwrap_err()
            .contains("<ID>:"),
        "a whole key is not an id"
    );
    for time in ["first", "second"] {
        run_command(database, &["api-key", "revoke", id])
            .unwrap_or_else(|why| panic!("the {time} time: {why}"));
    }
    assert!(line(run_command(database, &["api-key", "list"]).unwrap()).contains("\trevoked\t"));
    let unknown = run_command(database, &["api-key", "revoke", "cs_0000000000000000"]).unwrap_err();
    assert!(
        unknown.contains("no key has the id cs_0000000000000000"),
        "{unknown}"
    );
}

#[test]
fn every_violation_of_a_new_key_is_reported_at_once() {
    let url = "--database-url=mysql://u:secret@h/d";
    let output = run_to_end(&[
        "api-key",
        "create",
        url,
        "--permissions=write",
        "--expires=2017-01-01T00:00:00Z",
        "--allow=here",
    ]);
    let errors = String::from_utf8(output.stderr).unwrap();
    for flag in [
        "--database-url:",
        "--name:",
        "--permissions:",
        "--expires:",
        "--allow:",
    ] {
        assert!(errors.contains(flag), "{flag} is missing: {errors}");
    }
    assert!(
        !output.status.success() && !errors.contains("secret"),
        "{errors}"
    );
}

#[test]
fn a_workspace_is_created_once_listed_and_set_sqlite() {
    life_of_a_workspace(&Database::sqlite());
}

#[test]
fn a_workspace_is_created_once_listed_and_set_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    life_of_a_workspace(&database);
}

fn life_of_a_workspace(database: &Database) {
    let listed = || run_command(database, &["workspace", "list"]).unwrap();
    assert!(
        listed().contains("default\tUTC\t250000/hour\t250/minute\t10/minute\ton\n"),
        "{}",
        listed()
    );
    run_command(
        database,
        &["workspace", "create", "team", "--broadcasts", "7/minute"],
    )
    .unwrap();
    assert!(
        listed().contains("team\tUTC\t250000/hour\t7/minute\t10/minute\ton\n"),
        "{}",
        listed()
    );
    run_command(
        database,
        &[
            "workspace",
            "set",
            "team",
            "--default-time-zone",
            "asia/tokyo",
            "--requests",
            "9/hour",
        ],
    )
    .unwrap();
    run_command(
        database,
        &["workspace", "set", "team", "--requests", "8/hour"],
    )
    .unwrap();
    assert!(
        listed().contains("team\tAsia/Tokyo\t8/hour\t7/minute\t10/minute\ton\n"),
        "{}",
        listed()
    );

    run_command(
        database,
        &["workspace", "set", "team", "--sending", "paused"],
    )
    .unwrap();
    assert!(listed().contains("10/minute\tpaused\n"), "{}", listed());

    invalid_workspace_commands(database);
}

fn invalid_workspace_commands(database: &Database) {
    let invalid = [
        "create",
        "The Team",
        "--requests",
        "many",
        "--default-time-zone",
        "Nowhere",
    ];
    for (args, expected) in [
        (vec!["create", "team"], "already"),
        (invalid.to_vec(), "<NAME>:"),
        (invalid.to_vec(), "--requests:"),
        (invalid.to_vec(), "--default-time-zone:"),
        (
            vec!["set", "missing", "--requests", "1/hour"],
            "no workspace is named missing",
        ),
        (vec!["set", "team"], "nothing to set"),
    ] {
        let why = run_command(database, &[&["workspace"], &args[..]].concat()).unwrap_err();
        assert!(why.contains(expected), "{args:?}: {why}");
    }
    let unknown_workspace = run_command(
        database,
        &[
            "api-key",
            "create",
            "--workspace",
            "missing",
            "--name",
            "a",
            "--permissions",
            "all",
        ],
    )
    .unwrap_err();
    assert!(
        unknown_workspace.contains("no workspace is named missing"),
        "{unknown_workspace}"
    );
}

#[test]
fn a_missing_schema_is_reported_with_a_remedy() {
    let Some(database) = Database::postgres_empty() else {
        return;
    };
    assert!(
        run_command(&database, &["api-key", "list"])
            .unwrap_err()
            .contains("canvas-scheduler migrate")
    );
}

#[tokio::test]
async fn a_revoked_key_is_refused_by_both_of_two_replicas_within_10_seconds_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let servers = [
        Server::start(&database.url(), &[]).await,
        Server::start(&database.url(), &[]).await,
    ];
    let revoked_key = key(&database.url());
    let mut clients = Vec::new();
    for server in &servers {
        let mut client = server.access().with(&revoked_key).connect().await;
        client
            .list_canvas_schedules(v1::ListCanvasSchedulesRequest::default())
            .await
            .expect("both replicas must accept it");
        clients.push(client);
    }
    run_command(&database, &["api-key", "revoke", &revoked_key[..19]]).unwrap();
    let revoked = Instant::now();
    let mut accepted_until = Duration::ZERO;
    for mut client in clients {
        let refused = async {
            loop {
                let called = revoked.elapsed();
                match client
                    .list_canvas_schedules(v1::ListCanvasSchedulesRequest::default())
                    .await
                {
                    Ok(_) => accepted_until = accepted_until.max(called),
                    // Calls are refused once the last successful key reload is older than 10 s.
                    Err(status) if reason(&status) == "STORE_UNAVAILABLE" => {}
                    Err(status) => break status,
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let refused = tokio::time::timeout(PATIENCE, refused)
            .await
            .expect("it must be refused");
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::Unauthenticated, "KEY_REVOKED")
        );
    }
    println!(
        "{}: accepted for {accepted_until:?} after it was revoked",
        test_name()
    );
    assert!(
        accepted_until < Duration::from_secs(10),
        "{accepted_until:?}"
    );
}
