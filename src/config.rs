//! The settings: flags and `CANVAS_SCHEDULER_*` variables, read here alone. Every value is read as text first, so that all
//! faults are told at once.

pub mod access;
mod reader;
mod roles;
mod secret;
mod serve;
mod sink;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use http::uri::Authority;

use reader::Reader;
pub use roles::Roles;
pub use secret::Secret;
pub use serve::{Serve, ServeArgs, TlsFiles};
pub use sink::{Reach, SinkArgs, SinkSettings};

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
    #[arg(
        long,
        global = true,
        env = "CANVAS_SCHEDULER_LOG_LEVEL",
        default_value = "info",
        help_heading = "Logging"
    )]
    pub log_level: String,
    /// text, json, or auto: text on a terminal, else json
    #[arg(
        long,
        global = true,
        env = "CANVAS_SCHEDULER_LOG_FORMAT",
        default_value = "auto",
        help_heading = "Logging"
    )]
    pub log_format: String,
}

/// Where the database is.
#[derive(Debug, Args)]
pub struct DatabaseArgs {
    /// postgres://user:password@host/name or sqlite://file?mode=rwc [default: sqlite://canvas-scheduler.db?mode=rwc]
    #[arg(long, env = "CANVAS_SCHEDULER_DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<Secret<String>>,
    /// A file that holds the database URL, in place of --database-url
    #[arg(long, env = "CANVAS_SCHEDULER_DATABASE_URL_FILE", value_name = "FILE")]
    pub database_url_file: Option<String>,
}

/// Whom to ask.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// The address of the server, or its name and port
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_GRPC_ADDR",
        default_value = "127.0.0.1:50051"
    )]
    pub grpc_addr: String,
    /// The authority that signed its certificate, PEM: then it is asked by TLS
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_HEALTHCHECK_TLS_CA",
        value_name = "FILE",
        help_heading = "TLS"
    )]
    pub tls_ca: Option<String>,
    /// The name in its certificate
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_HEALTHCHECK_TLS_NAME",
        default_value = "localhost",
        value_name = "NAME",
        help_heading = "TLS"
    )]
    pub tls_name: String,
    /// A certificate of one's own, PEM, where the server asks for one
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_HEALTHCHECK_TLS_CERT",
        value_name = "FILE",
        help_heading = "TLS"
    )]
    pub tls_cert: Option<String>,
    /// The private key of --tls-cert, PEM
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_HEALTHCHECK_TLS_KEY",
        value_name = "FILE",
        help_heading = "TLS"
    )]
    pub tls_key: Option<String>,
    /// How long to wait for its answer
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_HEALTHCHECK_TIMEOUT",
        default_value = "3s"
    )]
    pub timeout: String,
}

/// What `healthcheck` is set to.
#[derive(Debug, Clone)]
pub struct Healthcheck {
    /// The server, with its port.
    pub grpc_addr: Authority,
    /// The authority that signed its certificate; none means plain text.
    pub tls_ca: Option<PathBuf>,
    /// The name in its certificate.
    pub tls_name: String,
    /// A certificate of one's own and its key, where the server asks for one.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
    /// For its answer.
    pub timeout: Duration,
}

impl DatabaseArgs {
    /// The URL of the database.
    ///
    /// # Errors
    /// Every fault, a line each.
    pub fn read(&self) -> Result<Secret<String>, Vec<String>> {
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
        let grpc_addr = reader.host("grpc-addr", &self.grpc_addr);
        let timeout = reader.duration("timeout", &self.timeout);
        let tls_identity = reader.pair(self.tls_cert.as_deref(), self.tls_key.as_deref());
        let tls_ca = self.tls_ca.as_deref().map(Into::into);
        let tls_name = self.tls_name.clone();
        let read = grpc_addr.zip(timeout);
        reader.finish(read.map(|(grpc_addr, timeout)| Healthcheck {
            grpc_addr,
            tls_ca,
            tls_name,
            tls_identity,
            timeout,
        }))
    }
}
