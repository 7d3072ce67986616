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
use crate::layers::unsent::{ProcessUnsent, UnsentResponses};

/// The length of the preface that every HTTP/2 client sends first.
const PREFACE_BYTES: usize = 24;

/// The HTTP versions of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersions {
    /// HTTP/2 only.
    Http2,
    /// HTTP/1.1, or HTTP/2 if the client sends its preface.
    Http1AndHttp2,
}

impl HttpVersions {
    /// Their names in ALPN, in order of preference.
    fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http2 => &[b"h2"],
            Self::Http1AndHttp2 => &[b"h2", b"http/1.1"],
        }
    }
}

/// The protocol of a port.
#[derive(Clone)]
pub struct Protocol {
    /// The HTTP versions.
    pub versions: HttpVersions,
    /// None means plain text.
    pub tls: Option<Tls>,
}

/// The largest header section of a request.
const MAX_HEAD_BYTES: u32 = 16 * 1024;

/// After [`Phase::Ending`] has cut off the calls: how long connections may take to send the
/// responses.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the connections of one worker, on the current runtime. Returns when `phase` has left
/// [`Phase::Serving`] and every connection has ended, at most 1 s after [`Phase::Ending`].
pub async fn serve<S>(
    mut incoming: mpsc::Receiver<Connection>,
    service: S,
    protocol: Protocol,
    settings: ConnectionSettings,
    unsent: ProcessUnsent,
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
    let mut left = pin!(Phase::Draining.reached(&mut draining));
    loop {
        tokio::select! {
            biased;
            () = &mut left => break,
            Some(ended) = connections.join_next() => log_panic(ended),
            Some(connection) = incoming.recv() => {
                connections.spawn(serve_connection(
                    connection,
                    service.clone(),
                    protocol.clone(),
                    settings,
                    unsent.connection(),
                    phase.clone(),
                ));
            }
        }
    }
    // Closes connections that were not served yet.
    drop(incoming);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(why) = ended {
        tracing::error!(%why, "the task of a connection failed");
    }
}

async fn serve_connection<S>(
    connection: Connection,
    service: S,
    protocol: Protocol,
    settings: ConnectionSettings,
    unsent: Arc<UnsentResponses>,
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
        permits: _permits,
    } = connection;
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(why) => return tracing::warn!(%peer, %why, "cannot serve a connection"),
    };
    let state = ConnectionState {
        info: stream.connect_info(),
        unsent,
        checks: HealthChecks::default(),
        has_request: Arc::default(),
    };
    let service = with_state(service, state.clone());
    let conversation = Conversation {
        peer,
        versions: protocol.versions,
        state,
        settings,
    };
    let Some(tls) = protocol.tls else {
        return conversation.run(stream, service, phase).await;
    };
    let accept = tls.acceptor(protocol.versions.alpn()).accept(stream);
    let handshake = tokio::select! {
        handshake = tokio::time::timeout(settings.first_byte_timeout, accept) => handshake,
        () = Phase::Draining.reached(&mut phase) => return,
    };
    match handshake {
        // Boxed, so that connections without TLS do not need its memory.
        Ok(Ok(stream)) => Box::pin(conversation.run(stream, service, phase)).await,
        Ok(Err(why)) => tracing::debug!(%peer, %why, "a TLS handshake failed"),
        Err(_elapsed) => tracing::debug!(%peer, "a TLS handshake timed out"),
    }
}

/// An open connection, after its handshake.
struct Conversation {
    peer: SocketAddr,
    versions: HttpVersions,
    state: ConnectionState,
    settings: ConnectionSettings,
}

