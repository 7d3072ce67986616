//! What a dispatcher looks after beside sending.

use chrono::TimeDelta;

use crate::clock::SharedClock;
use crate::error::Error;
use crate::service::Service;

/// Between two rounds.
const EVERY: TimeDelta = TimeDelta::seconds(1);

/// Zone data is looked after in one round of so many.
const RULES_EVERY: u32 = 10;

/// Makes its rounds until it is dropped. A round that fails is made up for by the next.
pub async fn run(service: Service, clock: SharedClock) {
    let mut failing = false;
    for n in (0..RULES_EVERY).cycle() {
        let made = round(&service, n == 0).await;
        match &made {
            Err(Error::Internal(cause)) if !failing => tracing::error!(cause, "the upkeep of the dispatcher failed; it tries again"),
            Err(error) if !failing => tracing::warn!(%error, "the upkeep of the dispatcher failed; it tries again"),
            _ => {}
        }
        failing = made.is_err();
        clock.sleep_until(clock.now() + EVERY).await;
    }
}

async fn round(service: &Service, rules: bool) -> Result<(), Error> {
    let kept = if rules { service.keep_zone_rules().await } else { Ok(()) };
    service.release_parked().await.and(kept)
}
