//! Settles the outcomes of deliveries, in batches.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::in_flight::InFlightDispatches;
use super::{MAX_BATCH, OUTAGE_PAUSE};
use crate::error::Error;
use crate::service::{AttemptResult, Service};

/// The pause between two attempts to settle outcomes whose rows another session has locked.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// The most outcomes that wait for locks. Further ones stay in the queue and hold their workers, so
/// that fewer waves are claimed.
const MAX_LEFT_OUT: usize = 10_000;

/// Settles as many outcomes at a time as wait in `queue`, until every sender is dropped and no
/// outcome waits for a lock.
pub(super) async fn run(
    service: Service,
    in_flight: InFlightDispatches,
    mut queue: mpsc::Receiver<AttemptResult>,
) {
    let (mut batch, mut left_out) = (Vec::new(), LeftOut::default());
    let mut is_open = true;
    while is_open || !left_out.results.is_empty() {
        tokio::select! {
            received = queue.recv_many(&mut batch, MAX_BATCH),
                if is_open && left_out.results.len() < MAX_LEFT_OUT =>
            {
                is_open = received > 0;
                let give_up_at = Instant::now() + service.delivery_timeout();
                let locked = settle(&service, &batch, give_up_at).await;
                left_out.add(locked, give_up_at);
                // Those that were left out hold no worker: a lock on the row of one keeps no other
                // from being sent.
                in_flight.remove(batch.len());
                batch.clear();
            }
            () = tokio::time::sleep_until(left_out.retry_at), if !left_out.results.is_empty() => {
                left_out.retry(&service).await;
            }
        }
    }
}

/// Retries until the batch is written, or until its leases have expired, so that other workers
/// retry the dispatches anyway. Returns those whose rows are locked.
async fn settle(
    service: &Service,
    batch: &[AttemptResult],
    give_up_at: Instant,
) -> Vec<AttemptResult> {
    loop {
        let error = match service.settle(batch).await {
            Ok(left_out) => return left_out,
            Err(error) => error,
        };
        let internal = matches!(error, Error::Internal(_));
        if internal && batch.len() > 1 {
            return settle_one_by_one(service, batch).await;
        }
        if internal || Instant::now() >= give_up_at {
            log_unsettled(&error, batch.len());
            return vec![];
        }
        tokio::time::sleep(OUTAGE_PAUSE).await;
    }
}

/// Keeps an outcome that cannot be written from holding up the others of its batch.
async fn settle_one_by_one(service: &Service, batch: &[AttemptResult]) -> Vec<AttemptResult> {
    let mut left_out = vec![];
    for one in batch {
        match service.settle(std::slice::from_ref(one)).await {
            Ok(locked) => left_out.extend(locked),
            Err(error) => log_unsettled(&error, 1),
        }
    }
    left_out
}

/// The outcomes whose rows another session has locked.
struct LeftOut {
    /// Each with the instant at which its lease has expired.
    results: Vec<(AttemptResult, Instant)>,
    retry_at: Instant,
}

impl Default for LeftOut {
    fn default() -> Self {
        Self {
            results: vec![],
            retry_at: Instant::now(),
        }
    }
}

impl LeftOut {
    fn add(&mut self, locked: Vec<AttemptResult>, give_up_at: Instant) {
        if self.results.is_empty() {
            self.retry_at = Instant::now() + LOCK_PAUSE;
        }
        let locked = locked.into_iter().map(|one| (one, give_up_at));
        self.results.extend(locked);
    }

    /// Settles those that are not locked any more, and gives up those whose leases have expired.
    async fn retry(&mut self, service: &Service) {
        let now = Instant::now();
        let before = self.results.len();
        self.results.retain(|(_, give_up_at)| *give_up_at > now);
        let given_up = before - self.results.len();
        if given_up > 0 {
            tracing::error!(
                dispatches = given_up,
                "outcomes were not settled, since another session locks their rows; the \
                 dispatches are retried when their leases expire"
            );
        }
        let mut waiting = std::mem::take(&mut self.results);
        while !waiting.is_empty() {
            let later = waiting.split_off(waiting.len().min(MAX_BATCH));
            let batch: Vec<AttemptResult> = waiting.iter().map(|(one, _)| one.clone()).collect();
            match service.settle_left_out(&batch).await {
                Ok(locked) => waiting.retain(|(one, _)| locked.contains(one)),
                Err(Error::Internal(cause)) if batch.len() == 1 => {
                    log_unsettled(&Error::Internal(cause), 1);
                    waiting.clear();
                }
                // Repeated until the leases expire.
                Err(error) => tracing::debug!(%error, "locked outcomes are not settled yet"),
            }
            self.results.append(&mut waiting);
            waiting = later;
        }
        self.retry_at = Instant::now() + LOCK_PAUSE;
    }
}

fn log_unsettled(error: &Error, dispatches: usize) {
    let cause = match error {
        Error::Internal(cause) => cause.clone(),
        other => other.to_string(),
    };
    tracing::error!(
        cause,
        dispatches,
        "outcomes were not settled; the dispatches are retried when their leases expire"
    );
}
