//! Opens connections: chooses the server, configures the session and verifies it.
//!
//! Settings are set by statements after connecting, because poolers drop or refuse them as startup
//! parameters, and are read back. A server that must not be used is refused with its reason.

use std::time::Duration;

use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{self, ConnectOptions as _};
use sea_orm::{DatabaseConnection, DbErr, QueryResult, SqlxPostgresConnector, SqlxSqliteConnector};

use crate::error::StoreOutage;
use crate::store::session::connection::{DriverConnection, driver};
use crate::store::session::error::{
    ConnectFault, Remedy, code, describe, driver_error, outage, sqlite_code,
};
use crate::store::session::options::{Location, Options};

/// How long SQLite waits for the write lock of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// SQLite's code for a file that cannot be opened.
const CANTOPEN: u32 = 14;
/// SQLite's code for a file that is not a database.
const NOTADB: u32 = 26;
/// Prepared statements that a PostgreSQL session keeps.
const STATEMENT_CACHE: usize = 200;

/// What a session is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Reads for callers.
    Read,
    /// Group commits.
    Commit,
    /// Claiming, settling, and the rest of the dispatcher and of operators.
    Dispatch,
}

/// An opened connection and the server that it leads to.
pub(crate) struct Opened {
    pub connection: DriverConnection,
    /// The server's start, which identifies it; empty for SQLite.
    pub server: String,
    pub backend: ServerProcess,
}

/// A backend of PostgreSQL, by its process id and its start; 0 for SQLite.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerProcess {
    pid: i32,
    started: String,
}

impl Purpose {
    fn application_name(self, options: &Options) -> String {
        let name = &options.application_name;
        match self {
            Self::Read => name.clone(),
            Self::Commit => format!("{name} writer"),
            Self::Dispatch => format!("{name} dispatcher"),
        }
    }

    /// The settings of a PostgreSQL session, as `current_setting` shows them.
    fn settings(self) -> Vec<(&'static str, &'static str)> {
        let mut settings = vec![
            // A row that another session locks for longer is skipped, so that the changes of other
            // rows go on.
            ("lock_timeout", "1s"),
            ("statement_timeout", "9s"),
            // A process that disappears within a transaction leaves no locks behind.
            ("idle_in_transaction_session_timeout", "10s"),
            ("default_transaction_isolation", "read committed"),
        ];
        if self != Self::Read {
            // Its statements are planned once: their arrays differ only in length, and each row is
            // found by its key.
            settings.extend([
                ("plan_cache_mode", "force_generic_plan"),
                ("enable_seqscan", "off"),
            ]);
        }
        if self == Self::Dispatch {
            // Each row is found at the front of a queue, whatever the sizes of tables and batches.
            settings.extend([("enable_hashjoin", "off"), ("enable_mergejoin", "off")]);
        }
        settings
    }
}

/// Settings that help the server notice a client that disappeared. Not every version and platform
/// has them.
const CLIENT_CHECKS: [(&str, &str); 6] = [
    ("idle_session_timeout", "0"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "20000"),
    ("client_connection_check_interval", "2s"),
];

/// Sets the settings. The server refuses one that it does not know.
pub(crate) fn set(settings: &[(impl AsRef<str>, impl AsRef<str>)]) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let rows: Vec<String> = settings
        .iter()
        .map(|(name, value)| format!("({}, {})", quoted(name.as_ref()), quoted(value.as_ref())))
        .collect();
    format!(
        "SELECT set_config(name, value, false) FROM (VALUES {}) AS s (name, value)",
        rows.join(", ")
    )
}

/// Sets those of the settings that the server knows.
fn set_known(settings: &[(&str, &str)]) -> String {
    let set = set(settings);
    format!("{set} WHERE current_setting(name, true) IS NOT NULL")
}

/// What the server says of itself, and then the values of these settings.
fn verification(settings: &[(&str, &str)]) -> String {
    let shown: Vec<String> = settings
        .iter()
        .map(|(name, _)| format!(", current_setting('{name}')"))
        .collect();
    format!(
        "SELECT pg_postmaster_start_time()::text, current_setting('server_encoding'), \
         current_setting('transaction_read_only'), pg_backend_pid()::text, \
         (SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()){}",
        shown.concat()
    )
}

/// Opens a connection to the first usable server, beginning with number `first`. Returns its number
/// too.
pub(crate) async fn open(
    options: &Options,
    purpose: Purpose,
    first: usize,
) -> Result<(Opened, usize), ConnectFault> {
    let servers = match &options.location {
        Location::Sqlite { file, .. } => {
            let connection = sqlite(file, options.connect_timeout).await?;
            let opened = Opened {
                connection,
                server: String::new(),
                backend: ServerProcess::default(),
            };
            return Ok((opened, 0));
        }
        Location::Postgres(servers) => servers,
    };
    let mut faults: Vec<ConnectFault> = Vec::new();
    for n in (0..servers.len()).map(|n| (first + n) % servers.len()) {
        match postgres(&servers[n], purpose, options).await {
            Ok(opened) => return Ok((opened, n)),
            Err(fault) => faults.push(fault),
        }
    }
    let messages: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
    Err(ConnectFault {
        message: messages.join("; "),
        remedy: faults
            .iter()
            .map(|fault| fault.remedy)
            .min()
            .unwrap_or(Remedy::Wait),
        why: faults
            .first()
            .map_or(StoreOutage::Unreachable, |fault| fault.why),
    })
}

