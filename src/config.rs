//! The settings: flags and `CANVAS_SCHEDULER_*` variables, read here alone. Every value is read as text first, so that all
//! faults are told at once.

pub mod access;
mod roles;
mod sink;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

pub use roles::Roles;
pub use sink::{Reach, Secret, SinkArgs, SinkSettings};

/// A self-hosted gRPC service that owns the schedules of API-triggered Canvases.
#[derive(Debug, Parser)]
#[command(name = "canvas-scheduler", version, max_term_width = 110)]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Try it: a SQLite file, two sample schedules, and lines to paste on the screen
    Dev(ServeArgs),
    /// Serve gRPC callers; not ready while migrations are pending
    Serve(ServeArgs),
    /// Apply pending migrations and end
    Migrate(DatabaseArgs),
    /// Make, list and revoke the keys of callers
    #[command(subcommand)]
    ApiKey(access::ApiKeyCommand),
    /// Make, list and set workspaces, the tenants
    #[command(subcommand)]
    Workspace(access::WorkspaceCommand),
    /// Ask a running server whether it serves; ends with 0 when it does, with 1 when not
    Healthcheck(HealthcheckArgs),
}

/// How to log.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// What is logged: error, warn, info, debug, trace, or directives such as info,canvas_scheduler=debug
    #[arg(long, global = true, env = "CANVAS_SCHEDULER_LOG_LEVEL", default_value = "info", help_heading = "Logging")]
    pub log_level: String,
    /// text, json, or auto: text on a terminal, else json
    #[arg(long, global = true, env = "CANVAS_SCHEDULER_LOG_FORMAT", default_value = "auto", help_heading = "Logging")]
    pub log_format: String,
}

/// Where the database is.
#[derive(Debug, Args)]
pub struct DatabaseArgs {
    /// postgres://user:password@host/name or sqlite://file?mode=rwc [default: sqlite://canvas-scheduler.db?mode=rwc]
    #[arg(long, env = "CANVAS_SCHEDULER_DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// A file that holds the database URL, in place of --database-url
    #[arg(long, env = "CANVAS_SCHEDULER_DATABASE_URL_FILE", value_name = "FILE")]
    pub database_url_file: Option<String>,
}

