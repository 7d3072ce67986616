//! The machine that the figures depend on, and the processor time of processes.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use super::Fallible;
use super::support::process::run;
use super::support::{Postgres, children_of};

/// The ticks a second in `/proc`.
fn ticks_per_second() -> f64 {
    run(
        Command::new("getconf").arg("CLK_TCK"),
        Duration::from_secs(5),
    )
    .ok()
    .and_then(|ticks| ticks.trim().parse().ok())
    .unwrap_or(100.0)
}

/// The ticks of a process, and those of the children that it has waited for.
fn ticks(pid: u32) -> (f64, f64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |parts| parts.1);
    let field = |n: usize| {
        after_name
            .split_whitespace()
            .nth(n)
            .and_then(|ticks| ticks.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    // Fields 14 to 17 of the line; the first after the name is the third.
    (field(11) + field(12), field(13) + field(14))
}

/// The ticks of a process and all its children. A child that ends during the reading may be missing
/// from both sums, so it reads again.
fn ticks_with_children(pid: u32) -> f64 {
    let read = || {
        let before = ticks(pid);
        let children = children_of(pid);
        let of_children: f64 = children.iter().map(|child| ticks(*child).0).sum();
        let settled = ticks(pid).1 <= before.1 && children_of(pid) == children;
        (before.0 + before.1 + of_children, settled)
    };
    for _ in 0..50 {
        if let (sum, true) = read() {
            return sum;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    read().0
}

/// Processor seconds used so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cpu {
    /// The service's processes.
    pub server: f64,
    /// PostgreSQL, with all its backends.
    pub postgres: f64,
    /// The load generators that have ended.
    pub load: f64,
    /// This process.
    pub own: f64,
}

impl Cpu {
    /// Reads the processor time of all processes.
    pub(crate) fn now(servers: impl IntoIterator<Item = u32>, postgres: Option<&Postgres>) -> Self {
        let own = ticks(std::process::id());
        let of_postgres = postgres
            .and_then(Postgres::pid)
            .map_or(0.0, ticks_with_children);
        let per_second = ticks_per_second();
        Self {
            server: servers.into_iter().map(|pid| ticks(pid).0).sum::<f64>() / per_second,
            postgres: of_postgres / per_second,
            load: own.1 / per_second,
            own: own.0 / per_second,
        }
    }

    /// The processor time used since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            server: self.server - before.server,
            postgres: self.postgres - before.postgres,
            load: self.load - before.load,
            own: self.own - before.own,
        }
    }

    /// Formats the milliseconds for 1,000 updates or dispatches, by process.
    pub(crate) fn per_thousand(&self, count: u64) -> String {
        let named = [
            ("service", self.server),
            ("postgres", self.postgres),
            ("load", self.load),
            ("in process", self.own),
        ];
        #[allow(
            clippy::cast_precision_loss,
            reason = "a count of updates or dispatches"
        )]
        let thousands = (count.max(1) as f64) / 1000.0;
        let shares = named.iter().filter(|(_, seconds)| *seconds > 0.02);
        let shares: Vec<String> = shares
            .map(|(name, seconds)| format!("{name} {:.0} ms", seconds * 1000.0 / thousands))
            .collect();
        shares.join(", ")
    }
}

/// Describes the machine.
pub(crate) fn description() -> Fallible<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let model = value(&cpuinfo, "model name").unwrap_or("unknown");
    let memory = value(&meminfo, "MemTotal").unwrap_or("unknown");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    Ok(format!(
        "machine: {cores} cores of {model}, {memory} of memory, kernel {}",
        kernel.trim()
    ))
}

/// Describes how long the disk takes to make a page durable. On a shared machine this varies from
/// minute to minute.
pub(crate) fn sync_line(when: &str) -> Fallible<String> {
    let (p50, p99) = sync_time()?;
    Ok(format!(
        "machine: 8 KiB written and synced in the temporary folder {when}: p50 {p50:.0?}, p99 {p99:.0?}"
    ))
}

fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

/// p50 and p99 of writing 8 KiB and making it durable.
fn sync_time() -> Fallible<(Duration, Duration)> {
    let path = std::env::temp_dir().join(format!("canvas-scheduler-sync-{}", std::process::id()));
    let times = File::create(&path).and_then(|file| sync_times(file, 200));
    fs::remove_file(&path)?;
    let mut times = times?;
    times.sort_unstable();
    Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
}

fn sync_times(mut file: File, count: usize) -> std::io::Result<Vec<Duration>> {
    let page = [7_u8; 8192];
    file.write_all(&page)?;
    file.sync_all()?;
    let mut once = || {
        let begin = Instant::now();
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&page)?;
        file.sync_data()?;
        Ok(begin.elapsed())
    };
    (0..count).map(|_| once()).collect()
}
