//! The use cases of the dispatcher: what is due, taken, and what became of it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::Notify;

use super::Service;
use crate::domain::{Dispatch, DispatchId, Outcome, ScheduleId, zone};
use crate::error::Error;
use crate::store::Caller;
pub use crate::store::{AttemptResult, Claimed, DispatchFilter, Leased, NextDue};
use crate::telemetry::metrics::{DispatchTotals, DueBacklog};

/// How long a dispatcher sleeps at most before it looks again: what another replica's callers made due is found by then.
pub const POLL: TimeDelta = TimeDelta::milliseconds(25);

/// Entries that one transaction of the upkeep moves.
const AT_ONCE: u64 = 500;

impl Service {
    /// Notified when a dispatcher of this process should look for due waves before its timer ends.
    pub fn wake(&self) -> &Notify {
        &self.wake
    }

    /// Wakes the dispatcher for a wave that is due before its timer ends.
    pub(super) fn wake_if_due(&self, outcome: &Outcome) {
        if outcome
            .after
            .next_wave
            .is_some_and(|at| at <= self.clock.now() + POLL)
        {
            self.wake.notify_one();
        }
    }

    /// When there is something to do next.
    ///
    /// # Errors
    /// The store's.
    pub async fn next_due(&self) -> Result<NextDue, Error> {
        self.store.dispatch.next_due(self.clock.now()).await
    }

    /// Fires up to `limit` waves that are due.
    ///
    /// # Errors
    /// The store's.
    pub async fn claim(&self, limit: usize) -> Result<Claimed, Error> {
        self.store
            .dispatch
            .claim(
                limit,
                self.clock.now(),
                &self.delivery,
                self.rules_in_force.load(Ordering::Relaxed),
            )
            .await
    }

    /// Puts the first that is due aside for a while: what stands in the way of everything behind it.
    ///
    /// # Errors
    /// The store's.
    pub async fn postpone_first(&self) -> Result<(), Error> {
        self.store.dispatch.postpone_first(self.clock.now()).await
    }

    /// Takes up to `limit` dispatches that are due for another attempt.
    ///
    /// # Errors
    /// The store's.
    pub async fn retry(&self, limit: usize) -> Result<Claimed, Error> {
        self.store
            .dispatch
            .retry(limit, self.clock.now(), &self.delivery)
            .await
    }

    /// Writes what became of attempts.
    ///
    /// # Errors
    /// The store's. To write them again changes nothing.
    pub async fn settle(&self, finished: &[AttemptResult]) -> Result<(), Error> {
        self.store
            .dispatch
            .settle(finished, self.clock.now(), &self.delivery)
            .await
    }

    /// Up to `limit` dispatches after `after`, in the order of schedule and number.
    ///
    /// # Errors
    /// The store's.
    pub async fn dispatches(
        &self,
        caller: &Caller,
        filter: DispatchFilter,
        after: Option<(ScheduleId, u32)>,
        limit: u64,
    ) -> Result<Vec<(ScheduleId, Dispatch)>, Error> {
        self.store
            .read
            .dispatches(caller.workspace, filter, after, limit)
            .await
    }

    /// Tries a dead letter again.
    ///
    /// # Errors
    /// The domain's refusals and the store's.
    pub async fn retry_dispatch(
        &self,
        caller: &Caller,
        id: ScheduleId,
        dispatch: DispatchId,
    ) -> Result<Dispatch, Error> {
        let revived = self
            .store
            .dispatch
            .retry_dead_letter(
                (caller.workspace, id),
                dispatch,
                self.clock.now(),
                &self.delivery,
            )
            .await?;
        self.wake.notify_one();
        Ok(revived)
    }

    /// Puts what was put aside while sending was paused back where it is fired from.
    ///
    /// # Errors
    /// The store's.
    pub async fn release_parked(&self) -> Result<(), Error> {
        while self.store.dispatch.unpark(AT_ONCE).await? > 0 {}
        Ok(())
    }

    /// Says which zone data this process has, and recomputes what was computed with other data if ours is in force.
    ///
    /// # Errors
    /// The store's.
    pub async fn keep_zone_rules(&self) -> Result<(), Error> {
        let now = self.clock.now();
        let in_force = self.store.dispatch.announce_zone_rules(now).await?;
        self.rules_in_force.store(in_force, Ordering::Relaxed);
        if in_force > zone::data_number() {
            return Ok(());
        }
        let mut recomputed = 0;
        loop {
            match self.store.dispatch.recompute(now, AT_ONCE).await? {
                0 => break,
                more => recomputed += more,
            }
        }
        if recomputed > 0 {
            tracing::info!(
                recomputed,
                time_zone_data = zone::data_version(),
                "waiting schedules were recomputed with our zone data"
            );
        }
        Ok(())
    }

    /// What is due and was not fired, counted up to a bound.
    ///
    /// # Errors
    /// The store's.
    pub async fn backlog(&self) -> Result<DueBacklog, Error> {
        self.store.admin.backlog(self.clock.now()).await
    }

    /// How dispatches stand, and which brakes are on.
    ///
    /// # Errors
    /// The store's.
    pub async fn dispatch_totals(&self) -> Result<DispatchTotals, Error> {
        self.store.admin.dispatch_totals().await
    }

    /// How long a delivery may take: well within its lease, so that its answer is written before somebody else tries.
    pub fn delivery_most(&self) -> Duration {
        (self.delivery.lease * 3 / 4).to_std().unwrap_or_default()
    }
}