/// How to serve.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The address for gRPC; beyond loopback only with TLS or --plaintext on. Port 0 takes a free one
    #[arg(long, env = "CANVAS_SCHEDULER_GRPC_ADDR", default_value = "127.0.0.1:50051")]
    pub grpc_addr: String,
    /// Where dispatches go.
    #[command(flatten)]
    pub sink: SinkArgs,
    /// What this process does: api serves callers, dispatcher sends; one of them, or both with a comma between
    #[arg(long, env = "CANVAS_SCHEDULER_ROLES", default_value = "api,dispatcher")]
    pub roles: String,
    /// The server's certificate chain, PEM; read again when it changes. With it the port speaks TLS
    #[arg(long, env = "CANVAS_SCHEDULER_TLS_CERT", value_name = "FILE", help_heading = "TLS")]
    pub tls_cert: Option<String>,
    /// The private key of --tls-cert, PEM
    #[arg(long, env = "CANVAS_SCHEDULER_TLS_KEY", value_name = "FILE", help_heading = "TLS")]
    pub tls_key: Option<String>,
    /// Authorities of which callers must have a certificate (mutual TLS), PEM
    #[arg(long, env = "CANVAS_SCHEDULER_TLS_CLIENT_CA", value_name = "FILE", help_heading = "TLS")]
    pub tls_client_ca: Option<String>,
    /// Whether plain text may be spoken beyond loopback, as behind a proxy that ends TLS: on or off
    #[arg(long, env = "CANVAS_SCHEDULER_PLAINTEXT", default_value = "off", help_heading = "TLS")]
    pub plaintext: String,
    /// Networks of proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8,192.0.2.7 [default: none]
    #[arg(long, env = "CANVAS_SCHEDULER_TRUSTED_PROXIES", default_value = "", hide_default_value = true, value_name = "NETWORKS")]
    pub trusted_proxies: String,
    /// Whether callers may ask which methods there are, without a key: on or off
    #[arg(long, env = "CANVAS_SCHEDULER_REFLECTION", default_value = "on")]
    pub reflection: String,
    /// Threads that serve, each with a runtime of its own; 0 means one for each core
    #[arg(long, env = "CANVAS_SCHEDULER_CORES", default_value = "0", help_heading = "Tuning")]
    pub cores: String,
    /// Writers of the group commit on PostgreSQL, each with a connection (1 to 64); SQLite has one
    #[arg(long, env = "CANVAS_SCHEDULER_WRITERS", default_value = "2", help_heading = "Tuning")]
    pub writers: String,
    /// The most changes in one commit (1 to 1000)
    #[arg(long, env = "CANVAS_SCHEDULER_COMMIT_MAX", default_value = "256", help_heading = "Tuning")]
    pub commit_max: String,
    /// The most changes that wait for one writer (1 to 1000000); more are refused with UNAVAILABLE
    #[arg(long, env = "CANVAS_SCHEDULER_QUEUE_MAX", default_value = "4096", help_heading = "Tuning")]
    pub queue_max: String,
    /// The most database connections for reading (1 to 1000)
    #[arg(long, env = "CANVAS_SCHEDULER_READ_CONNECTIONS", default_value = "8", help_heading = "Tuning")]
    pub read_connections: String,
    /// The most dispatches that are in flight at once, whatever is due (1 to 10000)
    #[arg(long, env = "CANVAS_SCHEDULER_WORKERS", default_value = "1024", help_heading = "Sending")]
    pub workers: String,
    /// How long a dispatch is its worker's alone; a delivery may take three quarters of it. Then somebody else tries
    #[arg(long, env = "CANVAS_SCHEDULER_LEASE", default_value = "60s", help_heading = "Sending")]
    pub lease: String,
    /// After so many attempts whose outcome is unknown a dispatch is a dead letter (1 to 1000)
    #[arg(long, env = "CANVAS_SCHEDULER_ATTEMPTS", default_value = "10", help_heading = "Sending")]
    pub attempts: String,
    /// How far past a time may be and still be sent at once, such as 1h or 90m
    #[arg(long, env = "CANVAS_SCHEDULER_LATENESS", default_value = "1h", help_heading = "Rules")]
    pub lateness: String,
    /// How many days ahead a time may be (1 to 3660)
    #[arg(long, env = "CANVAS_SCHEDULER_HORIZON_DAYS", default_value = "366", help_heading = "Rules")]
    pub horizon_days: String,
    /// How many days a schedule is kept after it was sent or cancelled (1 to 3660)
    #[arg(long, env = "CANVAS_SCHEDULER_RETENTION_DAYS", default_value = "90", help_heading = "Rules")]
    pub retention_days: String,
    /// The newest revisions of a schedule that are kept (1 to 1000000000)
    #[arg(long, env = "CANVAS_SCHEDULER_REVISIONS_KEPT", default_value = "100", help_heading = "Rules")]
    pub revisions_kept: String,
    /// The most connections; one more is closed at once (1 to 1000000)
    #[arg(long, env = "CANVAS_SCHEDULER_MAX_CONNECTIONS", default_value = "10000", help_heading = "Bounds")]
    pub max_connections: String,
    /// The most connections of one address, but for trusted proxies; one more is closed at once (1 to 1000000)
    #[arg(long, env = "CANVAS_SCHEDULER_MAX_CONNECTIONS_PER_ADDRESS", default_value = "1000", help_heading = "Bounds")]
    pub max_connections_per_address: String,
    /// The most calls under way, over all connections; more are refused with UNAVAILABLE, health never (1 to 1000000)
    #[arg(long, env = "CANVAS_SCHEDULER_MAX_IN_FLIGHT", default_value = "4096", help_heading = "Bounds")]
    pub max_in_flight: String,
    /// A connection from which no byte has come for so long is closed
    #[arg(long, env = "CANVAS_SCHEDULER_FIRST_BYTE_TIMEOUT", default_value = "10s", help_heading = "Bounds")]
    pub first_byte_timeout: String,
    /// A connection is asked to go after so long, give or take a tenth, and closed 30 s later
    #[arg(long, env = "CANVAS_SCHEDULER_MAX_CONNECTION_AGE", default_value = "30m", help_heading = "Bounds")]
    pub max_connection_age: String,
    /// The longest that a call may take, whatever deadline it states
    #[arg(long, env = "CANVAS_SCHEDULER_MAX_CALL_TIME", default_value = "60s", help_heading = "Bounds")]
    pub max_call_time: String,
    /// After SIGTERM: how long calls in flight may take to finish
    #[arg(long, env = "CANVAS_SCHEDULER_DRAIN", default_value = "20s", help_heading = "Bounds")]
    pub drain: String,
}

