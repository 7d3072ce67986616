//! `serve`: serves gRPC callers until it is told to stop.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Faults, block_on, fault};
use crate::clock::SteadyClock;
use crate::config::Serve;
use crate::domain::zone;
use crate::server::Server;

/// Runs the subcommand.
///
/// # Errors
/// What is wrong, a line each.
pub fn run(settings: &Serve) -> Result<(), Faults> {
    block_on(async {
        let mut stop = Stop::new()?;
        let server = Server::start(settings, Arc::new(SteadyClock::new()), None)
            .await
            .map_err(fault)?;
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
            tracing::warn!(
                "no --sink is set: schedules are kept, and nothing is sent by this process"
            );
        }
        stop.asked().await;
        drain(server, stop).await;
        Ok(())
    })
}

/// Lets calls in flight finish, within the bound; a second signal ends the process at once.
pub(super) async fn drain(server: Server, mut stop: Stop) {
    tracing::info!(
        "stopping: calls in flight finish, new connections are refused; a second signal ends at once"
    );
    tokio::select! {
        () = server.stop() => tracing::info!("stopped"),
        () = stop.asked() => tracing::warn!("ended by a second signal; calls in flight were cut off"),
    }
}

/// SIGTERM and SIGINT.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub(super) fn new() -> Result<Self, Faults> {
        let listen = |kind| {
            signal(kind).map_err(|why| vec![format!("signals cannot be listened for: {why}")])
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
