//! One attempt to deliver one dispatch.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::in_flight::InFlightDispatches;
use crate::clock::SharedClock;
use crate::domain::{DeliveryOutcome, DispatchMessage};
use crate::error::panic::caught;
use crate::service::{AttemptResult, Leased};
use crate::sink::SharedSink;
use crate::telemetry::metrics::DispatchMetrics;
use crate::telemetry::traces::Span;

/// One attempt to deliver a dispatch, with what it uses.
pub(super) struct Delivery {
    pub sink: SharedSink,
    pub clock: SharedClock,
    pub timeout: Duration,
    pub in_flight: InFlightDispatches,
    /// The queue of outcomes to settle.
    pub outcomes: mpsc::Sender<AttemptResult>,
    pub metrics: DispatchMetrics,
    pub span: Span,
}

impl Delivery {
    /// Delivers `leased` and passes its outcome on to be settled, unless its lease expired before
    /// the attempt began: then any replica may be delivering it.
    pub(super) async fn run(self, mut leased: Leased) {
        if self.clock.now() >= leased.until {
            return self.in_flight.remove(1);
        }
        let (began, span) = (Instant::now(), self.span.client_child("dispatch.deliver"));
        leased.dispatch.traceparent = span.traceparent();
        let outcome = deliver(&self.sink, &leased.dispatch, self.timeout).await;
        self.metrics
            .observe_attempt(name(&outcome), began.elapsed());
        span.set("dispatch.answer", || name(&outcome));
        span.end();
        self.in_flight.record(&outcome, self.clock.now());
        // The channel has a slot for each worker, so this does not wait; its receiver ends after
        // the last sender.
        let _sent = self
            .outcomes
            .send(AttemptResult::of(&leased, outcome))
            .await;
    }
}

/// The outcome of one call of the sink. A panic in the sink is a failed attempt.
async fn deliver(
    sink: &SharedSink,
    dispatch: &DispatchMessage,
    timeout: Duration,
) -> DeliveryOutcome {
    let delivery = pin!(tokio::time::timeout(timeout, sink.deliver(dispatch)));
    match caught(delivery).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => DeliveryOutcome::Unknown {
            why: format!("no answer within {} s", timeout.as_secs()),
        },
        Err(panic) => {
            tracing::error!(panic, "the sink panicked");
            DeliveryOutcome::Unknown {
                why: "the sink failed".to_owned(),
            }
        }
    }
}

/// The outcome's name in metrics and traces.
fn name(outcome: &DeliveryOutcome) -> &'static str {
    match outcome {
        DeliveryOutcome::Delivered => "delivered",
        DeliveryOutcome::NotTaken { .. } => "not_taken",
        DeliveryOutcome::Rejected { .. } => "rejected",
        DeliveryOutcome::Unknown { .. } => "unknown",
    }
}
