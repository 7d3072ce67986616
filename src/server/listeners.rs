//! The ports of a process and the listeners behind them: gRPC, and the gateway beside it on the same workers.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::accept::{self, Bounds, ConnectionLimits, HttpVersions, Protocol, Worker};
use super::routes::Routes;
use super::tls::Tls;
use crate::config::Serve;
use crate::error::{Error, Violation};
use crate::layers::Layered;
use crate::layers::concurrency_limit::ConcurrencyLimit;
use crate::layers::drain::Phase;
use crate::rest::Rest;

/// A port that is bound, and the workers that serve its connections.
struct Port {
    listener: TcpListener,
    addr: SocketAddr,
    protocol: Protocol,
    workers: Vec<Worker>,
}

impl Port {
    /// Binds the address that `flag` states.
    ///
    /// # Errors
    /// Why it cannot be bound.
    async fn open(flag: &str, addr: SocketAddr, protocol: Protocol) -> Result<Self, Error> {
        let (listener, addr) = bind(flag, addr).await?;
        Ok(Self {
            listener,
            addr,
            protocol,
            workers: Vec::new(),
        })
    }

    fn accept(self, limits: &ConnectionLimits, phases: &watch::Receiver<Phase>) -> JoinHandle<()> {
        tokio::spawn(accept::accept(
            self.listener,
            self.workers,
            limits.clone(),
            phases.clone(),
        ))
    }
}

/// Binds an address.
///
/// # Errors
/// Why it cannot be, as a fault of the setting `flag`.
pub(super) async fn bind(flag: &str, addr: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let unbound = |why: std::io::Error| {
        Error::Invalid(vec![Violation::new(
            flag,
            format!("{addr} cannot be bound: {why}"),
        )])
    };
    let listener = TcpListener::bind(addr).await.map_err(unbound)?;
    let bound = listener.local_addr().map_err(Error::internal)?;
    Ok((listener, bound))
}

/// The ports for callers, and how they are served.
pub(super) struct Listeners {
    grpc: Port,
    gateway: Option<Port>,
    bounds: Bounds,
    phases: watch::Receiver<Phase>,
}

impl Listeners {
    /// Binds the ports; the gateway's only where callers are served.
    ///
    /// # Errors
    /// What is wrong with the addresses or the certificate.
    pub(super) async fn open(
        settings: &Serve,
        bounds: Bounds,
        phases: watch::Receiver<Phase>,
    ) -> Result<Self, Error> {
        let tls = settings.tls.as_ref().map(Tls::read).transpose()?;
        let protocol = |versions| Protocol {
            versions,
            tls: tls.clone(),
        };
        let grpc = Port::open(
            "grpc-addr",
            settings.grpc_addr,
            protocol(HttpVersions::Http2),
        )
        .await?;
        let gateway = match settings.gateway_addr.filter(|_| settings.roles.api) {
            Some(addr) => {
                Some(Port::open("gateway-addr", addr, protocol(HttpVersions::Http1AndHttp2)).await?)
            }
            None => None,
        };
        Ok(Self {
            grpc,
            gateway,
            bounds,
            phases,
        })
    }

    /// Where the ports are: for gRPC, and the gateway's.
    pub(super) fn addrs(&self) -> (SocketAddr, Option<SocketAddr>) {
        (
            self.grpc.addr,
            self.gateway.as_ref().map(|gateway| gateway.addr),
        )
    }

    /// Of connections, over all ports.
    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// The certificate, if there is one; the ports have the same.
    pub(super) fn tls(&self) -> Option<&Tls> {
        self.grpc.protocol.tls.as_ref()
    }

    /// Where the connections of each worker are counted.
    pub(super) fn counters(&self) -> Vec<Arc<AtomicUsize>> {
        self.grpc.workers.iter().map(Worker::counter).collect()
    }

    /// One more worker, which serves `service`: what runs on its thread, until the drain has ended.
    pub(super) fn add_worker(
        &mut self,
        service: Layered<Routes>,
        in_flight: &ConcurrencyLimit,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (worker, incoming) = Worker::new();
        let beside = self.gateway.as_mut().map(|gateway| {
            let (beside, incoming) = worker.beside();
            gateway.workers.push(beside);
            (
                incoming,
                Rest::new(service.clone(), in_flight.clone()),
                gateway.protocol.clone(),
            )
        });
        self.grpc.workers.push(worker);
        let (protocol, bounds, phases) =
            (self.grpc.protocol.clone(), self.bounds, self.phases.clone());
        async move {
            let gateway_phases = phases.clone();
            let gateway = async {
                if let Some((incoming, rest, protocol)) = beside {
                    accept::serve(incoming, rest, protocol, bounds, gateway_phases).await;
                }
            };
            tokio::join!(
                gateway,
                accept::serve(incoming, service, protocol, bounds, phases)
            );
        }
    }

    /// Accepts on every port, and keeps the certificate current.
    pub(super) fn accept(self, limits: &ConnectionLimits) -> Vec<JoinHandle<()>> {
        let tls = self
            .tls()
            .cloned()
            .map(|tls| tokio::spawn(tls.keep_current()));
        let gateway = self
            .gateway
            .map(|gateway| gateway.accept(limits, &self.phases));
        [Some(self.grpc.accept(limits, &self.phases)), gateway, tls]
            .into_iter()
            .flatten()
            .collect()
    }
}
