//! Metrics of what is written: the group commit, and dead letters.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, Opts, Result};

use super::{LabelCounters, MetricRegistry, SECONDS};

const SIZES: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1000.0,
];

/// Why a round did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFailure {
    /// The database was away.
    Away,
    /// It refused a statement.
    Fault,
    /// It did not answer in time.
    Timeout,
}

/// Metrics of what is written. Cheap to clone; by default they are told nobody.
#[derive(Clone, Default)]
pub struct CommitMetrics(Option<Arc<CommitHandles>>);

struct CommitHandles {
    sizes: Histogram,
    durations: Histogram,
    failures: LabelCounters<3>,
    queue_full: IntCounter,
    dead_letters: IntCounter,
}

impl CommitMetrics {
    pub(super) fn on(registry: &MetricRegistry) -> Result<Self> {
        let sizes = HistogramOpts::new(
            "canvas_scheduler_commit_batch_size",
            "Changes taken into one round of the group commit.",
        );
        let durations = HistogramOpts::new(
            "canvas_scheduler_commit_duration_seconds",
            "How long a round of the group commit took.",
        );
        Ok(Self(Some(Arc::new(CommitHandles {
            sizes: registry.histogram(sizes.buckets(SIZES.to_vec()))?,
            durations: registry.histogram(durations.buckets(SECONDS.to_vec()))?,
            failures: registry.counters(
                Opts::new(
                    "canvas_scheduler_commit_failures_total",
                    "Rounds of the group commit that did not end well.",
                ),
                "reason",
                ["away", "fault", "timeout"],
            )?,
            queue_full: registry.counter(
                "canvas_scheduler_commit_queue_full_total",
                "Changes refused since their writer's queue was full.",
            )?,
            dead_letters: registry.counter(
                "canvas_scheduler_dead_letters_total",
                "Dispatches that became dead letters.",
            )?,
        }))))
    }

    /// A round begins with so many changes.
    #[allow(clippy::cast_precision_loss, reason = "a thousand at most")]
    pub fn observe_batch(&self, changes: usize) {
        if let Some(handles) = &self.0 {
            handles.sizes.observe(changes as f64);
        }
    }

    /// A round has ended well.
    pub fn observe_commit(&self, took: Duration) {
        if let Some(handles) = &self.0 {
            handles.durations.observe(took.as_secs_f64());
        }
    }

    /// A round has not.
    pub fn count_failure(&self, why: CommitFailure) {
        if let Some(handles) = &self.0 {
            handles.failures.count(match why {
                CommitFailure::Away => "away",
                CommitFailure::Fault => "fault",
                CommitFailure::Timeout => "timeout",
            });
        }
    }

    /// A change was refused since the queue was full.
    pub fn count_queue_full(&self) {
        if let Some(handles) = &self.0 {
            handles.queue_full.inc();
        }
    }

    /// So many dispatches became dead letters.
    pub fn count_dead_letters(&self, dispatches: usize) {
        if let Some(handles) = &self.0 {
            handles.dead_letters.inc_by(dispatches as u64);
        }
    }
}
