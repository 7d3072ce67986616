//! The life of a connection, from its first byte to its end.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::body::Body;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tower::{Service, ServiceExt};

use super::super::tls::Tls;
use super::{Connection, ConnectionSettings};
use crate::layers::concurrency_limit::HealthChecks;
use crate::layers::drain::Phase;
use crate::layers::unsent::UnsentResponses;

/// The bytes that every client of HTTP/2 begins with.
const PREFACE: usize = 24;

/// What is protocol on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersions {
    /// HTTP/2 alone.
    Http2,
    /// HTTP/1.1, or HTTP/2 when a client begins with that.
    Http1AndHttp2,
}

impl HttpVersions {
    /// Their names within TLS, by preference.
    fn protocols(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http2 => &[b"h2"],
            Self::Http1AndHttp2 => &[b"h2", b"http/1.1"],
        }
    }
}

/// How a port is protocol to.
#[derive(Clone)]
pub struct Protocol {
    /// In which protocol.
    pub versions: HttpVersions,
    /// Within TLS, or in plain text.
    pub tls: Option<Tls>,
}

/// The most bytes of the head of a request.
const HEAD_MOST: u32 = 16 * 1024;

/// How long connections have to send what was answered when [`Phase::Ending`] cut calls off.
const FLUSH: Duration = Duration::from_secs(1);

/// Serves the connections of one worker, on the runtime that this is called on. Returns when `phase` has left
/// [`Phase::Serving`] and every connection has ended, which is at most 1 s after [`Phase::Ending`].
pub async fn serve<S>(
    mut incoming: mpsc::Receiver<Connection>,
    service: S,
    protocol: Protocol,
    settings: ConnectionSettings,
    phase: watch::Receiver<Phase>,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut draining = phase.clone();
    let mut leaving = pin!(Phase::Draining.reached(&mut draining));
    loop {
        tokio::select! {
            biased;
            () = &mut leaving => break,
            Some(ended) = connections.join_next() => log_panic(ended),
            Some(connection) = incoming.recv() => {
                connections.spawn(live(connection, service.clone(), protocol.clone(), settings, phase.clone()));
            }
        }
    }
    // What still waits here has not been served a byte.
    drop(incoming);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(why) = ended {
        tracing::error!(%why, "a connection's task failed");
    }
}

async fn live<S>(
    connection: Connection,
    service: S,
    protocol: Protocol,
    settings: ConnectionSettings,
    mut phase: watch::Receiver<Phase>,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    let Connection {
        stream,
        peer,
        permits: _until_the_end,
    } = connection;
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(why) => return tracing::warn!(%peer, %why, "a connection cannot be served"),
    };
    let known = ConnectionState {
        info: stream.connect_info(),
        unsent: Arc::default(),
        checks: HealthChecks::default(),
        asked: Arc::default(),
    };
    let service = with_known(service, known.clone());
    let talk = Conversation {
        peer,
        versions: protocol.versions,
        known,
        settings,
    };
    let Some(tls) = protocol.tls else {
        return talk.over(stream, service, phase).await;
    };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(settings.first_byte_timeout, tls.acceptor(protocol.versions.protocols()).accept(stream)) => shaken,
        () = Phase::Draining.reached(&mut phase) => return,
    };
    match shaken {
        // Boxed, so that a connection without TLS does not carry it about.
        Ok(Ok(stream)) => Box::pin(talk.over(stream, service, phase)).await,
        Ok(Err(why)) => tracing::debug!(%peer, %why, "a TLS handshake failed"),
        Err(_elapsed) => tracing::debug!(%peer, "a TLS handshake took too long"),
    }
}

/// A connection that is about to be talked on.
struct Conversation {
    peer: SocketAddr,
    versions: HttpVersions,
    known: ConnectionState,
    settings: ConnectionSettings,
}

