//! The PostgreSQL server under test: its settings and the schedules loaded into it.

use std::time::Instant;

use super::Fallible;
use super::rows::{self, Dialect, Times};
use super::server::migrate;
use super::support::{Postgres, Problem};

/// The database's name.
pub(crate) const DATABASE: &str = "bench";

/// Starts a server with memory for `schedules` schedules. Prints a line and returns `None` if
/// PostgreSQL is not installed.
pub(crate) fn start(schedules: u64, wal_compression: &str) -> Fallible<Option<Postgres>> {
    let settings = settings(schedules, wal_compression);
    let borrowed: Vec<&str> = settings.iter().map(String::as_str).collect();
    let postgres = match Postgres::start(&borrowed) {
        Ok(postgres) => postgres,
        Err(Problem::NotInstalled) => {
            println!("postgres skipped: {}", Problem::NotInstalled);
            return Ok(None);
        }
        Err(problem) => return Err(problem.into()),
    };
    println!(
        "postgres version {}",
        postgres.psql("postgres", "SHOW server_version")?
    );
    println!("postgres settings {}", settings.join(" "));
    Ok(Some(postgres))
}

/// Full durability, memory for the working set, and no checkpoint during a measurement.
fn settings(schedules: u64, wal_compression: &str) -> Vec<String> {
    let gigabytes = schedules.div_ceil(1_250_000).max(1);
    vec![
        "fsync=on".to_owned(),
        "synchronous_commit=on".to_owned(),
        "full_page_writes=on".to_owned(),
        format!("shared_buffers={gigabytes}GB"),
        "max_wal_size=16GB".to_owned(),
        "checkpoint_timeout=1h".to_owned(),
        format!("wal_compression={wal_compression}"),
    ]
}

/// Creates the schema and loads pending schedules.
pub(crate) fn load(postgres: &Postgres, schedules: u64, times: &Times) -> Fallible<()> {
    let begin = Instant::now();
    postgres.createdb(DATABASE)?;
    migrate(&postgres.url(DATABASE))?;
    for statement in rows::load(Dialect::Postgres, schedules, times) {
        postgres.psql(DATABASE, &statement)?;
    }
    for statement in ["VACUUM ANALYZE", "CHECKPOINT"] {
        postgres.psql(DATABASE, statement)?;
    }
    let size = postgres.psql(
        DATABASE,
        "SELECT pg_size_pretty(pg_database_size(current_database()))",
    )?;
    println!(
        "postgres loaded {schedules} schedules, {size}, in {:.0?}",
        begin.elapsed()
    );
    Ok(())
}
