//! The warnings that PostgreSQL sends with its answers. The driver only logs them, so they are
//! counted on their way to the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The target under which the driver logs them.
pub(super) const TARGET: &str = "sqlx::postgres::notice";

/// Counts warnings. One that comes with a commit may say that no standby has it: "canceling wait
/// for synchronous replication". Cheap to clone; the default counts nothing.
#[derive(Debug, Clone, Default)]
pub struct ServerWarnings(Arc<AtomicU64>);

impl ServerWarnings {
    /// The number of warnings so far, of all sessions.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl<S: Subscriber> Layer<S> for ServerWarnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if metadata.target() == TARGET && *metadata.level() <= Level::WARN {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
    }
}
