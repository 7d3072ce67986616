//! Abusive peers: slow, many, large or malformed. The process stays small and serves every other
//! caller.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use canvas_scheduler::pb::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

use super::database::{Database, test_name};
use super::load::{create, reason, schedules, unique_time, when_available};
use super::server::{PATIENCE, Server, next_status};

/// The memory that the process may use, in kilobytes.
const MAX_MEMORY: u64 = 300 * 1024;
/// How long a call waits for a database connection before it is refused with a retry delay.
const CONNECTION_WAIT: Duration = Duration::from_secs(3);
/// The interval of log lines while the server refuses calls.
const LOG_INTERVAL: Duration = Duration::from_secs(1);
/// How long an open-ended abuse lasts.
const ABUSE_DURATION: Duration = Duration::from_secs(5);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a `ListCanvasSchedules` call with this key.
fn headers(addr: &str, key: &str) -> Vec<u8> {
    headers_of(
        "/canvas.schedule.v1.CanvasScheduleService/ListCanvasSchedules",
        addr,
        key,
    )
}

/// The headers of a call: indexed where HPACK's static table contains them, else literal.
fn headers_of(method: &str, addr: &str, key: &str) -> Vec<u8> {
    let literal = |name: &[u8], value: &str| {
        [
            name,
            &[u8::try_from(value.len()).unwrap()],
            value.as_bytes(),
        ]
        .concat()
    };
    [
        vec![0x83, 0x86],
        literal(&[0x04], method),
        literal(&[0x01], addr),
        literal(&[0x0f, 0x10], "application/grpc"),
        literal(&[0x0f, 0x08], &format!("Bearer {key}")),
    ]
    .concat()
}

/// A connection that has sent the HTTP/2 preface and these settings.
async fn http2_connection(server: &Server, settings: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.addr())
        .await
        .expect("the server listens");
    stream
        .write_all(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat())
        .await
        .expect("the server reads");
    stream
}

/// A well-behaved caller, whose every call must be answered. It retries after the delay of a
/// refusal.
pub(crate) struct Bystander {
    stop: watch::Sender<bool>,
    calls: JoinHandle<Served>,
}

/// The results of its calls.
#[derive(Default)]
struct Served {
    calls: usize,
    slowest: Duration,
    /// Calls that were refused with a retry delay.
    retried: usize,
}

impl Bystander {
    /// Starts a caller that calls until it is stopped.
    pub(crate) async fn of(server: &Server) -> Self {
        let mut client = server.connect().await;
        let (stop, stopped) = watch::channel(false);
        let calls = tokio::spawn(async move {
            let mut served = Served::default();
            while !*stopped.borrow() {
                let began = Instant::now();
                let request = v1::ListCanvasSchedulesRequest {
                    page_size: 1,
                    ..Default::default()
                };
                let pause = match client.list_canvas_schedules(request).await {
                    Ok(_) => {
                        served.calls += 1;
                        served.slowest = served.slowest.max(began.elapsed());
                        Duration::from_millis(5)
                    }
                    Err(status) => {
                        assert_eq!(
                            reason(&status),
                            "STORE_UNAVAILABLE",
                            "a bystander must be served: {status:?}"
                        );
                        assert!(
                            began.elapsed() >= CONNECTION_WAIT,
                            "refused before it had waited: {status:?}"
                        );
                        served.retried += 1;
                        status
                            .get_details_retry_info()
                            .and_then(|info| info.retry_delay)
                            .expect("a retry delay")
                    }
                };
                tokio::time::sleep(pause).await;
            }
            served
        });
        Self { stop, calls }
    }

