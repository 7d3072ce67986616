//! How many dispatches are in the dispatcher's hands, and how many more the sink is trusted with.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use crate::clock::jitter;
use crate::domain::{Answer, Breaker};
use crate::telemetry::metrics::DispatchMetrics;

/// Shared by whoever takes, delivers and finishes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Hands {
    state: Arc<watch::Sender<State>>,
    sending: DispatchMetrics,
}

struct State {
    in_flight: usize,
    probe: Breaker,
}

impl Hands {
    /// Empty hands of so many workers.
    pub(super) fn new(workers: usize, sending: DispatchMetrics) -> Self {
        sending.set_max_in_flight(workers);
        Self {
            state: Arc::new(watch::Sender::new(State {
                in_flight: 0,
                probe: Breaker::new(workers),
            })),
            sending,
        }
    }

    /// How many more may be taken at `now`.
    pub(super) fn room(&self, now: DateTime<Utc>) -> usize {
        let state = self.state.borrow();
        state.probe.room(now, state.in_flight)
    }

    /// Until when nothing may be taken, whatever is free.
    pub(super) fn quiet_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.state.borrow().probe.quiet_until(now)
    }

    /// Returns once a worker is free, be the sink quiet or not.
    pub(super) async fn freed(&self) {
        self.once(|state| state.probe.free(state.in_flight) > 0)
            .await;
    }

    /// Returns once the sink is not quiet, before its time since something that was under way was taken.
    pub(super) async fn trusted(&self) {
        self.once(|state| !state.probe.is_probing()).await;
    }

    async fn once(&self, holds: impl FnMut(&State) -> bool) {
        // The sender lives as long as `self`, so this ends by the state alone.
        let mut states = self.state.subscribe();
        let _held = states.wait_for(holds).await;
    }

    /// So many were taken.
    pub(super) fn take_up(&self, n: usize) {
        self.count(|in_flight| in_flight + n);
    }

    /// So many were finished.
    pub(super) fn put_down(&self, n: usize) {
        self.count(|in_flight| in_flight.saturating_sub(n));
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) {
        self.state.send_modify(|state| {
            state.in_flight = change(state.in_flight);
            self.sending.set_in_flight(state.in_flight);
        });
    }

    /// Learns from an answer of the sink.
    pub(super) fn answered(&self, answer: &Answer, now: DateTime<Utc>) {
        self.state.send_modify(|state| {
            let before = state.probe.is_probing();
            state.probe.answered(answer, now, jitter());
            self.sending.set_probing(state.probe.is_probing());
            match (before, state.probe.is_probing()) {
                (false, true) => tracing::warn!(
                    ?answer,
                    "the sink takes nothing; it is probed until it does"
                ),
                (true, false) => tracing::info!("the sink takes dispatches again"),
                _ => {}
            }
        });
    }
}
