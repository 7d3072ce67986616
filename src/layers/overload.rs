//! The refusal of a call because too much is in flight.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::Response;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

use crate::status::Refusal;

/// When to retry: the calls in flight take milliseconds.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);
/// The time between two log lines while calls are refused.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// A call that exceeded a limit. It travels in the extensions of the response, so that
/// [`super::trace`] does not log each such call as a warning: there may be very many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Overloaded;

impl Overloaded {
    /// The status that the caller gets.
    pub(super) fn status(self) -> Status {
        let retry_after = RETRY_AFTER;
        Refusal::Overloaded { retry_after }.into()
    }

    /// The response with that status.
    pub(super) fn response(self) -> Response<Body> {
        let mut response = self.status().into_http();
        response.extensions_mut().insert(self);
        response
    }
}

/// Logs that calls are refused, at most once per [`LOG_INTERVAL`].
pub(super) struct OverloadLog {
    started: Instant,
    /// Milliseconds after `started` until which nothing is logged.
    quiet_until: AtomicI64,
}

impl OverloadLog {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            quiet_until: AtomicI64::new(0),
        }
    }

    /// Whether a line is due now.
    pub(super) fn is_due(&self) -> bool {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let now = millis(self.started.elapsed());
        let until = self.quiet_until.load(Ordering::Relaxed);
        let next = now.saturating_add(millis(LOG_INTERVAL));
        now >= until
            && self
                .quiet_until
                .compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}
