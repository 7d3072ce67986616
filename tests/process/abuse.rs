//! Peers that are slow, many, large or rude: the process stays small, and everybody else is served.

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

/// What the process may take, in kilobytes.
const MEMORY_MOST: u64 = 300 * 1024;
/// How long a call waits for a database connection before it is told to try again.
const CONNECTION_WAIT: Duration = Duration::from_secs(3);
/// Between two lines in the log while calls are refused.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long an abuse that does not end by itself goes on.
const WHILE: Duration = Duration::from_secs(5);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a list with this key.
fn headers(addr: &str, key: &str) -> Vec<u8> {
    headers_of(
        "/canvas.schedule.v1.CanvasScheduleService/ListCanvasSchedules",
        addr,
        key,
    )
}

/// The headers of a call: indexed where the standard's table has them, else as they are.
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

/// A connection that has begun to speak HTTP/2, with these settings.
async fn begun(server: &Server, settings: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.addr()).await.expect("it listens");
    stream
        .write_all(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat())
        .await
        .expect("it reads");
    stream
}

/// A caller who does nothing out of the way; every call must be answered. When it is told to try again it does.
pub(crate) struct Neighbour {
    stop: watch::Sender<bool>,
    calls: JoinHandle<Served>,
}

/// What became of its calls.
#[derive(Default)]
struct Served {
    calls: usize,
    slowest: Duration,
    /// How often it was told to try again.
    put_off: usize,
}

impl Neighbour {
    /// One who calls from now on.
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
                            "a neighbour is served: {status:?}"
                        );
                        assert!(
                            began.elapsed() >= CONNECTION_WAIT,
                            "put off before it had waited: {status:?}"
                        );
                        served.put_off += 1;
                        status
                            .get_details_retry_info()
                            .and_then(|info| info.retry_delay)
                            .expect("when to try again")
                    }
                };
                tokio::time::sleep(pause).await;
            }
            served
        });
        Self { stop, calls }
    }

    /// It was served, more often than put off, and the process stayed small. It may be put off at all because a build without
    /// optimisation works for seconds on a flood, and who waits 3 s for a database connection is told to try again.
    pub(crate) async fn was_served_by(self, server: &Server) {
        self.stop.send_replace(true);
        let served = tokio::time::timeout(PATIENCE, self.calls)
            .await
            .expect("it ends")
            .expect("every call was answered");
        let Served {
            calls,
            slowest,
            put_off,
        } = served;
        assert!(calls > put_off, "{calls} calls, put off {put_off} times");
        // Somebody new comes in too.
        let mut client = server.connect().await;
        when_available(async || create(&mut client, unique_time(), String::new()).await)
            .await
            .expect("created");
        let peak = peak_of(server.pid());
        println!(
            "{}: {calls} calls, the slowest {slowest:?}, put off {put_off} times; at most {} MB",
            test_name(),
            peak / 1024
        );
        assert!(peak < MEMORY_MOST, "{peak} KB");
    }
}

/// The most memory that a process had in use, in kilobytes.
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

async fn closed(stream: &mut TcpStream) {
    // A reset is an end too. What is not taken may take a minute until it ends.
    let _end = tokio::time::timeout(PATIENCE * 2, stream.read_to_end(&mut vec![]))
        .await
        .expect("it is closed");
}

