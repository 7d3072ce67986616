//! The ports of a process and the faces behind them: gRPC, and the gateway beside it on the same cores.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::accept::{self, Bounds, Core, Door, Speech, Spoken};
use super::routes::Routes;
use super::tls::Tls;
use crate::config::Serve;
use crate::error::{Error, Violation};
use crate::layers::Wrapped;
use crate::layers::drain::Phase;
use crate::layers::in_flight::InFlight;
use crate::rest::Rest;

/// A port that is bound, and the cores that serve its connections.
struct Port {
    listener: TcpListener,
    addr: SocketAddr,
    spoken: Spoken,
    cores: Vec<Core>,
}

impl Port {
    /// Binds the address that `flag` states.
    ///
    /// # Errors
    /// Why it cannot be bound.
    async fn open(flag: &str, addr: SocketAddr, spoken: Spoken) -> Result<Self, Error> {
        let (listener, addr) = bind(flag, addr).await?;
        Ok(Self {
            listener,
            addr,
            spoken,
            cores: Vec::new(),
        })
    }

    fn accept(self, door: &Door, phases: &watch::Receiver<Phase>) -> JoinHandle<()> {
        tokio::spawn(accept::accept(
            self.listener,
            self.cores,
            door.clone(),
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
pub(super) struct Faces {
    grpc: Port,
    gateway: Option<Port>,
    bounds: Bounds,
    phases: watch::Receiver<Phase>,
}

impl Faces {
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
        let spoken = |speech| Spoken {
            speech,
            tls: tls.clone(),
        };
        let grpc = Port::open("grpc-addr", settings.grpc_addr, spoken(Speech::Http2)).await?;
        let gateway = match settings.gateway_addr.filter(|_| settings.roles.api) {
            Some(addr) => {
                Some(Port::open("gateway-addr", addr, spoken(Speech::Http1AndHttp2)).await?)
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
        self.grpc.spoken.tls.as_ref()
    }

    /// Where the connections of each core are counted.
    pub(super) fn counters(&self) -> Vec<Arc<AtomicUsize>> {
        self.grpc.cores.iter().map(Core::counter).collect()
    }

    /// One more core, which serves `service`: what runs on its thread, until the drain has ended.
    pub(super) fn of_core(
        &mut self,
        service: Wrapped<Routes>,
        in_flight: &InFlight,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (core, incoming) = Core::new();
        let beside = self.gateway.as_mut().map(|gateway| {
            let (beside, incoming) = core.beside();
            gateway.cores.push(beside);
            (
                incoming,
                Rest::new(service.clone(), in_flight.clone()),
                gateway.spoken.clone(),
            )
        });
        self.grpc.cores.push(core);
        let (spoken, bounds, phases) = (self.grpc.spoken.clone(), self.bounds, self.phases.clone());
        async move {
            let gateway_phases = phases.clone();
            let gateway = async {
                if let Some((incoming, rest, spoken)) = beside {
                    accept::serve(incoming, rest, spoken, bounds, gateway_phases).await;
                }
            };
            tokio::join!(
                gateway,
                accept::serve(incoming, service, spoken, bounds, phases)
            );
        }
    }

    /// Accepts on every port, and keeps the certificate current.
    pub(super) fn accept(self, door: &Door) -> Vec<JoinHandle<()>> {
        let tls = self
            .tls()
            .cloned()
            .map(|tls| tokio::spawn(tls.keep_current()));
        let gateway = self
            .gateway
            .map(|gateway| gateway.accept(door, &self.phases));
        [Some(self.grpc.accept(door, &self.phases)), gateway, tls]
            .into_iter()
            .flatten()
            .collect()
    }
}
