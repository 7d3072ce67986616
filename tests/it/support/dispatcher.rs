//! A server with a dispatcher.

use std::sync::Arc;

use canvas_scheduler::clock::{Clock, ManualClock};

use super::{Database, NOW, RecordingSink, TestApp, instant};

/// A server with a dispatcher, a sink that records, and a clock that the test moves.
pub(crate) struct DispatchingApp {
    pub app: TestApp,
    pub sink: Arc<RecordingSink>,
    pub clock: Arc<ManualClock>,
}

impl DispatchingApp {
    /// Starts one over a migrated database.
    pub(crate) async fn start(database: &Database) -> Self {
        let (sink, clock) = (
            RecordingSink::new(),
            Arc::new(ManualClock::at(instant(NOW))),
        );
        Self {
            app: TestApp::start_sending(database, &sink, &clock).await,
            sink,
            clock,
        }
    }

    /// Moves the clock to an instant as a test writes it.
    pub(crate) fn move_to(&self, time: &str) {
        self.clock.advance(instant(time) - self.clock.now());
    }
}
