//! Metrics of a process that sends.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Gauge, Histogram, HistogramOpts, IntGauge, Opts, Result};

use super::{LabelCounters, MetricRegistry, SECONDS};

/// Up to an hour.
const LAGS: [f64; 15] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0, 3600.0,
];

/// What is due and was not fired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DueBacklog {
    /// How many, up to a bound.
    pub due: i64,
    /// For how long the first of them has been due.
    pub oldest: Duration,
}

/// How the dispatches of all workspaces stand, and the brake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DispatchTotals {
    /// Of unknown outcome, up to a bound.
    pub unknown: i64,
    /// Dead letters, up to a bound.
    pub dead: i64,
    /// Whether sending is paused for all workspaces.
    pub all_paused: bool,
    /// Workspaces with a brake of their own.
    pub workspaces_paused: i64,
}

/// Metrics of sending. Cheap to clone; by default they are told nobody.
#[derive(Clone, Default)]
pub struct DispatchMetrics(Option<Arc<DispatchHandles>>);

struct DispatchHandles {
    lag: Histogram,
    backlog: IntGauge,
    oldest: Gauge,
    in_hand: IntGauge,
    in_hand_max: IntGauge,
    unknown: IntGauge,
    dead: IntGauge,
    answers: LabelCounters<4>,
    durations: Histogram,
    probing: IntGauge,
    all_paused: IntGauge,
    workspaces_paused: IntGauge,
}

impl DispatchMetrics {
    pub(super) fn on(registry: &MetricRegistry, sink: &str) -> Result<Self> {
        let gauge = |name: &str, help: &str| {
            registry.gauge(Opts::new(format!("canvas_scheduler_{name}"), help))
        };
        let of_sink = |name: &str, help: &str| {
            registry.gauge(
                Opts::new(format!("canvas_scheduler_{name}"), help).const_label("sink", sink),
            )
        };
        let oldest = Gauge::new(
            "canvas_scheduler_due_backlog_oldest_seconds",
            "For how long the first wave that was not fired has been due.",
        )?;
        registry.put(oldest.clone())?;
        let lag = HistogramOpts::new(
            "canvas_scheduler_dispatch_lag_seconds",
            "From when a wave was due to when its first attempt began.",
        );
        let durations = HistogramOpts::new(
            "canvas_scheduler_dispatch_duration_seconds",
            "How long the sink took to answer.",
        );
        Ok(Self(Some(Arc::new(DispatchHandles {
            lag: registry.histogram(lag.buckets(LAGS.to_vec()))?,
            backlog: gauge(
                "due_backlog",
                "Waves that are due and were not fired, up to 10,000.",
            )?,
            oldest,
            in_hand: of_sink(
                "dispatches_in_hand",
                "Dispatches in the hands of this process.",
            )?,
            in_hand_max: of_sink("dispatches_in_hand_max", "How many there may be.")?,
            unknown: of_sink(
                "dispatches_unknown",
                "Dispatches of unknown outcome, up to 10,000.",
            )?,
            dead: of_sink(
                "dispatches_dead",
                "Dead letters that are kept, up to 10,000.",
            )?,
            answers: registry.counters(
                Opts::new(
                    "canvas_scheduler_dispatch_answers_total",
                    "Attempts, by what the sink said.",
                )
                .const_label("sink", sink),
                "answer",
                ["delivered", "not_taken", "rejected", "unknown"],
            )?,
            durations: registry.histogram(
                durations
                    .const_label("sink", sink)
                    .buckets(SECONDS.to_vec()),
            )?,
            probing: of_sink(
                "sink_probing",
                "Whether the sink takes nothing, so that only a probe goes to it.",
            )?,
            all_paused: gauge(
                "sending_paused",
                "Whether sending is paused for all workspaces.",
            )?,
            workspaces_paused: gauge(
                "workspaces_paused",
                "Workspaces for which sending is paused.",
            )?,
        }))))
    }

    /// There are so many workers.
    pub fn set_max_in_flight(&self, max: usize) {
        if let Some(handles) = &self.0 {
            handles.in_hand_max.set(signed(max));
        }
    }

    /// A wave's first attempt begins, so many seconds after it was due.
    pub fn observe_lag(&self, lag: f64) {
        if let Some(handles) = &self.0 {
            handles.lag.observe(lag);
        }
    }

    /// So many dispatches are in hand now.
    pub fn set_in_flight(&self, dispatches: usize) {
        if let Some(handles) = &self.0 {
            handles.in_hand.set(signed(dispatches));
        }
    }

    /// The sink has answered an attempt.
    pub fn observe_attempt(&self, answer: &str, took: Duration) {
        if let Some(handles) = &self.0 {
            handles.answers.count(answer);
            handles.durations.observe(took.as_secs_f64());
        }
    }

    /// Whether the sink takes nothing.
    pub fn set_probing(&self, probing: bool) {
        if let Some(handles) = &self.0 {
            handles.probing.set(probing.into());
        }
    }

    /// What was said last of whether the sink takes nothing.
    pub fn is_probing(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|handles| handles.probing.get() != 0)
    }

    /// What is due.
    pub fn set_backlog(&self, backlog: DueBacklog) {
        if let Some(handles) = &self.0 {
            handles.backlog.set(backlog.due);
            handles.oldest.set(backlog.oldest.as_secs_f64());
        }
    }

    /// How dispatches stand.
    pub fn set_totals(&self, totals: DispatchTotals) {
        if let Some(handles) = &self.0 {
            handles.unknown.set(totals.unknown);
            handles.dead.set(totals.dead);
            handles.all_paused.set(totals.all_paused.into());
            handles.workspaces_paused.set(totals.workspaces_paused);
        }
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
