//! Who calls. Every method needs a key and one permission, except health and reflection; a method that stands in no table here
//! is not called at all.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Request};
use ipnet::IpNet;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::deadline::Deadline;
use super::{Call, DOMAIN, address, error_details, refusal, unavailable};
use crate::clock::SharedClock;
use crate::domain::{KeyRefusal, Permission, PresentedKey};
use crate::error::Error;
use crate::service::Caller;
use crate::service::access::{Access, AuthenticatedKey, Denied};
use crate::store::RETRY_AFTER;
use crate::telemetry::metrics::CallMetrics;

/// What is asked of every call.
#[derive(Clone)]
pub struct Authenticator {
    /// Knows the keys.
    pub access: Access,
    /// Whose word on the caller's address is taken.
    pub trusted_proxies: Arc<[IpNet]>,
    /// Tells when a quota begins anew.
    pub clock: SharedClock,
    /// Where it is told who was refused.
    pub calls: CallMetrics,
}

/// What a method asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// No key.
    Open,
    /// A key with this permission.
    Needs(Permission),
    /// There is no such method.
    Nowhere,
}

fn door(path: &str) -> Door {
    if path.starts_with("/grpc.health.v1.Health/") || path.starts_with("/grpc.reflection.") {
        return Door::Open;
    }
    let Some(method) = path.strip_prefix("/canvas.schedule.v1.CanvasScheduleService/") else {
        return Door::Nowhere;
    };
    match method {
        "CreateCanvasSchedule" => Door::Needs(Permission::Create),
        "UpdateCanvasSchedule" | "BatchUpdateCanvasSchedules" | "RetryDispatch" => {
            Door::Needs(Permission::Update)
        }
        "CancelCanvasSchedule" => Door::Needs(Permission::Delete),
        "GetCanvasSchedule"
        | "ListCanvasSchedules"
        | "ListCanvasScheduleRevisions"
        | "ListDispatches" => Door::Needs(Permission::Read),
        _ => Door::Nowhere,
    }
}

/// Lets the call in, with its [`Caller`] in the extensions and its key gone from the headers, or says why not. Answers the key,
/// if the method needs one.
pub(super) async fn admit(
    request: &mut Request<Body>,
    call: &Call,
    authenticator: &Authenticator,
) -> Result<Option<Arc<AuthenticatedKey>>, Status> {
    let needs = match door(call.uri.path()) {
        Door::Open => return Ok(None),
        Door::Needs(permission) => permission,
        Door::Nowhere => return Err(error_details::method_unknown(call.uri.path())),
    };
    let count = |(reason, status): Refused| {
        authenticator.calls.count_refused(reason);
        status
    };
    let presented = presented(request.headers()).map_err(count)?;
    let from = address::of_caller(call.peer, request.headers(), &authenticator.trusted_proxies);
    let held = authenticator
        .access
        .admit(&presented, from, needs)
        .await
        .map_err(|why| count(denied(why)))?;
    request.headers_mut().remove(AUTHORIZATION);
    let deadline = request
        .extensions()
        .get::<Deadline>()
        .map(|deadline| deadline.0);
    request.extensions_mut().insert(Caller {
        workspace: held.workspace(),
        actor: held.actor(),
        deadline,
        span: call.span.clone(),
    });
    Ok(Some(held))
}

/// A refusal and its reason, by which it is counted.
type Refused = (&'static str, Status);

fn refused(code: Code, reason: &'static str, message: impl Into<String>) -> Refused {
    (reason, refusal(code, reason, message))
}

/// The one key in `authorization: Bearer KEY`.
fn presented(headers: &HeaderMap) -> Result<PresentedKey, Refused> {
    let mut stated = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = stated.next() else {
        let message = "a key is needed: send `authorization: Bearer KEY`";
        return Err(refused(Code::Unauthenticated, "KEY_MISSING", message));
    };
    let key = value
        .as_bytes()
        .split_at_checked(7)
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    let presented = key.and_then(|(_, key)| PresentedKey::parse(key.trim_ascii()));
    presented
        .filter(|_| stated.next().is_none())
        .ok_or_else(|| {
            // The value is not repeated: it may be a key with a slip in it.
            let message =
                "`authorization` is not `Bearer KEY` with one key as `api-key create` printed it";
            refused(Code::Unauthenticated, "KEY_MALFORMED", message)
        })
}

fn denied(why: Denied) -> Refused {
    let barred = match why {
        Denied::KeyRefused(barred) => barred,
        Denied::Unavailable => {
            return (
                "STORE_UNAVAILABLE",
                unavailable(&Error::StoreUnavailable {
                    retry_after: RETRY_AFTER,
                }),
            );
        }
    };
    match barred {
        KeyRefusal::Unknown => {
            refused(Code::Unauthenticated, "KEY_UNKNOWN", "there is no such key")
        }
        KeyRefusal::Revoked => refused(Code::Unauthenticated, "KEY_REVOKED", "the key was revoked"),
        KeyRefusal::Expired => refused(Code::Unauthenticated, "KEY_EXPIRED", "the key has expired"),
        KeyRefusal::Address => refused(
            Code::PermissionDenied,
            "ADDRESS_NOT_ALLOWED",
            "the key may not be used from the address that the call comes from",
        ),
        KeyRefusal::Permission(needed) => {
            let reason = "PERMISSION_MISSING";
            let info = ErrorDetails::with_error_info(
                reason,
                DOMAIN,
                [("permission".into(), needed.name().into())],
            );
            let message = format!("the key has not the permission {}", needed.name());
            (
                reason,
                Status::with_error_details(Code::PermissionDenied, message, info),
            )
        }
    }
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
