//! The thread of the dispatcher.

use tokio::sync::{oneshot, watch};

use super::settings::Serve;
use super::threads;
use crate::clock::SharedClock;
use crate::dispatcher::{Dispatcher, DispatcherSettings};
use crate::error::Error;
use crate::layers::drain::Phase;
use crate::service::Service;
use crate::sink::{self, SharedSink, SinkSettings};
use crate::telemetry::metrics::DispatchMetrics;
use crate::telemetry::traces::Traces;

/// The source of the sink.
pub(super) enum SinkSource {
    /// The caller of [`Server::start`](super::Server::start) made it.
    Given(SharedSink),
    /// The settings name it.
    Configured(SinkSettings),
}

impl SinkSource {
    /// The sink of a process with the role dispatcher, if it has one.
    pub(super) fn choose(settings: &Serve, given: Option<SharedSink>) -> Option<Self> {
        let configured = || settings.sink.clone().map(Self::Configured);
        given
            .map(Self::Given)
            .or_else(configured)
            .filter(|_| settings.roles.dispatcher)
    }

    /// Its label in metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Given(_) => "other",
            Self::Configured(settings) => settings.name(),
        }
    }

    /// Call it on the runtime that delivers.
    async fn open(self, clock: &SharedClock) -> Result<SharedSink, Error> {
        match self {
            Self::Given(sink) => Ok(sink),
            Self::Configured(settings) => sink::open(&settings, clock.clone()).await,
        }
    }
}

/// The parts of the dispatcher's thread.
pub(super) struct DispatcherThread {
    pub service: Service,
    pub sink: SinkSource,
    pub clock: SharedClock,
    pub settings: DispatcherSettings,
    pub sending: DispatchMetrics,
    pub traces: Traces,
}

impl DispatcherThread {
    /// Starts the thread. It dispatches from when `opened` is true until the drain begins.
    pub(super) async fn start(
        self,
        opened: watch::Receiver<bool>,
        phases: watch::Receiver<Phase>,
    ) -> Result<oneshot::Receiver<()>, Error> {
        let (report, started) = oneshot::channel();
        let ended = threads::start("dispatcher".to_owned(), async move {
            let sink = match self.sink.open(&self.clock).await {
                Ok(sink) => sink,
                Err(error) => return drop(report.send(Err(error))),
            };
            drop(report.send(Ok(())));
            let dispatcher = Dispatcher::new(
                self.service,
                sink,
                self.clock,
                self.settings.workers.get(),
                self.sending,
                self.traces,
            );
            run(dispatcher, opened, phases).await;
        })?;
        started.await.map_err(Error::internal)??;
        Ok(ended)
    }
}

async fn run(
    dispatcher: Dispatcher,
    mut opened: watch::Receiver<bool>,
    phases: watch::Receiver<Phase>,
) {
    let (mut draining, mut ending) = (phases.clone(), phases);
    let stop = Phase::Draining.reached(&mut draining);
    tokio::pin!(stop);
    tokio::select! {
        () = &mut stop => return,
        // The sender is dropped unopened only when the drain has begun.
        opened = opened.wait_for(|opened| *opened) => if opened.is_err() { return },
    }
    dispatcher
        .run(stop, Phase::Ending.reached(&mut ending))
        .await;
}
