//! Keeps the clock of the process with that of the database, and says when nothing may be fired by it.

use std::time::Duration;

use super::readiness::Readiness;
use crate::clock::SharedClock;
use crate::store::Store;

/// Between two looks while the clock is steady.
const EVERY: Duration = Duration::from_secs(1);
/// Between two looks while it is not.
const SOON: Duration = Duration::from_millis(100);

/// Looks at the database's clock for as long as it is polled, by which it is also seen whether the database is there.
pub(super) async fn run(store: Store, clock: SharedClock, readiness: Readiness) {
    let mut said = None;
    loop {
        let looked = store.dispatch.sample_clock().await;
        readiness.database(looked.is_ok());
        if let Ok(sample) = looked {
            clock.learn(sample);
        }
        let unsteady = clock.unsteady();
        if said != Some(unsteady) {
            readiness.clock(unsteady).await;
            match (unsteady, said) {
                (Some(reason), Some(_)) => tracing::warn!(
                    reason,
                    "nothing is fired until three looks at the clock agree"
                ),
                (None, Some(_)) => tracing::info!("three looks at the clock agree"),
                // A start: three looks are quick.
                (_, None) => {}
            }
            said = Some(unsteady);
        }
        tokio::time::sleep(if unsteady.is_none() { EVERY } else { SOON }).await;
    }
}
