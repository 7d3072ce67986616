//! Gauges that are computed at each scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::{GaugeVec, Result};

use super::readiness::Readiness;
use super::tls::Tls;
use crate::clock::{Clock, SharedClock, SystemClock};
use crate::domain::zone;
use crate::layers::concurrency_limit::ConcurrencyLimit;
use crate::store::{Fill, Store};
use crate::telemetry::metrics::Metrics;

/// Database connections and the queues of the writers.
pub(super) fn of_store(metrics: &Metrics, store: &Store) -> Result<()> {
    let (queues, max) = (store.gauges(), store.gauges());
    metrics.gauges(
        "canvas_scheduler_commit_queue_depth",
        "Changes that wait for their writer.",
        &["writer"],
        move |gauges| {
            each_writer(gauges, &queues.queues(), |queue| queue.used);
        },
    )?;
    metrics.gauges(
        "canvas_scheduler_commit_queue_max",
        "Maximum number of changes that wait for their writer.",
        &["writer"],
        move |gauges| {
            each_writer(gauges, &max.queues(), |queue| queue.max);
        },
    )?;
    let (pools, max) = (store.gauges(), store.gauges());
    let (name, labels) = ("canvas_scheduler_database_connections", ["pool", "state"]);
    metrics.gauges(
        name,
        "Database connections in the pools.",
        &labels,
        move |gauges| {
            for (pool, fill) in pools.pools() {
                set(gauges, &[pool, "used"], fill.used);
                set(gauges, &[pool, "idle"], fill.idle);
            }
        },
    )?;
    metrics.gauges(
        "canvas_scheduler_database_connections_max",
        "Maximum number of database connections in the pool.",
        &["pool"],
        move |gauges| {
            for (pool, fill) in max.pools() {
                set(gauges, &[pool], fill.max);
            }
        },
    )
}

fn each_writer(gauges: &GaugeVec, queues: &[Fill], value: impl Fn(&Fill) -> usize) {
    for (n, queue) in queues.iter().enumerate() {
        set(gauges, &[&n.to_string()], value(queue));
    }
}

/// Calls in flight, and the connections of the worker threads.
pub(super) fn of_calls(
    metrics: &Metrics,
    concurrency: &ConcurrencyLimit,
    workers: Vec<Arc<AtomicUsize>>,
    max_connections: usize,
) -> Result<()> {
    let (now, max) = (concurrency.clone(), concurrency.clone());
    metrics.gauges(
        "canvas_scheduler_calls_in_flight",
        "Calls in flight.",
        &["kind"],
        move |gauges| {
            set(gauges, &["unary"], now.in_flight(false).0);
            set(gauges, &["stream"], now.in_flight(true).0);
        },
    )?;
    metrics.gauges(
        "canvas_scheduler_calls_in_flight_max",
        "Maximum number of calls in flight.",
        &["kind"],
        move |gauges| {
            set(gauges, &["unary"], max.in_flight(false).1);
            set(gauges, &["stream"], max.in_flight(true).1);
        },
    )?;
    let live = move || {
        number(
            workers
                .iter()
                .map(|live| live.load(Ordering::Relaxed))
                .sum(),
        )
    };
    metrics.gauge(
        "canvas_scheduler_connections",
        "Open connections of callers.",
        live,
    )?;
    metrics.gauge(
        "canvas_scheduler_connections_max",
        "Maximum number of open connections of callers.",
        move || number(max_connections),
    )
}

/// The state of the process.
pub(super) fn of_process(
    metrics: &Metrics,
    readiness: &Readiness,
    clock: &SharedClock,
    tls: Option<&Tls>,
) -> Result<()> {
    let (ready, up, pending) = (readiness.clone(), readiness.clone(), readiness.clone());
    metrics.gauge(
        "canvas_scheduler_ready",
        "Whether the process is ready.",
        move || flag(ready.reasons().is_empty()),
    )?;
    metrics.gauge(
        "canvas_scheduler_database_up",
        "Whether the database answered the last check.",
        move || flag(up.database_up()),
    )?;
    let pending = move || number(pending.migrations_pending());
    metrics.gauge(
        "canvas_scheduler_migrations_pending",
        "Migrations to apply before the process is ready.",
        pending,
    )?;
    let (steady, enabled) = (clock.clone(), clock.clone());
    metrics.gauge(
        "canvas_scheduler_clock_trusted",
        "Whether the clock is synchronized with the database.",
        move || flag(steady.unsteady().is_none()),
    )?;
    let offset = move || whole((enabled.now() - SystemClock.now()).num_milliseconds()) / 1e3;
    metrics.gauge(
        "canvas_scheduler_clock_offset_seconds",
        "The clock in use minus the clock of the machine.",
        offset,
    )?;
    if let Some(tls) = tls.cloned() {
        let name = "canvas_scheduler_certificate_expiry_timestamp_seconds";
        metrics.gauge(
            name,
            "When the certificate in use expires, in Unix seconds.",
            move || whole(tls.expires_at()),
        )?;
    }
    metrics.gauges(
        "canvas_scheduler_build_info",
        "The release and the version of its time zone data.",
        &["version", "time_zone_data"],
        |gauges| {
            set(
                gauges,
                &[env!("CARGO_PKG_VERSION"), zone::data_version()],
                1,
            );
        },
    )
}

fn set(gauges: &GaugeVec, labels: &[&str], value: usize) {
    gauges.with_label_values(labels).set(number(value));
}

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn number(count: usize) -> f64 {
    count as f64
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn whole(number: i64) -> f64 {
    number as f64
}
