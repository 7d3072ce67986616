//! Where the database is, and the limits of its use.

use std::time::Duration;

use sea_orm::sqlx::postgres::{PgConnectOptions, PgSslMode};
use sea_orm::sqlx::sqlite::SqliteConnectOptions;

use crate::config::{DatabaseUrl, Host, PostgresUrl, SqliteUrl, SslMode};
use crate::store::settings::StoreSettings;
use crate::telemetry::metrics::CommitMetrics;
use crate::telemetry::notices::ServerWarnings;

/// How long a caller waits for a connection before it is asked to try again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Where the database is, and the limits of its use.
#[derive(Clone)]
pub struct Options {
    pub(super) location: Location,
    /// How it is used.
    pub settings: StoreSettings,
    /// Settings of PostgreSQL sessions that the URL asks for.
    pub(super) session_settings: Vec<(String, String)>,
    /// The name of the sessions in PostgreSQL's views and logs; each use of them adds its own.
    pub(super) application_name: String,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// Metrics of the commits and of dead letters.
    pub metrics: CommitMetrics,
    /// The warnings that PostgreSQL sends with its answers.
    pub warnings: ServerWarnings,
}

/// What the driver connects to.
#[derive(Clone)]
pub(super) enum Location {
    /// The servers to try, in this order.
    Postgres(Vec<PgConnectOptions>),
    Sqlite {
        file: Box<SqliteConnectOptions>,
        /// Whether it exists only in its one connection.
        in_memory: bool,
    },
}

impl Options {
    /// The default settings.
    pub fn new(url: &DatabaseUrl) -> Self {
        let (location, postgres) = match url {
            DatabaseUrl::Postgres(url) => (Location::Postgres(servers(url)), Some(url)),
            DatabaseUrl::Sqlite(url) => {
                let in_memory = url.file.is_none();
                let file = Box::new(file(url));
                (Location::Sqlite { file, in_memory }, None)
            }
        };
        let name = postgres.and_then(|url| url.application_name.clone());
        let timeout = postgres.and_then(|url| url.connect_timeout);
        Self {
            location,
            settings: StoreSettings::default(),
            session_settings: postgres.map_or(vec![], |url| url.settings.clone()),
            application_name: name.unwrap_or_else(|| "canvas-scheduler".to_owned()),
            connect_timeout: timeout.unwrap_or(CONNECT_TIMEOUT),
            metrics: CommitMetrics::default(),
            warnings: ServerWarnings::default(),
        }
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        matches!(self.location, Location::Sqlite { .. })
    }

    /// Whether the database exists only in its one connection.
    pub(crate) fn is_in_memory(&self) -> bool {
        matches!(self.location, Location::Sqlite { in_memory, .. } if in_memory)
    }
}

fn file(url: &SqliteUrl) -> SqliteConnectOptions {
    let options = match &url.file {
        Some(file) => SqliteConnectOptions::new().filename(file),
        // The driver gives each such database another name.
        None => "sqlite::memory:".parse().unwrap_or_default(),
    };
    let options = match &url.vfs {
        Some(vfs) => options.vfs(vfs.clone()),
        None => options,
    };
    let shares = url.shared_cache || url.file.is_none();
    options.create_if_missing(url.create).shared_cache(shares)
}

fn servers(url: &PostgresUrl) -> Vec<PgConnectOptions> {
    let server = |host: &Host| {
        let options = PgConnectOptions::new_without_pgpass();
        match host {
            Host::Tcp { name, port } => options.host(name).port(*port),
            Host::Socket { folder, port } => options.socket(folder).port(*port),
        }
    };
    url.hosts
        .iter()
        .map(server)
        .map(|options| with(options, url))
        .collect()
}

/// The options of a server with the parts of the URL that are the same for all.
fn with(mut options: PgConnectOptions, url: &PostgresUrl) -> PgConnectOptions {
    if let Some(user) = &url.user {
        options = options.username(user);
    }
    if let Some(password) = &url.password {
        options = options.password(&password.0);
    }
    if let Some(database) = url.database.as_ref().or(url.user.as_ref()) {
        options = options.database(database);
    }
    options = options.ssl_mode(match url.ssl_mode {
        SslMode::Disable => PgSslMode::Disable,
        SslMode::Allow => PgSslMode::Allow,
        SslMode::Prefer => PgSslMode::Prefer,
        SslMode::Require => PgSslMode::Require,
        SslMode::VerifyCa => PgSslMode::VerifyCa,
        SslMode::VerifyFull => PgSslMode::VerifyFull,
    });
    if let Some(file) = &url.ssl_root_cert {
        options = options.ssl_root_cert(file);
    }
    if let Some(file) = &url.ssl_cert {
        options = options.ssl_client_cert(file);
    }
    if let Some(file) = &url.ssl_key {
        options = options.ssl_client_key(file);
    }
    options
}
