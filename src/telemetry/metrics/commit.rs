//! Metrics of the group commit and of dead letters.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, Opts, Result};

use super::{LabelCounters, MetricRegistry, SECONDS};

const BATCH_SIZES: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1000.0,
];

/// Why a round of the group commit failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFailure {
    /// The database was unavailable.
    Away,
    /// The database rejected a statement.
    Fault,
    /// The database did not respond in time.
    Timeout,
}

/// Metrics of the group commit. Cheap to clone.
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
    pub(super) fn register(registry: &MetricRegistry) -> Result<Self> {
        let sizes = HistogramOpts::new(
            "canvas_scheduler_commit_batch_size",
            "Changes in a round of the group commit.",
        );
        let durations = HistogramOpts::new(
            "canvas_scheduler_commit_duration_seconds",
            "Duration of successful rounds of the group commit.",
        );
        Ok(Self(Some(Arc::new(CommitHandles {
            sizes: registry.histogram(sizes.buckets(BATCH_SIZES.to_vec()))?,
            durations: registry.histogram(durations.buckets(SECONDS.to_vec()))?,
            failures: registry.counters(
                Opts::new(
                    "canvas_scheduler_commit_failures_total",
                    "Failed rounds of the group commit, by reason.",
                ),
                "reason",
                ["away", "fault", "timeout"],
            )?,
            queue_full: registry.counter(
                "canvas_scheduler_commit_queue_full_total",
                "Changes refused because the queue of their writer was full.",
            )?,
            dead_letters: registry.counter(
                "canvas_scheduler_dead_letters_total",
                "Dispatches that became dead letters.",
            )?,
        }))))
    }

    /// Records the number of changes in a round.
    #[allow(clippy::cast_precision_loss, reason = "at most 1,000")]
    pub fn observe_batch(&self, changes: usize) {
        if let Some(handles) = &self.0 {
            handles.sizes.observe(changes as f64);
        }
    }

    /// Records the duration of a successful round.
    pub fn observe_commit(&self, duration: Duration) {
        if let Some(handles) = &self.0 {
            handles.durations.observe(duration.as_secs_f64());
        }
    }

    /// Counts a failed round.
    pub fn count_failure(&self, failure: CommitFailure) {
        if let Some(handles) = &self.0 {
            handles.failures.count(match failure {
                CommitFailure::Away => "away",
                CommitFailure::Fault => "fault",
                CommitFailure::Timeout => "timeout",
            });
        }
    }

    /// Counts a change that was refused because the queue of its writer was full.
    pub fn count_queue_full(&self) {
        if let Some(handles) = &self.0 {
            handles.queue_full.inc();
        }
    }

    /// Counts dispatches that became dead letters.
    pub fn count_dead_letters(&self, dispatches: usize) {
        if let Some(handles) = &self.0 {
            handles.dead_letters.inc_by(dispatches as u64);
        }
    }
}
