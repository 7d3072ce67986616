//! The run on SQLite. The baseline is one update per transaction over one connection of the same
//! driver, with the settings of the service's connections.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sea_orm::sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous,
};
use sea_orm::sqlx::{self, AssertSqlSafe, ConnectOptions, Connection, Row};
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::Fallible;
use super::load::{self, Order, Transport};
use super::machine::Cpu;
use super::report::{self, Verdict, callers, grouped};
use super::rows::{self, Dialect, Random, Times};
use super::server::{Server, migrate};
use super::settings::{Settings, WARM_UP};

/// Measures on a file in the temporary folder.
pub(crate) fn measure(settings: &Settings, verdict: &mut Verdict) -> Fallible<()> {
    let mut run = Run::prepare(settings)?;
    let server = Server::start(&run.url(), &[])?;
    let mut before = run.baseline(verdict)?;
    for count in settings
        .callers
        .iter()
        .copied()
        .filter(|count| *count != 32)
    {
        let title = format!("sqlite {}", callers(count));
        let own = Cpu::now(Some(server.pid()), None);
        let order = Order {
            transport: Transport::Grpc,
            address: server.address().to_owned(),
            key: server.key().to_owned(),
            callers: count,
            schedules: settings.schedules,
            seconds: settings.seconds,
            times: run.times,
        };
        let report = load::in_own_process(&order)?;
        let cpu = Cpu::now(Some(server.pid()), None).since(own);
        run.revisions += report.acknowledged;
        verdict.check_calls(&title, &report);
        for warning in server.warnings().iter().take(3) {
            println!("{title}: the service logged {warning}");
        }
        run.check_revisions(&title, verdict)?;
        println!(
            "{title}: processor per 1,000 updates: {}",
            cpu.per_thousand(report.acknowledged)
        );
        let after = run.baseline(verdict)?;
        report::throughput(
            &title,
            &report,
            f64::midpoint(before.per_second, after.per_second),
        );
        report::steadiness(&title, before.per_second, after.per_second);
        if count == 1 {
            report::p50(&title, &report, f64::midpoint(before.p50_us, after.p50_us));
        }
        before = after;
    }
    server.stop()
}

/// The result of one measurement of the baseline.
struct Baseline {
    per_second: f64,
    p50_us: f64,
}

struct Run<'a> {
    settings: &'a Settings,
    runtime: Runtime,
    folder: Folder,
    times: Times,
    /// The expected sum of all revisions.
    revisions: u64,
    random: Random,
}

impl<'a> Run<'a> {
    fn prepare(settings: &'a Settings) -> Fallible<Self> {
        let begin = Instant::now();
        let folder = Folder(
            std::env::temp_dir().join(format!("canvas-scheduler-sqlite-{}", std::process::id())),
        );
        fs::create_dir(&folder.0)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let times = Times::of(settings.workload);
        let run = Self {
            settings,
            runtime,
            folder,
            times,
            revisions: settings.schedules,
            random: Random(1),
        };
        migrate(&run.url())?;
        run.runtime.block_on(run.load())?;
        let version = run
            .runtime
            .block_on(run.query_text("SELECT sqlite_version()"))?;
        println!(
            "sqlite version {version}, journal_mode=WAL synchronous=FULL cache_size=-65536 mmap_size=268435456"
        );
        println!(
            "sqlite loaded {} schedules in {:.0?}",
            settings.schedules,
            begin.elapsed()
        );
        Ok(run)
    }

    fn file(&self) -> PathBuf {
        self.folder.0.join("bench.db")
    }

    fn url(&self) -> String {
        format!("sqlite://{}?mode=rwc", self.file().display())
    }

