//! Logs contain no keys, at any level.

use canvas_scheduler::pb::v1;
use tonic_types::StatusExt;

use super::command_line::run_to_end;
use super::database::Database;
use super::load::{create, schedules, unique_time, update};
use super::server::{PATIENCE, Server, key};

#[tokio::test]
async fn trace_logs_contain_no_key_sqlite() {
    no_key_in(&Database::sqlite()).await;
}

#[tokio::test]
async fn trace_logs_contain_no_key_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    no_key_in(&database).await;
}

async fn no_key_in(database: &Database) {
    let url = database.url();
    let good = key(&url);
    let mut server = Server::start_with_key(&url, &["--log-level", "trace"], good.clone()).await;
    let mut logged = Vec::new();
    let revoked = run_commands(&url, &mut logged);
    let mistyped = format!("{}x", &good[..67]);
    let unknown = format!("cs_{}{}", "f".repeat(16), &good[19..]);
    make_calls(&server, &good, [&revoked, &mistyped, &unknown], &mut logged).await;

    server.signal("TERM");
    server.ended(PATIENCE).await.expect("it ends");
    let log = server.log().read_to_end().await;
    let traced = log.iter().filter(|line| line.contains("\"TRACE\"")).count();
    assert!(traced > 100, "only {traced} lines at trace level");
    logged.extend(log);
    for (whose, key) in [
        ("a good", &good),
        ("a revoked", &revoked),
        ("a mistyped", &mistyped),
        ("an unknown", &unknown),
    ] {
        let secret = &key[20..60];
        let bytes: Vec<String> = secret.bytes().map(|byte| byte.to_string()).collect();
        for form in [secret.to_owned(), bytes.join(", ")] {
            let line = logged.iter().find(|line| line.contains(&form));
            assert!(line.is_none(), "{whose} key: {line:?}");
        }
    }
}

/// Creates, lists and revokes keys at trace level. Returns a revoked key.
fn run_commands(url: &str, logged: &mut Vec<String>) -> String {
    let created = run_to_end(&[
        "api-key",
        "create",
        "--name",
        "revoked",
        "--permissions",
        "read",
        "--database-url",
        url,
        "--log-level",
        "trace",
    ]);
    let revoked = String::from_utf8(created.stdout).unwrap().trim().to_owned();
    logged.push(String::from_utf8(created.stderr).unwrap());
    for args in [
        vec!["api-key", "list"],
        vec!["api-key", "revoke", &revoked[..19]],
        vec!["api-key", "revoke", &revoked],
    ] {
        let output =
            run_to_end(&[&args[..], &["--database-url", url, "--log-level", "trace"]].concat());
        logged.push(String::from_utf8([output.stdout, output.stderr].concat()).unwrap());
    }
    revoked
}

/// Makes calls that are served, and calls that are refused for every reason.
async fn make_calls(server: &Server, good: &str, wrong_keys: [&str; 3], logged: &mut Vec<String>) {
    let (ids, _) = schedules(&mut server.connect().await, 3).await;
    let mut client = server.connect().await;
    update(&mut client, &ids[0], unique_time(), "request".to_owned())
        .await
        .expect("updated");
    for wrong in wrong_keys {
        let status = create(
            &mut server.access().with(wrong).connect().await,
            unique_time(),
            String::new(),
        )
        .await
        .expect_err("refused");
        logged.push(format!("{status:?} {:?}", status.get_error_details()));
    }
    let mut request = tonic::Request::new(v1::ListCanvasSchedulesRequest::default());
    request
        .metadata_mut()
        .insert("x-api-key", good.parse().unwrap());
    let listed = client.list_canvas_schedules(request).await.expect("listed");
    logged.push(format!("{listed:?}"));
    let invalid = v1::GetCanvasScheduleRequest {
        schedule_id: "invalid".to_owned(),
    };
    logged.push(format!(
        "{:?}",
        client
            .get_canvas_schedule(invalid)
            .await
            .expect_err("refused")
    ));
}
