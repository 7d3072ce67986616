//! The settings of a run, from `BENCH_*` variables.

#![allow(dead_code, reason = "shared: each bench uses a part of it")]

use std::env;
use std::str::FromStr;
use std::time::Duration;

use super::Fallible;

/// The kind of times in updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    /// Instants.
    Utc,
    /// Wall-clock times in each zone.
    Local,
}

/// The settings of a run.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The number of pending schedules to load.
    pub schedules: u64,
    /// The duration of each measurement after its warm-up.
    pub seconds: u64,
    /// The numbers of callers. Each one is a measurement.
    pub callers: Vec<u64>,
    /// Updates between the cold and the warm measurements; 0 skips the cold ones.
    pub warm_updates: u64,
    /// The kind of times in updates.
    pub workload: Workload,
    /// PostgreSQL's `wal_compression`.
    pub wal_compression: String,
    only: Option<String>,
}

/// The warm-up before each measurement.
pub(crate) const WARM_UP: Duration = Duration::from_secs(2);

impl Settings {
    /// Reads the variables.
    pub(crate) fn read() -> Fallible<Self> {
        let callers: Result<Vec<u64>, _> = text("BENCH_CALLERS", "1,32,64,256")
            .split(',')
            .map(|count| count.trim().parse())
            .collect();
        let settings = Self {
            schedules: number("BENCH_SCHEDULES", 1_000_000)?,
            seconds: number("BENCH_SECONDS", 8)?,
            callers: callers.map_err(|fault| format!("BENCH_CALLERS: {fault}"))?,
            warm_updates: number("BENCH_WARM_UPDATES", 0)?,
            workload: match text("BENCH_WORKLOAD", "utc").as_str() {
                "utc" => Workload::Utc,
                "local" => Workload::Local,
                other => {
                    return Err(format!("BENCH_WORKLOAD: {other}: use utc or local").into());
                }
            },
            wal_compression: text("BENCH_WAL_COMPRESSION", "off"),
            only: env::var("BENCH_ONLY").ok(),
        };
        let max_callers = settings.callers.iter().copied().max().unwrap_or(0);
        if settings.seconds == 0 || max_callers == 0 || settings.callers.contains(&0) {
            return Err(
                "BENCH_SECONDS and every number in BENCH_CALLERS must be greater than 0".into(),
            );
        }
        if !(max_callers..=20_000_000).contains(&settings.schedules) {
            return Err(format!(
                "BENCH_SCHEDULES must be from {max_callers} (the callers) to 20000000"
            )
            .into());
        }
        Ok(settings)
    }

    /// Whether to measure `database`.
    pub(crate) fn wants(&self, database: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == database)
    }
}

/// A variable's text.
pub(crate) fn text(name: &str, default: &str) -> String {
    env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// A variable's number.
pub(crate) fn number<T: FromStr<Err: std::fmt::Display>>(name: &str, default: T) -> Fallible<T> {
    match env::var(name) {
        Ok(value) => value
            .replace('_', "")
            .parse()
            .map_err(|fault| format!("{name}: {fault}").into()),
        Err(_) => Ok(default),
    }
}