/// The driver's own pool with one connection to server number `host`.
pub(crate) fn pool_of_one(options: &Options, host: usize) -> DatabaseConnection {
    use sea_orm::sqlx::pool::PoolOptions;
    match &options.location {
        Location::Sqlite { file, .. } => {
            let pool = PoolOptions::new().max_connections(1);
            let pool = pool.idle_timeout(None).max_lifetime(None);
            SqlxSqliteConnector::from_sqlx_sqlite_pool(pool.connect_lazy_with(configured(file)))
        }
        Location::Postgres(servers) => {
            let pool = PoolOptions::new().max_connections(1);
            let pool = pool.idle_timeout(None).max_lifetime(None);
            let server = servers.get(host).cloned().unwrap_or_default();
            let server = server
                .application_name(&Purpose::Dispatch.application_name(options))
                .extra_float_digits(None)
                // A log of the statement that sets them would show the settings of the URL.
                .disable_statement_logging();
            SqlxPostgresConnector::from_sqlx_postgres_pool(pool.connect_lazy_with(server))
        }
    }
}

/// As every connection to a SQLite file is opened.
fn configured(file: &SqliteConnectOptions) -> SqliteConnectOptions {
    file.clone()
        .journal_mode(SqliteJournalMode::Wal)
        // FULL: an acknowledged change is on the disk, not only in the operating system's memory.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        // 64 MB. The file is not mapped: an I/O error on a mapped page would end the process by a
        // signal.
        .pragma("cache_size", "-65536")
        // In pages: 1.6 MB. A log that fills a small disk cannot be moved into the file any more,
        // because the file has to grow first.
        .pragma("wal_autocheckpoint", "400")
        .disable_statement_logging()
}

/// Ends backends whose clients have left them in the middle of something. One that waits for a
/// standby, or for a network that is gone, would stay for long.
pub(crate) async fn terminate(
    connection: &mut DriverConnection,
    backends: &[ServerProcess],
) -> Result<(), DbErr> {
    let rows: Vec<String> = backends
        .iter()
        .map(|ServerProcess { pid, started }| format!("({pid}, '{started}')"))
        .collect();
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE (pid, backend_start::text) IN (VALUES {})",
        rows.join(", ")
    );
    connection.execute_unprepared(&sql).await.map(drop)
}

async fn sqlite(
    options: &SqliteConnectOptions,
    timeout: Duration,
) -> Result<DriverConnection, ConnectFault> {
    let options = configured(options);
    let file = options.get_filename().display().to_string();
    let refused = |why: StoreOutage, remedy: Remedy, cause: &str| ConnectFault {
        why,
        message: format!("cannot open {file}: {cause}"),
        remedy,
    };
    match tokio::time::timeout(timeout.max(BUSY_TIMEOUT * 2), options.connect()).await {
        Ok(Ok(connection)) => Ok(DriverConnection::Sqlite(Box::new(connection))),
        Ok(Err(fault)) => {
            let fault = DbErr::Conn(driver(fault));
            let why = outage(&fault).unwrap_or(StoreOutage::Faulty);
            let cause = match driver_error(&fault) {
                Some(sqlx::Error::Database(reported)) => reported.message().to_owned(),
                _ => describe(&fault),
            };
            // An I/O error may pass; a path that does not exist, or another kind of file, does not.
            let remedy = match sqlite_code(&fault) {
                Some(CANTOPEN | NOTADB) | None => Remedy::Url,
                Some(_) => Remedy::Wait,
            };
            Err(refused(why, remedy, &cause))
        }
        Err(_) => Err(refused(
            StoreOutage::Locked,
            Remedy::Wait,
            "another process holds its lock",
        )),
    }
}

async fn postgres(
    server: &PgConnectOptions,
    purpose: Purpose,
    options: &Options,
) -> Result<Opened, ConnectFault> {
    let (named, timeout) = (PostgresServer(server), options.connect_timeout);
    let opening = async {
        let connection = server
            .clone()
            .application_name(&purpose.application_name(options))
            .statement_cache_capacity(STATEMENT_CACHE)
            // The service stores no floating-point numbers, and poolers refuse the parameter.
            .extra_float_digits(None)
            .disable_statement_logging()
            .connect()
            .await
            .map_err(|fault| named.fault(&DbErr::Conn(driver(fault))))?;
        let mut connection = DriverConnection::Postgres(Box::new(connection));
        let settings = purpose.settings();
        let configured = async {
            if !options.session_settings.is_empty() {
                let asked = set(&options.session_settings);
                connection.execute_unprepared(&asked).await?;
            }
            connection.execute_unprepared(&set(&settings)).await?;
            if let Err(fault) = connection
                .execute_unprepared(&set_known(&CLIENT_CHECKS))
                .await
            {
                tracing::debug!(fault = describe(&fault), "the server lacks client checks");
            }
            connection.query_unprepared(&verification(&settings)).await
        };
        let shown = configured.await.map_err(|fault| named.fault(&fault))?;
        let (server, backend) = named.verify(shown.as_ref(), &settings)?;
        Ok(Opened {
            connection,
            server,
            backend,
        })
    };
    tokio::time::timeout(timeout, opening)
        .await
        .unwrap_or_else(|_| {
            let seconds = timeout.as_secs();
            Err(named.refused(
                StoreOutage::Unreachable,
                Remedy::Wait,
                &format!("no answer within {seconds} s"),
            ))
        })
}

