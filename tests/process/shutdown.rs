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
async fn a_stop_under_load_tells_everyone_sqlite() {
    under_load(&Database::sqlite()).await;
}

#[tokio::test]
async fn a_stop_under_load_tells_everyone_postgres() {
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
    let status = server.ended(PATIENCE).await.expect("it ends by itself");
    let took = began.elapsed();
    assert!(status.success(), "{status}");
    calls.extend(callers.ended().await);
    for call in &calls {
        let code = call
            .end
            .as_ref()
            .err()
            .map_or(Code::Ok, tonic::Status::code);
        // What GOAWAY overtook was never begun; the history shows below that it was not done.
        assert!(
            [Code::Ok, Code::Unavailable].contains(&code) || call.was_never_begun(),
            "{call:?}"
        );
    }
    // The server has spoken first (SETTINGS), as HTTP/2 lets it; what follows is the end.
    let closed = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut vec![])).await;
    assert!(closed.is_ok(), "a silent connection is closed");
    // The watcher may hear that it does not serve any more; then its stream ends.
    while let Some(status) = next_status(&mut health).await {
        assert_eq!(status, ServingStatus::NotServing);
    }
    server.log().to_the_end().await;
    // Nothing had to be cut off: what was in flight finished, long before the end of the drain.
    server.log().to_the_end().await;
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
        "whoever was told UNAVAILABLE was not served"
    );
    let unsent = calls.iter().filter(|call| call.was_never_begun()).count();
    println!(
        "{}: ended after {took:?}, {unsent} never begun, {tally:?}",
        test_name()
    );
}

/// Whether calls were cut off or a core did not end.
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
async fn a_call_that_hangs_is_told_at_the_end_of_the_drain_postgres() {
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
    let told = began.elapsed();
    let ended = server.ended(PATIENCE).await.expect("it ends by itself");
    assert!(ended.success(), "{ended}");
    let given_up = server
        .log()
        .to_the_end()
        .await
        .iter()
        .any(|line| line.contains("did not end in time"));
    assert!(!given_up, "{:#?}", server.log().all());
    println!(
        "{}: told after {told:?}, ended after {:?}",
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
        // The drain alone would outlast the test's patience.
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
        let ended = server.ended(PATIENCE).await.expect("it ends at once");
        assert!(ended.success(), "{ended}");
        println!(
            "{} {second}: ended after {:?}",
            test_name(),
            began.elapsed()
        );
        // Its connection went with the process.
        call.await.unwrap().expect_err("the row is locked");
        let cut = "a second signal ended the process; calls in flight were cut off";
        assert!(
            server
                .log()
                .to_the_end()
                .await
                .iter()
                .any(|line| message(line, cut).is_some())
        );
    }
}

type Hanging = tokio::task::JoinHandle<Result<(String, i64), tonic::Status>>;

/// Starts an update that waits for its row, and returns once the server has it: a later call over the same connection was
/// answered.
async fn hanging(server: &Server, id: &str) -> Hanging {
    let mut client = server.connect().await;
    let (mut own, id) = (client.clone(), id.to_owned());
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (asked, request) = (id.clone(), async move {
        begun.send(()).expect("somebody waits");
        update(&mut own, &id, unique_time(), String::new()).await
    });
    let call = tokio::spawn(request);
    begins.await.unwrap();
    let request = canvas_scheduler::pb::v1::GetCanvasScheduleRequest { schedule_id: asked };
    client
        .get_canvas_schedule(request)
        .await
        .expect("reading does not wait");
    call
}
