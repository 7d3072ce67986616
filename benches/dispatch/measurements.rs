//! The measurements: SQL makes schedules due, and the consumer records when they arrive.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::Fallible;
use super::consumer::{CountingSink, Tally, now_us};
use super::database::{self, DATABASE};
use super::load::{self, Order, Transport};
use super::machine::Cpu;
use super::open_loop::{Offer, Offered, Results};
use super::plan::{Plan, Setup};
use super::report::{Verdict, grouped, latency};
use super::rows::{self, Dialect, Times};
use super::server::Server;
use super::settings::Workload;
use super::support::Postgres;

/// The time from the insertion of schedules until the first is due.
const LEAD: Duration = Duration::from_secs(10);
/// How long before that instant updates start.
const UPDATES_LEAD: Duration = Duration::from_secs(1);
/// How long after the last due instant dispatches may arrive.
const MAX_LATENESS: Duration = Duration::from_secs(90);
/// How long after the last arrival the database must show it.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The seconds for which updates alone are measured.
const ALONE_SECONDS: u64 = 5;

/// Measures on PostgreSQL, or prints that it is not installed.
pub(crate) fn measure(plan: &Plan, verdict: &mut Verdict) -> Fallible<()> {
    let Some(postgres) = database::start(plan.schedules, &plan.wal_compression)? else {
        return Ok(());
    };
    let times = Times::of(Workload::Utc);
    database::load(&postgres, plan.schedules, &times)?;
    let sink = CountingSink::start()?;
    let mut next = plan.schedules;
    for setup in plan.setups() {
        let servers = start_all(&setup, &postgres, &sink)?;
        let mut run = Run {
            plan,
            postgres: &postgres,
            times,
            sink: &sink,
            setup,
            servers: &servers,
            next,
        };
        run.all(verdict)?;
        next = run.next;
        for server in servers {
            for warning in server.warnings().iter().take(3) {
                println!("dispatch {}: the service logged {warning}", setup.title);
            }
            server.stop()?;
        }
    }
    Ok(())
}

fn start_all(setup: &Setup, postgres: &Postgres, sink: &CountingSink) -> Fallible<Vec<Server>> {
    let (url, sink) = (postgres.url(DATABASE), sink.url());
    setup
        .roles
        .iter()
        .map(|roles| {
            Server::start(
                &url,
                &["--roles", roles, "--sink", "grpc", "--sink-url", &sink],
            )
        })
        .collect()
}

/// When schedules are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// All at the same instant.
    Together,
    /// One after the other.
    Steadily,
}

struct Run<'a> {
    plan: &'a Plan,
    postgres: &'a Postgres,
    times: Times,
    sink: &'a CountingSink,
    setup: Setup,
    servers: &'a [Server],
    /// The number of the next schedule that is inserted.
    next: u64,
}

