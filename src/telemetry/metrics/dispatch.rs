//! Metrics of the dispatcher.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Gauge, Histogram, HistogramOpts, IntGauge, Opts, Result};

use super::{LabelCounters, MetricRegistry, SECONDS};

/// Buckets up to an hour.
const LAG_SECONDS: [f64; 15] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0, 3600.0,
];

/// The waves that are due and not yet claimed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DueBacklog {
    /// The number of waves, counted up to a limit.
    pub due: i64,
    /// How long ago the first of them became due.
    pub oldest: Duration,
}

/// The dispatches of all workspaces by state, and the pauses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DispatchTotals {
    /// Dispatches of unknown outcome, counted up to a limit.
    pub unknown: i64,
    /// Dead letters, counted up to a limit.
    pub dead: i64,
    /// Whether sending is paused for all workspaces.
    pub all_paused: bool,
    /// The number of workspaces that are paused themselves.
    pub workspaces_paused: i64,
}

/// Metrics of the dispatcher. Cheap to clone.
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
    pub(super) fn register(registry: &MetricRegistry, sink: &str) -> Result<Self> {
        let gauge = |name: &str, help: &str| {
            registry.gauge(Opts::new(format!("canvas_scheduler_{name}"), help))
        };
        let sink_gauge = |name: &str, help: &str| {
            registry.gauge(
                Opts::new(format!("canvas_scheduler_{name}"), help).const_label("sink", sink),
            )
        };
        let oldest = Gauge::new(
            "canvas_scheduler_due_backlog_oldest_seconds",
            "Seconds since the oldest unclaimed wave became due.",
        )?;
        registry.register(oldest.clone())?;
        let lag = HistogramOpts::new(
            "canvas_scheduler_dispatch_lag_seconds",
            "Time from when a wave was due to its first attempt.",
        );
        let durations = HistogramOpts::new(
            "canvas_scheduler_dispatch_duration_seconds",
            "Time that the sink took to answer an attempt.",
        );
        Ok(Self(Some(Arc::new(DispatchHandles {
            lag: registry.histogram(lag.buckets(LAG_SECONDS.to_vec()))?,
            backlog: gauge(
                "due_backlog",
                "Waves that are due and not claimed, counted up to 10,000.",
            )?,
            oldest,
            in_hand: sink_gauge(
                "dispatches_in_hand",
                "Dispatches in flight in this process.",
            )?,
            in_hand_max: sink_gauge(
                "dispatches_in_hand_max",
                "Maximum number of dispatches in flight in this process.",
            )?,
            unknown: sink_gauge(
                "dispatches_unknown",
                "Dispatches of unknown outcome, counted up to 10,000.",
            )?,
            dead: sink_gauge(
                "dispatches_dead",
                "Stored dead letters, counted up to 10,000.",
            )?,
            answers: registry.counters(
                Opts::new(
                    "canvas_scheduler_dispatch_answers_total",
                    "Delivery attempts, by the answer of the sink.",
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
            probing: sink_gauge(
                "sink_probing",
                "Whether the sink accepts nothing, so that only probes go to it.",
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

    /// Sets the maximum number of dispatches in flight, which is the number of workers.
    pub fn set_max_in_flight(&self, max: usize) {
        if let Some(handles) = &self.0 {
            handles.in_hand_max.set(signed(max));
        }
    }

    /// Records the seconds from when a wave was due to its first attempt.
    pub fn observe_lag(&self, lag: f64) {
        if let Some(handles) = &self.0 {
            handles.lag.observe(lag);
        }
    }

    /// Sets the number of dispatches in flight.
    pub fn set_in_flight(&self, dispatches: usize) {
        if let Some(handles) = &self.0 {
            handles.in_hand.set(signed(dispatches));
        }
    }

    /// Records the answer of the sink to an attempt.
    pub fn observe_attempt(&self, answer: &str, duration: Duration) {
        if let Some(handles) = &self.0 {
            handles.answers.count(answer);
            handles.durations.observe(duration.as_secs_f64());
        }
    }

    /// Sets whether the sink accepts nothing, so that only probes go to it.
    pub fn set_probing(&self, probing: bool) {
        if let Some(handles) = &self.0 {
            handles.probing.set(probing.into());
        }
    }

    /// The last value of [`Self::set_probing`].
    pub fn is_probing(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|handles| handles.probing.get() != 0)
    }

    /// Sets the waves that are due.
    pub fn set_backlog(&self, backlog: DueBacklog) {
        if let Some(handles) = &self.0 {
            handles.backlog.set(backlog.due);
            handles.oldest.set(backlog.oldest.as_secs_f64());
        }
    }

    /// Sets the dispatches by state.
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