    async fn load(&self) -> Fallible<()> {
        let mut connection = connect(&self.file()).await?;
        for statement in rows::load(Dialect::Sqlite, self.settings.schedules, &self.times) {
            sqlx::raw_sql(AssertSqlSafe(statement))
                .execute(&mut connection)
                .await?;
        }
        sqlx::raw_sql("ANALYZE; PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(&mut connection)
            .await?;
        Ok(connection.close().await?)
    }

    /// Runs a query that returns one text.
    async fn query_text(&self, sql: &'static str) -> Fallible<String> {
        let mut connection = connect(&self.file()).await?;
        let row = sqlx::query(sql).fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(row.try_get(0)?)
    }

    /// Measures one update per transaction on one connection.
    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    fn baseline(&mut self, verdict: &mut Verdict) -> Fallible<Baseline> {
        let (schedules, times, file) = (self.settings.schedules, self.times, self.file());
        let random = &mut self.random;
        let before = Cpu::now(None, None);
        let (mut done, mut latencies) = (0_u64, Vec::new());
        let measured = Instant::now() + WARM_UP;
        let until = measured + Duration::from_secs(self.settings.seconds);
        self.runtime.block_on(async {
            let mut connection = connect(&file).await?;
            while Instant::now() < until {
                let begin = Instant::now();
                update(&mut connection, &times, schedules, random).await?;
                done += 1;
                if begin >= measured {
                    latencies.push(begin.elapsed());
                }
            }
            Fallible::Ok(connection.close().await?)
        })?;
        let cpu = Cpu::now(None, None).since(before);
        self.revisions += done;
        latencies.sort_unstable();
        let p50 = latencies
            .get(latencies.len() / 2)
            .ok_or("no update during the measurement")?;
        let p50_us = p50.as_secs_f64() * 1e6;
        let per_second = latencies.len() as f64 / self.settings.seconds as f64;
        println!(
            "sqlite one update per transaction: {}/s, p50 {p50_us:.0} us",
            grouped(per_second)
        );
        println!(
            "sqlite one update per transaction: processor per 1,000 updates: {}",
            cpu.per_thousand(done)
        );
        self.check_revisions("sqlite one update per transaction", verdict)?;
        Ok(Baseline { per_second, p50_us })
    }

    /// Checks that the database has every acknowledged update and no other.
    fn check_revisions(&mut self, title: &str, verdict: &mut Verdict) -> Fallible<()> {
        let sum = self
            .runtime
            .block_on(self.query_text("SELECT CAST(sum(revision) AS text) FROM canvas_schedule"))?;
        let sum: u64 = sum.parse()?;
        if sum != self.revisions {
            verdict.fault(&format!(
                "{title}: the revisions sum to {sum}, but {} are expected",
                self.revisions
            ));
            self.revisions = sum;
        }
        Ok(())
    }
}

/// Connects with the settings of the service's connections.
async fn connect(file: &Path) -> Fallible<SqliteConnection> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .pragma("cache_size", "-65536")
        .pragma("mmap_size", "268435456")
        .disable_statement_logging();
    Ok(options.connect().await?)
}

/// Makes one update with its history, in one transaction of prepared statements.
async fn update(
    connection: &mut SqliteConnection,
    times: &Times,
    schedules: u64,
    random: &mut Random,
) -> Fallible<()> {
    let number = random.below(schedules);
    let id = Uuid::parse_str(&rows::id(number))?;
    let time = i64::try_from(random.below(times.span_ms().unsigned_abs()))?;
    let values = times.sqlite_update(time);
    let commit = i64::try_from(random.below(i64::MAX.unsigned_abs()))?;
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut *connection)
        .await?;
    let update = sqlx::query(rows::SQLITE_UPDATE)
        .bind(values.time_ms)
        .bind(times.local)
        .bind(values.wave_ms)
        .bind(values.wave_ms);
    let updated = update
        .bind(values.late_ms)
        .bind(times.now_ms)
        .bind(id)
        .execute(&mut *connection)
        .await?;
    sqlx::query(rows::SQLITE_WAKE)
        .bind(id)
        .execute(&mut *connection)
        .await?;
    sqlx::query(rows::SQLITE_HISTORY)
        .bind(commit)
        .bind(id)
        .execute(&mut *connection)
        .await?;
    sqlx::query("COMMIT").execute(&mut *connection).await?;
    if updated.rows_affected() == 1 {
        Ok(())
    } else {
        Err(format!("schedule {number} does not exist").into())
    }
}

/// A temporary folder, removed on drop.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // An error leaves files in the temporary folder, which the system cleans up.
        let _removed = fs::remove_dir_all(&self.0);
    }
}
