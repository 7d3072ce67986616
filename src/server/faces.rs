//! The ports of a process and the faces behind them: gRPC, and the gateway beside it on the same cores.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::accept::{self, Bounds, Connection, Core, Door, Speech, Spoken};
use super::routes::Routes;
use super::tls::Tls;
use crate::config::{Serve, TlsFiles};
use crate::error::{Error, Violation};
use crate::layers::Wrapped;
use crate::layers::drain::Phase;
use crate::rest::Rest;

/// A port that is bound, and the cores that serve its connections.
struct Port {
    listener: TcpListener,
    spoken: Spoken,
    cores: Vec<Core>,
}

impl Port {
    /// Reads the certificate, if there is one, and binds the address that `flag` states.
    ///
    /// # Errors
    /// What is wrong with either.
    async fn open(flag: &str, addr: SocketAddr, files: Option<&TlsFiles>, speech: Speech) -> Result<Self, Error> {
        let protocols: &[&[u8]] = match speech {
            Speech::Http2 => &[b"h2"],
            Speech::Http1AndHttp2 => &[b"h2", b"http/1.1"],
        };
        let tls = files.map(|files| Tls::read(files, protocols)).transpose()?;
        let unbound = |why: std::io::Error| Error::Invalid(vec![Violation::new(flag, format!("{addr} cannot be bound: {why}"))]);
        let listener = TcpListener::bind(addr).await.map_err(unbound)?;
        Ok(Self { listener, spoken: Spoken { speech, tls }, cores: Vec::new() })
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    /// The system cannot tell.
    fn addr(&self) -> Result<SocketAddr, Error> {
        self.listener.local_addr().map_err(Error::internal)
    }

    /// Accepts, and keeps the certificate current.
    fn accept(self, door: &Door, phases: &watch::Receiver<Phase>) -> impl Iterator<Item = JoinHandle<()>> {
        let accepting = tokio::spawn(accept::accept(self.listener, self.cores, door.clone(), phases.clone()));
        self.spoken.tls.map(|tls| tokio::spawn(tls.keep_current())).into_iter().chain([accepting])
    }
}

/// Every port of a process.
pub struct Faces {
    /// For gRPC callers.
    grpc: Port,
    /// For those of the documented JSON.
    gateway: Option<Port>,
    /// Of connections, over both.
    bounds: Bounds,
    /// Where the process stands.
    phases: watch::Receiver<Phase>,
}

impl Faces {
    /// Binds the ports that are set.
    ///
    /// # Errors
    /// What is wrong with one of them, or with the certificate.
    pub async fn open(settings: &Serve, bounds: Bounds, phases: watch::Receiver<Phase>) -> Result<Self, Error> {
        let tls = settings.tls.as_ref();
        let grpc = Port::open("grpc-addr", settings.grpc_addr, tls, Speech::Http2).await?;
        let gateway = match settings.gateway_addr.filter(|_| settings.roles.api) {
            Some(addr) => Some(Port::open("gateway-addr", addr, tls, Speech::Http1AndHttp2).await?),
            None => None,
        };
        Ok(Self { grpc, gateway, bounds, phases })
    }

    /// The addresses for gRPC and for the gateway, if there is one.
    ///
    /// # Errors
    /// The system cannot tell.
    pub fn addrs(&self) -> Result<(SocketAddr, Option<SocketAddr>), Error> {
        Ok((self.grpc.addr()?, self.gateway.as_ref().map(Port::addr).transpose()?))
    }

    /// One more core, which serves `service`: what runs on its thread, until the drain has ended.
    pub fn of_core(&mut self, service: Wrapped<Routes>) -> impl Future<Output = ()> + Send + use<> {
        let (core, incoming) = Core::new();
        let beside = self.gateway.as_mut().map(|gateway| {
            let (beside, incoming) = core.beside();
            gateway.cores.push(beside);
            (incoming, gateway.spoken.clone())
        });
        self.grpc.cores.push(core);
        let (spoken, bounds, phases) = (self.grpc.spoken.clone(), self.bounds, self.phases.clone());
        async move {
            let gateway = serve_gateway(beside, service.clone(), bounds, phases.clone());
            tokio::join!(gateway, accept::serve(incoming, service, spoken, bounds, phases));
        }
    }

    /// Where each core's connections, of all ports, are counted.
    pub fn counters(&self) -> Vec<Arc<AtomicUsize>> {
        self.grpc.cores.iter().map(Core::counter).collect()
    }

    /// The certificate of all ports, if there is one.
    pub fn tls(&self) -> Option<&Tls> {
        self.grpc.spoken.tls.as_ref()
    }

    /// Accepts on every port.
    pub fn accept(self, door: &Door) -> Vec<JoinHandle<()>> {
        let gateway = self.gateway.map(|gateway| gateway.accept(door, &self.phases));
        self.grpc.accept(door, &self.phases).chain(gateway.into_iter().flatten()).collect()
    }
}

async fn serve_gateway(
    beside: Option<(mpsc::Receiver<Connection>, Spoken)>,
    service: Wrapped<Routes>,
    bounds: Bounds,
    phases: watch::Receiver<Phase>,
) {
    if let Some((incoming, spoken)) = beside {
        accept::serve(incoming, Rest::new(service), spoken, bounds, phases).await;
    }
}
