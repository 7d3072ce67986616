//! The warnings that PostgreSQL sends with its answers. The driver only logs them, so they are
//! counted on their way to the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::Context;

/// The target under which the driver logs them.
const TARGET: &str = "sqlx::postgres::notice";

/// Lets only warnings through. It states its level, since without it every event of every crate
/// would be built, at trace level too.
pub(super) fn filter() -> Targets {
    Targets::new().with_target(TARGET, LevelFilter::WARN)
}

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

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn warnings_of_the_server_are_counted_and_no_other_level_is_enabled() {
        let warnings = ServerWarnings::default();
        let layer = warnings.clone().with_filter(filter());
        let subscriber = tracing_subscriber::registry().with(layer);
        assert_eq!(subscriber.max_level_hint(), Some(LevelFilter::WARN));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: TARGET, "a warning");
            tracing::info!(target: TARGET, "a notice");
            assert!(!tracing::enabled!(target: TARGET, Level::INFO));
            tracing::warn!("another target");
        });
        assert_eq!(warnings.count(), 1);
    }
}
