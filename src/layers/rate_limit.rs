//! Counts calls against the quotas of their workspace. Most calls count as one request and are
//! counted here, before their message is read. Creations and batches count as what they contain;
//! their handlers count them with the [`Meter`] in the request's extensions.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;

use super::Call;
use super::auth::Authenticator;
use crate::domain::{Charge, QuotaStatus};
use crate::methods::Charging;
use crate::service::access::AuthenticatedKey;
use crate::service::budget::ChargeError;
use crate::status::{Refusal, write_quota};

/// The charge of most calls.
const ONE: Charge = Charge::Requests(1);

/// Counts a call whose message says what it counts as. Cheap to clone.
#[derive(Clone)]
pub struct Meter(Arc<MeterState>);

struct MeterState {
    key: Arc<AuthenticatedKey>,
    authenticator: Authenticator,
    /// The status of the quota after the call was counted.
    quota: OnceLock<QuotaStatus>,
}

impl Meter {
    /// Counts the call.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when a quota is used up; then nothing was counted.
    pub async fn count(&self, charge: &Charge) -> Result<(), Status> {
        let charged = self.0.key.budget().charge(charge).await;
        if let Ok(quota) | Err(ChargeError::Quota(_, quota)) = &charged {
            // A handler counts once: the first status stays.
            let _first = self.0.quota.get_or_init(|| *quota);
        }
        charged
            .map(drop)
            .map_err(|error| refusal(error, &self.0.authenticator).into())
    }
}

/// How a call was counted.
pub(super) enum Charged {
    /// Not at all: it needs no key.
    Free,
    /// Before its message was read.
    Counted(QuotaStatus),
    /// By its handler, unless that refused the call before.
    ByHandler(Meter),
}

/// Counts the call of `key`, or leaves that to its handler.
pub(super) async fn charge(
    request: &mut Request<Body>,
    call: &Call,
    key: Option<Arc<AuthenticatedKey>>,
    authenticator: &Authenticator,
) -> Result<Charged, Refusal> {
    let Some(key) = key else {
        return Ok(Charged::Free);
    };
    let charging = call.method.map(|method| method.charging);
    if charging == Some(Charging::PerMessage) {
        let meter = Meter(Arc::new(MeterState {
            key,
            authenticator: authenticator.clone(),
            quota: OnceLock::new(),
        }));
        request.extensions_mut().insert(meter.clone());
        return Ok(Charged::ByHandler(meter));
    }
    let charged = match key.budget().charge_without_wait(1) {
        Some(charged) => charged,
        // Boxed, so that a call without a wait does not carry it.
        None => Box::pin(key.budget().charge(&ONE)).await,
    };
    charged
        .map(Charged::Counted)
        .map_err(|error| refusal(error, authenticator))
}

/// Adds the headers with the status of the quota to the response.
pub(super) async fn add_headers(response: &mut Response<Body>, charged: &Charged) {
    let quota = match charged {
        Charged::Free => None,
        Charged::Counted(quota) => Some(*quota),
        Charged::ByHandler(meter) => match meter.0.quota.get() {
            Some(quota) => Some(*quota),
            // A call whose message could not be read counts as one request.
            None => Box::pin(meter.0.key.budget().charge(&ONE)).await.ok(),
        },
    };
    if let Some(quota) = quota {
        write_quota(response.headers_mut(), quota);
    }
}

fn refusal(error: ChargeError, authenticator: &Authenticator) -> Refusal {
    let (counted, quota) = match error {
        ChargeError::Quota(counted, quota) => (counted, quota),
        ChargeError::Store(error) => return error.into(),
    };
    authenticator.calls.count_over_quota(counted.name());
    let millis = quota.resets_ms - authenticator.clock.now().timestamp_millis();
    let wait = Duration::from_millis(u64::try_from(millis).unwrap_or_default());
    Refusal::RateLimited {
        counted,
        quota,
        wait,
    }
}
