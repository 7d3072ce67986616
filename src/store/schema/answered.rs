//! Requests that carry a request id, and the first answers to them.

use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::domain::{Outcome, RequestId};
use crate::error::Error;

/// How long the first answer to a request id is stored.
pub const REQUEST_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// A caller's name for a request, and what the request was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// The name.
    pub id: RequestId,
    /// SHA-256 of the request in its canonical form, in hex.
    pub digest: String,
}

impl RequestKey {
    /// Names `request`, whose JSON has its keys in order, so that equal requests have one digest.
    pub fn of(id: RequestId, request: &impl Serialize) -> Result<Self, Error> {
        let canonical = serde_json::to_value(request)
            .map_err(Error::internal)?
            .to_string();
        let digest = Sha256::digest(canonical.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(Self { id, digest })
    }
}

/// A first answer as it was stored.
#[derive(Debug, Clone)]
pub struct Answered {
    /// Of the request that it answered.
    pub digest: String,
    /// The answer.
    pub outcome: Outcome,
}

impl Answered {
    /// The first answer again, if `request` is the same request.
    pub fn replay(&self, request: &RequestKey) -> Result<Outcome, Error> {
        if self.digest == request.digest {
            return Ok(self.outcome.clone());
        }
        Err(Error::RequestIdReused {
            request_id: request.id.as_str().to_owned(),
        })
    }
}
