//! The settings of a run, from `BENCH_*` variables, and the processes that it measures.

use super::Fallible;
use super::settings::{number, text};

/// The service as one or more processes over one database.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    /// The name in `BENCH_ONLY`.
    pub name: &'static str,
    /// The title in the output.
    pub title: &'static str,
    /// The roles of each process. The first process receives the updates.
    pub roles: &'static [&'static str],
}

const BOTH: &str = "api,dispatcher";

const SETUPS: [Setup; 3] = [
    Setup {
        name: "one",
        title: "one process",
        roles: &[BOTH],
    },
    Setup {
        name: "two",
        title: "two processes",
        roles: &[BOTH, BOTH],
    },
    Setup {
        name: "apart",
        title: "api and dispatcher apart",
        roles: &["api", "dispatcher"],
    },
];

/// The settings of a run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Pending schedules that do not become due.
    pub schedules: u64,
    /// Schedules that are due at the same instant.
    pub due: u64,
    /// How many seconds schedules are due steadily.
    pub seconds: u64,
    /// How many of them are due a second.
    pub per_second: u64,
    /// The number of callers that measure updates alone.
    pub callers: u64,
    /// PostgreSQL's `wal_compression`.
    pub wal_compression: String,
    only: String,
}

impl Plan {
    /// Reads the variables.
    pub(crate) fn read() -> Fallible<Self> {
        let plan = Self {
            schedules: number("BENCH_SCHEDULES", 1_000_000)?,
            due: number("BENCH_DUE", 100_000)?,
            seconds: number("BENCH_SECONDS", 60)?,
            per_second: number("BENCH_PER_SECOND", 1_000)?,
            callers: number("BENCH_CALLERS", 64)?,
            wal_compression: text("BENCH_WAL_COMPRESSION", "off"),
            only: text("BENCH_ONLY", ""),
        };
        if [plan.due, plan.seconds, plan.per_second, plan.callers].contains(&0) {
            return Err(
                "BENCH_DUE, BENCH_SECONDS, BENCH_PER_SECOND and BENCH_CALLERS must be greater than 0"
                    .into(),
            );
        }
        if plan.due > 1_000_000 || plan.steady() > 1_000_000 {
            return Err(
                "BENCH_DUE, and BENCH_SECONDS times BENCH_PER_SECOND, must not exceed 1000000"
                    .into(),
            );
        }
        if !(plan.callers..=10_000_000).contains(&plan.schedules) {
            return Err(format!(
                "BENCH_SCHEDULES must be from {} (the callers) to 10000000",
                plan.callers
            )
            .into());
        }
        Ok(plan)
    }

    /// How many schedules are due steadily.
    pub(crate) fn steady(&self) -> u64 {
        self.seconds.saturating_mul(self.per_second)
    }

    /// The setups to measure.
    pub(crate) fn setups(&self) -> impl Iterator<Item = Setup> {
        SETUPS.into_iter().filter(|setup| {
            self.only.is_empty() || self.only.split(',').any(|name| name.trim() == setup.name)
        })
    }
}
