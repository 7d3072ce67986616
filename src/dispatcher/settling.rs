//! Settles the outcomes of deliveries, in batches.

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::in_flight::InFlightDispatches;
use super::{MAX_BATCH, OUTAGE_PAUSE};
use crate::error::Error;
use crate::service::{AttemptResult, Service};

/// Settles as many outcomes at a time as wait in `queue`, until every sender is dropped.
pub(super) async fn run(
    service: Service,
    in_flight: InFlightDispatches,
    mut queue: mpsc::Receiver<AttemptResult>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, MAX_BATCH).await > 0 {
        settle(&service, &batch).await;
        in_flight.remove(batch.len());
        batch.clear();
    }
}

/// Retries until the batch is written, or until its leases have expired, so that other workers
/// retry the dispatches anyway.
async fn settle(service: &Service, batch: &[AttemptResult]) {
    let give_up_at = Instant::now() + service.delivery_timeout();
    while let Err(error) = service.settle(batch).await {
        let internal = matches!(error, Error::Internal(_));
        if internal && batch.len() > 1 {
            return settle_one_by_one(service, batch).await;
        }
        if internal || Instant::now() >= give_up_at {
            return log_unsettled(&error, batch.len());
        }
        tokio::time::sleep(OUTAGE_PAUSE).await;
    }
}

/// Keeps an outcome that cannot be written from holding up the others of its batch.
async fn settle_one_by_one(service: &Service, batch: &[AttemptResult]) {
    for one in batch {
        if let Err(error) = service.settle(std::slice::from_ref(one)).await {
            log_unsettled(&error, 1);
        }
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
