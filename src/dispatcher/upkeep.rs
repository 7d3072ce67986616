//! What a dispatcher looks after beside sending, and what it tells of it.

use std::time::Duration;

use chrono::TimeDelta;

use crate::clock::{SharedClock, sleep_until};
use crate::error::Error;
use crate::service::Service;
use crate::telemetry::metrics::DispatchMetrics;

/// Between two rounds.
const EVERY: TimeDelta = TimeDelta::seconds(1);
/// The same when the clock was set back meanwhile.
const EVERY_MOST: Duration = Duration::from_secs(2);

/// What costs more is done in one round of so many.
const RARELY: u32 = 10;

/// Looks after zone data and after what was put aside, until it is dropped.
pub(super) async fn run(service: Service, clock: SharedClock) {
    let mut rounds = Rounds::new("the upkeep of the dispatcher failed; it tries again");
    loop {
        let kept = if rounds.all() {
            service.keep_zone_rules().await
        } else {
            Ok(())
        };
        let released = service.release_parked().await;
        rounds.made(released.and(kept), &clock).await;
    }
}

/// Counts what is due and how dispatches stand, until it is dropped. Apart from [`run`], which may be busy for long.
pub(super) async fn count(service: Service, clock: SharedClock, sending: DispatchMetrics) {
    let mut rounds = Rounds::new("what is due could not be counted; the metrics stay as they were");
    loop {
        let due = service
            .backlog()
            .await
            .map(|backlog| sending.set_backlog(backlog));
        let stand = if rounds.all() {
            service
                .dispatch_totals()
                .await
                .map(|totals| sending.set_totals(totals))
        } else {
            Ok(())
        };
        rounds.made(due.and(stand), &clock).await;
    }
}

/// Rounds that are made once a second. One that fails is made up for by the next.
struct Rounds {
    made: u32,
    failing: bool,
    /// What is logged of the first of those that fail.
    failed: &'static str,
}

impl Rounds {
    fn new(failed: &'static str) -> Self {
        Self {
            made: 0,
            failing: false,
            failed,
        }
    }

    /// Whether this is a round in which everything is done.
    fn all(&self) -> bool {
        self.made.is_multiple_of(RARELY)
    }

    /// Notes what a round came to, and waits for the next.
    async fn made(&mut self, came_to: Result<(), Error>, clock: &SharedClock) {
        match &came_to {
            Err(Error::Internal(cause)) if !self.failing => {
                tracing::error!(cause, "{}", self.failed)
            }
            Err(error) if !self.failing => tracing::warn!(%error, "{}", self.failed),
            _ => {}
        }
        self.failing = came_to.is_err();
        self.made = self.made.wrapping_add(1);
        sleep_until(clock, clock.now() + EVERY, EVERY_MOST).await;
    }
}
