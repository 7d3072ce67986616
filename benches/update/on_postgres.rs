//! The run on PostgreSQL. Baseline and service take turns, so that noise of the machine affects
//! both.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Fallible;
use super::admission;
use super::database::{self, DATABASE};
use super::load::{self, Order, Report, Transport};
use super::machine::Cpu;
use super::pgbench::{self, Baseline, CLIENTS, Length};
use super::report::{self, Verdict, callers, grouped};
use super::rows::{self, Times};
use super::server::Server;
use super::settings::{Settings, WARM_UP};
use super::support::Postgres;

/// The number of callers for the comparison of the transports.
const TRANSPORT_CALLERS: u64 = 64;
/// How long backends may take to report their statistics.
const STATISTICS_TIMEOUT: Duration = Duration::from_secs(20);

/// Measures on PostgreSQL, or prints that it is not installed.
pub(crate) fn measure(settings: &Settings, verdict: &mut Verdict) -> Fallible<()> {
    let Some(postgres) = database::start(settings.schedules, &settings.wal_compression)? else {
        return Ok(());
    };
    let mut run = Run::prepare(settings, postgres)?;
    if settings.warm_updates > 0 {
        run.cold(verdict)?;
    }
    run.warm_up()?;
    run.warm(verdict)?;
    run.check_history(verdict)
}

/// The database's counters.
#[derive(Debug, Clone, Copy)]
struct Counters {
    wal_bytes: f64,
    updated: f64,
    hot: f64,
}

/// The counters before a measurement.
struct Before {
    counters: Counters,
    cpu: Cpu,
}

struct Run<'a> {
    settings: &'a Settings,
    postgres: Postgres,
    times: Times,
    script: PathBuf,
    /// The expected sum of all revisions.
    revisions: u64,
    /// The processor time for the key and the quota of a call.
    admission: Duration,
}

impl<'a> Run<'a> {
    fn prepare(settings: &'a Settings, postgres: Postgres) -> Fallible<Self> {
        let times = Times::of(settings.workload);
        database::load(&postgres, settings.schedules, &times)?;
        let script = postgres.folder().join("update.sql");
        fs::write(&script, rows::pgbench_script(settings.schedules, &times))?;
        Ok(Self {
            settings,
            postgres,
            times,
            script,
            revisions: settings.schedules,
            admission: admission::cost()?,
        })
    }

    /// Measures after a restart and a checkpoint: shared buffers are empty, and the first change of
    /// each page logs the full page.
    fn cold(&mut self, verdict: &mut Verdict) -> Fallible<()> {
        self.checkpoint_and_restart()?;
        let cold = self.baseline(
            "postgres cold",
            CLIENTS,
            Length::Seconds(self.settings.seconds),
            verdict,
        )?;
        for count in [64, 256] {
            self.checkpoint_and_restart()?;
            let server = Server::start(&self.postgres.url(DATABASE), &[])?;
            let title = format!("postgres cold {}", callers(count));
            let (report, _) = self.service(&title, &server, (Transport::Grpc, count), verdict)?;
            report::throughput(&title, &report, cold.per_second);
            server.stop()?;
        }
        Ok(())
    }

    fn checkpoint_and_restart(&mut self) -> Fallible<()> {
        self.postgres.psql(DATABASE, "CHECKPOINT")?;
        Ok(self.postgres.restart()?)
    }

    /// Updates until most pages are in shared buffers and were logged in full since the last
    /// checkpoint.
    fn warm_up(&mut self) -> Fallible<()> {
        let length = match self.settings.warm_updates {
            0 => Length::Seconds(self.settings.seconds),
            updates => Length::Transactions(updates.div_ceil(CLIENTS)),
        };
        let begin = Instant::now();
        let done = pgbench::measure(&self.postgres, DATABASE, &self.script, CLIENTS, length)?;
        self.revisions += done.updates;
        #[allow(clippy::cast_precision_loss, reason = "a count of updates")]
        let updates = done.updates as f64;
        println!(
            "postgres warmed by {} updates in {:.0?}",
            grouped(updates),
            begin.elapsed()
        );
        Ok(())
    }

