//! A database for each test, removed after it. Those of PostgreSQL share one server, which ends
//! with this process.

#[path = "../../support/postgres.rs"]
pub(crate) mod postgres;
#[path = "../../support/proxy.rs"]
pub(crate) mod proxy;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use postgres::{Postgres, Problem};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, SqliteTransactionMode,
    Statement, TransactionOptions, TransactionTrait,
};

/// The kind of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SQLite in memory, visible only to the server that opens it.
    Memory,
    /// SQLite in a file.
    File,
    /// A database on the shared server.
    Postgres,
}

/// The database of a test.
pub(crate) struct Database {
    url: String,
    storage: Storage,
}

enum Storage {
    Memory,
    Folder(PathBuf),
    Server(&'static Server, String),
}

impl Database {
    /// Creates a database for the test `name`; one of PostgreSQL is migrated. Returns `None` if
    /// PostgreSQL is needed and not installed.
    pub(crate) fn new(kind: Kind, name: &str) -> Option<Self> {
        match kind {
            Kind::Memory => Some(Self {
                url: "sqlite::memory:".to_owned(),
                storage: Storage::Memory,
            }),
            Kind::File => {
                let folder = std::env::temp_dir().join(format!("canvas-scheduler-it-{}", unique()));
                std::fs::create_dir(&folder).expect("a folder");
                Some(Self {
                    url: format!("sqlite://{}?mode=rwc", folder.join("test.db").display()),
                    storage: Storage::Folder(folder),
                })
            }
            Kind::Postgres => server(name).map(|server| {
                server.database(&format!("CREATE DATABASE {{}} TEMPLATE {TEMPLATE}"))
            }),
        }
    }

    /// The same without a schema.
    pub(crate) fn empty(kind: Kind, name: &str) -> Option<Self> {
        if kind == Kind::Postgres {
            server(name).map(|server| server.database("CREATE DATABASE {}"))
        } else {
            Self::new(kind, name)
        }
    }

    /// Its URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Whether it is a PostgreSQL database.
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.storage, Storage::Server(..))
    }

    /// Connects to it directly. Not for SQLite in memory.
    pub(crate) async fn connect(&self) -> DatabaseConnection {
        assert!(
            !matches!(self.storage, Storage::Memory),
            "a database in memory allows no second connection"
        );
        let mut options = sea_orm::ConnectOptions::new(self.url.clone());
        options.max_connections(1).sqlx_logging(false);
        sea_orm::Database::connect(options)
            .await
            .expect("a connection")
    }

    /// Runs one SQL text on PostgreSQL, the other on SQLite.
    pub(crate) async fn sql(&self, postgres: &str, sqlite: &str) {
        let sql = if self.is_postgres() { postgres } else { sqlite };
        self.connect()
            .await
            .execute_unprepared(sql)
            .await
            .expect(sql);
    }

    /// Runs a query that returns one number.
    pub(crate) async fn count(&self, sql: &str) -> i64 {
        let db = self.connect().await;
        let row = db
            .query_one_raw(Statement::from_string(db.get_database_backend(), sql))
            .await
            .expect(sql)
            .expect("a row");
        row.try_get_by_index(0).expect("a number")
    }

    /// Runs a query, and returns the first column of every row as text.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<String> {
        let db = self.connect().await;
        let rows = db
            .query_all_raw(Statement::from_string(db.get_database_backend(), sql))
            .await
            .expect(sql);
        rows.iter()
            .map(|row| row.try_get_by_index(0).expect("text"))
            .collect()
    }

    /// Takes the lock that a writer needs to change this schedule, until a rollback. SQLite has one
    /// lock for the whole database.
    pub(crate) async fn lock(&self, schedule_id: &str) -> DatabaseTransaction {
        let db = self.connect().await;
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        let locked = db.begin_with_options(options).await.expect("a transaction");
        if locked.get_database_backend() == DbBackend::Postgres {
            let lock =
                format!("SELECT 1 FROM canvas_schedule WHERE id = '{schedule_id}' FOR UPDATE");
            locked.execute_unprepared(&lock).await.expect("the lock");
        }
        locked
    }
}

