//! SIGTERM and SIGINT.

use std::time::Instant;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::database::{Database, test_name};
use super::history::History;
use super::load::{Callers, Mix, schedules};
use super::server::{PATIENCE, Server, next_status};

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
    let Some(database) = Database::postgres() else { return };
    under_load(&database).await;
}

async fn under_load(database: &Database) {
    let mut server = Server::start(&database.url(), &["--drain", "5s"]).await;
    let mut silent = TcpStream::connect(server.addr()).await.unwrap();
    let mut health = server.watch().await;
    assert_eq!(next_status(&mut health).await, Some(ServingStatus::Serving));
    let (ids, mut calls) = schedules(&mut server.connect().await, SCHEDULES).await;
    let mut callers = Callers::start(&server.connections(CONNECTIONS).await, &ids, CALLERS, Mix { until_refused: true, ..Mix::default() });
    callers.acknowledged(BEFORE).await;
    let began = Instant::now();
    server.signal("TERM");
    let status = server.ended(PATIENCE).await.expect("it ends by itself");
    let took = began.elapsed();
    assert!(status.success(), "{status}");
    calls.extend(callers.ended().await);
    for call in &calls {
        let code = call.end.as_ref().err().map_or(Code::Ok, tonic::Status::code);
        // What GOAWAY overtook was never begun; the history shows below that it was not done.
        assert!([Code::Ok, Code::Unavailable].contains(&code) || call.was_never_begun(), "{call:?}");
    }
    // The server has spoken first (SETTINGS), as HTTP/2 lets it; what follows is the end.
    let closed = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut vec![])).await;
    assert!(closed.is_ok(), "a silent connection is closed");
    // The watcher may hear that it does not serve any more; then its stream ends.
    while let Some(status) = next_status(&mut health).await {
        assert_eq!(status, ServingStatus::NotServing);
    }
    // Nothing had to be cut off: what was in flight finished, long before the end of the drain.
    assert!(server.logged("stopped").len() == 1 && !warned(&server), "{:#?}", server.log().all());
    let server = Server::start(&database.url(), &[]).await;
    let tally = History::read(&mut server.connect().await).await.check(&calls);
    assert_eq!(tally.unknown_done, 0, "whoever was told UNAVAILABLE was not served");
    let unsent = calls.iter().filter(|call| call.was_never_begun()).count();
    println!("{}: ended after {took:?}, {unsent} never begun, {tally:?}", test_name());
}

/// Whether calls were cut off or a core did not end.
fn warned(server: &Server) -> bool {
    server.log().all().iter().any(|line| line.contains("\"WARN\"") || line.contains("\"ERROR\""))
}
