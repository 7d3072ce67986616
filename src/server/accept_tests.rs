use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::body::Body;
use tonic::transport::server::TcpConnectInfo;
use tower::service_fn;

use super::*;
use crate::layers::Stack;
use crate::layers::support::{STREAM, done, endless, request, verdict, verdict_of_stream};
use crate::layers::unsent::ProcessUnsent;

const QUICK: &str = "/canvas.schedule.v1.CanvasScheduleService/GetCanvasSchedule";
/// Answers with 100 KB.
const LARGE: &str = "/canvas.schedule.v1.CanvasScheduleService/ListCanvasSchedules";
/// Begins, and ends when it is released.
const SLOW: &str = "/canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule";
/// Begins, and never ends.
const HANG: &str = "/canvas.schedule.v1.CanvasScheduleService/CancelCanvasSchedule";

/// Ends a test that hangs.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("it hangs")
}

fn limits(settings: ConnectionSettings) -> ConnectionLimits {
    ConnectionLimits::new(settings, [].into(), ConnectionMetrics::default())
}

fn two_of_each_address(trusted_proxy: &str) -> ConnectionLimits {
    let settings = ConnectionSettings {
        max_connections_per_address: 2,
        ..ConnectionSettings::default()
    };
    let trusted_proxies = [trusted_proxy.parse().expect("a network")].into();
    ConnectionLimits::new(settings, trusted_proxies, ConnectionMetrics::default())
}

struct AcceptServer {
    addr: SocketAddr,
    phase: watch::Sender<Phase>,
    live: Arc<AtomicUsize>,
    begun: mpsc::UnboundedReceiver<()>,
    release: Arc<Notify>,
    accepted: JoinHandle<()>,
    served: JoinHandle<()>,
}

async fn start(settings: ConnectionSettings) -> AcceptServer {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let (phase, phases) = watch::channel(Phase::Serving);
    let (begin, begun) = mpsc::unbounded_channel();
    let release = Arc::new(Notify::new());
    let released = release.clone();
    let service = service_fn(move |request: Request<Body>| {
        let (begin, released) = (begin.clone(), released.clone());
        async move {
            let peer = request
                .extensions()
                .get::<TcpConnectInfo>()
                .and_then(TcpConnectInfo::remote_addr);
            assert!(peer.expect("the peer's address").ip().is_loopback());
            match request.uri().path() {
                STREAM => return Ok(Response::new(endless())),
                QUICK => {}
                LARGE => {
                    return Ok(Response::new(Body::new(
                        Full::new(vec![0; 100 * 1024].into()).map_err(|never| match never {}),
                    )));
                }
                slow => {
                    begin.send(()).expect("the test waits");
                    released.notified().await;
                    assert_eq!(slow, SLOW);
                }
            }
            Ok::<_, std::convert::Infallible>(done())
        }
    });
    let (worker, incoming) = Worker::new();
    let live = worker.live.clone();
    let accepted = tokio::spawn(accept(
        listener,
        vec![worker],
        limits(settings),
        phases.clone(),
    ));
    let served = tokio::spawn(serve(
        incoming,
        Stack::new(phases.clone()).wrap(service),
        Protocol {
            versions: HttpVersions::Http2,
            tls: None,
        },
        settings,
        ProcessUnsent::default(),
        phases,
    ));
    AcceptServer {
        addr,
        phase,
        live,
        begun,
        release,
        accepted,
        served,
    }
}

/// A connection of a client, whose task ends after GOAWAY when it has no calls.
struct Client(SendRequest<Body>, JoinHandle<hyper::Result<()>>);

impl Client {
    async fn to(server: &AcceptServer) -> Self {
        let stream = TcpStream::connect(server.addr).await.expect("a connection");
        let (send, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
        Self(send, tokio::spawn(connection))
    }

    fn begin(&self, path: &str) -> JoinHandle<hyper::Result<Response<Body>>> {
        let (mut send, request) = (self.0.clone(), request(path));
        tokio::spawn(async move {
            send.ready().await?;
            send.send_request(request)
                .await
                .map(|response| response.map(Body::new))
        })
    }

    async fn call(&self, path: &str) -> Response<Body> {
        soon(self.begin(path))
            .await
            .expect("no panic")
            .expect("an answer")
    }
}

const OK: (Code, String) = (Code::Ok, String::new());

fn draining() -> (Code, String) {
    (Code::Unavailable, "DRAINING".into())
}

/// A connection that says no more than `words`; known to be served, since the server has protocol.
async fn silent_after(server: &AcceptServer, words: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.addr).await.expect("a connection");
    stream.write_all(words).await.expect("sent");
    soon(stream.read_u8()).await.expect("the server's settings");
    stream
}

