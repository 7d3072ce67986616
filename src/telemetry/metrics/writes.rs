//! Metrics of what is written: the group commit, and dead letters.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, Opts, Result};

use super::{Counters, SECONDS, Shelf};

const SIZES: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1000.0,
];

/// Why a round did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The database was away.
    Away,
    /// It refused a statement.
    Fault,
    /// It did not answer in time.
    Timeout,
}

/// Metrics of what is written. Cheap to clone; by default they are told nobody.
#[derive(Clone, Default)]
pub struct Writes(Option<Arc<Handles>>);

struct Handles {
    sizes: Histogram,
    durations: Histogram,
    failures: Counters<3>,
    queue_full: IntCounter,
    dead_letters: IntCounter,
}

impl Writes {
    pub(super) fn on(shelf: &Shelf) -> Result<Self> {
        let sizes = HistogramOpts::new(
            "canvas_scheduler_commit_batch_size",
            "Changes taken into one round of the group commit.",
        );
        let durations = HistogramOpts::new(
            "canvas_scheduler_commit_duration_seconds",
            "How long a round of the group commit took.",
        );
        Ok(Self(Some(Arc::new(Handles {
            sizes: shelf.histogram(sizes.buckets(SIZES.to_vec()))?,
            durations: shelf.histogram(durations.buckets(SECONDS.to_vec()))?,
            failures: shelf.counters(
                Opts::new(
                    "canvas_scheduler_commit_failures_total",
                    "Rounds of the group commit that did not end well.",
                ),
                "reason",
                ["away", "fault", "timeout"],
            )?,
            queue_full: shelf.counter(
                "canvas_scheduler_commit_queue_full_total",
                "Changes refused since their writer's queue was full.",
            )?,
            dead_letters: shelf.counter(
                "canvas_scheduler_dead_letters_total",
                "Dispatches that became dead letters.",
            )?,
        }))))
    }

    /// A round begins with so many changes.
    #[allow(clippy::cast_precision_loss, reason = "a thousand at most")]
    pub fn taken(&self, changes: usize) {
        if let Some(handles) = &self.0 {
            handles.sizes.observe(changes as f64);
        }
    }

    /// A round has ended well.
    pub fn committed(&self, took: Duration) {
        if let Some(handles) = &self.0 {
            handles.durations.observe(took.as_secs_f64());
        }
    }

    /// A round has not.
    pub fn failed(&self, why: Failure) {
        if let Some(handles) = &self.0 {
            handles.failures.count(match why {
                Failure::Away => "away",
                Failure::Fault => "fault",
                Failure::Timeout => "timeout",
            });
        }
    }

    /// A change was refused since the queue was full.
    pub fn queue_was_full(&self) {
        if let Some(handles) = &self.0 {
            handles.queue_full.inc();
        }
    }

    /// So many dispatches became dead letters.
    pub fn died(&self, dispatches: usize) {
        if let Some(handles) = &self.0 {
            handles.dead_letters.inc_by(dispatches as u64);
        }
    }
}
