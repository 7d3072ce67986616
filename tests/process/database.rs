//! A database for each test: a SQLite file, or a database on a PostgreSQL server that concurrent
//! tests share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use super::postgres::{Postgres, Problem};
use super::server;

/// A migrated, empty database.
pub(crate) enum Database {
    /// A file in a temporary folder.
    Sqlite(Folder),
    /// A database of the shared server.
    Postgres {
        /// Runs until its last user drops it.
        server: Arc<Postgres>,
        /// The name of the database.
        name: String,
    },
}

impl Database {
    /// A SQLite file.
    pub(crate) fn sqlite() -> Self {
        let database = Self::Sqlite(Folder::new());
        server::migrate(&database.url());
        database
    }

    /// A PostgreSQL database. Returns `None`, and reports the test as skipped, where PostgreSQL is
    /// not installed.
    pub(crate) fn postgres() -> Option<Self> {
        let database = Self::postgres_empty()?;
        server::migrate(&database.url());
        Some(database)
    }

    /// As [`Self::postgres`], not migrated.
    pub(crate) fn postgres_empty() -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let server = shared()?;
        let name = format!("test_{}", MADE.fetch_add(1, Ordering::Relaxed));
        server.createdb(&name).unwrap();
        Some(Self::Postgres { server, name })
    }

    /// The server and the name of a PostgreSQL database.
    pub(crate) fn server(&self) -> (&Postgres, &str) {
        match self {
            Self::Postgres { server, name } => (server, name),
            Self::Sqlite(_) => panic!("not PostgreSQL"),
        }
    }

    /// Waits until every session of the service has ended: a backend finishes the statement of a
    /// killed client.
    pub(crate) fn wait_for_sessions_to_end(&self) {
        let Self::Postgres { server, name } = self else {
            return;
        };
        let left = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND application_name LIKE 'canvas-scheduler%'"
        );
        let give_up_at = Instant::now() + server::PATIENCE;
        while server.psql("postgres", &left).unwrap() != "0" {
            assert!(Instant::now() < give_up_at, "a session did not end");
        }
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => format!(
                "sqlite://{}?mode=rwc",
                folder.path().join("test.db").display()
            ),
            Self::Postgres { server, name } => server.url(name),
        }
    }
}

/// A PostgreSQL server for a test that stops it or needs its own settings. Returns `None` where
/// PostgreSQL is not installed.
pub(crate) fn own_postgres(settings: &[&str]) -> Option<Postgres> {
    own_postgres_in(vec![], settings)
}

/// The same with these variables in the server's environment.
pub(crate) fn own_postgres_in(
    environment: Vec<(&'static str, String)>,
    settings: &[&str],
) -> Option<Postgres> {
    match Postgres::start_in(environment, settings) {
        Ok(postgres) => Some(postgres),
        Err(Problem::NotInstalled) if !required() => {
            println!("skipped: {} needs PostgreSQL", test_name());
            None
        }
        Err(problem) => panic!("{problem}"),
    }
}

/// The name of the running test.
pub(crate) fn test_name() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// The server that concurrent tests share. It stops with the last of them.
fn shared() -> Option<Arc<Postgres>> {
    static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = shared.upgrade() {
        return Some(running);
    }
    let started = Arc::new(own_postgres(&[])?);
    *shared = Arc::downgrade(&started);
    Some(started)
}

/// Whether a test fails where its server is not installed.
#[allow(
    clippy::disallowed_methods,
    reason = "a setting of the tests, not of the service"
)]
pub(crate) fn required() -> bool {
    std::env::var("REQUIRE_POSTGRES").is_ok_and(|value| value == "1")
}

/// A temporary folder, removed on drop.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// An empty one.
    pub(crate) fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "canvas-scheduler-test-{}-{}",
            std::process::id(),
            MADE.fetch_add(1, Ordering::Relaxed)
        );
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that cannot be removed is left to the system's cleaner.
        let _removed = std::fs::remove_dir_all(&self.0);
    }
}
