//! The JSON gateway of a process: abusive peers, and TLS.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::abuse::{Bystander, wait_until_accepted};
use super::database::{Database, test_name};
use super::load::schedules;
use super::server::{PATIENCE, Server};

const LIST: &str = "GET /canvas/trigger/schedule?page_size=1000 HTTP/1.1\r\nhost: x\r\n";

async fn connected(server: &Server) -> TcpStream {
    TcpStream::connect(server.gateway())
        .await
        .expect("the server listens")
}

/// The head of a request with the server's key.
fn keyed(server: &Server, head: &str) -> String {
    format!("{head}authorization: Bearer {}\r\n", server.key())
}

/// Reads until the connection ends, also by a reset.
async fn read_to_end_of(stream: &mut TcpStream) -> String {
    let mut received = Vec::new();
    let _end = tokio::time::timeout(PATIENCE * 2, stream.read_to_end(&mut received))
        .await
        .expect("it is closed");
    String::from_utf8_lossy(&received).into_owned()
}

#[tokio::test]
async fn slow_first_requests_are_closed() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &["--first-byte-timeout", "2s"]).await;
    let bystander = Bystander::of(&server).await;
    let mut slow = Vec::new();
    for n in 0..500 {
        let mut stream = connected(&server).await;
        // A part of a request head, or of the HTTP/2 preface.
        let begin = [LIST, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"][n % 2];
        stream
            .write_all(&begin.as_bytes()[..n % 24])
            .await
            .expect("the server reads");
        slow.push(stream);
    }
    for mut stream in slow {
        assert_eq!(
            read_to_end_of(&mut stream).await,
            "",
            "there was no request"
        );
    }
    bystander.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "waits for a minute; .ci/full/run runs it"]
async fn an_idle_connection_is_closed() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let mut stream = connected(&server).await;
    stream
        .write_all(format!("{}\r\n{LIST}x: ", keyed(&server, LIST)).as_bytes())
        .await
        .expect("the server reads");
    let began = Instant::now();
    let received = read_to_end_of(&mut stream).await;
    assert!(received.starts_with("HTTP/1.1 200 OK"), "{received}");
    assert!(
        began.elapsed() >= Duration::from_secs(60),
        "an idle connection must stay open longer than load balancers keep theirs: {:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn endless_heads_are_refused() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let bystander = Bystander::of(&server).await;
    for _ in 0..50 {
        let mut stream = connected(&server).await;
        stream
            .write_all(LIST.as_bytes())
            .await
            .expect("the server reads");
        let (mut sent, line) = (0, format!("x: {}\r\n", "x".repeat(1000)));
        while stream.write_all(line.as_bytes()).await.is_ok() {
            sent += line.len();
            assert!(sent < 100 << 20, "it must stop reading");
        }
    }
    bystander.was_served_by(&server).await;
}

#[tokio::test]
async fn a_body_is_read_only_with_a_key_and_up_to_its_bound() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let bystander = Bystander::of(&server).await;
    let head = "POST /canvas/trigger/schedule/update HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let mut waiting = Vec::new();
    for _ in 0..200 {
        let mut stream = connected(&server).await;
        stream
            .write_all(format!("{head}content-length: 1000000\r\n\r\n").as_bytes())
            .await
            .expect("the server reads");
        waiting.push(stream);
    }
    for stream in &mut waiting {
        // The server answers before it reads the body.
        let mut received = [0; 12];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut received))
            .await
            .expect("it answers")
            .expect("an answer");
        assert_eq!(&received, b"HTTP/1.1 401");
    }
    for length in [
        "content-length: 104857600\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n",
    ] {
        let mut stream = connected(&server).await;
        stream
            .write_all(format!("{}{length}", keyed(&server, head)).as_bytes())
            .await
            .expect("the server reads");
        let chunk = format!("{:x}\r\n{}\r\n", 64 * 1024, "x".repeat(64 * 1024));
        let mut sent = 0;
        while stream.write_all(chunk.as_bytes()).await.is_ok() {
            sent += chunk.len();
            assert!(sent < 100 << 20, "it must stop reading");
        }
    }
    bystander.was_served_by(&server).await;
}

#[tokio::test]
async fn a_slow_body_ends_at_the_deadline_of_its_call() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &["--max-call-time", "10s"]).await;
    let bystander = Bystander::of(&server).await;
    let head = "POST /canvas/trigger/schedule/update HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n";
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut stream = connected(&server).await;
        stream
            .write_all(format!("{}\r\n{{", keyed(&server, head)).as_bytes())
            .await
            .expect("the server reads");
        slow.push(stream);
    }
    for mut stream in slow {
        let received = read_to_end_of(&mut stream).await;
        assert!(
            received.starts_with("HTTP/1.1 504")
                && received.contains(r#"{"message":"the call did not finish within 10s"#),
            "{received}"
        );
    }
    bystander.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn slow_readers_are_closed() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    schedules(&mut server.connect().await, 120).await;
    let bystander = Bystander::of(&server).await;
    let asked = format!("{}\r\n", keyed(&server, LIST)).repeat(2_000);
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = connected(&server).await;
        // More answers than the kernel buffers; none of them is read. Requests that the server no
        // longer takes need not be sent.
        let _sent =
            tokio::time::timeout(Duration::from_secs(1), stream.write_all(asked.as_bytes())).await;
        slow.push(stream);
    }
    let began = Instant::now();
    for stream in slow {
        // The server closes the connection although this side does not read.
        let closed = async {
            while stream
                .ready(tokio::io::Interest::ERROR)
                .await
                .is_ok_and(|ready| !ready.is_error())
            {}
        };
        tokio::time::timeout(PATIENCE * 2, closed)
            .await
            .expect("it is closed");
    }
    println!("{}: closed after {:?}", test_name(), began.elapsed());
    bystander.was_served_by(&server).await;
}

#[tokio::test]
async fn more_connections_than_an_address_may_open_over_both_ports() {
    let database = Database::sqlite();
    let server = Server::start(
        &database.url(),
        &[
            "--max-connections-per-address",
            "20",
            "--first-byte-timeout",
            "5m",
        ],
    )
    .await;
    let bystander = Bystander::of(&server).await;
    let mut streams = Vec::new();
    for n in 0..100 {
        let addr = [server.gateway(), server.addr()][n % 2];
        streams.push(TcpStream::connect(addr).await.expect("the kernel accepts"));
    }
    // At most 20 of those for gRPC are accepted; they receive settings.
    let mut refused = 0;
    for stream in streams.iter_mut().skip(1).step_by(2) {
        refused += usize::from(stream.read_u8().await.is_err());
    }
    assert!(refused >= 30, "{refused} of 50 were refused");
    drop(streams);
    wait_until_accepted(&server).await;
    bystander.was_served_by(&server).await;
}
