//! Synchronizes the clock of the process with that of the database.

use std::time::Duration;

use super::readiness::Readiness;
use crate::clock::SharedClock;
use crate::store::Store;

/// The time between samples while the clock is synchronized.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// The time between samples while it is not.
const UNSTEADY_SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// Samples the database's clock. Never returns.
pub(super) async fn run(store: Store, clock: SharedClock, readiness: Readiness) {
    let mut reported = None;
    loop {
        let sample = store.dispatch.sample_clock().await;
        if let Ok(sample) = sample {
            clock.learn(sample);
        }
        let unsteady = clock.unsteady();
        if reported != Some(unsteady) {
            readiness.clock(unsteady).await;
            match (unsteady, reported) {
                (Some(reason), Some(_)) => tracing::warn!(
                    reason,
                    "nothing is dispatched until the clock is synchronized with the database"
                ),
                (None, Some(_)) => tracing::info!("clock synchronized with the database"),
                // At the start it takes a few samples.
                (_, None) => {}
            }
            reported = Some(unsteady);
        }
        tokio::time::sleep(if unsteady.is_none() {
            SAMPLE_INTERVAL
        } else {
            UNSTEADY_SAMPLE_INTERVAL
        })
        .await;
    }
}