impl Conversation {
    /// Serves the connection until the peer or a limit ends it.
    async fn run<I, S>(self, stream: I, service: S, mut phase: watch::Receiver<Phase>)
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
            state,
            settings,
        } = self;
        let traffic = Arc::new(Traffic::default());
        let io = TokioIo::new(CountingStream {
            stream,
            traffic: traffic.clone(),
        });
        let silent = || match versions {
            HttpVersions::Http2 => traffic.received.load(Ordering::Relaxed) < PREFACE_BYTES,
            // Before the first complete request it may still be half a preface.
            HttpVersions::Http1AndHttp2 => !state.has_request.load(Ordering::Relaxed),
        };
        let mut not_taken = pin!(not_taken(&traffic, &state.unsent, settings.unsent_timeout));
        let builder = builder(versions, settings.next_head_timeout);
        let mut conn = pin!(builder.serve_connection(io, TowerToHyperService::new(service)));

        let grace = tokio::select! {
            // Serve what has arrived before a limit closes the connection.
            biased;
            ended = conn.as_mut() => return log_end(peer, ended),
            () = Phase::Draining.reached(&mut phase) => None,
            () = still_silent_after(settings.first_byte_timeout, silent) => {
                return tracing::debug!(%peer, "closed a silent connection");
            }
            () = not_taken.as_mut() => {
                return tracing::debug!(%peer, "closed a connection that takes no responses");
            }
            () = sleep(settings.random_age()) => Some(settings.age_grace),
        };
        if silent() {
            return;
        }
        conn.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            ended = conn.as_mut() => log_end(peer, ended),
            () = not_taken => tracing::debug!(%peer, "closed a connection that takes no responses"),
            () = ended_and_flushed(&mut phase) => {
                tracing::debug!(%peer, "closed a connection at the end of the drain");
            }
            () = passed(grace) => tracing::debug!(%peer, "closed a connection that was too old"),
        }
    }
}

fn builder(versions: HttpVersions, next_head: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Also bounds how long a connection is idle between two requests.
        .header_read_timeout(next_head)
        .max_buf_size(MAX_HEAD_BYTES as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1024)
        .max_header_list_size(MAX_HEAD_BYTES)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        .max_send_buf_size(64 * 1024)
        // Streams that the peer resets before they are accepted; one more ends the connection.
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(1024)
        // Detects a peer that is gone without closing, after 80 s.
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(20));
    match versions {
        HttpVersions::Http2 => builder.http2_only(),
        HttpVersions::Http1AndHttp2 => builder,
    }
}

/// The state of a connection: its peer, its unsent responses, its health checks, and whether a
/// request has arrived.
#[derive(Clone)]
struct ConnectionState {
    info: TcpConnectInfo,
    unsent: Arc<UnsentResponses>,
    checks: HealthChecks,
    has_request: Arc<AtomicBool>,
}

/// `service`, with the state of the connection in the extensions of each request, where the layers
/// and [`tonic::Request::remote_addr`] find it.
fn with_state<S>(
    service: S,
    state: ConnectionState,
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
        state.has_request.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(state.checks.clone());
        request.extensions_mut().insert(state.info.clone());
        request.extensions_mut().insert(state.unsent.clone());
        request.map(Body::new)
    })
}

/// Returns after `timeout` if the peer is `silent` then, else never.
async fn still_silent_after(timeout: Duration, silent: impl Fn() -> bool) {
    sleep(timeout).await;
    if !silent() {
        std::future::pending().await
    }
}

/// Returns once the peer has taken no response, or no bytes, for longer than `timeout`; after a
/// small part of it while the process holds many responses.
async fn not_taken(traffic: &Traffic, unsent: &UnsentResponses, timeout: Duration) {
    const PARTS: u32 = 30;
    let mut sent_before = None;
    for part in 1_u32.. {
        sleep(timeout / PARTS).await;
        if part % PARTS != 0 && !unsent.many_in_process() {
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
    sleep(FLUSH_TIMEOUT).await;
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

/// The bytes of a connection.
#[derive(Debug, Default)]
struct Traffic {
    /// Bytes, so that a peer that sends half a preface counts as silent.
    received: AtomicUsize,
    sent: AtomicUsize,
    /// Whether bytes wait for the peer to take earlier ones.
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

/// A stream that counts its bytes.
struct CountingStream<I> {
    stream: I,
    traffic: Arc<Traffic>,
}

impl<I: AsyncRead + Unpin> AsyncRead for CountingStream<I> {
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

impl<I: AsyncWrite + Unpin> AsyncWrite for CountingStream<I> {
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
