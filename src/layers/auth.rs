//! Authenticates callers. Every method needs a key with one permission, except health and
//! reflection; an unknown method is refused.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Request};
use ipnet::IpNet;
use tonic::body::Body;

use super::deadline::Deadline;
use super::{Call, address};
use crate::clock::SharedClock;
use crate::domain::PresentedKey;
use crate::service::Caller;
use crate::service::access::{Access, AuthenticatedKey, Denied, store_unavailable};
use crate::status::Refusal;
use crate::telemetry::metrics::CallMetrics;

/// The parts that authenticate and count a call.
#[derive(Clone)]
pub struct Authenticator {
    /// The API keys.
    pub access: Access,
    /// The proxies whose `x-forwarded-for` is trusted.
    pub trusted_proxies: Arc<[IpNet]>,
    /// The clock of quota windows.
    pub clock: SharedClock,
    /// Metrics of refused calls.
    pub calls: CallMetrics,
}

/// The key of the caller, if the method needs one. Puts the [`Caller`] into the request's
/// extensions and removes the key from its headers.
pub(super) async fn authenticate(
    request: &mut Request<Body>,
    call: &Call,
    authenticator: &Authenticator,
) -> Result<Option<Arc<AuthenticatedKey>>, Refusal> {
    let Some(method) = call.method else {
        return Err(Refusal::MethodUnknown(call.uri.path().to_owned()));
    };
    let Some(permission) = method.permission else {
        return Ok(None);
    };
    let count = |refusal: Refusal| {
        authenticator.calls.count_refused(refusal.reason());
        refusal
    };
    let presented = presented(request.headers()).map_err(count)?;
    let from = address::of_caller(call.peer, request.headers(), &authenticator.trusted_proxies);
    let key = authenticator
        .access
        .admit(&presented, from, permission)
        .await
        .map_err(|denied| count(denied.into()))?;
    request.headers_mut().remove(AUTHORIZATION);
    let deadline = request
        .extensions()
        .get::<Deadline>()
        .map(|deadline| deadline.0);
    request.extensions_mut().insert(Caller {
        workspace: key.workspace(),
        actor: key.actor(),
        deadline,
        span: call.span.clone(),
    });
    Ok(Some(key))
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::KeyRefused(barred) => Self::Key(barred),
            Denied::Unavailable => Self::Error(store_unavailable()),
        }
    }
}

/// The single key in `authorization: Bearer KEY`.
fn presented(headers: &HeaderMap) -> Result<PresentedKey, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Refusal::KeyMissing)?;
    let key = value
        .as_bytes()
        .split_at_checked(7)
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    key.and_then(|(_, key)| PresentedKey::parse(key.trim_ascii()))
        .filter(|_| values.next().is_none())
        .ok_or(Refusal::KeyMalformed)
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