impl Conversation {
    /// Talks until the peer or a bound ends it.
    async fn over<I, S>(self, stream: I, service: S, mut phase: watch::Receiver<Phase>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
    {
        let Self {
            peer,
            versions,
            known,
            settings,
        } = self;
        let traffic = Arc::new(Traffic::default());
        let io = TokioIo::new(Counting {
            stream,
            traffic: traffic.clone(),
        });
        let silent = || match versions {
            HttpVersions::Http2 => traffic.received.load(Ordering::Relaxed) < PREFACE,
            // Until its first request is there whole it may still be half a preface.
            HttpVersions::Http1AndHttp2 => !known.asked.load(Ordering::Relaxed),
        };
        let mut not_taken = pin!(not_taken(&traffic, &known.unsent, settings.unsent_timeout));
        let builder = builder(versions, settings.next_head_timeout);
        let mut conn = pin!(builder.serve_connection(io, TowerToHyperService::new(service)));

        let grace = tokio::select! {
            // What has come is read, and what is answered sent, before a bound that has passed meanwhile counts.
            biased;
            ended = conn.as_mut() => return log_end(peer, ended),
            () = Phase::Draining.reached(&mut phase) => None,
            () = still_silent_after(settings.first_byte_timeout, silent) => return tracing::debug!(%peer, "a silent connection is closed"),
            () = not_taken.as_mut() => return tracing::debug!(%peer, "a connection that takes no answers is closed"),
            () = sleep(settings.random_age()) => Some(settings.age_grace),
        };
        if silent() {
            return;
        }
        conn.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            ended = conn.as_mut() => log_end(peer, ended),
            () = not_taken => tracing::debug!(%peer, "a connection that takes no answers is closed"),
            () = ended_and_flushed(&mut phase) => tracing::debug!(%peer, "a connection did not end by itself"),
            () = passed(grace) => tracing::debug!(%peer, "a connection past its age did not end by itself"),
        }
    }
}

fn builder(versions: HttpVersions, next_head: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Also how long a connection may be idle between two requests.
        .header_read_timeout(next_head)
        .max_buf_size(HEAD_MOST as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1024)
        .max_header_list_size(HEAD_MOST)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        .max_send_buf_size(64 * 1024)
        // Calls that are begun and given up at once: so many that were not yet looked at, and then the connection ends.
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(1024)
        // A peer that is gone without a word is noticed after 80 s.
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(20));
    match versions {
        HttpVersions::Http2 => builder.http2_only(),
        HttpVersions::Http1AndHttp2 => builder,
    }
}

/// What is known of a connection: its peer, what it has not sent, its health checks, and whether it was ever asked anything.
#[derive(Clone)]
struct ConnectionState {
    info: TcpConnectInfo,
    unsent: Arc<UnsentResponses>,
    checks: HealthChecks,
    asked: Arc<AtomicBool>,
}

/// `service` with what the layers know of the connection in each request; the peer's address is where
/// [`tonic::Request::remote_addr`] finds it.
fn with_known<S>(
    service: S,
    known: ConnectionState,
) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future = S::Future>
+ Clone
+ Send
+ 'static
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
{
    service.map_request(move |mut request: Request<Incoming>| {
        known.asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(known.checks.clone());
        request.extensions_mut().insert(known.info.clone());
        request.extensions_mut().insert(known.unsent.clone());
        request.map(Body::new)
    })
}

/// Returns after `bound` if the peer is `silent` then, else never.
async fn still_silent_after(bound: Duration, silent: impl Fn() -> bool) {
    sleep(bound).await;
    if !silent() {
        std::future::pending().await
    }
}

/// Returns once the peer has left an answer, or bytes, untaken for longer than `bound`; for a small part of it while the process
/// holds many answers.
async fn not_taken(traffic: &Traffic, unsent: &UnsentResponses, bound: Duration) {
    const PARTS: u32 = 30;
    let mut sent_before = None;
    for part in 1_u32.. {
        sleep(bound / PARTS).await;
        if part % PARTS != 0 && !UnsentResponses::many() {
            continue;
        }
        let sent = traffic
            .stuck
            .load(Ordering::Relaxed)
            .then(|| traffic.sent.load(Ordering::Relaxed));
        if unsent.stalled() || (sent.is_some() && sent == sent_before) {
            return;
        }
        sent_before = sent;
    }
}

async fn ended_and_flushed(phase: &mut watch::Receiver<Phase>) {
    Phase::Ending.reached(phase).await;
    sleep(FLUSH).await;
}

async fn passed(grace: Option<Duration>) {
    match grace {
        Some(grace) => sleep(grace).await,
        None => std::future::pending().await,
    }
}

fn log_end(peer: SocketAddr, ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    match ended {
        Ok(()) => tracing::debug!(%peer, "a connection ended"),
        Err(why) => tracing::debug!(%peer, %why, "a connection failed"),
    }
}

/// What went over a connection.
#[derive(Debug, Default)]
struct Traffic {
    /// In bytes, so that a peer that sends half a preface counts as silent.
    received: AtomicUsize,
    sent: AtomicUsize,
    /// Whether bytes wait until the peer takes earlier ones.
    stuck: AtomicBool,
}

impl Traffic {
    fn note_write(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.sent.fetch_add(bytes, Ordering::Relaxed);
        }
        self.stuck.store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

/// A stream that counts.
struct Counting<I> {
    stream: I,
    traffic: Arc<Traffic>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Counting<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.traffic
            .received
            .fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counting<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buffer);
        self.traffic.note_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        self.traffic.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
