//! A database for each test, gone after it. All of PostgreSQL's live on one server, which ends with this process.

#[path = "../../support/postgres.rs"]
pub(crate) mod postgres;

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

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SQLite in memory; only the server that opens it sees it.
    Memory,
    /// SQLite in a file.
    File,
    /// A database on the shared server.
    Postgres,
}

/// A database of one test.
pub(crate) struct Database {
    url: String,
    place: Place,
}

enum Place {
    Memory,
    Folder(PathBuf),
    Server(&'static Server, String),
}

impl Database {
    /// A database for the test `name`; one of PostgreSQL is migrated. None where PostgreSQL is missing and need not be there.
    pub(crate) fn new(kind: Kind, name: &str) -> Option<Self> {
        match kind {
            Kind::Memory => Some(Self {
                url: "sqlite::memory:".to_owned(),
                place: Place::Memory,
            }),
            Kind::File => {
                let folder = std::env::temp_dir().join(format!("canvas-scheduler-it-{}", unique()));
                std::fs::create_dir(&folder).expect("a folder");
                Some(Self {
                    url: format!("sqlite://{}?mode=rwc", folder.join("test.db").display()),
                    place: Place::Folder(folder),
                })
            }
            Kind::Postgres => server(name).map(|server| {
                server.database(&format!("CREATE DATABASE {{}} TEMPLATE {TEMPLATE}"))
            }),
        }
    }

    /// The same without any table.
    pub(crate) fn empty(kind: Kind, name: &str) -> Option<Self> {
        if kind == Kind::Postgres {
            server(name).map(|server| server.database("CREATE DATABASE {}"))
        } else {
            Self::new(kind, name)
        }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Whether it is PostgreSQL's.
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.place, Place::Server(..))
    }

    /// A connection past the service. Not for SQLite in memory.
    pub(crate) async fn connect(&self) -> DatabaseConnection {
        assert!(
            !matches!(self.place, Place::Memory),
            "nobody else sees a database in memory"
        );
        let mut options = sea_orm::ConnectOptions::new(self.url.clone());
        options.max_connections(1).sqlx_logging(false);
        sea_orm::Database::connect(options)
            .await
            .expect("a connection")
    }

    /// Runs SQL past the service: what it says on PostgreSQL and on SQLite.
    pub(crate) async fn sql(&self, postgres: &str, sqlite: &str) {
        let sql = if self.is_postgres() { postgres } else { sqlite };
        self.connect()
            .await
            .execute_unprepared(sql)
            .await
            .expect(sql);
    }

    /// A number from the database.
    pub(crate) async fn count(&self, sql: &str) -> i64 {
        let db = self.connect().await;
        let row = db
            .query_one_raw(Statement::from_string(db.get_database_backend(), sql))
            .await
            .expect(sql)
            .expect("a row");
        row.try_get_by_index(0).expect("a number")
    }

    /// The first column, as text, of every row.
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

    /// Takes the lock that a writer needs to change this schedule, until it is given back by a rollback. SQLite has one lock
    /// for all.
    pub(crate) async fn hold(&self, schedule_id: &str) -> DatabaseTransaction {
        let db = self.connect().await;
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        let held = db.begin_with_options(options).await.expect("a transaction");
        if held.get_database_backend() == DbBackend::Postgres {
            let lock =
                format!("SELECT 1 FROM canvas_schedule WHERE id = '{schedule_id}' FOR UPDATE");
            held.execute_unprepared(&lock).await.expect("the lock");
        }
        held
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        match &self.place {
            Place::Memory => {}
            Place::Folder(folder) => {
                // What cannot be removed is left to whoever empties the temporary folder.
                let _removed = std::fs::remove_dir_all(folder);
            }
            Place::Server(server, name) => {
                // FORCE: the server under test may still be closing its connections.
                let dropped = server
                    .postgres
                    .psql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)"));
                if !std::thread::panicking() {
                    dropped.expect("the database is dropped");
                }
            }
        }
    }
}

/// A number that no other part of this machine has at the moment.
fn unique() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    format!(
        "{}_{}",
        std::process::id(),
        MADE.fetch_add(1, Ordering::Relaxed)
    )
}

/// The shared server; stopped, and its folder removed, by a process that sees ours end however it ends.
struct Server {
    postgres: Postgres,
    _watcher: Child,
}

/// A migrated database that is only copied.
const TEMPLATE: &str = "migrated";

/// Durable enough to be accepted, and no slower than that.
const SETTINGS: [&str; 7] = [
    "synchronous_commit=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_connections=300",
    "shared_buffers=64MB",
    "autovacuum=off",
    "checkpoint_timeout=1h",
];

/// The shared server, started by whoever asks first. None where PostgreSQL is not installed: then the test is skipped, by name.
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
        // Past the capture of a passing test's output.
        let _told = writeln!(std::io::stderr(), "skipped: {test} needs PostgreSQL");
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
        let watcher = end_with_us(&postgres);
        postgres.createdb(TEMPLATE).expect("the template");
        // By another process, so that nobody is connected to the template when it is copied.
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
            place: Place::Server(self, name),
        }
    }
}

/// Statics are never dropped. So a shell reads a pipe that only we hold the other end of; when it ends, we have ended.
fn end_with_us(postgres: &Postgres) -> Child {
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
    // Its own group, so that Ctrl-C leaves it to its work.
    shell
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    shell.spawn().expect("a shell")
}
