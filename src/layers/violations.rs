//! Field violations found by a transport other than gRPC while it builds the message of a call. The
//! message is read during the call, so they travel in the extensions of its request; the handler
//! reports them together with its own.

use std::sync::{Arc, OnceLock};

use crate::error::{Violation, Violations};

/// The violations, once the message is built. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TransportViolations(Arc<OnceLock<Violations>>);

impl TransportViolations {
    /// Sets the violations; only the first call has an effect.
    pub fn set(&self, violations: Violations) {
        let _first = self.0.get_or_init(|| violations);
    }

    /// The violations set so far.
    pub fn violations(&self) -> &[Violation] {
        self.0.get().map_or(&[], |violations| violations)
    }
}