/// Whom to ask.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// The address of the server
    #[arg(long, env = "CANVAS_SCHEDULER_GRPC_ADDR", default_value = "127.0.0.1:50051")]
    pub grpc_addr: String,
    /// The authority that signed its certificate, PEM: then it is asked by TLS
    #[arg(long, env = "CANVAS_SCHEDULER_HEALTHCHECK_TLS_CA", value_name = "FILE", help_heading = "TLS")]
    pub tls_ca: Option<String>,
    /// The name in its certificate
    #[arg(long, env = "CANVAS_SCHEDULER_HEALTHCHECK_TLS_NAME", default_value = "localhost", value_name = "NAME", help_heading = "TLS")]
    pub tls_name: String,
    /// A certificate of one's own, PEM, where the server asks for one
    #[arg(long, env = "CANVAS_SCHEDULER_HEALTHCHECK_TLS_CERT", value_name = "FILE", help_heading = "TLS")]
    pub tls_cert: Option<String>,
    /// The private key of --tls-cert, PEM
    #[arg(long, env = "CANVAS_SCHEDULER_HEALTHCHECK_TLS_KEY", value_name = "FILE", help_heading = "TLS")]
    pub tls_key: Option<String>,
    /// How long to wait for its answer
    #[arg(long, env = "CANVAS_SCHEDULER_HEALTHCHECK_TIMEOUT", default_value = "3s")]
    pub timeout: String,
}

/// Everything that `serve` and `dev` are set to.
#[derive(Debug, Clone)]
pub struct Serve {
    /// May hold a password: never logged.
    pub database_url: String,
    /// Beyond loopback only with `tls`, or because plain text was asked for by name.
    pub grpc_addr: SocketAddr,
    /// Where dispatches go, if they go at all.
    pub sink: Option<SinkSettings>,
    /// What this process does.
    pub roles: Roles,
    /// None means plain text.
    pub tls: Option<TlsFiles>,
    /// Whose word on the caller's address is taken.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether reflection is served.
    pub reflection: bool,
    /// At least 1.
    pub cores: usize,
    /// At least 1.
    pub writers: usize,
    /// At least 1.
    pub commit_max: usize,
    /// At least 1.
    pub queue_max: usize,
    /// At least 1.
    pub read_connections: u32,
    /// At least 1.
    pub workers: usize,
    /// From the firing of a dispatch to when somebody else may have it.
    pub lease: Duration,
    /// At least 1.
    pub attempts: u32,
    /// How far past a wave may be and still go at once.
    pub lateness: Duration,
    /// How many days ahead a wave may be.
    pub horizon_days: u32,
    /// How many days a finished schedule is kept.
    pub retention_days: u32,
    /// At least 1.
    pub revisions_kept: u32,
    /// At least 1.
    pub max_connections: usize,
    /// At least 1.
    pub max_connections_per_address: usize,
    /// At least 1.
    pub max_in_flight: usize,
    /// From the accept to the first byte.
    pub first_byte_timeout: Duration,
    /// From the accept to GOAWAY.
    pub max_connection_age: Duration,
    /// Of one call.
    pub max_call_time: Duration,
    /// From SIGTERM to the end of every call.
    pub drain: Duration,
}