#[tokio::test]
async fn slow_first_bytes() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &["--first-byte-timeout", "2s"]).await;
    let neighbour = Neighbour::of(&server).await;
    let mut slow = Vec::new();
    for n in 0..500 {
        let mut stream = TcpStream::connect(server.addr()).await.expect("it listens");
        stream
            .write_all(&PREFACE[..n % PREFACE.len()])
            .await
            .expect("it reads");
        slow.push(stream);
    }
    for mut stream in slow {
        closed(&mut stream).await;
    }
    neighbour.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn slow_and_endless_headers() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let neighbour = Neighbour::of(&server).await;
    let head = headers(server.addr(), &"0".repeat(68));
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut stream = begun(&server, &[]).await;
        // Not the end of the headers, and a byte now and then after it.
        stream
            .write_all(&frame(HEADERS, 0, 1, &head[..2]))
            .await
            .expect("it reads");
        slow.push(stream);
    }
    let mut endless = begun(&server, &[]).await;
    endless
        .write_all(&frame(HEADERS, 0, 1, &head[..2]))
        .await
        .expect("it reads");
    let more = frame(
        CONTINUATION,
        0,
        1,
        &[&[0x00, 1, b'a', 127, 0x81, 0x7d][..], &vec![b'x'; 8 * 1024]].concat(),
    );
    let mut sent = 0;
    while endless.write_all(&more).await.is_ok() {
        sent += more.len();
        assert!(sent < 100 << 20, "it reads on for ever");
    }
    let until = Instant::now() + WHILE;
    let mut byte = 2;
    while Instant::now() < until {
        for stream in &mut slow {
            // Those whose patience is at its end close.
            let _closed = stream
                .write_all(&frame(CONTINUATION, 0, 1, &head[byte..=byte]))
                .await;
        }
        byte += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    neighbour.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn slow_readers() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    schedules(&mut server.connect().await, 120).await;
    let neighbour = Neighbour::of(&server).await;
    let head = headers(server.addr(), server.key());
    let mut slow = Vec::new();
    for n in 0..20_u8 {
        // Half of them take the first byte of each answer, the others none (SETTINGS_INITIAL_WINDOW_SIZE); and nobody reads.
        let mut stream = begun(&server, &[0, 4, 0, 0, 0, n % 2]).await;
        for call in 0..30_u32 {
            let id = 2 * call + 1;
            let asked = prost::Message::encode_to_vec(&v1::ListCanvasSchedulesRequest {
                page_size: 1000,
                ..Default::default()
            });
            let length = u32::try_from(asked.len()).unwrap().to_be_bytes();
            let data = frame(0, 1, id, &[&[0][..], &length, &asked].concat());
            // Whoever was closed by now cannot send more.
            let _closed = stream
                .write_all(&[frame(HEADERS, 4, id, &head), data].concat())
                .await;
        }
        slow.push(stream);
    }
    for mut stream in slow {
        closed(&mut stream).await;
    }
    neighbour.was_served_by(&server).await;
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
    let neighbour = Neighbour::of(&server).await;
    let mut idle = Vec::new();
    while idle.len() < WANTED.min(open_files() - 500) {
        idle.push(begun(&server, &[]).await);
    }
    for stream in &mut idle {
        let mut settings = [0; 9];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut settings))
            .await
            .expect("it answers")
            .expect("its settings");
    }
    println!("{}: {} connections", test_name(), idle.len());
    tokio::time::sleep(WHILE).await;
    neighbour.was_served_by(&server).await;
}

/// How many files a process may open, this one and the server.
fn open_files() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .expect("of files");
    line.split_whitespace()
        .nth(3)
        .expect("the soft one")
        .parse()
        .unwrap_or(usize::MAX)
}

/// Waits until somebody new is let in: connections that were ended keep their places until the server has seen it.
pub(crate) async fn until_let_in(server: &Server) {
    // A connection that is taken gets settings at once.
    let let_in = async {
        while TcpStream::connect(server.addr())
            .await
            .expect("the kernel accepts")
            .read_u8()
            .await
            .is_err()
        {}
    };
    tokio::time::timeout(PATIENCE, let_in)
        .await
        .expect("places are free again");
}

#[tokio::test]
async fn more_connections_than_an_address_may_have() {
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
    for _ in 0..100 {
        streams.push(
            TcpStream::connect(server.addr())
                .await
                .expect("the kernel accepts"),
        );
    }
    // All but 20 are closed at once, without a byte of settings. Which ones is not known: a connection that asked whether the server
    // was there may give its place up meanwhile.
    let mut refused = 0;
    for stream in &mut streams {
        refused += usize::from(stream.read_u8().await.is_err());
    }
    assert!(refused >= 80, "{refused} of 100 were refused");
    drop(streams);
    until_let_in(&server).await;
    neighbour.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn a_message_of_100_megabytes() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let neighbour = Neighbour::of(&server).await;
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
    neighbour.was_served_by(&server).await;
}