    /// Alternates between baseline and service, so that each measurement of the service is between
    /// two of the baseline.
    fn warm(&mut self, verdict: &mut Verdict) -> Fallible<()> {
        let server = Server::start(&self.postgres.url(DATABASE), &[])?;
        let length = Length::Seconds(self.settings.seconds);
        let mut last: Option<(u64, Baseline)> = None;
        for &count in &self.settings.callers {
            let clients = if count == 1 { 1 } else { CLIENTS };
            let before = match last {
                Some((of, baseline)) if of == clients => baseline,
                _ => self.baseline("postgres", clients, length, verdict)?,
            };
            let title = format!("postgres {}", callers(count));
            let (report, _) = self.service(&title, &server, (Transport::Grpc, count), verdict)?;
            let after = self.baseline("postgres", clients, length, verdict)?;
            report::throughput(
                &title,
                &report,
                f64::midpoint(before.per_second, after.per_second),
            );
            report::steadiness(&title, before.per_second, after.per_second);
            if clients == 1 {
                report::p50(&title, &report, f64::midpoint(before.p50_us, after.p50_us));
            }
            last = Some((clients, after));
        }
        self.transports(&server, verdict)?;
        server.stop()
    }

    /// Compares the processor time for an update by transport. The transports take turns, so that
    /// noise of the machine affects both.
    fn transports(&mut self, server: &Server, verdict: &mut Verdict) -> Fallible<()> {
        let transports = [
            Transport::Grpc,
            Transport::Rest,
            Transport::Grpc,
            Transport::Rest,
        ];
        let mut costs = Vec::new();
        for transport in transports {
            let title = format!("postgres {} by {transport:?}", callers(TRANSPORT_CALLERS));
            let (report, cost) =
                self.service(&title, server, (transport, TRANSPORT_CALLERS), verdict)?;
            println!(
                "{title}: {}/s, {cost:.1} us of the service's processor for an update",
                grouped(report.per_second)
            );
            costs.push(cost);
        }
        let (grpc, rest) = (costs[0] + costs[2], costs[1] + costs[3]);
        println!(
            "postgres {} REST costs the service {:.2} times what gRPC does",
            callers(TRANSPORT_CALLERS),
            rest / grpc
        );
        Ok(())
    }

    /// Measures the baseline after a warm-up.
    fn baseline(
        &mut self,
        title: &str,
        clients: u64,
        length: Length,
        verdict: &mut Verdict,
    ) -> Fallible<Baseline> {
        let is_cold = title.ends_with("cold");
        let warm_up = Length::Seconds(WARM_UP.as_secs());
        let before_warm_up = self.before(None)?;
        let warmed = pgbench::measure(&self.postgres, DATABASE, &self.script, clients, warm_up)?;
        self.revisions += warmed.updates;
        // The warm-up touches cold pages too, so its costs count.
        let before = if is_cold {
            before_warm_up
        } else {
            self.before(None)?
        };
        let measured = pgbench::measure(&self.postgres, DATABASE, &self.script, clients, length)?;
        self.revisions += measured.updates;
        let p50 = if clients == 1 {
            format!(", p50 {:.0} us", measured.p50_us)
        } else {
            String::new()
        };
        let title = format!(
            "{title} pgbench {clients} client{}",
            if clients == 1 { "" } else { "s" }
        );
        println!("{title}: {}/s{p50}", grouped(measured.per_second));
        let updates = measured.updates + if is_cold { warmed.updates } else { 0 };
        self.print_costs(&title, &before, None, updates)?;
        self.check_revisions(&title, verdict)?;
        Ok(measured)
    }

    /// Measures the service. Also returns the microseconds of its processor for an update.
    fn service(
        &mut self,
        title: &str,
        server: &Server,
        by: (Transport, u64),
        verdict: &mut Verdict,
    ) -> Fallible<(Report, f64)> {
        let (transport, count) = by;
        let order = Order {
            transport,
            address: if transport == Transport::Rest {
                server.gateway()
            } else {
                server.address()
            }
            .to_owned(),
            key: server.key().to_owned(),
            callers: count,
            schedules: self.settings.schedules,
            seconds: self.settings.seconds,
            times: self.times,
        };
        let before = self.before(Some(server))?;
        let began = self.postgres.psql(
            DATABASE,
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        )?;
        let report = load::in_own_process(&order)?;
        self.revisions += report.acknowledged;
        let cost = self.print_costs(title, &before, Some(server), report.acknowledged)?;
        if transport == Transport::Grpc {
            admission::print_ratio(
                title,
                self.admission,
                Duration::from_secs_f64(cost.max(0.0) / 1e6),
            );
        }
        self.print_batches(title, &began)?;
        verdict.check_calls(title, &report);
        for warning in server.warnings().iter().take(3) {
            println!("{title}: the service logged {warning}");
        }
        self.check_revisions(title, verdict)?;
        Ok((report, cost))
    }