async fn closed(mut stream: TcpStream) {
    // A reset is an end too.
    let _end = soon(stream.read_to_end(&mut Vec::new())).await;
}

#[tokio::test]
async fn only_a_silent_connection_is_closed() {
    let server = start(ConnectionSettings {
        first_byte_timeout: Duration::from_millis(200),
        ..ConnectionSettings::default()
    })
    .await;
    let client = Client::to(&server).await;
    assert_eq!(verdict(&client.call(QUICK).await), OK);
    let (silent, halting) = (
        silent_after(&server, b"").await,
        silent_after(&server, b"PRI * HTTP/2").await,
    );
    closed(silent).await;
    closed(halting).await;
    assert_eq!(verdict(&client.call(QUICK).await), OK);
}

#[tokio::test]
async fn what_is_not_http2_is_closed() {
    let server = start(ConnectionSettings::default()).await;
    closed(silent_after(&server, b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n").await).await;
}

#[tokio::test]
async fn draining_closes_idle_connections_and_lets_calls_finish() {
    let mut server = start(ConnectionSettings::default()).await;
    let silent = silent_after(&server, b"").await;
    let (first, second) = (Client::to(&server).await, Client::to(&server).await);
    let stream = first.call(STREAM).await;
    let slow = second.begin(SLOW);
    soon(server.begun.recv()).await.expect("begun");

    server.phase.send_replace(Phase::Draining);
    soon(server.accepted).await.expect("no panic");
    assert!(
        TcpStream::connect(server.addr).await.is_err(),
        "the port is closed"
    );
    closed(silent).await;
    assert_eq!(soon(verdict_of_stream(stream)).await, draining());
    soon(first.1).await.expect("no panic").expect("GOAWAY");
    assert!(!server.served.is_finished());

    server.release.notify_one();
    let response = soon(slow).await.expect("no panic").expect("an answer");
    assert_eq!(verdict(&response), OK);
    soon(server.served).await.expect("no panic");
}

#[tokio::test]
async fn ending_answers_hanging_calls_and_closes_stubborn_peers() {
    let mut server = start(ConnectionSettings::default()).await;
    let client = Client::to(&server).await;
    let hangs = client.begin(HANG);
    soon(server.begun.recv()).await.expect("begun");
    // It speaks once and keeps the connection open, without a call and without an answer to a ping.
    let stubborn = silent_after(
        &server,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    )
    .await;
    server.phase.send_replace(Phase::Draining);
    soon(server.accepted).await.expect("no panic");
    assert!(!server.served.is_finished() && !hangs.is_finished());

    server.phase.send_replace(Phase::Ending);
    assert_eq!(
        verdict(&soon(hangs).await.expect("no panic").expect("an answer")),
        draining()
    );
    soon(server.served).await.expect("no panic");
    closed(stubborn).await;
}

#[tokio::test]
async fn an_old_connection_gets_goaway_and_a_new_one_serves() {
    let server = start(ConnectionSettings {
        max_connection_age: Duration::from_millis(300),
        ..ConnectionSettings::default()
    })
    .await;
    let client = Client::to(&server).await;
    soon(client.1)
        .await
        .expect("no panic")
        .expect("GOAWAY, not an error");
    let next = Client::to(&server).await;
    assert_eq!(verdict(&next.call(QUICK).await), OK);
}

#[tokio::test]
async fn an_old_connection_is_closed_after_its_grace() {
    let settings = ConnectionSettings {
        max_connection_age: Duration::from_millis(300),
        age_grace: Duration::from_millis(100),
        ..ConnectionSettings::default()
    };
    let mut server = start(settings).await;
    let client = Client::to(&server).await;
    let hangs = client.begin(HANG);
    soon(server.begun.recv()).await.expect("begun");
    assert!(soon(hangs).await.expect("no panic").is_err());
}

#[tokio::test]
async fn one_connection_too_many_is_closed_until_another_ends() {
    let server = start(ConnectionSettings {
        max_connections: 1,
        ..ConnectionSettings::default()
    })
    .await;
    let client = Client::to(&server).await;
    assert_eq!(verdict(&client.call(QUICK).await), OK);
    closed(
        TcpStream::connect(server.addr)
            .await
            .expect("the kernel takes it"),
    )
    .await;
    assert_eq!(verdict(&client.call(QUICK).await), OK);

    drop(client);
    soon(async {
        while server.live.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let response = Client::to(&server).await.call(QUICK).await;
    assert_eq!(verdict(&response), OK);
    assert!(response.into_body().collect().await.is_ok());
}

#[tokio::test]
async fn the_worker_with_the_fewest_connections_gets_the_next() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let (phase, phases) = watch::channel(Phase::Serving);
    let ((first, mut firsts), (second, mut seconds)) = (Worker::new(), Worker::new());
    let _two_more = [WorkerPermit::of(&first), WorkerPermit::of(&first)];
    let accepted = tokio::spawn(accept(
        listener,
        vec![first, second],
        limits(ConnectionSettings::default()),
        phases,
    ));
    let mut taken = Vec::new();
    for worker in [2, 2, 1, 2, 1] {
        let _client = TcpStream::connect(addr).await.expect("a connection");
        let (connection, which) = soon(async {
            tokio::select! {
                connection = firsts.recv() => (connection, 1),
                connection = seconds.recv() => (connection, 2),
            }
        })
        .await;
        assert_eq!(which, worker, "after {}", taken.len());
        taken.push(connection.expect("a connection"));
    }
    drop(phase);
    soon(accepted).await.expect("no panic");
}

#[test]
fn ages_differ_by_a_tenth_and_pauses_double() {
    let settings = ConnectionSettings::default();
    let ages: Vec<Duration> = (0..100).map(|_| settings.random_age()).collect();
    let (least, most) = (Duration::from_secs(27 * 60), Duration::from_secs(33 * 60));
    assert!(
        ages.iter().all(|age| (least..=most).contains(age)),
        "{ages:?}"
    );
    assert!(ages.iter().any(|age| *age != ages[0]), "by chance");
    assert!(
        ConnectionSettings {
            max_connection_age: Duration::MAX,
            ..settings
        }
        .random_age()
            >= Duration::MAX / 2,
        "no overflow"
    );

    let pauses: Vec<u128> = [0, 1, 2, 6, 7, 8, u32::MAX]
        .into_iter()
        .map(|faults| pause_after(faults).as_millis())
        .collect();
    assert_eq!(pauses, [10, 20, 40, 640, 1000, 1000, 1000]);
}

/// The peer takes one byte of a response and no more. It is dropped and delays no other.
#[tokio::test]
async fn a_connection_that_takes_no_responses_is_closed() {
    let server = start(ConnectionSettings {
        unsent_timeout: Duration::from_millis(100),
        ..ConnectionSettings::default()
    })
    .await;
    let stream = TcpStream::connect(server.addr).await.expect("a connection");
    let mut slow = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let slow = slow
        .initial_stream_window_size(1)
        .handshake(TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    let slow = Client(slow.0, tokio::spawn(slow.1));
    let client = Client::to(&server).await;
    // The headers arrive; the body is never read.
    let _untaken = slow.call(LARGE).await;
    assert!(
        soon(slow.1).await.expect("no panic").is_err(),
        "it is closed"
    );
    let body = client
        .call(LARGE)
        .await
        .into_body()
        .collect()
        .await
        .expect("who reads gets it")
        .to_bytes();
    assert_eq!(body.len(), 100 * 1024);
}

#[test]
fn connections_are_limited_by_address_but_not_for_trusted_proxies() {
    let limits = two_of_each_address("10.0.0.0/8");
    let enter = |address: &str| limits.admit(address.parse().expect("an address"));
    let permits = [
        enter("192.0.2.1").expect("the first"),
        enter("::ffff:192.0.2.1").expect("the second"),
    ];
    assert!(enter("192.0.2.1").is_none());
    let _other = enter("192.0.2.2").expect("another address");
    let _proxied: Vec<_> = (0..5)
        .map(|_| enter("10.1.2.3").expect("a proxy's"))
        .collect();
    drop(permits);
    assert_eq!(
        limits.by_address.lock().len(),
        1,
        "addresses without connections are forgotten"
    );
    enter("192.0.2.1").expect("the permits were returned");
}

#[test]
fn a_64_of_ipv6_counts_as_one_address() {
    let limits = two_of_each_address("2001:db8:1::/48");
    let enter = |address: &str| limits.admit(address.parse().expect("an address"));
    let permits = [enter("2001:db8::1"), enter("2001:db8::ffff:0:0:1")];
    assert!(permits.iter().all(Option::is_some) && enter("2001:db8::2").is_none());
    assert!(
        enter("2001:db8:0:1::1").is_some() && enter("192.0.2.1").is_some(),
        "others'"
    );
    let proxies: Vec<_> = (0..5).map(|_| enter("2001:db8:1::1")).collect();
    assert!(proxies.iter().all(Option::is_some));
    drop(permits);
    assert!(enter("2001:db8::2").is_some());
}
