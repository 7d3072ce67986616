//! Connection pools: how many connections each has, how long they may take, and the settings of
//! their sessions.

use std::time::Duration;

use sea_orm::{ConnectOptions, Database, DatabaseConnection};

use crate::error::{Error, Violation};
use crate::store::session::options::Options;
use crate::store::session::pool::Pool;

/// One connection each for claiming, settling, maintenance, the gauges, the clock, and keys with
/// quotas.
const MAX_DISPATCHER_CONNECTIONS: u32 = 6;

fn base(options: &Options) -> ConnectOptions {
    let mut connect = ConnectOptions::new(options.url.clone());
    connect.sqlx_logging(false).record_stmt_in_spans(false);
    // A lost connection fails its first statement, and the caller knows whether that one is safe to
    // repeat.
    connect.test_before_acquire(false);
    connect
        .acquire_timeout(options.connect_timeout)
        .connect_timeout(options.connect_timeout);
    connect.map_sqlx_postgres_opts(|postgres| {
        postgres
            .application_name("canvas-scheduler")
            .statement_cache_capacity(200)
    });
    connect.map_sqlx_sqlite_opts(|sqlite| {
        use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
        // FULL: an acknowledged change is on the disk, not only in the operating system's memory.
        sqlite
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .pragma("cache_size", "-65536")
            .pragma("mmap_size", "268435456")
    });
    connect
}

/// Connects the pool that reads.
pub(crate) async fn reads(options: &Options) -> Result<DatabaseConnection, Error> {
    let mut connect = base(options);
    let max = if options.is_in_memory() {
        1
    } else {
        options.settings.read_connections.get()
    };
    connect
        .max_connections(max)
        .min_connections(u32::from(options.is_in_memory()));
    // Reads are not repeated: connections that a restart of the server has closed are found before
    // they are used.
    connect.test_before_acquire(!options.is_sqlite());
    if options.is_in_memory() {
        // An in-memory database ends with its connection.
        connect
            .idle_timeout(None::<Duration>)
            .max_lifetime(None::<Duration>);
    }
    open(connect).await
}

/// Connects a pool for each writer: as many as the settings state on PostgreSQL; SQLite has one
/// connection that writes.
pub(crate) async fn writers(
    options: &Options,
    reads: &DatabaseConnection,
) -> Result<Vec<Pool>, Error> {
    if options.is_in_memory() {
        return Ok(vec![Pool::new(reads.clone(), None)]);
    }
    let mut connect = base(options);
    connect
        .connect_lazy(true)
        .idle_timeout(None::<Duration>)
        .max_lifetime(None::<Duration>);
    if options.is_sqlite() {
        connect.max_connections(1);
        return Ok(vec![Pool::new(open(connect).await?, None)]);
    }
    // One that the writer keeps, and one for the time in which a failed one is being closed.
    connect.max_connections(2);
    connect.map_sqlx_postgres_opts(|postgres| {
        // Its few statements are planned once: their arrays differ only in length, and each row is
        // found by its key.
        postgres
            .application_name("canvas-scheduler writer")
            .options([
                ("plan_cache_mode", "force_generic_plan"),
                ("enable_seqscan", "off"),
                // A row that another session locks for longer is skipped, so that the changes of
                // other rows go on.
                ("lock_timeout", "1s"),
                ("statement_timeout", "9s"),
            ])
    });
    let mut pools = Vec::new();
    for _ in 0..options.settings.writers.get() {
        pools.push(Pool::new(
            open(connect.clone()).await?,
            Some(connect.clone()),
        ));
    }
    Ok(pools)
}

/// Connects the dispatcher's pool. On SQLite it is `writer`, which has the one connection that
/// writes.
pub(crate) async fn dispatcher(options: &Options, writer: Option<&Pool>) -> Result<Pool, Error> {
    if let (true, Some(writer)) = (options.is_sqlite(), writer) {
        return Ok(writer.clone());
    }
    let mut connect = base(options);
    connect
        .max_connections(MAX_DISPATCHER_CONNECTIONS)
        .connect_lazy(true);
    connect.map_sqlx_postgres_opts(|postgres| {
        // Each row is found by its key or at the front of a queue, whatever the sizes of tables and
        // batches.
        postgres
            .application_name("canvas-scheduler dispatcher")
            .options([
                ("plan_cache_mode", "force_generic_plan"),
                ("enable_seqscan", "off"),
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
                ("lock_timeout", "1s"),
                ("statement_timeout", "9s"),
            ])
    });
    Ok(Pool::new(open(connect.clone()).await?, Some(connect)))
}

async fn open(connect: ConnectOptions) -> Result<DatabaseConnection, Error> {
    // The error may repeat the URL's host but never its password, which the driver does not print.
    Database::connect(connect).await.map_err(|fault| {
        Error::Invalid(vec![Violation::new(
            "database-url",
            format!("the database cannot be opened: {fault}"),
        )])
    })
}