/// Where certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, PEM.
    pub certificates: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Of callers; none means that they need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// What `healthcheck` is set to.
#[derive(Debug, Clone)]
pub struct Healthcheck {
    /// The server.
    pub grpc_addr: SocketAddr,
    /// The authority that signed its certificate; none means plain text.
    pub tls_ca: Option<PathBuf>,
    /// The name in its certificate.
    pub tls_name: String,
    /// A certificate of one's own and its key, where the server asks for one.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
    /// For its answer.
    pub timeout: Duration,
}

/// The database that is used when none is stated.
const DATABASE_DEFAULT: &str = "sqlite://canvas-scheduler.db?mode=rwc";

/// Collects what is wrong with the settings.
#[derive(Default)]
struct Reader {
    faults: Vec<String>,
}

impl Reader {
    fn fault<T>(&mut self, flag: &str, value: &str, needed: &str) -> Option<T> {
        self.faults.push(format!("--{flag}: {value:?} is not {needed}"));
        None
    }

    fn number<T: FromStr + PartialOrd + std::fmt::Display>(&mut self, flag: &str, value: &str, least: T, most: T) -> Option<T> {
        match value.parse::<T>() {
            Ok(number) if number >= least && number <= most => Some(number),
            _ => self.fault(flag, value, &format!("a whole number from {least} to {most}")),
        }
    }

    fn switch(&mut self, flag: &str, value: &str) -> Option<bool> {
        match value {
            "on" => Some(true),
            "off" => Some(false),
            _ => self.fault(flag, value, "on or off"),
        }
    }

    fn networks(&mut self, flag: &str, value: &str) -> Option<Vec<IpNet>> {
        let entries = value.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let networks = entries.map(|entry| entry.parse().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from)));
        networks.collect::<Result<_, _>>().ok().or_else(|| self.fault(flag, value, "a list of networks such as 10.0.0.0/8,192.0.2.7"))
    }

    /// A span of at least a millisecond and at most a year, such as `90m` or `1h 30m`.
    fn duration(&mut self, flag: &str, value: &str) -> Option<Duration> {
        let span = value.parse::<jiff::SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
        match span {
            Some(span) if span >= Duration::from_millis(1) && span <= Duration::from_secs(366 * 86_400) => Some(span),
            _ => self.fault(flag, value, "a span of time from 1ms to 8784h, such as 20s, 90m or 1h"),
        }
    }

    fn address(&mut self, flag: &str, value: &str) -> Option<SocketAddr> {
        match value.replace("localhost:", "127.0.0.1:").parse::<SocketAddr>() {
            Ok(address) => Some(address),
            Err(_) => self.fault(flag, value, "an address and port such as 127.0.0.1:50051"),
        }
    }

    /// Keys travel on the connection: in plain text only where nobody listens, or where it was asked for by name.
    fn guarded(&mut self, flag: &str, value: &str, safe: bool) -> Option<SocketAddr> {
        let address = self.address(flag, value)?;
        if safe || address.ip().is_loopback() {
            return Some(address);
        }
        self.fault(flag, value, "a loopback address; beyond it --tls-cert and --tls-key are needed, or --plaintext on")
    }

    /// A file and its key: both or none.
    fn pair(&mut self, certificates: Option<&str>, key: Option<&str>) -> Option<(PathBuf, PathBuf)> {
        match (certificates, key) {
            (Some(certificates), Some(key)) => Some((certificates.into(), key.into())),
            (None, None) => None,
            _ => {
                self.faults.push("--tls-cert and --tls-key: one needs the other".to_owned());
                None
            }
        }
    }

    fn tls(&mut self, args: &ServeArgs) -> Option<TlsFiles> {
        let pair = self.pair(args.tls_cert.as_deref(), args.tls_key.as_deref());
        if args.tls_client_ca.is_some() && args.tls_cert.is_none() {
            self.faults.push("--tls-client-ca: needs --tls-cert and --tls-key".to_owned());
        }
        pair.map(|(certificates, key)| TlsFiles { certificates, key, client_ca: args.tls_client_ca.as_deref().map(Into::into) })
    }

    /// The text of a file.
    fn file(&mut self, flag: &str, path: &str) -> Option<String> {
        match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(why) => self.fault(flag, path, &format!("a file that can be read ({why})")),
        }
    }

    fn database(&mut self, args: &DatabaseArgs) -> Option<String> {
        let url = match (&args.database_url, &args.database_url_file) {
            (Some(_), Some(_)) => {
                self.faults.push("--database-url and --database-url-file: only one of them may be set".to_owned());
                return None;
            }
            (Some(url), None) => url.clone(),
            (None, Some(file)) => self.file("database-url-file", file)?.trim().to_owned(),
            (None, None) => DATABASE_DEFAULT.to_owned(),
        };
        let known = ["postgres://", "postgresql://", "sqlite:"].iter().any(|scheme| url.starts_with(scheme));
        if known {
            return Some(url);
        }
        // The value may hold a password: it is not repeated.
        self.faults.push("--database-url: must begin with postgres:// or sqlite:".to_owned());
        None
    }

    fn finish<T>(self, value: Option<T>) -> Result<T, Vec<String>> {
        match value {
            Some(value) if self.faults.is_empty() => Ok(value),
            _ => Err(self.faults),
        }
    }
}

