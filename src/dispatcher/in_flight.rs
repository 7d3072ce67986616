//! The dispatches in flight, and how many more the sink may get.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use crate::clock::jitter;
use crate::domain::{Breaker, DeliveryOutcome};
use crate::telemetry::metrics::DispatchMetrics;

/// Counts the dispatches from their claim until their outcome is settled. Cheap to clone.
#[derive(Clone)]
pub(super) struct InFlightDispatches {
    state: Arc<watch::Sender<InFlightState>>,
    metrics: DispatchMetrics,
}

struct InFlightState {
    dispatches: usize,
    breaker: Breaker,
}

impl InFlightDispatches {
    /// No dispatch in flight, and `workers` free.
    pub(super) fn new(workers: usize, metrics: DispatchMetrics) -> Self {
        metrics.set_max_in_flight(workers);
        let state = InFlightState {
            dispatches: 0,
            breaker: Breaker::new(workers),
        };
        Self {
            state: Arc::new(watch::Sender::new(state)),
            metrics,
        }
    }

    /// How many more dispatches may be claimed at `now`.
    pub(super) fn capacity(&self, now: DateTime<Utc>) -> usize {
        let state = self.state.borrow();
        state.breaker.capacity(now, state.dispatches)
    }

    /// Until when the breaker lets nothing through, if it does so at `now`.
    pub(super) fn paused_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.state.borrow().breaker.paused_until(now)
    }

    /// Waits for a free worker, whether or not the breaker pauses.
    pub(super) async fn worker_free(&self) {
        self.wait_for(|state| state.breaker.free_workers(state.dispatches) > 0)
            .await;
    }

    /// Waits until the sink takes a dispatch that was in flight, which ends the breaker's pause
    /// before its time.
    pub(super) async fn pause_over(&self) {
        self.wait_for(|state| !state.breaker.is_probing()).await;
    }

    async fn wait_for(&self, holds: impl FnMut(&InFlightState) -> bool) {
        // Fails only without a sender, and `self` has one.
        let mut states = self.state.subscribe();
        let _state = states.wait_for(holds).await;
    }

    /// Counts dispatches that were claimed.
    pub(super) fn add(&self, dispatches: usize) {
        self.update(|in_flight| in_flight + dispatches);
    }

    /// Counts dispatches that were settled or given up.
    pub(super) fn remove(&self, dispatches: usize) {
        self.update(|in_flight| in_flight.saturating_sub(dispatches));
    }

    fn update(&self, change: impl FnOnce(usize) -> usize) {
        self.state.send_modify(|state| {
            state.dispatches = change(state.dispatches);
            self.metrics.set_in_flight(state.dispatches);
        });
    }

    /// Passes an outcome to the breaker, and logs when it starts and stops to probe.
    pub(super) fn record(&self, outcome: &DeliveryOutcome, now: DateTime<Utc>) {
        self.state.send_modify(|state| {
            let before = state.breaker.is_probing();
            state.breaker.record(outcome, now, jitter());
            let probing = state.breaker.is_probing();
            self.metrics.set_probing(probing);
            if probing && !before {
                tracing::warn!(
                    answer = ?outcome,
                    "the sink takes nothing; probing it until it does"
                );
            } else if before && !probing {
                tracing::info!("the sink takes dispatches again");
            }
        });
    }
}