    /// Asserts that more of its calls were served than refused, and that the process stayed small.
    /// Refusals happen because a build without optimization works for seconds on a flood, and a
    /// call that waits 3 s for a database connection is refused.
    pub(crate) async fn was_served_by(self, server: &Server) {
        self.stop.send_replace(true);
        let served = tokio::time::timeout(PATIENCE, self.calls)
            .await
            .expect("it ends")
            .expect("every call was answered");
        let Served {
            calls,
            slowest,
            retried,
        } = served;
        assert!(calls > retried, "{calls} calls served, {retried} refused");
        // New callers are served too.
        let mut client = server.connect().await;
        when_available(async || create(&mut client, unique_time(), String::new()).await)
            .await
            .expect("created");
        let peak = peak_of(server.pid());
        println!(
            "{}: {calls} calls, the slowest {slowest:?}, {retried} refused; at most {} MB",
            test_name(),
            peak / 1024
        );
        assert!(peak < MAX_MEMORY, "{peak} KB");
    }
}

/// The peak memory of a process, in kilobytes.
fn peak_of(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("its peak");
    line.trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number")
}

async fn wait_until_closed(stream: &mut TcpStream) {
    // A reset closes it too. A peer that does not read may be closed after a minute.
    let _end = tokio::time::timeout(PATIENCE * 2, stream.read_to_end(&mut vec![]))
        .await
        .expect("it is closed");
}

#[tokio::test]
async fn slow_first_bytes() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &["--first-byte-timeout", "2s"]).await;
    let bystander = Bystander::of(&server).await;
    let mut slow = Vec::new();
    for n in 0..500 {
        let mut stream = TcpStream::connect(server.addr())
            .await
            .expect("the server listens");
        stream
            .write_all(&PREFACE[..n % PREFACE.len()])
            .await
            .expect("the server reads");
        slow.push(stream);
    }
    for mut stream in slow {
        wait_until_closed(&mut stream).await;
    }
    bystander.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn slow_and_endless_headers() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let bystander = Bystander::of(&server).await;
    let head = headers(server.addr(), &"0".repeat(68));
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut stream = http2_connection(&server, &[]).await;
        // Headers without an end, and a further byte now and then.
        stream
            .write_all(&frame(HEADERS, 0, 1, &head[..2]))
            .await
            .expect("the server reads");
        slow.push(stream);
    }
    let mut endless = http2_connection(&server, &[]).await;
    endless
        .write_all(&frame(HEADERS, 0, 1, &head[..2]))
        .await
        .expect("the server reads");
    let more = frame(
        CONTINUATION,
        0,
        1,
        &[&[0x00, 1, b'a', 127, 0x81, 0x7d][..], &vec![b'x'; 8 * 1024]].concat(),
    );
    let mut sent = 0;
    while endless.write_all(&more).await.is_ok() {
        sent += more.len();
        assert!(sent < 100 << 20, "it must stop reading");
    }
    let until = Instant::now() + ABUSE_DURATION;
    let mut byte = 2;
    while Instant::now() < until {
        for stream in &mut slow {
            // The server may have closed some of them.
            let _closed = stream
                .write_all(&frame(CONTINUATION, 0, 1, &head[byte..=byte]))
                .await;
        }
        byte += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    bystander.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn slow_readers() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    schedules(&mut server.connect().await, 120).await;
    let bystander = Bystander::of(&server).await;
    let head = headers(server.addr(), server.key());
    let mut slow = Vec::new();
    for n in 0..20_u8 {
        // Half of them allow one byte of each answer, the others none
        // (SETTINGS_INITIAL_WINDOW_SIZE); none of them reads.
        let mut stream = http2_connection(&server, &[0, 4, 0, 0, 0, n % 2]).await;
        for call in 0..30_u32 {
            let id = 2 * call + 1;
            let asked = prost::Message::encode_to_vec(&v1::ListCanvasSchedulesRequest {
                page_size: 1000,
                ..Default::default()
            });
            let length = u32::try_from(asked.len()).unwrap().to_be_bytes();
            let data = frame(0, 1, id, &[&[0][..], &length, &asked].concat());
            // The server may have closed the connection.
            let _closed = stream
                .write_all(&[frame(HEADERS, 4, id, &head), data].concat())
                .await;
        }
        slow.push(stream);
    }
    for mut stream in slow {
        wait_until_closed(&mut stream).await;
    }
    bystander.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn ten_thousand_idle_connections() {
    const WANTED: usize = 10_000;
    let flags = [
        "--max-connections",
        "20000",
        "--max-connections-per-address",
        "20000",
    ];
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &flags).await;
    let bystander = Bystander::of(&server).await;
    let mut idle = Vec::new();
    while idle.len() < WANTED.min(open_files() - 500) {
        idle.push(http2_connection(&server, &[]).await);
    }
    for stream in &mut idle {
        let mut settings = [0; 9];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut settings))
            .await
            .expect("it answers")
            .expect("its settings");
    }
    println!("{}: {} connections", test_name(), idle.len());
    tokio::time::sleep(ABUSE_DURATION).await;
    bystander.was_served_by(&server).await;
}

