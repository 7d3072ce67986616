//! The thread of the dispatcher.

use tokio::sync::{oneshot, watch};

use super::run_thread;
use crate::clock::SharedClock;
use crate::config::SinkSettings;
use crate::dispatcher::Dispatcher;
use crate::error::Error;
use crate::layers::drain::Phase;
use crate::service::Service;
use crate::sink::{self, SharedSink};
use crate::telemetry::metrics::DispatchMetrics;
use crate::telemetry::traces::Traces;

/// Where dispatches go.
pub(super) enum SinkSource {
    /// To this sink.
    Given(SharedSink),
    /// To the one that is set.
    Configured(SinkSettings),
}

impl SinkSource {
    /// What metrics call it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Given(_) => "other",
            Self::Configured(settings) => settings.name(),
        }
    }

    /// The sink, made on the runtime that delivers.
    async fn open(self, clock: &SharedClock) -> Result<SharedSink, Error> {
        match self {
            Self::Given(sink) => Ok(sink),
            Self::Configured(settings) => sink::open(&settings, clock.clone()).await,
        }
    }
}

/// What the dispatcher's thread is made of.
pub(super) struct DispatcherThread {
    /// The use cases.
    pub service: Service,
    /// Where it sends.
    pub sink: SinkSource,
    /// The time.
    pub clock: SharedClock,
    /// The most dispatches in its hands.
    pub workers: usize,
    /// Where it is told what becomes of them.
    pub sending: DispatchMetrics,
    /// Where it is told which way they took.
    pub traces: Traces,
}

impl DispatcherThread {
    /// Starts the thread of the dispatcher, which fires from when the schema is there until the drain begins.
    ///
    /// # Errors
    /// What is wrong with the sink.
    pub(super) async fn start(
        self,
        opened: watch::Receiver<bool>,
        phases: watch::Receiver<Phase>,
    ) -> Result<oneshot::Receiver<()>, Error> {
        let (tell, told) = oneshot::channel();
        let ends = run_thread("dispatcher".to_owned(), async move {
            let Self {
                service,
                sink,
                clock,
                workers,
                sending,
                traces,
            } = self;
            let sink = match sink.open(&clock).await {
                Ok(sink) => sink,
                Err(error) => return drop(tell.send(Err(error))),
            };
            drop(tell.send(Ok(())));
            send(
                Dispatcher::new(service, sink, clock, workers, sending, traces),
                opened,
                phases,
            )
            .await;
        })?;
        told.await.map_err(Error::internal)??;
        Ok(ends)
    }
}

/// Runs a dispatcher once the schema is there, until the drain begins.
async fn send(
    dispatcher: Dispatcher,
    mut opened: watch::Receiver<bool>,
    phases: watch::Receiver<Phase>,
) {
    let (mut draining, mut ending) = (phases.clone(), phases);
    let stop = Phase::Draining.reached(&mut draining);
    tokio::pin!(stop);
    tokio::select! {
        () = &mut stop => return,
        // Nobody opens any more once the sender is gone; then the drain has begun, too.
        opened = opened.wait_for(|opened| *opened) => if opened.is_err() { return },
    }
    dispatcher
        .run(stop, Phase::Ending.reached(&mut ending))
        .await;
}
