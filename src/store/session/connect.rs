//! Connections: how many, how long they may take, and what each session is set to.

use std::time::Duration;

use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr, Statement,
};

use crate::error::{Error, Violation};
use crate::store::StoreSettings;
use crate::store::session::pool::Pool;
use crate::telemetry::metrics::CommitMetrics;

/// Where the database is, and the bounds on its use.
#[derive(Clone)]
pub struct Options {
    /// `postgres://…` or `sqlite://…`. May hold a password: never logged.
    pub url: String,
    /// How it is used.
    pub settings: StoreSettings,
    /// How long anyone waits for a connection.
    pub connection_wait: Duration,
    /// Where it is told what is written.
    pub writes: CommitMetrics,
}

impl Options {
    /// The usual bounds for this database.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            settings: StoreSettings::default(),
            connection_wait: SERVING_WAIT,
            writes: CommitMetrics::default(),
        }
    }

    /// Those of a command that ends when its work is done: nobody is put off meanwhile, so it waits longer.
    pub fn of_command(url: impl Into<String>) -> Self {
        Self {
            connection_wait: COMMAND_WAIT,
            ..Self::new(url)
        }
    }

    fn is_sqlite(&self) -> bool {
        self.url.starts_with("sqlite:")
    }

    /// A database that lives in one connection.
    fn is_in_memory(&self) -> bool {
        self.is_sqlite() && (self.url.contains(":memory:") || self.url.contains("mode=memory"))
    }
}

/// What a commit of the database is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Durability {
    /// An acknowledged change survives a crash.
    Durable,
    /// The setting makes an acknowledged change survive a crash of this server, but perhaps not a failover.
    Weakened {
        /// The setting and its value.
        setting: String,
    },
    /// An acknowledged change may be lost.
    Lost {
        /// The setting and its value.
        setting: String,
    },
}

/// One that fires, one that finishes, one for its upkeep, one that counts, one that looks at the clock, and one that reads keys and
/// counts calls.
const DISPATCHING_MOST: u32 = 6;

/// How long a caller waits for a connection; then it is told to try again.
const SERVING_WAIT: Duration = Duration::from_secs(3);
/// The same for a command: a database that is slow or just starting is no reason to fail a release's migration.
const COMMAND_WAIT: Duration = Duration::from_secs(30);

fn base(options: &Options) -> ConnectOptions {
    let mut connect = ConnectOptions::new(options.url.clone());
    connect.sqlx_logging(false).record_stmt_in_spans(false);
    // A lost connection shows itself at first use, and what failed is told apart from what is safe to repeat.
    connect.test_before_acquire(false);
    connect
        .acquire_timeout(options.connection_wait)
        .connect_timeout(options.connection_wait);
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
    let most = if options.is_in_memory() {
        1
    } else {
        options.settings.read_connections.get()
    };
    connect
        .max_connections(most)
        .min_connections(u32::from(options.is_in_memory()));
    // A read may be repeated on another connection: those that a restart of the server has ended are sorted out first.
    connect.test_before_acquire(!options.is_sqlite());
    if options.is_in_memory() {
        // The database is gone with its connection.
        connect
            .idle_timeout(None::<Duration>)
            .max_lifetime(None::<Duration>);
    }
    Database::connect(connect)
        .await
        .map_err(|fault| unusable(&fault))
}

pub(crate) fn writer_count(options: &Options) -> usize {
    if options.is_sqlite() {
        1
    } else {
        options.settings.writers.get()
    }
}

/// The connections of a writer: on PostgreSQL one that it holds, and one for its transactions.
pub(crate) fn writer(options: &Options) -> ConnectOptions {
    let mut connect = base(options);
    connect
        .max_connections(if options.is_sqlite() { 1 } else { 2 })
        .connect_lazy(true)
        .idle_timeout(None::<Duration>)
        .max_lifetime(None::<Duration>);
    connect.map_sqlx_postgres_opts(|postgres| {
        // Its few statements are planned once: their arrays differ only in length, and each row is found by its key.
        postgres
            .application_name("canvas-scheduler writer")
            .options([
                ("plan_cache_mode", "force_generic_plan"),
                ("enable_seqscan", "off"),
                // What another session holds for longer is left aside, so that the changes of other rows go on.
                ("lock_timeout", "1s"),
                ("statement_timeout", "9s"),
            ])
    });
    connect
}

pub(crate) async fn writer_connection(
    options: &Options,
    connect: &ConnectOptions,
    reads: &DatabaseConnection,
) -> Result<DatabaseConnection, Error> {
    if options.is_in_memory() {
        return Ok(reads.clone());
    }
    Database::connect(connect.clone())
        .await
        .map_err(|fault| unusable(&fault))
}

/// The connections that fire and finish: of their own on PostgreSQL, and on SQLite `writer`, since it has one that writes; whoever
/// waits for it is served in turn.
pub(crate) async fn dispatching(
    options: &Options,
    writer: &DatabaseConnection,
) -> Result<Pool, Error> {
    if options.is_sqlite() {
        return Ok(Pool::new(writer.clone(), None));
    }
    let mut connect = base(options);
    connect.max_connections(DISPATCHING_MOST).connect_lazy(true);
    connect.map_sqlx_postgres_opts(|postgres| {
        // Each row is found by its key or by the head of a queue, whatever the sizes of tables and batches.
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
    let db = Database::connect(connect.clone())
        .await
        .map_err(|fault| unusable(&fault))?;
    Ok(Pool::new(db, Some(connect)))
}

fn unusable(fault: &DbErr) -> Error {
    // The text may repeat the URL's host but never its password: the driver keeps that to itself.
    Error::Invalid(vec![Violation::new(
        "database-url",
        format!("the database cannot be opened: {fault}"),
    )])
}

pub(crate) async fn durability(db: &DatabaseConnection) -> Result<Durability, DbErr> {
    if db.get_database_backend() != DbBackend::Postgres {
        return Ok(Durability::Durable);
    }
    let fsync = show(db, "fsync").await?;
    let full_page_writes = show(db, "full_page_writes").await?;
    let synchronous_commit = show(db, "synchronous_commit").await?;
    Ok(
        match (
            fsync.as_str(),
            full_page_writes.as_str(),
            synchronous_commit.as_str(),
        ) {
            ("off", _, _) => Durability::Lost {
                setting: "fsync=off".to_owned(),
            },
            (_, "off", _) => Durability::Weakened {
                setting: "full_page_writes=off".to_owned(),
            },
            (_, _, "off" | "local" | "remote_write") => Durability::Weakened {
                setting: format!("synchronous_commit={synchronous_commit}"),
            },
            _ => Durability::Durable,
        },
    )
}

async fn show(db: &DatabaseConnection, setting: &str) -> Result<String, DbErr> {
    let row = db
        .query_one_raw(Statement::from_string(
            DbBackend::Postgres,
            format!("SHOW {setting}"),
        ))
        .await?;
    row.map_or_else(|| Ok(String::new()), |row| row.try_get_by_index(0))
}
