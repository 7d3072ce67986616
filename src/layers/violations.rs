//! What a face that reads something else than protobuf finds wrong with a request while it makes the message of it. The message
//! is read in the course of the call, so what was found travels beside it, in the extensions of the request: the call is then
//! refused with that and with whatever its handler finds, at once.

use std::sync::{Arc, OnceLock};

use crate::error::Violation;

/// The violations, once the message is made. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TransportViolations(Arc<OnceLock<Vec<Violation>>>);

impl TransportViolations {
    /// States what was found; the first word stands.
    pub fn set(&self, violations: Vec<Violation>) {
        let _first = self.0.get_or_init(|| violations);
    }

    /// What was found by now.
    pub fn violations(&self) -> &[Violation] {
        self.0.get().map_or(&[], Vec::as_slice)
    }
}