impl Run<'_> {
    fn all(&mut self, verdict: &mut Verdict) -> Fallible<()> {
        self.measure(Due::Together, None, verdict)?;
        self.measure(Due::Steadily, None, verdict)?;
        let alone = self.alone(verdict)?;
        for due in [Due::Together, Due::Steadily] {
            self.measure(due, Some(alone / 2.0), verdict)?;
        }
        Ok(())
    }

    /// The acknowledged updates a second while nothing is due.
    fn alone(&self, verdict: &mut Verdict) -> Fallible<f64> {
        let title = format!("dispatch {} updates alone", self.setup.title);
        let order = Order {
            transport: Transport::Grpc,
            address: self.servers[0].address().to_owned(),
            key: self.servers[0].key().to_owned(),
            callers: self.plan.callers,
            schedules: self.plan.schedules,
            seconds: ALONE_SECONDS,
            times: self.times,
        };
        let report = load::in_own_process(&order)?;
        verdict.check_calls(&title, &report);
        println!(
            "{title} {}/s p99 {}",
            grouped(report.per_second),
            latency(report.p99_us)
        );
        Ok(report.per_second)
    }

    fn measure(&mut self, due: Due, updates: Option<f64>, verdict: &mut Verdict) -> Fallible<()> {
        let suffix = if updates.is_some() {
            " with updates"
        } else {
            ""
        };
        let title = format!(
            "dispatch {} {}{suffix}",
            self.setup.title,
            if due == Due::Together {
                "drain"
            } else {
                "steady"
            }
        );
        let schedules = self.next
            ..self.next
                + if due == Due::Together {
                    self.plan.due
                } else {
                    self.plan.steady()
                };
        self.next = schedules.end;
        self.sink.expect(schedules.clone());
        let lead = i64::try_from(LEAD.as_micros())?;
        let begin = Instant::now() + LEAD;
        let begin_us = now_us() + lead;
        self.insert(&schedules, due, begin_us / 1000)?;
        let Some(left) = begin.checked_duration_since(Instant::now() + UPDATES_LEAD) else {
            return Err(format!("{title}: the schedules were not inserted within {LEAD:?}").into());
        };
        std::thread::sleep(left);
        let offered = updates.map(|per_second| Offered::start(self.offer(per_second)));
        let before = self.cpu();
        let last_due = begin
            + if due == Due::Together {
                Duration::ZERO
            } else {
                Duration::from_secs(self.plan.seconds)
            };
        let tally = self.sink.tally(last_due + MAX_LATENESS);
        let cpu = self.cpu().since(before);
        let results = offered.map(Offered::end).transpose()?;
        println!("{title} {}", line(&tally, begin_us));
        println!(
            "{title}: processor per 1,000 dispatches: {}",
            cpu.per_thousand(tally.lags.len())
        );
        if let Some(results) = results {
            print_results(&title, &results);
        }
        self.check(&title, &schedules, &tally, verdict)
    }

    fn offer(&self, per_second: f64) -> Offer {
        Offer {
            address: self.servers[0].address().to_owned(),
            key: self.servers[0].key().to_owned(),
            per_second,
            schedules: self.plan.schedules,
            times: self.times,
        }
    }

    fn cpu(&self) -> Cpu {
        Cpu::now(self.servers.iter().map(Server::pid), Some(self.postgres))
    }

    /// Inserts these schedules, due from `begin_ms` on.
    fn insert(&self, schedules: &Range<u64>, due: Due, begin_ms: i64) -> Fallible<()> {
        let time = match due {
            Due::Together => format!("{begin_ms}"),
            Due::Steadily => format!(
                "{begin_ms} + (i - {}) * 1000 / {}",
                schedules.start, self.plan.per_second
            ),
        };
        for statement in rows::insert(Dialect::Postgres, schedules.clone(), &time, &self.times) {
            self.postgres.psql(DATABASE, &statement)?;
        }
        Ok(())
    }

    /// Checks that each dispatch arrived once, none early, and that the database has all as
    /// delivered.
    fn check(
        &self,
        title: &str,
        schedules: &Range<u64>,
        tally: &Tally,
        verdict: &mut Verdict,
    ) -> Fallible<()> {
        let counts = [
            ("did not arrive", tally.missing() as u64),
            ("arrived twice", tally.twice),
            ("arrived early", tally.early),
            ("were not expected", tally.unexpected),
        ];
        for (what, count) in counts.iter().filter(|(_, count)| *count > 0) {
            verdict.fault(&format!("{title}: {count} dispatches {what}"));
        }
        let sql = format!(
            "SELECT count(*) FROM dispatch WHERE workspace_id = 1 AND schedule_id BETWEEN '{}' AND '{}' AND finished_ms IS NOT NULL",
            rows::id(schedules.start),
            rows::id(schedules.end - 1)
        );
        let (until, expected) = (
            Instant::now() + SETTLE_TIMEOUT,
            schedules.end - schedules.start,
        );
        let mut written: u64 = self.postgres.psql(DATABASE, &sql)?.parse()?;
        while written < expected && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
            written = self.postgres.psql(DATABASE, &sql)?.parse()?;
        }
        if written != expected {
            verdict.fault(&format!(
                "{title}: the database has {written} of {expected} dispatches as delivered"
            ));
        }
        Ok(())
    }
}

/// `12,345/s lag p50 1.2 ms p99 8.9 ms max 12.0 ms`
#[allow(
    clippy::cast_precision_loss,
    reason = "counts and microseconds far below 2^53"
)]
fn line(tally: &Tally, begin_us: i64) -> String {
    let seconds = (tally.last_us - begin_us).max(1) as f64 / 1e6;
    let lag = |quantile| latency(tally.lags.value_at_quantile(quantile));
    let per_second = grouped(tally.lags.len() as f64 / seconds);
    format!(
        "{per_second}/s lag p50 {} p99 {} max {}",
        lag(0.5),
        lag(0.99),
        lag(1.0)
    )
}

#[allow(clippy::cast_precision_loss, reason = "a count of updates")]
fn print_results(title: &str, results: &Results) {
    let share = 100.0 * results.acknowledged as f64 / results.offered.max(1) as f64;
    let p99 = latency(results.latencies.value_at_quantile(0.99));
    println!(
        "{title}: {share:.2} % of {} offered updates acknowledged, p99 {p99}",
        grouped(results.offered as f64)
    );
    if let Some(why) = &results.first_failure {
        println!("{title}: the first update that failed: {why}");
    }
}
