//! Requests with a request id, and the first answers to them.

use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::domain::{Outcome, RequestId};
use crate::error::Error;

/// How long the first answer to a request id is stored.
pub const REQUEST_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The id of a request, and a digest of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// The id, which the caller chose.
    pub id: RequestId,
    /// SHA-256 of the request in its canonical form, in hex.
    pub digest: String,
}

impl RequestKey {
    /// The key of `request`. Equal requests have one digest, since the keys of their JSON are
    /// sorted.
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

/// A stored first answer.
#[derive(Debug, Clone)]
pub struct Answered {
    /// The digest of its request.
    pub digest: String,
    /// The answer.
    pub outcome: Outcome,
}

impl Answered {
    /// The first answer again, if `request` is the same request; [`Error::RequestIdReused`] if not.
    pub fn replay(&self, request: &RequestKey) -> Result<Outcome, Error> {
        if self.digest == request.digest {
            return Ok(self.outcome.clone());
        }
        Err(Error::RequestIdReused {
            request_id: request.id.as_str().to_owned(),
        })
    }
}