/// The limit of open files, for this process and the server.
fn open_files() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .expect("the limit of open files");
    line.split_whitespace()
        .nth(3)
        .expect("the soft limit")
        .parse()
        .unwrap_or(usize::MAX)
}

/// Waits until the server accepts a new connection: closed ones count until it notices.
pub(crate) async fn wait_until_accepted(server: &Server) {
    // The server sends its settings on a connection that it accepts.
    let accepted = async {
        while TcpStream::connect(server.addr())
            .await
            .expect("the kernel accepts")
            .read_u8()
            .await
            .is_err()
        {}
    };
    tokio::time::timeout(PATIENCE, accepted)
        .await
        .expect("the server accepts connections again");
}

#[tokio::test]
async fn more_connections_than_an_address_may_open() {
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
    for _ in 0..100 {
        streams.push(
            TcpStream::connect(server.addr())
                .await
                .expect("the kernel accepts"),
        );
    }
    // The server closes all but 20 before it sends its settings. Any of them may be among the 20: a
    // connection that checked readiness may close meanwhile.
    let mut refused = 0;
    for stream in &mut streams {
        refused += usize::from(stream.read_u8().await.is_err());
    }
    assert!(refused >= 80, "{refused} of 100 were refused");
    drop(streams);
    wait_until_accepted(&server).await;
    bystander.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn a_message_of_100_megabytes() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let bystander = Bystander::of(&server).await;
    let mut client = server.connect().await.max_encoding_message_size(usize::MAX);
    for _ in 0..3 {
        let request = v1::UpdateCanvasScheduleRequest {
            canvas_id: "x".repeat(100 << 20),
            ..Default::default()
        };
        let refused = client
            .update_canvas_schedule(request)
            .await
            .expect_err("too large");
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
            "{refused:?}"
        );
    }
    bystander.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn a_flood_of_resets() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let bystander = Bystander::of(&server).await;
    let head = headers(server.addr(), server.key());
    let mut ends = HashMap::<bool, usize>::new();
    for _ in 0..20 {
        let mut stream = http2_connection(&server, &[]).await;
        let mut flood = Vec::new();
        for call in 0..10_000_u32 {
            let id = 2 * call + 1;
            flood.extend(frame(HEADERS, 5, id, &head));
            flood.extend(frame(RST_STREAM, 0, id, &[0, 0, 0, 8]));
        }
        let through = stream.write_all(&flood).await.is_ok()
            && stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.is_ok();
        *ends.entry(through).or_default() += 1;
    }
    println!(
        "{}: floods sent to the end, or cut off: {ends:?}",
        test_name()
    );
    bystander.was_served_by(&server).await;
}

/// Health checks need no key.
#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn health_checks_that_never_end() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let bystander = Bystander::of(&server).await;
    let head = headers_of("/grpc.health.v1.Health/Check", server.addr(), "");
    let mut hanging = Vec::new();
    for _ in 0..50 {
        let mut stream = http2_connection(&server, &[]).await;
        let calls = (0..1_000).flat_map(|call| frame(HEADERS, 4, 2 * call + 1, &head));
        stream
            .write_all(&calls.collect::<Vec<_>>())
            .await
            .expect("the server reads");
        hanging.push(stream);
    }
    // The check of another caller is answered.
    let mut health = server.watch().await;
    assert_eq!(next_status(&mut health).await, Some(ServingStatus::Serving));
    tokio::time::sleep(ABUSE_DURATION).await;
    bystander.was_served_by(&server).await;
}

