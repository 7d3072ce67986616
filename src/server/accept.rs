//! The accept loop: one task accepts connections and hands each to the worker thread with the
//! fewest.
//!
//! tonic's own server never ends a drain while a silent connection or a stream is open, and closes
//! old connections without GOAWAY, so `connection.rs` implements the life of a connection.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::config::{defaults, values};
use crate::domain::key::lies_in;
use crate::layers::drain::Phase;
use crate::telemetry::metrics::ConnectionMetrics;

mod connection;

pub use self::connection::{HttpVersions, Protocol, serve};

/// The limits of connections, over all ports and workers.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Bounds")]
pub struct ConnectionSettings {
    /// Maximum connections; further ones are closed immediately (1 to 1000000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_MAX_CONNECTIONS",
        default_value = "10000",
        value_parser = values::number::<usize>(1..=1_000_000)
    )]
    pub max_connections: usize,
    /// Maximum connections from one address, except trusted proxies; further ones are closed
    /// immediately (1 to 1000000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_MAX_CONNECTIONS_PER_ADDRESS",
        default_value = "1000",
        value_parser = values::number::<usize>(1..=1_000_000)
    )]
    pub max_connections_per_address: usize,
    /// Timeout for the first bytes of a connection; one that sends none by then is closed
    // HTTP/2: the preface, 24 bytes; where HTTP/1.1 is enabled too, the headers of the first
    // request.
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_FIRST_BYTE_TIMEOUT",
        default_value = "10s",
        value_parser = values::duration
    )]
    pub first_byte_timeout: Duration,
    /// Age at which a connection is asked to close, plus or minus a tenth; it is closed 30 s later
    // GOAWAY. The ages vary, so that clients that connected together do not reconnect together.
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_MAX_CONNECTION_AGE",
        default_value = "30m",
        value_parser = values::duration
    )]
    pub max_connection_age: Duration,
    /// How long the calls of a connection may go on after its GOAWAY.
    #[arg(skip = Duration::from_secs(30))]
    pub age_grace: Duration,
    /// A further request of HTTP/1.1 must have begun and sent its headers within this time, which
    /// also bounds idle connections. Load balancers commonly close idle connections after 60 s
    /// themselves.
    #[arg(skip = Duration::from_secs(75))]
    pub next_head_timeout: Duration,
    /// A connection whose peer takes no answer for this time is closed, at the latest after twice
    /// that.
    #[arg(skip = Duration::from_secs(30))]
    pub unsent_timeout: Duration,
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        defaults()
    }
}

impl ConnectionSettings {
    /// The age for one connection.
    fn random_age(&self) -> Duration {
        let permille = fastrand::u32(0..=1000);
        let (age, tenth) = (self.max_connection_age, self.max_connection_age / 10);
        (age - tenth).saturating_add(tenth * 2 / 1000 * permille)
    }
}

/// A worker thread as the accept loop sees it: the queue of its new connections, and how many it
/// has.
#[derive(Debug)]
pub struct Worker {
    connections: mpsc::Sender<Connection>,
    live: Arc<AtomicUsize>,
}

/// Connections that wait for a busy worker before the accept loop waits too, and connections stay
/// in the kernel's backlog.
const MAX_QUEUED: usize = 64;

impl Worker {
    /// A worker, and the connections that [`serve`] takes on its runtime.
    pub fn new() -> (Self, mpsc::Receiver<Connection>) {
        let (connections, incoming) = mpsc::channel(MAX_QUEUED);
        (
            Self {
                connections,
                live: Arc::default(),
            },
            incoming,
        )
    }

    /// The number of its connections, over all ports.
    pub fn counter(&self) -> Arc<AtomicUsize> {
        self.live.clone()
    }

    /// The same worker for the accept loop of another port.
    pub fn for_another_port(&self) -> (Self, mpsc::Receiver<Connection>) {
        let (connections, incoming) = mpsc::channel(MAX_QUEUED);
        (
            Self {
                connections,
                live: self.live.clone(),
            },
            incoming,
        )
    }

    /// The connections of all ports that this worker serves or that wait for it.
    fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

/// A connection on its way to a worker, not yet bound to a runtime.
#[derive(Debug)]
pub struct Connection {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    permits: (WorkerPermit, AddressPermit),
}

/// Counts as a connection of a worker until it is dropped.
#[derive(Debug)]
struct WorkerPermit(Arc<AtomicUsize>);

impl WorkerPermit {
    fn of(worker: &Worker) -> Self {
        worker.live.fetch_add(1, Ordering::Relaxed);
        Self(worker.live.clone())
    }
}

impl Drop for WorkerPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    fn new(
        stream: TcpStream,
        peer: SocketAddr,
        worker: &Worker,
        permit: AddressPermit,
    ) -> io::Result<Self> {
        // Small answers must not wait for the acknowledgement of earlier ones.
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: stream.into_std()?,
            peer,
            permits: (WorkerPermit::of(worker), permit),
        })
    }
}