impl ServeArgs {
    /// # Errors
    /// Every fault, a line each.
    pub fn read(&self) -> Result<Serve, Vec<String>> {
        let mut reader = Reader::default();
        let database_url = reader.database(&self.database);
        let (tls, plaintext) = (reader.tls(self), reader.switch("plaintext", &self.plaintext));
        let grpc_addr = reader.guarded("grpc-addr", &self.grpc_addr, tls.is_some() || plaintext == Some(true));
        let trusted_proxies = reader.networks("trusted-proxies", &self.trusted_proxies);
        let reflection = reader.switch("reflection", &self.reflection);
        let sink = reader.sink(&self.sink);
        let roles = reader.roles(&self.roles);
        let cores = reader.number("cores", &self.cores, 0, 1024);
        let writers = reader.number("writers", &self.writers, 1, 64);
        let commit_max = reader.number("commit-max", &self.commit_max, 1, 1000);
        let queue_max = reader.number("queue-max", &self.queue_max, 1, 1_000_000);
        let read_connections = reader.number("read-connections", &self.read_connections, 1, 1000);
        let workers = reader.number("workers", &self.workers, 1, 10_000);
        let lease = reader.lease(&self.lease, sink.as_ref());
        reader.sending(roles, &self.sink);
        let attempts = reader.number("attempts", &self.attempts, 1, 1_000);
        let lateness = reader.duration("lateness", &self.lateness);
        let horizon_days = reader.number("horizon-days", &self.horizon_days, 1, 3660);
        let retention_days = reader.number("retention-days", &self.retention_days, 1, 3660);
        let revisions_kept = reader.number("revisions-kept", &self.revisions_kept, 1, 1_000_000_000);
        let max_connections = reader.number("max-connections", &self.max_connections, 1, 1_000_000);
        let max_connections_per_address = reader.number("max-connections-per-address", &self.max_connections_per_address, 1, 1_000_000);
        let max_in_flight = reader.number("max-in-flight", &self.max_in_flight, 1, 1_000_000);
        let first_byte_timeout = reader.duration("first-byte-timeout", &self.first_byte_timeout);
        let max_connection_age = reader.duration("max-connection-age", &self.max_connection_age);
        let max_call_time = reader.duration("max-call-time", &self.max_call_time);
        let drain = reader.duration("drain", &self.drain);
        let read = move || {
            Some(Serve {
                database_url: database_url?,
                grpc_addr: grpc_addr?,
                sink,
                roles: roles?,
                tls,
                trusted_proxies: trusted_proxies?,
                reflection: reflection?,
                cores: cores_or_all(cores?),
                writers: writers?,
                commit_max: commit_max?,
                queue_max: queue_max?,
                read_connections: read_connections?,
                workers: workers?,
                lease: lease?,
                attempts: attempts?,
                lateness: lateness?,
                horizon_days: horizon_days?,
                retention_days: retention_days?,
                revisions_kept: revisions_kept?,
                max_connections: max_connections?,
                max_connections_per_address: max_connections_per_address?,
                max_in_flight: max_in_flight?,
                first_byte_timeout: first_byte_timeout?,
                max_connection_age: max_connection_age?,
                max_call_time: max_call_time?,
                drain: drain?,
            })
        };
        let serve = read();
        reader.finish(serve)
    }
}