/// Reads frames up to the first of this kind.
async fn read_up_to(stream: &mut TcpStream, kind: u8) {
    let read = async {
        let mut head = [0; 9];
        while head[3] != kind {
            stream.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            stream
                .read_exact(&mut vec![0; usize::try_from(length).unwrap()])
                .await?;
        }
        std::io::Result::Ok(())
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("it answers")
        .expect("that frame");
}

/// Sends as many incomplete messages of 1 MB as the connection's window allows.
async fn send_large(stream: &mut TcpStream, head: &[u8]) -> std::io::Result<()> {
    for call in 0..3_u32 {
        let id = 2 * call + 1;
        stream.write_all(&frame(HEADERS, 4, id, head)).await?;
        // The last bytes are missing.
        stream
            .write_all(&frame(0, 0, id, &[0, 0, 0x0f, 0xff, 0xff]))
            .await?;
        for _ in 0..63 {
            stream
                .write_all(&frame(0, 0, id, &[b'x'; 16 * 1024]))
                .await?;
        }
    }
    Ok(())
}

/// Asserts that the log reports refused calls, at most once per interval.
fn assert_rarely_logged(server: &Server, began: Instant) {
    let logged = [
        "too many calls are in flight; refusing more",
        "the requests in flight hold too many bytes; refusing more",
    ]
    .map(|text| server.logged(text).len() as u128);
    let max = 1 + began.elapsed().as_millis() / LOG_INTERVAL.as_millis();
    assert!(
        logged.iter().sum::<u128>() > 0 && logged.iter().all(|lines| *lines <= max),
        "{logged:?} lines, at most {max} each"
    );
}

/// Large requests without an end, from one caller over many connections.
#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn more_bytes_than_may_be_in_flight() {
    let (database, began) = (Database::sqlite(), Instant::now());
    let server = Server::start(&database.url(), &[]).await;
    let bystander = Bystander::of(&server).await;
    let head = headers_of(
        "/canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule",
        server.addr(),
        server.key(),
    );
    let mut large = Vec::new();
    for _ in 0..25 {
        let mut stream = http2_connection(&server, &[]).await;
        // Once acknowledged, its settings allow 1 MB in each call. The calls of a connection may
        // send more than 64 KB together once it has sent a WINDOW_UPDATE; it closes the connection
        // of a peer that does not wait.
        read_up_to(&mut stream, SETTINGS).await;
        stream
            .write_all(&frame(SETTINGS, 1, 0, &[]))
            .await
            .expect("the server reads");
        read_up_to(&mut stream, WINDOW_UPDATE).await;
        // It may close the connection of a peer that continues refused calls.
        let _ended = send_large(&mut stream, &head).await;
        large.push(stream);
    }
    server.log().times(1, "hold too many bytes").await;
    tokio::time::sleep(ABUSE_DURATION).await;
    assert_rarely_logged(&server, began);
    bystander.was_served_by(&server).await;
}

#[tokio::test]
async fn more_calls_than_may_be_in_flight() {
    let (database, began) = (Database::sqlite(), Instant::now());
    let server = Server::start(&database.url(), &["--max-in-flight", "1"]).await;
    let mut callers = Vec::new();
    for _ in 0..32 {
        let mut client = server.connect().await;
        callers.push(tokio::spawn(async move {
            let (mut served, mut shed) = (0, 0);
            for _ in 0..50 {
                match client
                    .list_canvas_schedules(v1::ListCanvasSchedulesRequest::default())
                    .await
                {
                    Ok(_) => served += 1,
                    Err(status) => {
                        assert_eq!(
                            (status.code(), reason(&status).as_str()),
                            (Code::Unavailable, "OVERLOADED")
                        );
                        shed += 1;
                    }
                }
            }
            (served, shed)
        }));
    }
    let (mut served, mut shed) = (0, 0);
    for caller in callers {
        let (own, refused) = caller.await.unwrap();
        (served, shed) = (served + own, shed + refused);
    }
    println!("{}: {served} served, {shed} refused", test_name());
    assert!(served > 0 && shed > 0);
    assert_rarely_logged(&server, began);
}