    /// Prints how many updates shared a commit since `began`.
    fn print_batches(&self, title: &str, began: &str) -> Fallible<()> {
        let sql = format!(
            "SELECT round(count(*)::numeric / greatest(count(DISTINCT commit_id), 1), 1) FROM canvas_schedule_revision \
             WHERE created_ms >= {began} AND actor LIKE 'bench %'"
        );
        println!(
            "{title}: {} updates to a commit",
            self.postgres.psql(DATABASE, &sql)?
        );
        Ok(())
    }

    fn before(&self, server: Option<&Server>) -> Fallible<Before> {
        Ok(Before {
            counters: self.counters()?,
            cpu: Cpu::now(server.map(Server::pid), Some(&self.postgres)),
        })
    }

    fn counters(&self) -> Fallible<Counters> {
        let sql = "SELECT pg_current_wal_insert_lsn() - '0/0', n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables \
                   WHERE relname = 'canvas_schedule'";
        let line = self.postgres.psql(DATABASE, sql)?;
        let numbers: Vec<f64> = line
            .split('|')
            .filter_map(|number| number.parse().ok())
            .collect();
        let &[wal_bytes, updated, hot] = numbers.as_slice() else {
            return Err(format!("invalid counters: {line}").into());
        };
        Ok(Counters {
            wal_bytes,
            updated,
            hot,
        })
    }

    /// Prints WAL, share of HOT updates and processor time of `updates` since `before`. Returns the
    /// microseconds of the service's processor for each. Waits for backends to report their
    /// statistics.
    #[allow(clippy::cast_precision_loss, reason = "a count of updates")]
    fn print_costs(
        &self,
        title: &str,
        before: &Before,
        server: Option<&Server>,
        updates: u64,
    ) -> Fallible<f64> {
        let cpu = Cpu::now(server.map(Server::pid), Some(&self.postgres)).since(before.cpu);
        let wal_bytes = self.counters()?.wal_bytes - before.counters.wal_bytes;
        let until = Instant::now() + STATISTICS_TIMEOUT;
        let mut now = self.counters()?;
        while now.updated - before.counters.updated < updates as f64 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
            now = self.counters()?;
        }
        let (updated, hot) = (
            now.updated - before.counters.updated,
            now.hot - before.counters.hot,
        );
        let share = 100.0 * hot / updated.max(1.0);
        println!(
            "{title}: {:.0} bytes of WAL per update, {share:.1} % HOT, processor per 1,000 updates: {}",
            wal_bytes / updates.max(1) as f64,
            cpu.per_thousand(updates)
        );
        Ok(cpu.server * 1e6 / updates.max(1) as f64)
    }

    /// Checks that the database has every acknowledged update and no other.
    fn check_revisions(&mut self, title: &str, verdict: &mut Verdict) -> Fallible<()> {
        let sum: u64 = self
            .postgres
            .psql(DATABASE, "SELECT sum(revision) FROM canvas_schedule")?
            .parse()?;
        if sum != self.revisions {
            verdict.fault(&format!(
                "{title}: the revisions sum to {sum}, but {} are expected",
                self.revisions
            ));
            self.revisions = sum;
        }
        Ok(())
    }

    /// Checks that the history has every revision, unless retention may have removed some.
    fn check_history(&self, verdict: &mut Verdict) -> Fallible<()> {
        let sql = "SELECT (SELECT max(revision) FROM canvas_schedule), (SELECT count(*) FROM canvas_schedule_revision)";
        let line = self.postgres.psql(DATABASE, sql)?;
        let (max, kept) = line.split_once('|').ok_or("a row of two columns")?;
        let (max, kept): (u64, u64) = (max.parse()?, kept.parse()?);
        if max <= 100 && kept != self.revisions {
            verdict.fault(&format!(
                "postgres: the history has {kept} of {} revisions",
                self.revisions
            ));
        }
        Ok(())
    }
}
