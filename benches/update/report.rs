//! The lines that the run prints, one for each result, so that grep can find them.

#![allow(dead_code, reason = "shared: each bench uses a part of it")]

use super::load::Report;

/// The largest accepted ratio of two baselines.
const MAX_DRIFT: f64 = 1.25;

/// Counts failed checks and prints each one.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    faults: u32,
}

impl Verdict {
    /// Records and prints a failed check.
    pub(crate) fn fault(&mut self, what: &str) {
        self.faults += 1;
        println!("FAULT {what}");
    }

    /// Checks that a measurement has no failures.
    pub(crate) fn check_calls(&mut self, title: &str, report: &Report) {
        if report.failures > 0 {
            let first = report.first_failure.as_deref().unwrap_or("unknown");
            self.fault(&format!(
                "{title}: {} calls failed, the first: {first}",
                report.failures
            ));
        }
    }

    /// Whether every check passed.
    pub(crate) fn is_clean(&self) -> bool {
        self.faults == 0
    }
}

/// `postgres 64 callers ratio 2.13 (31,200/s against 14,650/s) p50 1.9 ms p99 4.2 ms p99.9 9.1 ms`
pub(crate) fn throughput(title: &str, report: &Report, baseline: f64) {
    println!(
        "{title} ratio {:.2} ({}/s against {}/s) p50 {} p99 {} p99.9 {}",
        report.per_second / baseline,
        grouped(report.per_second),
        grouped(baseline),
        latency(report.p50_us),
        latency(report.p99_us),
        latency(report.p999_us),
    );
}

/// `postgres 1 caller p50 ratio 1.62 (355 us against 219 us)`, after the throughput of the same
/// run.
pub(crate) fn p50(title: &str, report: &Report, baseline_us: f64) {
    #[allow(clippy::cast_precision_loss, reason = "microseconds")]
    let p50_us = report.p50_us as f64;
    println!(
        "{title} p50 ratio {:.2} ({p50_us:.0} us against {baseline_us:.0} us)",
        p50_us / baseline_us
    );
}

/// `64 callers`, `1 caller`.
pub(crate) fn callers(count: u64) -> String {
    if count == 1 {
        "1 caller".to_owned()
    } else {
        format!("{count} callers")
    }
}

/// Prints a warning if the baselines before and after a measurement are too far apart for their
/// mean to be useful. The speed of the machine changed, so the printed ratio is not a valid result.
pub(crate) fn steadiness(title: &str, before: f64, after: f64) {
    let apart = before.max(after) / before.min(after);
    if apart > MAX_DRIFT {
        println!(
            "{title} UNSTEADY: the baseline went from {}/s to {}/s, measure again",
            grouped(before),
            grouped(after)
        );
    }
}

/// A whole number with a comma between thousands.
pub(crate) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `640 us`, `12.3 ms`.
#[allow(clippy::cast_precision_loss, reason = "microseconds")]
pub(crate) fn latency(micros: u64) -> String {
    if micros < 1000 {
        format!("{micros} us")
    } else {
        format!("{:.1} ms", micros as f64 / 1000.0)
    }
}
