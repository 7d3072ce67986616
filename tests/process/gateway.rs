//! The gateway of a process: peers that are slow, many or rude on its port, and TLS on it.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::abuse::{Neighbour, until_let_in};
use super::database::{Database, test_name};
use super::load::schedules;
use super::server::{PATIENCE, Server};

const LIST: &str = "GET /canvas/trigger/schedule?page_size=1000 HTTP/1.1\r\nhost: x\r\n";

async fn connected(server: &Server) -> TcpStream {
    TcpStream::connect(server.gateway())
        .await
        .expect("it listens")
}

/// The head of a request with the server's key.
fn keyed(server: &Server, head: &str) -> String {
    format!("{head}authorization: Bearer {}\r\n", server.key())
}

/// What comes until the connection ends. A reset is an end too.
async fn to_the_end(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    let _end = tokio::time::timeout(PATIENCE * 2, stream.read_to_end(&mut said))
        .await
        .expect("it is closed");
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn slow_first_requests_are_closed() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &["--first-byte-timeout", "2s"]).await;
    let neighbour = Neighbour::of(&server).await;
    let mut slow = Vec::new();
    for n in 0..500 {
        let mut stream = connected(&server).await;
        // Half a head, or half the preface of HTTP/2.
        let begin = [LIST, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"][n % 2];
        stream
            .write_all(&begin.as_bytes()[..n % 24])
            .await
            .expect("it reads");
        slow.push(stream);
    }
    for mut stream in slow {
        assert_eq!(to_the_end(&mut stream).await, "", "nothing was asked");
    }
    neighbour.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "waits for a minute; .ci/full/run runs it"]
async fn a_second_request_that_does_not_come_ends_the_connection() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let mut stream = connected(&server).await;
    stream
        .write_all(format!("{}\r\n{LIST}x: ", keyed(&server, LIST)).as_bytes())
        .await
        .expect("it reads");
    let began = Instant::now();
    let said = to_the_end(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 200 OK"), "{said}");
    assert!(
        began.elapsed() >= Duration::from_secs(60),
        "an idle connection is kept for longer than balancers do: {:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn endless_heads_are_refused() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let neighbour = Neighbour::of(&server).await;
    for _ in 0..50 {
        let mut stream = connected(&server).await;
        stream.write_all(LIST.as_bytes()).await.expect("it reads");
        let (mut sent, line) = (0, format!("x: {}\r\n", "x".repeat(1000)));
        while stream.write_all(line.as_bytes()).await.is_ok() {
            sent += line.len();
            assert!(sent < 100 << 20, "it reads on for ever");
        }
    }
    neighbour.was_served_by(&server).await;
}

#[tokio::test]
async fn a_body_is_read_from_nobody_without_a_key_and_of_a_bounded_size() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let neighbour = Neighbour::of(&server).await;
    let head = "POST /canvas/trigger/schedule/update HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let mut waiting = Vec::new();
    for _ in 0..200 {
        let mut stream = connected(&server).await;
        stream
            .write_all(format!("{head}content-length: 1000000\r\n\r\n").as_bytes())
            .await
            .expect("it reads");
        waiting.push(stream);
    }
    for stream in &mut waiting {
        // The answer comes without a byte of the body.
        let mut said = [0; 12];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut said))
            .await
            .expect("it answers")
            .expect("an answer");
        assert_eq!(&said, b"HTTP/1.1 401");
    }
    for length in [
        "content-length: 104857600\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n",
    ] {
        let mut stream = connected(&server).await;
        stream
            .write_all(format!("{}{length}", keyed(&server, head)).as_bytes())
            .await
            .expect("it reads");
        let chunk = format!("{:x}\r\n{}\r\n", 64 * 1024, "x".repeat(64 * 1024));
        let mut sent = 0;
        while stream.write_all(chunk.as_bytes()).await.is_ok() {
            sent += chunk.len();
            assert!(sent < 100 << 20, "it reads on for ever");
        }
    }
    neighbour.was_served_by(&server).await;
}

#[tokio::test]
async fn a_slow_body_ends_with_the_time_of_its_call() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &["--max-call-time", "10s"]).await;
    let neighbour = Neighbour::of(&server).await;
    let head = "POST /canvas/trigger/schedule/update HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n";
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut stream = connected(&server).await;
        stream
            .write_all(format!("{}\r\n{{", keyed(&server, head)).as_bytes())
            .await
            .expect("it reads");
        slow.push(stream);
    }
    for mut stream in slow {
        let said = to_the_end(&mut stream).await;
        assert!(
            said.starts_with("HTTP/1.1 504")
                && said.contains(r#"{"message":"the call was not finished within 10s"#),
            "{said}"
        );
    }
    neighbour.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn slow_readers_are_closed() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    schedules(&mut server.connect().await, 120).await;
    let neighbour = Neighbour::of(&server).await;
    let asked = format!("{}\r\n", keyed(&server, LIST)).repeat(2_000);
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = connected(&server).await;
        // More answers than the kernel holds, of which none is read; what it does not take any more need not be sent.
        let _sent =
            tokio::time::timeout(Duration::from_secs(1), stream.write_all(asked.as_bytes())).await;
        slow.push(stream);
    }
    let began = Instant::now();
    for stream in slow {
        // It is closed from the other side, although nothing is read here.
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
    neighbour.was_served_by(&server).await;
}

#[tokio::test]
async fn more_connections_than_an_address_may_have_over_both_ports() {
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
    let neighbour = Neighbour::of(&server).await;
    let mut streams = Vec::new();
    for n in 0..100 {
        let addr = [server.gateway(), server.addr()][n % 2];
        streams.push(TcpStream::connect(addr).await.expect("the kernel accepts"));
    }
    // Of those for gRPC at most 20 are taken, and get settings at once.
    let mut refused = 0;
    for stream in streams.iter_mut().skip(1).step_by(2) {
        refused += usize::from(stream.read_u8().await.is_err());
    }
    assert!(refused >= 30, "{refused} of 50 were refused");
    drop(streams);
    until_let_in(&server).await;
    neighbour.was_served_by(&server).await;
}
