//! Metrics in the Prometheus text format, listed in docs/metrics.md. Every metric is resolved
//! before it is used, so that an update costs a few atomic additions (docs/adr/0008). The default
//! of each handle records nothing.

mod calls;
mod commit;
mod dispatch;

use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    PullingGauge, Registry, Result, TextEncoder,
};

pub use calls::{CallMetrics, ConnectionMetrics};
pub use commit::{CommitFailure, CommitMetrics};
pub use dispatch::{DispatchMetrics, DispatchTotals, DueBacklog};

/// Buckets up to a minute, finer in the usual range of calls and commits.
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// The metrics of a process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: MetricRegistry,
    /// Metrics of calls.
    pub calls: CallMetrics,
    /// Metrics of connections.
    pub connections: ConnectionMetrics,
    /// Metrics of the group commit.
    pub commit: CommitMetrics,
}

impl Metrics {
    /// Registers the metrics of every process and those that the operating system keeps about it.
    pub fn new() -> Result<Self> {
        let registry = MetricRegistry(Registry::new());
        registry.register(ProcessCollector::for_self())?;
        let (calls, connections, commit) = (
            CallMetrics::register(&registry)?,
            ConnectionMetrics::register(&registry)?,
            CommitMetrics::register(&registry)?,
        );
        Ok(Self {
            registry,
            calls,
            connections,
            commit,
        })
    }

    /// Registers the metrics of a dispatcher that delivers to `sink`.
    pub fn dispatch(&self, sink: &str) -> Result<DispatchMetrics> {
        DispatchMetrics::register(&self.registry, sink)
    }

    /// Registers a gauge whose value each scrape reads by calling `read`.
    pub fn gauge(
        &self,
        name: &str,
        help: &str,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) -> Result<()> {
        self.registry
            .register(PullingGauge::new(name, help, Box::new(read))?)
    }

    /// Registers labelled gauges that each scrape sets by calling `set`.
    pub fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        set: impl Fn(&GaugeVec) + Send + Sync + 'static,
    ) -> Result<()> {
        let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
        self.registry.register(ScrapedGauges {
            gauges,
            set: Arc::new(set),
        })
    }

    /// All metrics in the Prometheus text format.
    pub fn text(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.0.gather())
    }
}

/// Gauges that are set when they are scraped.
struct ScrapedGauges<F> {
    gauges: GaugeVec,
    set: Arc<F>,
}

impl<F: Fn(&GaugeVec) + Send + Sync> Collector for ScrapedGauges<F> {
    fn desc(&self) -> Vec<&prometheus::core::Desc> {
        self.gauges.desc()
    }

    fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
        (self.set)(&self.gauges);
        self.gauges.collect()
    }
}

/// Creates and registers metrics.
#[derive(Clone)]
struct MetricRegistry(Registry);

impl MetricRegistry {
    fn register(&self, metric: impl Collector + 'static) -> Result<()> {
        self.0.register(Box::new(metric))
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        let metric = IntCounter::new(name, help)?;
        self.register(metric.clone())?;
        Ok(metric)
    }

    /// A counter for each value of a label.
    fn counters<const N: usize>(
        &self,
        opts: Opts,
        label: &str,
        values: [&'static str; N],
    ) -> Result<LabelCounters<N>> {
        let metric = IntCounterVec::new(opts, &[label])?;
        self.register(metric.clone())?;
        Ok(LabelCounters(
            values.map(|value| (value, metric.with_label_values(&[value]))),
        ))
    }

    fn gauge(&self, opts: Opts) -> Result<IntGauge> {
        let metric = IntGauge::with_opts(opts)?;
        self.register(metric.clone())?;
        Ok(metric)
    }

    fn histogram(&self, opts: HistogramOpts) -> Result<Histogram> {
        let metric = Histogram::with_opts(opts)?;
        self.register(metric.clone())?;
        Ok(metric)
    }

    fn histograms(&self, opts: HistogramOpts, labels: &[&str]) -> Result<HistogramVec> {
        let metric = HistogramVec::new(opts, labels)?;
        self.register(metric.clone())?;
        Ok(metric)
    }
}

/// A counter for each value of a label, all of them exported from the start as 0.
struct LabelCounters<const N: usize>([(&'static str, IntCounter); N]);

impl<const N: usize> LabelCounters<N> {
    /// Increments the counter of a value. An unknown value is ignored.
    fn count(&self, name: &str) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == name) {
            counter.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_values_are_in_the_text() {
        let metrics = Metrics::new().expect("unique names");
        metrics.calls.count_refused("KEY_UNKNOWN");
        metrics.calls.count_shed(true);
        metrics.connections.count_refused(true);
        metrics.commit.observe_batch(17);
        metrics.commit.count_failure(CommitFailure::Away);
        metrics
            .gauge("three", "A number.", || 3.0)
            .expect("a new name");
        metrics
            .gauges("many", "Numbers.", &["n"], |gauges| {
                gauges.with_label_values(&["a"]).set(4.0)
            })
            .expect("a new name");
        let text = metrics.text().expect("a text");
        for line in [
            "canvas_scheduler_auth_refusals_total{reason=\"KEY_UNKNOWN\"} 1",
            "canvas_scheduler_auth_refusals_total{reason=\"KEY_EXPIRED\"} 0",
            "canvas_scheduler_calls_shed_total{kind=\"stream\"} 1",
            "canvas_scheduler_connections_refused_total{reason=\"address\"} 1",
            "canvas_scheduler_commit_batch_size_bucket{le=\"16\"} 0",
            "canvas_scheduler_commit_batch_size_bucket{le=\"32\"} 1",
            "canvas_scheduler_commit_failures_total{reason=\"away\"} 1",
            "three 3",
            "many{n=\"a\"} 4",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} in\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes "));
    }

    #[test]
    fn default_handles_record_nothing() {
        CallMetrics::default().count_refused("KEY_UNKNOWN");
        CommitMetrics::default().observe_batch(1);
        DispatchMetrics::default().observe_lag(0.1);
        assert!(
            Metrics::new().is_ok(),
            "two registries in one process share nothing"
        );
    }
}
