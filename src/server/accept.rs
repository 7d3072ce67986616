//! The accept loop: one task takes connections and hands each to the worker with the fewest.
//!
//! tonic's own server never ends a drain while a silent connection or a stream is open, and closes at an age without GOAWAY;
//! so the life of a connection is ours (`connection.rs`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::domain::key::lies_in;
use crate::layers::drain::Phase;
use crate::telemetry::metrics::ConnectionMetrics;

mod connection;

pub use self::connection::{HttpVersions, Protocol, serve};

/// How long connections live and how many there are.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Within this the preface of HTTP/2, 24 bytes, must have come from a new connection; where HTTP/1.1 is protocol too, the head
    /// of its first request. 10 s.
    pub first_byte: Duration,
    /// Within this a further request of HTTP/1.1 must have begun and its head ended; so a connection may be idle as long. 75 s.
    pub next_head: Duration,
    /// At this age a connection is told to go (GOAWAY), each a tenth earlier to a tenth later by chance, so that those that
    /// came together do not come again together. 30 min.
    pub max_age: Duration,
    /// How long the calls of a connection that is too old may go on before it is closed. 30 s.
    pub age_grace: Duration,
    /// An answer, or what is written to the connection, that its peer has not taken after so long ends the connection, at the
    /// latest after twice that. 30 s.
    pub unsent: Duration,
    /// How long calls may go on in [`Phase::Draining`]; for whoever moves the phase to [`Phase::Ending`]. 20 s.
    pub drain: Duration,
    /// Connections at once, over all workers; one more is closed at once. 10,000.
    pub max_connections: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(10),
            // More than the 60 s after which load balancers commonly close idle ones themselves.
            next_head: Duration::from_secs(75),
            max_age: Duration::from_secs(30 * 60),
            age_grace: Duration::from_secs(30),
            unsent: Duration::from_secs(30),
            drain: Duration::from_secs(20),
            max_connections: 10_000,
        }
    }
}

impl Bounds {
    /// The age for one connection.
    fn age(&self) -> Duration {
        // Every RandomState hashes by other keys.
        let permille = u32::try_from(RandomState::new().hash_one(0) % 1001).unwrap_or(500);
        (self.max_age - self.max_age / 10).saturating_add(self.max_age / 5 / 1000 * permille)
    }
}

/// A worker as the accept loop sees it: where its connections go, and how many live there.
#[derive(Debug)]
pub struct Worker {
    connections: mpsc::Sender<Connection>,
    live: Arc<AtomicUsize>,
}

/// How many connections may wait for a busy worker before the accept loop waits too, and the kernel's backlog with it.
const WAITING: usize = 64;

impl Worker {
    /// A worker, and what [`serve`] takes on its runtime.
    pub fn new() -> (Self, mpsc::Receiver<Connection>) {
        let (connections, incoming) = mpsc::channel(WAITING);
        (
            Self {
                connections,
                live: Arc::default(),
            },
            incoming,
        )
    }

    /// Where its connections are counted, for whoever asks.
    pub fn counter(&self) -> Arc<AtomicUsize> {
        self.live.clone()
    }

    /// The same worker as the accept loop of another port sees it.
    pub fn beside(&self) -> (Self, mpsc::Receiver<Connection>) {
        let (connections, incoming) = mpsc::channel(WAITING);
        (
            Self {
                connections,
                live: self.live.clone(),
            },
            incoming,
        )
    }

    /// The connections, of all ports, that wait for this worker or are served by it.
    fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

/// A connection on its way to a worker, not yet bound to a runtime. It counts until it is dropped.
#[derive(Debug)]
pub struct Connection {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    permits: (WorkerPermit, AddressPermit),
}

/// A permit among the connections of a worker, free again when dropped.
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

/// Who may have how many connections, over all ports. Cheap to clone.
#[derive(Clone)]
pub struct ConnectionLimits {
    max_connections: usize,
    max_of_one_address: usize,
    /// Whose connections are many callers'; only the bound of all holds for them.
    proxies: Vec<IpNet>,
    by_address: ByAddress,
    /// Where it is told who was refused.
    refused: ConnectionMetrics,
}

impl ConnectionLimits {
    /// Nobody has one yet.
    pub fn new(bounds: Bounds, max_of_one_address: usize, proxies: Vec<IpNet>) -> Self {
        Self {
            max_connections: bounds.max_connections,
            max_of_one_address,
            proxies,
            by_address: Arc::default(),
            refused: ConnectionMetrics::default(),
        }
    }

    /// Counts whom it refuses.
    #[must_use]
    pub fn counting(self, refused: ConnectionMetrics) -> Self {
        Self { refused, ..self }
    }

    /// A permit among the connections of this address; none when it has too many.
    fn admit(&self, address: IpAddr) -> Option<AddressPermit> {
        if lies_in(&self.proxies, address) {
            return Some(AddressPermit(None));
        }
        let address = counted_as(address);
        let mut by_address = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let live = by_address.entry(address).or_default();
        if *live >= self.max_of_one_address {
            return None;
        }
        *live += 1;
        Some(AddressPermit(Some((address, self.by_address.clone()))))
    }
}

/// Whoever has one address of IPv6 has the 2^64 beside it, so that these count as one.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        of_ipv4 @ IpAddr::V4(_) => of_ipv4,
    }
}

type ByAddress = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A permit among the connections of an address, free again when dropped.
#[derive(Debug)]
struct AddressPermit(Option<(IpAddr, ByAddress)>);

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let Some((address, by_address)) = &self.0 else {
            return;
        };
        let mut by_address = by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut live) = by_address.entry(*address) {
            *live.get_mut() -= 1;
            // Addresses without a connection take no room.
            if *live.get() == 0 {
                live.remove();
            }
        }
    }
}

/// Accepts until `phase` leaves [`Phase::Serving`] and then closes the port.
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
    let mut faults = 0;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                faults = 0;
                hand_over(stream, peer, workers, limits).await;
            }
            Err(why) if one_connections_own(&why) => {
                tracing::debug!(%why, "a connection was lost before it was accepted")
            }
            Err(why) => {
                let pause = pause_after(faults);
                faults += 1;
                // Out of file descriptors or memory, most likely. The connection stays in the backlog, so without a pause we
                // would spin; it is over when others have closed.
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
    if live >= limits.max_connections {
        limits.refused.count_refused(false);
        tracing::debug!(%peer, live, "too many connections; a new one is closed");
        return;
    }
    let Some(permit) = limits.admit(peer.ip()) else {
        limits.refused.count_refused(true);
        tracing::debug!(%peer, most = limits.max_of_one_address, "too many connections of one address; a new one is closed");
        return;
    };
    let Some(worker) = workers.iter().min_by_key(|worker| worker.live()) else {
        return;
    };
    match Connection::new(stream, peer, worker, permit) {
        Ok(connection) => {
            if worker.connections.send(connection).await.is_err() {
                tracing::debug!(%peer, "the worker has stopped; a new connection is closed");
            }
        }
        Err(why) => tracing::debug!(%peer, %why, "a connection was lost as it was accepted"),
    }
}

/// Whether an error of accept concerns only the connection that would have been next.
fn one_connections_own(why: &io::Error) -> bool {
    matches!(
        why.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// 10 ms after the first fault, doubled with each that follows, at most 1 s.
fn pause_after(faults: u32) -> Duration {
    Duration::from_millis(10 << faults.min(7)).min(Duration::from_secs(1))
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
