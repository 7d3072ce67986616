//! The baseline on PostgreSQL: pgbench, where each transaction is one statement that changes a row
//! and writes its history.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Fallible;
use super::support::Postgres;
use super::support::process::run;

/// The number of clients for the throughput that the service is compared with.
pub(crate) const CLIENTS: u64 = 32;

/// The length of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Length {
    /// In seconds.
    Seconds(u64),
    /// In transactions of each client.
    Transactions(u64),
}

/// The result of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Baseline {
    /// Transactions.
    pub updates: u64,
    /// Transactions a second.
    pub per_second: f64,
    /// The median latency in microseconds, measured with one client only.
    pub p50_us: f64,
}

/// Runs `script` over `clients` connections, with prepared statements. Fails if any transaction
/// fails.
pub(crate) fn measure(
    postgres: &Postgres,
    database: &str,
    script: &Path,
    clients: u64,
    length: Length,
) -> Fallible<Baseline> {
    let threads = clients.min(2).to_string();
    let (flag, count, timeout) = match length {
        Length::Seconds(seconds) => ("-T", seconds, seconds + 60),
        Length::Transactions(each) => ("-t", each, 3600),
    };
    let mut pgbench = postgres.client("pgbench", database);
    pgbench.args([
        "-n",
        "-M",
        "prepared",
        "-c",
        &clients.to_string(),
        "-j",
        &threads,
        flag,
        &count.to_string(),
    ]);
    pgbench.arg("-f").arg(script);
    let logs = script.with_extension("transactions");
    if clients == 1 {
        pgbench
            .arg("-l")
            .arg(format!("--log-prefix={}", logs.display()));
    }
    let printed = run(&mut pgbench, Duration::from_secs(timeout))?;
    let number = |after: &str| {
        let found = printed.lines().find_map(|line| {
            line.strip_prefix(after)?
                .split(['/', ' '])
                .next()?
                .parse::<f64>()
                .ok()
        });
        found.ok_or_else(|| format!("pgbench did not print \"{after}\": {printed}"))
    };
    if number("number of failed transactions: ")? > 0.0 {
        return Err(format!("transactions of pgbench failed: {printed}").into());
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count"
    )]
    let updates = number("number of transactions actually processed: ")? as u64;
    let p50_us = if clients == 1 {
        median_of_logs(&logs)?
    } else {
        0.0
    };
    Ok(Baseline {
        updates,
        per_second: number("tps = ")?,
        p50_us,
    })
}

/// The median of the third column of pgbench's logs, the transaction's microseconds. Removes the
/// files.
fn median_of_logs(prefix: &Path) -> Fallible<f64> {
    let folder = prefix.parent().ok_or("the log has no folder")?;
    let name = prefix
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let logs: Vec<PathBuf> = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|file| file.to_string_lossy().starts_with(&name))
        })
        .collect();
    let mut times: Vec<f64> = Vec::new();
    for log in logs {
        let text = fs::read_to_string(&log)?;
        times.extend(
            text.lines()
                .filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()),
        );
        fs::remove_file(log)?;
    }
    times.sort_by(f64::total_cmp);
    times
        .get(times.len() / 2)
        .copied()
        .ok_or_else(|| "pgbench logged no transaction".into())
}