impl DatabaseArgs {
    /// The URL of the database.
    ///
    /// # Errors
    /// Every fault, a line each.
    pub fn read(&self) -> Result<String, Vec<String>> {
        let mut reader = Reader::default();
        let url = reader.database(self);
        reader.finish(url)
    }
}

impl HealthcheckArgs {
    /// # Errors
    /// Every fault, a line each.
    pub fn read(&self) -> Result<Healthcheck, Vec<String>> {
        let mut reader = Reader::default();
        let grpc_addr = reader.address("grpc-addr", &self.grpc_addr);
        let timeout = reader.duration("timeout", &self.timeout);
        let tls_identity = reader.pair(self.tls_cert.as_deref(), self.tls_key.as_deref());
        let tls_ca = self.tls_ca.as_deref().map(Into::into);
        let tls_name = self.tls_name.clone();
        let read = grpc_addr.zip(timeout);
        reader.finish(read.map(|(grpc_addr, timeout)| Healthcheck { grpc_addr, tls_ca, tls_name, tls_identity, timeout }))
    }
}

fn cores_or_all(stated: usize) -> usize {
    if stated > 0 { stated } else { std::thread::available_parallelism().map_or(1, usize::from) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(args: &[&str]) -> Result<Serve, Vec<String>> {
        let line = CommandLine::try_parse_from([&["canvas-scheduler", "serve"], args].concat()).expect("known flags");
        match line.command {
            Command::Serve(args) => args.read(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_good() {
        let read = serve(&[]).expect("no fault");
        assert_eq!((read.database_url.as_str(), read.grpc_addr.port()), (DATABASE_DEFAULT, 50051));
        assert_eq!(read.roles, Roles { api: true, dispatcher: true });
        assert_eq!((read.lateness, read.horizon_days, read.drain), (Duration::from_secs(3600), 366, Duration::from_secs(20)));
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_flag_and_value() {
        let faults = serve(&[
            "--database-url=mysql://u:secret@h/d",
            "--grpc-addr=0.0.0.0:1",
            "--lateness=soon",
            "--commit-max=0",
            "--drain=-3s",
            "--cores=x",
            "--roles=api,sender",
        ])
        .expect_err("seven faults");
        for (flag, value) in [
            ("database-url", "postgres://"),
            ("grpc-addr", "0.0.0.0:1"),
            ("lateness", "soon"),
            ("commit-max", "1 to 1000"),
            ("roles", "api,sender"),
        ] {
            assert!(faults.iter().any(|fault| fault.contains(flag) && fault.contains(value)), "{flag}: {faults:?}");
        }
        assert_eq!(faults.len(), 7);
        assert!(!faults.concat().contains("secret"));
    }

    #[test]
    fn sending_is_set_to_what_can_work() {
        let grpc = ["--sink=grpc", "--sink-url=http://127.0.0.1:1", "--sink-timeout=45s"];
        for (args, needed) in [(&["--roles=dispatcher"][..], "--sink:"), (&grpc[..], "--sink-timeout")] {
            let faults = serve(args).expect_err("a fault");
            assert!(faults.len() == 1 && faults[0].contains(needed), "{faults:?}");
        }
        assert!(serve(&[&grpc[..], &["--lease=61s", "--roles=dispatcher"]].concat()).is_ok());
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }
}
