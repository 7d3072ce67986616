//! How much a workspace may ask. Most calls count as one request and are counted here, before their message is read; creations
//! and batches count as what they hold, so their handlers count them by the [`Meter`] in the request's extensions.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Request, Response};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::auth::Authenticator;
use super::{Call, DOMAIN, unavailable};
use crate::domain::{Charge, QuotaKind};
use crate::service::access::AuthenticatedKey;
use crate::service::budget::{ChargeError, QuotaStatus};

/// What most calls count as.
const ONE: Charge = Charge::Requests(1);

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// ConcurrencyState a call whose message says what it counts as. Cheap to clone.
#[derive(Clone)]
pub struct Meter(Arc<MeterState>);

struct MeterState {
    held: Arc<AuthenticatedKey>,
    authenticator: Authenticator,
    /// What the caller is told, once it was counted.
    told: OnceLock<QuotaStatus>,
}

impl Meter {
    /// ConcurrencyState the call.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when a quota is used up; then nothing was counted.
    pub async fn count(&self, charge: &Charge) -> Result<(), Status> {
        let counted = self.0.held.budget().charge(charge).await;
        let told = match &counted {
            Ok(told) | Err(ChargeError::Quota(_, told)) => Some(*told),
            Err(ChargeError::Store(_)) => None,
        };
        if let Some(told) = told {
            // The first count stands: a handler counts once.
            let _first = self.0.told.get_or_init(|| told);
        }
        counted
            .map(|_| ())
            .map_err(|over| refused(over, &self.0.authenticator))
    }
}

/// What is to be done about the limit once the call has ended.
pub(super) enum Charged {
    /// Nothing: it needed no key.
    Free,
    /// The caller is told.
    Yes(QuotaStatus),
    /// The handler has counted, or has refused the call before it could.
    ByHandler(Meter),
}

/// ConcurrencyState the call of `held`, or leaves that to its handler.
pub(super) async fn charge(
    request: &mut Request<Body>,
    call: &Call,
    held: Option<Arc<AuthenticatedKey>>,
    authenticator: &Authenticator,
) -> Result<Charged, Status> {
    let Some(held) = held else {
        return Ok(Charged::Free);
    };
    if counts_by_its_message(call.uri.path()) {
        let meter = Meter(Arc::new(MeterState {
            held,
            authenticator: authenticator.clone(),
            told: OnceLock::new(),
        }));
        request.extensions_mut().insert(meter.clone());
        return Ok(Charged::ByHandler(meter));
    }
    let told = match held.budget().charge_at_once(1) {
        Some(told) => told,
        // Boxed, so that the usual call does not carry it about.
        None => Box::pin(held.budget().charge(&ONE)).await,
    };
    told.map(Charged::Yes)
        .map_err(|over| refused(over, authenticator))
}

fn counts_by_its_message(path: &str) -> bool {
    path.ends_with("/CreateCanvasSchedule") || path.ends_with("/BatchUpdateCanvasSchedules")
}

/// Tells the caller of a call that has ended where it stands.
pub(super) async fn add_headers(response: &mut Response<Body>, counted: &Charged) {
    let told = match counted {
        Charged::Free => None,
        Charged::Yes(told) => Some(*told),
        Charged::ByHandler(meter) => match meter.0.told.get() {
            Some(told) => Some(*told),
            // What its handler never counted, since it could not be read, is a request like any other.
            None => Box::pin(meter.0.held.budget().charge(&ONE)).await.ok(),
        },
    };
    if let Some(told) = told {
        write(response.headers_mut(), told);
    }
}

fn write(headers: &mut HeaderMap, told: QuotaStatus) {
    headers.insert(LIMIT, HeaderValue::from(told.limit));
    headers.insert(REMAINING, HeaderValue::from(told.remaining));
    headers.insert(RESET, HeaderValue::from(told.resets_ms / 1000));
}

fn refused(over: ChargeError, authenticator: &Authenticator) -> Status {
    let (counted, told) = match over {
        ChargeError::Quota(counted, told) => (counted, told),
        ChargeError::Store(error) => return unavailable(&error),
    };
    authenticator.calls.count_over_quota(counted.name());
    let millis = u64::try_from(told.resets_ms - authenticator.clock.now().timestamp_millis())
        .unwrap_or_default();
    let wait = Duration::from_millis(millis);
    let what = match counted {
        QuotaKind::Requests => "requests",
        QuotaKind::Broadcasts => "creations with broadcast or audience",
        QuotaKind::SameAudience => "creations with the same audience",
    };
    let message = format!(
        "the workspace has used up its quota of {} {what}; it begins anew in {} s",
        told.limit,
        wait.as_secs() + 1
    );
    let metadata = [
        ("quota".to_owned(), counted.name().to_owned()),
        ("limit".to_owned(), told.limit.to_string()),
    ];
    let mut details = ErrorDetails::with_error_info("RATE_LIMITED", DOMAIN, metadata);
    details.set_retry_info(Some(wait));
    details.add_quota_failure_violation(counted.name(), &message);
    let mut headers = HeaderMap::new();
    write(&mut headers, told);
    headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    Status::with_error_details_and_metadata(
        Code::ResourceExhausted,
        message,
        details,
        MetadataMap::from_headers(headers),
    )
}
