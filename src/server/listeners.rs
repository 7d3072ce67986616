//! The ports for callers: gRPC and the REST gateway, which the same worker threads serve.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::accept::{self, ConnectionLimits, ConnectionSettings, HttpVersions, Protocol, Worker};
use super::routes::Routes;
use super::settings::Serve;
use super::tls::Tls;
use crate::error::{Error, Violation};
use crate::layers::Layered;
use crate::layers::drain::Phase;
use crate::rest::Rest;

/// A bound port, and the worker threads that serve its connections.
struct Port {
    listener: TcpListener,
    addr: SocketAddr,
    protocol: Protocol,
    workers: Vec<Worker>,
}

impl Port {
    async fn bind(flag: &str, addr: SocketAddr, protocol: Protocol) -> Result<Self, Error> {
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

/// Binds the address of the setting `flag`.
pub(super) async fn bind(flag: &str, addr: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let not_bound = |why: std::io::Error| {
        Error::Invalid(vec![Violation::new(
            flag,
            format!("{addr} cannot be bound: {why}"),
        )])
    };
    let listener = TcpListener::bind(addr).await.map_err(not_bound)?;
    let bound = listener.local_addr().map_err(Error::internal)?;
    Ok((listener, bound))
}

/// The bound ports for callers.
pub(super) struct Listeners {
    grpc: Port,
    gateway: Option<Port>,
    settings: ConnectionSettings,
    phases: watch::Receiver<Phase>,
}

impl Listeners {
    /// Binds the ports. The gateway needs the role api.
    pub(super) async fn bind(
        settings: &Serve,
        phases: watch::Receiver<Phase>,
    ) -> Result<Self, Error> {
        let tls = settings.tls.as_ref().map(Tls::read).transpose()?;
        let protocol = |versions| Protocol {
            versions,
            tls: tls.clone(),
        };
        let grpc = Port::bind(
            "grpc-addr",
            settings.grpc_addr,
            protocol(HttpVersions::Http2),
        )
        .await?;
        let gateway = match settings.gateway_addr().filter(|_| settings.roles.api) {
            Some(addr) => {
                Some(Port::bind("gateway-addr", addr, protocol(HttpVersions::Http1AndHttp2)).await?)
            }
            None => None,
        };
        Ok(Self {
            grpc,
            gateway,
            settings: settings.connections,
            phases,
        })
    }

    /// The addresses of the gRPC port and of the gateway.
    pub(super) fn addrs(&self) -> (SocketAddr, Option<SocketAddr>) {
        (
            self.grpc.addr,
            self.gateway.as_ref().map(|gateway| gateway.addr),
        )
    }

    /// The certificate of both ports, if they speak TLS.
    pub(super) fn tls(&self) -> Option<&Tls> {
        self.grpc.protocol.tls.as_ref()
    }

    /// The number of connections of each worker.
    pub(super) fn counters(&self) -> Vec<Arc<AtomicUsize>> {
        self.grpc.workers.iter().map(Worker::counter).collect()
    }

    /// Adds a worker that serves `service`. Its thread is to run the future, which ends with the
    /// drain.
    pub(super) fn add_worker(
        &mut self,
        service: Layered<Routes>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (worker, incoming) = Worker::new();
        let gateway = self.gateway.as_mut().map(|gateway| {
            let (worker, incoming) = worker.for_another_port();
            gateway.workers.push(worker);
            (
                incoming,
                Rest::new(service.clone(), service.stack().bodies.clone()),
                gateway.protocol.clone(),
            )
        });
        self.grpc.workers.push(worker);
        let (protocol, settings, phases) = (
            self.grpc.protocol.clone(),
            self.settings,
            self.phases.clone(),
        );
        let unsent = service.stack().unsent.clone();
        async move {
            let (gateway_phases, gateway_unsent) = (phases.clone(), unsent.clone());
            let gateway = async {
                if let Some((incoming, rest, protocol)) = gateway {
                    accept::serve(
                        incoming,
                        rest,
                        protocol,
                        settings,
                        gateway_unsent,
                        gateway_phases,
                    )
                    .await;
                }
            };
            tokio::join!(
                gateway,
                accept::serve(incoming, service, protocol, settings, unsent, phases)
            );
        }
    }

    /// Starts to accept on every port, and to reload the certificate.
    pub(super) fn accept(self, limits: &ConnectionLimits) -> Vec<JoinHandle<()>> {
        let tls = self
            .tls()
            .cloned()
            .map(|tls| tokio::spawn(tls.keep_fresh()));
        let gateway = self
            .gateway
            .map(|gateway| gateway.accept(limits, &self.phases));
        [Some(self.grpc.accept(limits, &self.phases)), gateway, tls]
            .into_iter()
            .flatten()
            .collect()
    }
}