#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn a_flood_of_resets() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let neighbour = Neighbour::of(&server).await;
    let head = headers(server.addr(), server.key());
    let mut ends = HashMap::<bool, usize>::new();
    for _ in 0..20 {
        let mut stream = begun(&server, &[]).await;
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
        "{}: floods that came through to the end, or not: {ends:?}",
        test_name()
    );
    neighbour.was_served_by(&server).await;
}

/// They need no key.
#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn health_checks_that_never_end() {
    let database = Database::sqlite();
    let server = Server::start(&database.url(), &[]).await;
    let neighbour = Neighbour::of(&server).await;
    let head = headers_of("/grpc.health.v1.Health/Check", server.addr(), "");
    let mut hanging = Vec::new();
    for _ in 0..50 {
        let mut stream = begun(&server, &[]).await;
        let calls = (0..1_000).flat_map(|call| frame(HEADERS, 4, 2 * call + 1, &head));
        stream
            .write_all(&calls.collect::<Vec<_>>())
            .await
            .expect("it reads");
        hanging.push(stream);
    }
    // Somebody else's is answered.
    let mut health = server.watch().await;
    assert_eq!(next_status(&mut health).await, Some(ServingStatus::Serving));
    tokio::time::sleep(WHILE).await;
    neighbour.was_served_by(&server).await;
}

/// Reads frames up to the first one of this kind.
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

/// As many unfinished messages of 1 MB as the window of a connection takes.
async fn send_large(stream: &mut TcpStream, head: &[u8]) -> std::io::Result<()> {
    for call in 0..3_u32 {
        let id = 2 * call + 1;
        stream.write_all(&frame(HEADERS, 4, id, head)).await?;
        // The last bytes do not come.
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

/// Refused calls are told in the log, not each of them.
fn told_seldom(server: &Server, began: Instant) {
    let told = server
        .logged("too many calls are under way, or too large ones; more are refused")
        .len();
    let most = 1 + began.elapsed().as_millis() / TELL_EVERY.as_millis();
    assert!(
        (1..=most).contains(&u128::try_from(told).unwrap()),
        "{told}, at most {most}"
    );
}

/// Large requests that never end, of one caller, over many connections.
#[tokio::test]
#[ignore = "a flood, which .ci/full/run runs"]
async fn more_bytes_than_may_be_under_way() {
    let (database, began) = (Database::sqlite(), Instant::now());
    let server = Server::start(&database.url(), &[]).await;
    let neighbour = Neighbour::of(&server).await;
    let head = headers_of(
        "/canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule",
        server.addr(),
        server.key(),
    );
    let mut large = Vec::new();
    for _ in 0..25 {
        let mut stream = begun(&server, &[]).await;
        // Its settings allow 1 MB at once in a call, once they are acknowledged. In all calls of the connection more than 64 KB are
        // allowed once it has said so; who does not wait for that is hung up on.
        read_up_to(&mut stream, SETTINGS).await;
        stream
            .write_all(&frame(SETTINGS, 1, 0, &[]))
            .await
            .expect("it reads");
        read_up_to(&mut stream, WINDOW_UPDATE).await;
        // It may end the connection of a peer who goes on with calls that it has refused.
        let _ended = send_large(&mut stream, &head).await;
        large.push(stream);
    }
    server.log().times(1, "or too large ones").await;
    tokio::time::sleep(WHILE).await;
    told_seldom(&server, began);
    neighbour.was_served_by(&server).await;
}

#[tokio::test]
async fn more_calls_than_may_be_under_way() {
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
    told_seldom(&server, began);
}
