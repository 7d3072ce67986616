//! SIGTERM and SIGINT.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::database::{Database, test_name};
use super::history::History;
use super::load::{Callers, Mix, reason, schedules, unique_time, update};
use super::lock_holder::Locked;
use super::server::{PATIENCE, Server, message, next_status};

const CALLERS: usize = 64;
const CONNECTIONS: usize = 8;
const SCHEDULES: usize = 100;
const BEFORE: u64 = 500;

#[tokio::test]
async fn a_stop_under_load_answers_every_call_sqlite() {
    under_load(&Database::sqlite()).await;
}

#[tokio::test]
async fn a_stop_under_load_answers_every_call_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    under_load(&database).await;
}

async fn under_load(database: &Database) {
    let mut server = Server::start(&database.url(), &["--drain", "5s"]).await;
    let mut silent = TcpStream::connect(server.addr()).await.unwrap();
    let mut health = server.watch().await;
    assert_eq!(next_status(&mut health).await, Some(ServingStatus::Serving));
    let (ids, mut calls) = schedules(&mut server.connect().await, SCHEDULES).await;
    let mut callers = Callers::start(
        &server.connections(CONNECTIONS).await,
        &ids,
        CALLERS,
        Mix {
            until_refused: true,
            ..Mix::default()
        },
    );
    callers.acknowledged(BEFORE).await;
    let began = Instant::now();
    server.signal("TERM");
    let status = server.ended(PATIENCE).await.expect("it ends");
    let took = began.elapsed();
    assert!(status.success(), "{status}");
    calls.extend(callers.ended().await);
    for call in &calls {
        let code = call
            .end
            .as_ref()
            .err()
            .map_or(Code::Ok, tonic::Status::code);
        // GOAWAY overtook these calls: they never started. The history confirms it below.
        assert!(
            [Code::Ok, Code::Unavailable].contains(&code) || call.was_never_started(),
            "{call:?}"
        );
    }
    // The server has sent SETTINGS; the end of the connection follows.
    let closed = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut vec![])).await;
    assert!(closed.is_ok(), "a silent connection must be closed");
    // The watcher may receive NOT_SERVING before its stream ends.
    while let Some(status) = next_status(&mut health).await {
        assert_eq!(status, ServingStatus::NotServing);
    }
    server.log().read_to_end().await;
    // Calls in flight finished long before the end of the drain.
    server.log().read_to_end().await;
    assert!(
        server.logged("stopped").len() == 1 && !warned(&server),
        "{:#?}",
        server.log().all()
    );
    let server = Server::start(&database.url(), &[]).await;
    let tally = History::read(&mut server.connect().await)
        .await
        .check(&calls);
    assert_eq!(
        tally.unknown_done, 0,
        "calls answered UNAVAILABLE must not be in the history"
    );
    let unsent = calls.iter().filter(|call| call.was_never_started()).count();
    println!(
        "{}: ended after {took:?}, {unsent} never started, {tally:?}",
        test_name()
    );
}

/// Whether the log reports calls that were cut off, or a thread that did not end.
fn warned(server: &Server) -> bool {
    let of_the_stop = |line: &&String| !line.contains("no --sink is set");
    server
        .log()
        .all()
        .iter()
        .filter(of_the_stop)
        .any(|line| line.contains("\"WARN\"") || line.contains("\"ERROR\""))
}

#[tokio::test]
async fn a_call_that_hangs_is_answered_at_the_end_of_the_drain_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let mut server = Server::start(&database.url(), &["--drain", "1s"]).await;
    let mut client = server.connect().await;
    let (ids, _) = schedules(&mut client, 1).await;
    let _locked = Locked::row(&database, &ids[0]).await;
    let call = hanging(&server, &ids[0]).await;
    let began = Instant::now();
    server.signal("TERM");
    let status = call.await.unwrap().expect_err("the row is locked");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "DRAINING"),
        "{status:?}"
    );
    let answered = began.elapsed();
    let ended = server.ended(PATIENCE).await.expect("it ends");
    assert!(ended.success(), "{ended}");
    let given_up = server
        .log()
        .read_to_end()
        .await
        .iter()
        .any(|line| line.contains("did not end in time"));
    assert!(!given_up, "{:#?}", server.log().all());
    println!(
        "{}: answered after {answered:?}, ended after {:?}",
        test_name(),
        began.elapsed()
    );
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    for second in ["TERM", "INT"] {
        // The drain alone would take longer than the test waits.
        let mut server =
            Server::start(&database.url(), &["--drain", "1h", "--max-call-time", "1h"]).await;
        let mut client = server.connect().await;
        let (ids, _) = schedules(&mut client, 1).await;
        let _locked = Locked::row(&database, &ids[0]).await;
        let call = hanging(&server, &ids[0]).await;
        server.signal("TERM");
        let stopping = |line: &str| line.contains("stopping:").then_some(());
        server.log().first(stopping).await;
        assert!(
            server.ended(Duration::from_millis(200)).await.is_none(),
            "a call is in flight"
        );
        let began = Instant::now();
        server.signal(second);
        let ended = server.ended(PATIENCE).await.expect("it ends");
        assert!(ended.success(), "{ended}");
        println!(
            "{} {second}: ended after {:?}",
            test_name(),
            began.elapsed()
        );
        // The process took the connection with it.
        call.await.unwrap().expect_err("the row is locked");
        let cut = "a second signal ended the process; calls in flight were cut off";
        assert!(
            server
                .log()
                .read_to_end()
                .await
                .iter()
                .any(|line| message(line, cut).is_some())
        );
    }
}

type Hanging = tokio::task::JoinHandle<Result<(String, i64), tonic::Status>>;

/// Starts an update that waits for its row. Returns once the server has received it: once a later
/// call over the same connection is answered.
async fn hanging(server: &Server, id: &str) -> Hanging {
    let mut client = server.connect().await;
    let (mut own, id) = (client.clone(), id.to_owned());
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (asked, request) = (id.clone(), async move {
        begun.send(()).expect("a receiver");
        update(&mut own, &id, unique_time(), String::new()).await
    });
    let call = tokio::spawn(request);
    begins.await.unwrap();
    let request = canvas_scheduler::pb::v1::GetCanvasScheduleRequest { schedule_id: asked };
    client
        .get_canvas_schedule(request)
        .await
        .expect("a read does not wait for the row");
    call
}
