//! Metrics, in the format of Prometheus; docs/metrics.md lists them. Every handle is resolved before it is used, so that what
//! happens costs a few atomic additions (docs/adr/0008). Handles that are made by default tell nobody.

mod calls;
mod sending;
mod writes;

use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    PullingGauge, Registry, Result, TextEncoder,
};

pub use calls::{Calls, Connections};
pub use sending::{Backlog, Sending, Standing};
pub use writes::{Failure, Writes};

/// Up to a minute, finer where calls and commits usually are.
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// The metrics of a process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    shelf: Shelf,
    /// Of calls.
    pub calls: Calls,
    /// Of connections.
    pub connections: Connections,
    /// Of what is written.
    pub writes: Writes,
}

impl Metrics {
    /// Those of every process, and what the operating system says of it.
    ///
    /// # Errors
    /// Never in practice: two of one name.
    pub fn new() -> Result<Self> {
        let shelf = Shelf(Registry::new());
        shelf.put(ProcessCollector::for_self())?;
        let (calls, connections, writes) = (
            Calls::on(&shelf)?,
            Connections::on(&shelf)?,
            Writes::on(&shelf)?,
        );
        Ok(Self {
            shelf,
            calls,
            connections,
            writes,
        })
    }

    /// Those of a process that sends to `sink`.
    ///
    /// # Errors
    /// There is one already.
    pub fn sending(&self, sink: &str) -> Result<Sending> {
        Sending::on(&self.shelf, sink)
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
        self.shelf
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
        self.shelf.put(Looked {
            gauges,
            look: Arc::new(look),
        })
    }

    /// All of them as Prometheus reads them.
    ///
    /// # Errors
    /// Never in practice: a metric without a name.
    pub fn text(&self) -> Result<String> {
        TextEncoder::new().encode_to_string(&self.shelf.0.gather())
    }
}

/// Gauges whose values are looked up.
struct Looked<F> {
    gauges: GaugeVec,
    look: Arc<F>,
}

impl<F: Fn(&GaugeVec) + Send + Sync> Collector for Looked<F> {
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
struct Shelf(Registry);

impl Shelf {
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
    ) -> Result<Counters<N>> {
        let made = IntCounterVec::new(opts, &[label])?;
        self.put(made.clone())?;
        Ok(Counters(
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
struct Counters<const N: usize>([(&'static str, IntCounter); N]);

impl<const N: usize> Counters<N> {
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
        metrics.calls.refused("KEY_UNKNOWN");
        metrics.calls.shed(true);
        metrics.connections.refused(true);
        metrics.writes.taken(17);
        metrics.writes.failed(Failure::Away);
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
        Calls::default().refused("KEY_UNKNOWN");
        Writes::default().taken(1);
        Sending::default().fired(0.1);
        assert!(
            Metrics::new().is_ok(),
            "and nothing is shared between processes' metrics"
        );
    }
}