impl Database {
    /// Locks the rows that a query of PostgreSQL selects, until a rollback.
    pub(crate) async fn lock_rows(&self, query: &str) -> DatabaseTransaction {
        let locked = self.connect().await.begin().await.expect("a transaction");
        let lock = format!("{query} FOR UPDATE");
        locked.execute_unprepared(&lock).await.expect("the lock");
        locked
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        match &self.storage {
            Storage::Memory => {}
            Storage::Folder(folder) => {
                // A folder that cannot be removed is left to the system's cleaner.
                let _removed = std::fs::remove_dir_all(folder);
            }
            Storage::Server(server, name) => {
                // FORCE, since the server under test may still hold connections.
                let dropped = server
                    .postgres
                    .psql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)"));
                if !std::thread::panicking() {
                    dropped.expect("the database must be dropped");
                }
            }
        }
    }
}

/// A name that is unique among running processes.
fn unique() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    format!(
        "{}_{}",
        std::process::id(),
        MADE.fetch_add(1, Ordering::Relaxed)
    )
}

/// The shared server. A watcher process stops it and removes its folder, however this process ends.
struct Server {
    postgres: Postgres,
    _watcher: Child,
}

/// The migrated database that tests copy.
const TEMPLATE: &str = "migrated";

/// As durable as the service demands, and otherwise fast.
const SETTINGS: [&str; 7] = [
    "synchronous_commit=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_connections=300",
    "shared_buffers=64MB",
    "autovacuum=off",
    "checkpoint_timeout=1h",
];

/// The shared server, started on first use. Returns `None`, and reports the test as skipped, where
/// PostgreSQL is not installed.
fn server(test: &str) -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    let server = SERVER.get_or_init(|| match Postgres::start(&SETTINGS) {
        Ok(postgres) => Some(Server::prepare(postgres)),
        Err(Problem::NotInstalled) => None,
        Err(problem) => panic!("{problem}"),
    });
    if server.is_none() {
        assert!(
            !postgres_is_required(),
            "{test} needs PostgreSQL, which is not installed, and REQUIRE_POSTGRES=1 is set"
        );
        // Written to stderr directly, since the test harness captures the output of passing tests.
        let _written = writeln!(std::io::stderr(), "skipped: {test} needs PostgreSQL");
    }
    server.as_ref()
}

#[allow(
    clippy::disallowed_methods,
    reason = "a setting of the tests, not of the service"
)]
fn postgres_is_required() -> bool {
    std::env::var("REQUIRE_POSTGRES").is_ok_and(|value| value == "1")
}

impl Server {
    fn prepare(postgres: Postgres) -> Self {
        let watcher = stop_with_this_process(&postgres);
        postgres.createdb(TEMPLATE).expect("the template");
        // In another process, since a template with connections cannot be copied.
        let mut migrate = Command::new(env!("CARGO_BIN_EXE_canvas-scheduler"));
        let migrated = migrate
            .args(["migrate", "--database-url", &postgres.url(TEMPLATE)])
            .output()
            .expect("it starts");
        assert!(
            migrated.status.success(),
            "{}",
            String::from_utf8_lossy(&migrated.stderr)
        );
        Self {
            postgres,
            _watcher: watcher,
        }
    }

    fn database(&'static self, create: &str) -> Database {
        let name = format!("test_{}", unique());
        self.postgres
            .psql("postgres", &create.replace("{}", &name))
            .expect("a database");
        Database {
            url: self.postgres.url(&name),
            storage: Storage::Server(self, name),
        }
    }
}

/// Starts the watcher, since statics are never dropped: a shell that reads a pipe from this
/// process, which closes when the process ends.
fn stop_with_this_process(postgres: &Postgres) -> Child {
    const SCRIPT: &str = r#"
        cat > /dev/null
        kill -QUIT "$1"
        tries=0
        while kill -0 "$1" 2> /dev/null && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
        rm -rf "$2"
    "#;
    let pid = postgres.pid().expect("it runs").to_string();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", SCRIPT, "sh", &pid])
        .arg(postgres.folder());
    // In its own process group, so that Ctrl-C does not stop it.
    shell
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    shell.spawn().expect("a shell")
}