/// Admits connections, over all ports. Cheap to clone.
#[derive(Clone)]
pub struct ConnectionLimits {
    settings: ConnectionSettings,
    /// Each carries the connections of many callers; only the limit over all applies to them.
    trusted_proxies: Arc<[IpNet]>,
    by_address: ByAddress,
    refused: ConnectionMetrics,
}

impl ConnectionLimits {
    /// Limits without any connection yet; `refused` counts the connections that are refused.
    pub fn new(
        settings: ConnectionSettings,
        trusted_proxies: Arc<[IpNet]>,
        refused: ConnectionMetrics,
    ) -> Self {
        Self {
            settings,
            trusted_proxies,
            by_address: Arc::default(),
            refused,
        }
    }

    /// A permit for a connection of this address; none when it has too many.
    fn admit(&self, address: IpAddr) -> Option<AddressPermit> {
        if lies_in(&self.trusted_proxies, address) {
            return Some(AddressPermit(None));
        }
        let address = counted_as(address);
        let mut by_address = self.by_address.lock();
        let live = by_address.entry(address).or_default();
        if *live >= self.settings.max_connections_per_address {
            return None;
        }
        *live += 1;
        Some(AddressPermit(Some((address, self.by_address.clone()))))
    }
}

/// A caller commonly owns a whole /64 of IPv6, so its addresses count as one.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        of_ipv4 @ IpAddr::V4(_) => of_ipv4,
    }
}

type ByAddress = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// Counts as a connection of an address until it is dropped. None for a trusted proxy.
#[derive(Debug)]
struct AddressPermit(Option<(IpAddr, ByAddress)>);

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let Some((address, by_address)) = &self.0 else {
            return;
        };
        let mut by_address = by_address.lock();
        if let Entry::Occupied(mut live) = by_address.entry(*address) {
            *live.get_mut() -= 1;
            // The map holds no address without connections.
            if *live.get() == 0 {
                live.remove();
            }
        }
    }
}

/// Accepts connections until `phase` leaves [`Phase::Serving`], then closes the port.
pub async fn accept(
    listener: TcpListener,
    workers: Vec<Worker>,
    limits: ConnectionLimits,
    mut phase: watch::Receiver<Phase>,
) {
    tokio::select! {
        biased;
        () = Phase::Draining.reached(&mut phase) => {}
        () = accept_forever(&listener, &workers, &limits) => {}
    }
}

async fn accept_forever(listener: &TcpListener, workers: &[Worker], limits: &ConnectionLimits) {
    let mut failures = 0;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                failures = 0;
                hand_over(stream, peer, workers, limits).await;
            }
            Err(why) if concerns_one_connection(&why) => {
                tracing::debug!(%why, "a connection was lost before it was accepted")
            }
            Err(why) => {
                let pause = pause_after(failures);
                failures += 1;
                // Most likely out of file descriptors or memory. The connection stays in the
                // backlog, so the loop would spin without a pause.
                tracing::warn!(%why, pause_ms = pause.as_millis(), "cannot accept connections");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn hand_over(
    stream: TcpStream,
    peer: SocketAddr,
    workers: &[Worker],
    limits: &ConnectionLimits,
) {
    let live: usize = workers.iter().map(Worker::live).sum();
    if live >= limits.settings.max_connections {
        limits.refused.count_refused(false);
        tracing::debug!(%peer, live, "too many connections; closed a new one");
        return;
    }
    let Some(permit) = limits.admit(peer.ip()) else {
        limits.refused.count_refused(true);
        tracing::debug!(
            %peer,
            max = limits.settings.max_connections_per_address,
            "too many connections of one address; closed a new one"
        );
        return;
    };
    let Some(worker) = workers.iter().min_by_key(|worker| worker.live()) else {
        return;
    };
    match Connection::new(stream, peer, worker, permit) {
        Ok(connection) => {
            if worker.connections.send(connection).await.is_err() {
                tracing::debug!(%peer, "the worker thread has stopped; closed a new connection");
            }
        }
        Err(why) => tracing::debug!(%peer, %why, "a connection was lost while it was accepted"),
    }
}

/// Whether an error of accept concerns only the next connection.
fn concerns_one_connection(why: &io::Error) -> bool {
    matches!(
        why.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// 10 ms after the first failure, doubled after each further one, at most 1 s.
fn pause_after(failures: u32) -> Duration {
    Duration::from_millis(10 << failures.min(7)).min(Duration::from_secs(1))
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
