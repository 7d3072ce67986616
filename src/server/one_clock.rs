//! Keeps the clock of the process with that of the database, and says when nothing may be fired by it.

use std::time::Duration;

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::clock::SharedClock;
use crate::store::Store;

/// The name that a dispatcher has in health answers: it serves while it may fire.
pub const DISPATCHER: &str = "dispatcher";

/// Between two looks while the clock is steady.
const EVERY: Duration = Duration::from_secs(1);
/// Between two looks while it is not.
const SOON: Duration = Duration::from_millis(100);

/// Looks at the database's clock for as long as it is polled; where the process `sends`, its health says whether it may.
pub async fn keep(store: Store, clock: SharedClock, health: HealthReporter, sends: bool) {
    let mut said = None;
    loop {
        if let Ok(sample) = store.look_at_clock().await {
            clock.learn(sample);
        }
        let unsteady = clock.unsteady();
        if said != Some(unsteady) {
            if sends {
                let status = if unsteady.is_none() { ServingStatus::Serving } else { ServingStatus::NotServing };
                health.set_service_status(DISPATCHER, status).await;
            }
            match (unsteady, said) {
                (Some(reason), Some(_)) => tracing::warn!(reason, "nothing is fired until three looks at the clock agree"),
                (None, Some(_)) => tracing::info!("three looks at the clock agree"),
                // A start: three looks are quick.
                (_, None) => {}
            }
            said = Some(unsteady);
        }
        tokio::time::sleep(if unsteady.is_none() { EVERY } else { SOON }).await;
    }
}
