//! The use cases of the dispatcher: claim, retry, settle, maintain.

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

/// The longest sleep of a dispatcher: waves that another replica's callers made due are found by
/// polling.
pub const POLL_INTERVAL: TimeDelta = TimeDelta::milliseconds(25);

/// The most rows that one transaction of the maintenance changes.
const MAINTENANCE_BATCH: u64 = 500;

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
            .is_some_and(|at| at <= self.clock.now() + POLL_INTERVAL)
        {
            self.wake.notify_one();
        }
    }

    /// When the next wave and the next retry are due.
    pub async fn next_due(&self) -> Result<NextDue, Error> {
        self.store.dispatch.next_due(self.clock.now()).await
    }

    /// Claims up to `limit` waves that are due.
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

    /// Postpones the first schedule that is due, which keeps those behind it from being claimed.
    pub async fn postpone_first(&self) -> Result<(), Error> {
        self.store.dispatch.postpone_first(self.clock.now()).await
    }

    /// Leases up to `limit` dispatches that are due for another attempt.
    pub async fn retry(&self, limit: usize) -> Result<Claimed, Error> {
        self.store
            .dispatch
            .retry(limit, self.clock.now(), &self.delivery)
            .await
    }

    /// The dispatches that were leased by commits that failed but were carried out.
    pub async fn settle_claims(&self) -> Result<Vec<Leased>, Error> {
        self.store.dispatch.settle_claims(self.clock.now()).await
    }

    /// How many dispatches were perhaps leased by commits that failed.
    pub fn unsettled_claims(&self) -> usize {
        self.store.dispatch.unsettled_claims()
    }

    /// Writes the outcomes of attempts, and returns those whose rows another session has locked.
    /// Idempotent: a batch may be settled again after an error.
    pub async fn settle(&self, finished: &[AttemptResult]) -> Result<Vec<AttemptResult>, Error> {
        self.store
            .dispatch
            .settle(finished, self.clock.now(), &self.delivery)
            .await
    }

    /// As [`Self::settle`], for outcomes that it returned. Waits for no lock.
    pub async fn settle_left_out(
        &self,
        finished: &[AttemptResult],
    ) -> Result<Vec<AttemptResult>, Error> {
        self.store
            .dispatch
            .settle_left_out(finished, self.clock.now(), &self.delivery)
            .await
    }

    /// Up to `limit` dispatches after `after`, ordered by schedule and number.
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

    /// Retries a dead letter (docs/api.md, RetryDispatch).
    pub async fn retry_dispatch(
        &self,
        caller: &Caller,
        id: ScheduleId,
        dispatch: DispatchId,
    ) -> Result<Dispatch, Error> {
        let retried = self
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
        Ok(retried)
    }

    /// Puts entries that were parked while sending was paused back into the due queue, once sending
    /// is resumed.
    pub async fn release_parked(&self) -> Result<(), Error> {
        while self.store.dispatch.unpark(MAINTENANCE_BATCH).await? > 0 {}
        Ok(())
    }

    /// Announces the zone data of this build, and replans schedules that were planned with other
    /// data, if this build's data is in force.
    pub async fn refresh_zone_rules(&self) -> Result<(), Error> {
        let now = self.clock.now();
        let in_force = self.store.dispatch.announce_zone_rules(now).await?;
        self.rules_in_force.store(in_force, Ordering::Relaxed);
        if in_force > zone::data_number() {
            return Ok(());
        }
        let mut recomputed = 0;
        loop {
            match self
                .store
                .dispatch
                .recompute(now, MAINTENANCE_BATCH)
                .await?
            {
                0 => break,
                more => recomputed += more,
            }
        }
        if recomputed > 0 {
            tracing::info!(
                recomputed,
                time_zone_data = zone::data_version(),
                "replanned pending schedules with the zone data of this build"
            );
        }
        Ok(())
    }

    /// Counts waves that are due and not claimed, up to a maximum.
    pub async fn backlog(&self) -> Result<DueBacklog, Error> {
        self.store.admin.backlog(self.clock.now()).await
    }

    /// Counts dispatches by state, and the pauses of sending.
    pub async fn dispatch_totals(&self) -> Result<DispatchTotals, Error> {
        self.store.admin.dispatch_totals().await
    }

    /// The timeout of a delivery: three quarters of its lease, so that its outcome is settled
    /// before another worker retries.
    pub fn delivery_timeout(&self) -> Duration {
        (self.delivery.lease * 3 / 4).to_std().unwrap_or_default()
    }
}