/// One PostgreSQL server.
#[derive(Clone, Copy)]
struct PostgresServer<'a>(&'a PgConnectOptions);

impl PostgresServer<'_> {
    fn name(self) -> String {
        let database = self.0.get_database().unwrap_or_default();
        match self.0.get_socket() {
            Some(folder) => format!("{}/{database}", folder.display()),
            None => {
                let (host, port) = (self.0.get_host(), self.0.get_port());
                let host = if host.contains(':') {
                    format!("[{host}]")
                } else {
                    host.to_owned()
                };
                format!("{host}:{port}/{database}")
            }
        }
    }

    fn refused(self, why: StoreOutage, remedy: Remedy, cause: &str) -> ConnectFault {
        ConnectFault {
            why,
            message: format!("cannot use the database at {}: {cause}", self.name()),
            remedy,
        }
    }

    /// The fault of a connection attempt. The server's message may name the user, which is a part
    /// of the URL.
    fn fault(self, fault: &DbErr) -> ConnectFault {
        let why = outage(fault).unwrap_or(StoreOutage::Unreachable);
        let (remedy, cause) = match (driver_error(fault), code(fault).as_deref()) {
            (_, Some("28P01")) => (Remedy::Server, "password authentication failed".to_owned()),
            (_, Some("28000")) => (Remedy::Server, "the server rejects the user".to_owned()),
            (_, Some("3D000")) => {
                let database = self.0.get_database().unwrap_or_default();
                let cause = format!("the database \"{database}\" does not exist");
                (Remedy::Server, cause)
            }
            (_, Some("53300")) => (Remedy::Wait, "too many connections".to_owned()),
            (Some(sqlx::Error::Database(reported)), code) => {
                let message = reported.message().replace(self.0.get_username(), "(user)");
                // 08P01: a pooler refuses a parameter or the mode. 22023, 42704, 42501: the server
                // refuses a setting that the URL asks for.
                let remedy = match code {
                    Some("08P01" | "22023" | "42704" | "42501") => Remedy::Url,
                    _ => Remedy::Wait,
                };
                (remedy, message)
            }
            (Some(sqlx::Error::Io(fault)), _)
                if fault.kind() == std::io::ErrorKind::ConnectionRefused =>
            {
                (Remedy::Wait, "connection refused".to_owned())
            }
            (Some(sqlx::Error::Io(fault)), _) => (Remedy::Wait, fault.to_string()),
            (Some(sqlx::Error::Tls(fault)), _) => (Remedy::Server, format!("TLS: {fault}")),
            _ => (Remedy::Wait, describe(fault)),
        };
        self.refused(why, remedy, &cause)
    }

    /// The identity of the server and of the backend, if the server may be used.
    fn verify(
        self,
        shown: Option<&QueryResult>,
        settings: &[(&str, &str)],
    ) -> Result<(String, ServerProcess), ConnectFault> {
        let column = |n: usize| -> Result<String, ConnectFault> {
            let shown = shown.map(|row| row.try_get_by_index(n));
            shown
                .unwrap_or_else(|| Ok(String::new()))
                .map_err(|fault: DbErr| self.fault(&fault))
        };
        let (started, encoding, read_only) = (column(0)?, column(1)?, column(2)?);
        if encoding != "UTF8" {
            let cause = format!("its encoding is {encoding}; create it with ENCODING 'UTF8'");
            return Err(self.refused(StoreOutage::Unreachable, Remedy::Url, &cause));
        }
        if read_only != "off" {
            return Err(self.refused(
                StoreOutage::ReadOnly,
                Remedy::Wait,
                "it is read-only: a standby, or default_transaction_read_only is on",
            ));
        }
        for (n, (name, wanted)) in (5..).zip(settings) {
            let found = column(n)?;
            if found != *wanted {
                let cause = format!(
                    "a pooler drops the session's settings ({name} is {found}, not {wanted}); use \
                     session mode"
                );
                return Err(self.refused(StoreOutage::Unreachable, Remedy::Url, &cause));
            }
        }
        let backend = ServerProcess {
            pid: column(3)?.parse().unwrap_or_default(),
            started: column(4)?,
        };
        Ok((started, backend))
    }
}
