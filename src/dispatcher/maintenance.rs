//! The dispatcher's maintenance, once a second: zone rules, paused entries of the due queue, and
//! gauges.

use std::time::Duration;

use chrono::TimeDelta;

use crate::clock::{SharedClock, sleep_until};
use crate::error::Error;
use crate::service::Service;
use crate::telemetry::metrics::DispatchMetrics;
use crate::telemetry::outage::OutageLog;

/// The pause between two rounds.
const ROUND_INTERVAL: TimeDelta = TimeDelta::seconds(1);
/// The longest pause, in case the clock was set back.
const MAX_ROUND_INTERVAL: Duration = Duration::from_secs(2);
/// Costly work runs in one round of this many.
const ROUNDS_PER_FULL_ROUND: u32 = 10;

/// Keeps the zone rules current and releases entries whose pause is over, until it is dropped.
pub(super) async fn maintain(service: Service, clock: SharedClock) {
    let mut rounds = Rounds::new(
        "maintenance of the dispatcher failed; retrying",
        "maintenance of the dispatcher recovered",
    );
    loop {
        let refreshed = if rounds.is_full_round() {
            service.refresh_zone_rules().await
        } else {
            Ok(())
        };
        let released = service.release_parked().await;
        rounds.finish(released.and(refreshed), &clock).await;
    }
}

/// Updates the gauges of the backlog and of the dispatches, until it is dropped. A task apart from
/// [`maintain`], which may be busy for long.
pub(super) async fn measure(service: Service, clock: SharedClock, metrics: DispatchMetrics) {
    let mut rounds = Rounds::new(
        "the due backlog cannot be counted; its metrics are stale",
        "the due backlog is counted again",
    );
    loop {
        let backlog = service.backlog().await;
        let backlog = backlog.map(|backlog| metrics.set_backlog(backlog));
        let totals = if rounds.is_full_round() {
            let totals = service.dispatch_totals().await;
            totals.map(|totals| metrics.set_totals(totals))
        } else {
            Ok(())
        };
        rounds.finish(backlog.and(totals), &clock).await;
    }
}

/// Rounds of work, one a second. The next round makes up for one that fails.
struct Rounds {
    finished: u32,
    outages: OutageLog,
}

impl Rounds {
    fn new(on_failure: &'static str, on_recovery: &'static str) -> Self {
        Self {
            finished: 0,
            outages: OutageLog::new(on_failure, on_recovery),
        }
    }

    fn is_full_round(&self) -> bool {
        self.finished.is_multiple_of(ROUNDS_PER_FULL_ROUND)
    }

    /// Records how a round ended, and waits for the next.
    async fn finish(&mut self, result: Result<(), Error>, clock: &SharedClock) {
        self.outages.record(&result);
        self.finished = self.finished.wrapping_add(1);
        sleep_until(clock, clock.now() + ROUND_INTERVAL, MAX_ROUND_INTERVAL).await;
    }
}
