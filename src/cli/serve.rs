//! `serve`: serves gRPC callers until a signal stops it.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::block_on;
use crate::clock::SteadyClock;
use crate::domain::zone;
use crate::error::Error;
use crate::server::{Serve, Server};

pub(super) fn run(settings: &Serve) -> Result<(), Error> {
    block_on(async {
        let mut signals = StopSignals::listen()?;
        let server = Server::start(settings, Arc::new(SteadyClock::new()), None).await?;
        tracing::info!(
            grpc_addr = %server.grpc_addr(),
            gateway_addr = server.gateway_addr().map(tracing::field::display),
            admin_addr = %server.admin_addr(),
            version = env!("CARGO_PKG_VERSION"),
            time_zone_data = zone::data_version(),
            cores = settings.cores,
            "listening"
        );
        if settings.roles.dispatcher && settings.sink.is_none() {
            tracing::warn!("no --sink is set; this process stores schedules but sends nothing");
        }
        signals.recv().await;
        drain(server, signals).await;
        Ok(())
    })
}

/// Lets calls in flight finish within the drain timeout; a second signal ends the process
/// immediately.
pub(super) async fn drain(server: Server, mut signals: StopSignals) {
    tracing::info!(
        "stopping: calls in flight finish, new connections are refused; a second signal ends the \
         process immediately"
    );
    tokio::select! {
        () = server.stop() => tracing::info!("stopped"),
        () = signals.recv() => {
            tracing::warn!("a second signal ended the process; calls in flight were cut off");
        }
    }
}

/// SIGTERM and SIGINT.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    pub(super) fn listen() -> Result<Self, Error> {
        let listen = |kind| {
            signal(kind).map_err(|why| Error::internal(format!("cannot listen for signals: {why}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
