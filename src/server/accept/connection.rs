//! The life of a connection, from its first byte to its end.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
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
use super::{Bounds, Connection};
use crate::layers::drain::Phase;

/// The bytes that every client of HTTP/2 begins with.
const PREFACE: usize = 24;

/// How long connections have to send what was answered when [`Phase::Ending`] cut calls off.
const FLUSH: Duration = Duration::from_secs(1);

/// Serves the connections of one core, on the runtime that this is called on. Returns when `phase` has left
/// [`Phase::Serving`] and every connection has ended, which is at most 1 s after [`Phase::Ending`].
pub async fn serve<S>(mut incoming: mpsc::Receiver<Connection>, service: S, tls: Option<Tls>, bounds: Bounds, phase: watch::Receiver<Phase>)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
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
                connections.spawn(live(connection, service.clone(), tls.clone(), bounds, phase.clone()));
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

async fn live<S>(connection: Connection, service: S, tls: Option<Tls>, bounds: Bounds, mut phase: watch::Receiver<Phase>)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let Connection { stream, peer, slot: _until_the_end } = connection;
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(why) => return tracing::warn!(%peer, %why, "a connection cannot be served"),
    };
    let service = with_peer(service, stream.connect_info());
    let Some(tls) = tls else { return converse(stream, peer, service, bounds, phase).await };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(bounds.first_byte, tls.acceptor().accept(stream)) => shaken,
        () = Phase::Draining.reached(&mut phase) => return,
    };
    match shaken {
        Ok(Ok(stream)) => converse(stream, peer, service, bounds, phase).await,
        Ok(Err(why)) => tracing::debug!(%peer, %why, "a TLS handshake failed"),
        Err(_elapsed) => tracing::debug!(%peer, "a TLS handshake took too long"),
    }
}

/// Speaks HTTP/2 until the peer or a bound ends it.
async fn converse<I, S>(stream: I, peer: SocketAddr, service: S, bounds: Bounds, mut phase: watch::Receiver<Phase>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let received = Arc::new(AtomicUsize::new(0));
    let io = TokioIo::new(Counting { stream, received: received.clone() });
    let silent = || received.load(Ordering::Relaxed) < PREFACE;
    let mut conn = pin!(http2().serve_connection(io, TowerToHyperService::new(service)));

    let grace = tokio::select! {
        ended = conn.as_mut() => return log_end(peer, ended),
        () = Phase::Draining.reached(&mut phase) => None,
        () = still_silent_after(bounds.first_byte, silent) => return tracing::debug!(%peer, "a silent connection is closed"),
        () = sleep(bounds.age()) => Some(bounds.age_grace),
    };
    if silent() {
        return;
    }
    conn.as_mut().graceful_shutdown();
    tokio::select! {
        ended = conn.as_mut() => log_end(peer, ended),
        () = ended_and_flushed(&mut phase) => tracing::debug!(%peer, "a connection did not end by itself"),
        () = passed(grace) => tracing::debug!(%peer, "a connection past its age did not end by itself"),
    }
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(1024)
        .max_header_list_size(16 * 1024)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        // A peer that is gone without a word is noticed after 80 s.
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// `service` with the address of the peer in each request, where [`tonic::Request::remote_addr`] finds it.
fn with_peer<S>(
    service: S,
    info: TcpConnectInfo,
) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future = S::Future> + Clone + Send + 'static
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
{
    service.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(info.clone());
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

fn log_end(peer: SocketAddr, ended: hyper::Result<()>) {
    match ended {
        Ok(()) => tracing::debug!(%peer, "a connection ended"),
        Err(why) => tracing::debug!(%peer, %why, "a connection failed"),
    }
}

/// A stream that counts the bytes it has received, so that a peer that sends half a preface counts as silent.
struct Counting<I> {
    stream: I,
    received: Arc<AtomicUsize>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Counting<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.received.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counting<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffers: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
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
