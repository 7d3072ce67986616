//! Metrics, in the format of Prometheus; docs/metrics.md lists them. Every handle is resolved
//! before it is used, so that what happens costs a few atomic additions (docs/adr/0008). Handles
//! that are made by default tell nobody.

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

/// Up to a minute, finer where calls and commits usually are.
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// The metrics of a process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: MetricRegistry,
    /// Of calls.
    pub calls: CallMetrics,
    /// Of connections.
    pub connections: ConnectionMetrics,
    /// Of what is written.
    pub commit: CommitMetrics,
}

impl Metrics {
    /// Those of every process, and what the operating system says of it.
    ///
    /// # Errors
    /// Never in practice: two of one name.
    pub fn new() -> Result<Self> {
        let registry = MetricRegistry(Registry::new());
        registry.put(ProcessCollector::for_self())?;
        let (calls, connections, commit) = (
            CallMetrics::on(&registry)?,
            ConnectionMetrics::on(&registry)?,
            CommitMetrics::on(&registry)?,
        );
        Ok(Self {
            registry,
            calls,
            connections,
            commit,
        })
    }

    /// Those of a process that sends to `sink`.
    ///
    /// # Errors
    /// There is one already.
    pub fn dispatch(&self, sink: &str) -> Result<DispatchMetrics> {
        DispatchMetrics::on(&self.registry, sink)
    }

    /// A gauge that is looked up at each scrape.
    ///
    /// # Errors
    /// There is one of this name.
    pub fn gauge(
        &self,
        name: &str,
        help: &str,
        look: impl Fn() -> f64 + Send + Sync + 'static,
    ) -> Result<()> {
        self.registry
            .put(PullingGauge::new(name, help, Box::new(look))?)
    }

    /// Gauges that `look` sets at each scrape.
    ///
    /// # Errors
    /// There are some of this name.
    pub fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        look: impl Fn(&GaugeVec) + Send + Sync + 'static,
    ) -> Result<()> {
        let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
        self.registry.put(ScrapedGauges {
            gauges,
            look: Arc::new(look),
        })
    }

    /// All of them as Prometheus reads them.
    ///
    /// # Errors
    /// Never in practice: a metric without a name.
    pub fn text(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.0.gather())
    }
}

/// Gauges whose values are looked up.
struct ScrapedGauges<F> {
    gauges: GaugeVec,
    look: Arc<F>,
}

impl<F: Fn(&GaugeVec) + Send + Sync> Collector for ScrapedGauges<F> {
    fn desc(&self) -> Vec<&prometheus::core::Desc> {
        self.gauges.desc()
    }

    fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
        (self.look)(&self.gauges);
        self.gauges.collect()
    }
}

/// Where handles are made.
#[derive(Clone)]
struct MetricRegistry(Registry);

impl MetricRegistry {
    fn put(&self, metric: impl Collector + 'static) -> Result<()> {
        self.0.register(Box::new(metric))
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        let made = IntCounter::new(name, help)?;
        self.put(made.clone())?;
        Ok(made)
    }

    /// A counter for each value of its one label.
    fn counters<const N: usize>(
        &self,
        opts: Opts,
        label: &str,
        values: [&'static str; N],
    ) -> Result<LabelCounters<N>> {
        let made = IntCounterVec::new(opts, &[label])?;
        self.put(made.clone())?;
        Ok(LabelCounters(
            values.map(|value| (value, made.with_label_values(&[value]))),
        ))
    }

    fn gauge(&self, opts: Opts) -> Result<IntGauge> {
        let made = IntGauge::with_opts(opts)?;
        self.put(made.clone())?;
        Ok(made)
    }

    fn histogram(&self, opts: HistogramOpts) -> Result<Histogram> {
        let made = Histogram::with_opts(opts)?;
        self.put(made.clone())?;
        Ok(made)
    }

    fn histograms(&self, opts: HistogramOpts, labels: &[&str]) -> Result<HistogramVec> {
        let made = HistogramVec::new(opts, labels)?;
        self.put(made.clone())?;
        Ok(made)
    }
}

/// A counter for each of a few names, which are there from the start, at 0.
struct LabelCounters<const N: usize>([(&'static str, IntCounter); N]);

impl<const N: usize> LabelCounters<N> {
    /// Counts one. A name that is none of them counts nowhere.
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
    fn what_happened_is_in_the_text() {
        let metrics = Metrics::new().expect("names that are good");
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
    fn handles_by_default_tell_nobody_and_do_no_harm() {
        CallMetrics::default().count_refused("KEY_UNKNOWN");
        CommitMetrics::default().observe_batch(1);
        DispatchMetrics::default().observe_lag(0.1);
        assert!(
            Metrics::new().is_ok(),
            "and nothing is shared between processes' metrics"
        );
    }
}
