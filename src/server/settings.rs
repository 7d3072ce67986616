//! The settings of a server, which `serve` and `dev` take.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args};
use ipnet::IpNet;

use super::accept::ConnectionSettings;
use crate::config::{DatabaseArgs, DatabaseUrl, defaults, values};
use crate::dispatcher::DispatcherSettings;
use crate::domain::{DeliveryPolicy, SchedulePolicy};
use crate::error::Violations;
use crate::layers::CallSettings;
use crate::sink::{SinkArgs, SinkSettings};
use crate::store::StoreSettings;
use crate::telemetry::notices::ServerWarnings;
use crate::telemetry::{CollectorSettings, TraceArgs};

/// The flags of `serve` and `dev`: settings that stand alone, and groups that are validated
/// together.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    sink: SinkArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    serve: Serve,
    #[command(flatten)]
    traces: TraceArgs,
}

/// The settings of a server.
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// From the flags of the database.
    #[arg(skip)]
    pub database_url: DatabaseUrl,
    /// Counts the warnings of PostgreSQL that reach the log.
    #[arg(skip)]
    pub warnings: ServerWarnings,
    /// From the flags of the collector. Without one, no traces are exported.
    #[arg(skip)]
    pub collector: Option<CollectorSettings>,
    /// From the flags of the sink. Without a sink, nothing is sent.
    #[arg(skip)]
    pub sink: Option<SinkSettings>,
    /// From the flags of TLS. None means plain text.
    #[arg(skip)]
    pub tls: Option<TlsFiles>,
    /// The address for gRPC; beyond loopback only with TLS or --plaintext on. Port 0 takes a free
    /// port
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_GRPC_ADDR",
        default_value = "127.0.0.1:50051",
        value_parser = values::address
    )]
    pub grpc_addr: SocketAddr,
    /// The address for the documented JSON over HTTP; the rules of --grpc-addr apply
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_GATEWAY_ADDR",
        default_value = "127.0.0.1:8080",
        value_parser = values::address
    )]
    pub gateway_addr: SocketAddr,
    /// Whether to serve the documented JSON over HTTP: on or off
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_GATEWAY",
        default_value = "on",
        action = ArgAction::Set,
        value_parser = values::switch
    )]
    pub gateway: bool,
    /// The address for /metrics, /livez and /readyz; always plain HTTP, without a key. Port 0 takes
    /// a free port
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_ADMIN_ADDR",
        default_value = "127.0.0.1:9090",
        value_parser = values::address
    )]
    pub admin_addr: SocketAddr,
    /// What this process does: api serves callers, dispatcher sends; one of them, or both,
    /// separated by a comma
    #[arg(long, env = "CANVAS_SCHEDULER_ROLES", default_value = "api,dispatcher")]
    pub roles: Roles,
    /// Networks of proxies whose X-Forwarded-For is trusted, such as 10.0.0.0/8,192.0.2.7 [default:
    /// none]
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_TRUSTED_PROXIES",
        default_value = "",
        hide_default_value = true,
        value_name = "NETWORKS",
        value_parser = values::networks
    )]
    pub trusted_proxies: Arc<[IpNet]>,
    /// Whether callers may list the methods by reflection, without a key: on or off
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_REFLECTION",
        default_value = "on",
        action = ArgAction::Set,
        value_parser = values::switch
    )]
    pub reflection: bool,
    /// Worker threads that serve connections, each with its own runtime; 0 means one for each core
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_CORES",
        default_value = "0",
        help_heading = "Tuning",
        value_parser = values::threads
    )]
    pub cores: NonZeroUsize,
    /// The limits of the dispatcher.
    #[command(flatten)]
    pub dispatcher: DispatcherSettings,
    /// How dispatches are delivered.
    #[command(flatten)]
    pub delivery: DeliveryPolicy,
    /// The rules of schedules.
    #[command(flatten)]
    pub policy: SchedulePolicy,
    /// How the store uses its database.
    #[command(flatten)]
    pub store: StoreSettings,
    /// The limits of connections.
    #[command(flatten)]
    pub connections: ConnectionSettings,
    /// The limits of calls.
    #[command(flatten)]
    pub calls: CallSettings,
    /// After SIGTERM: how long calls in flight may take to finish
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_DRAIN",
        default_value = "20s",
        help_heading = "Bounds",
        value_parser = values::duration
    )]
    pub drain: Duration,
}

impl Default for Serve {
    fn default() -> Self {
        defaults()
    }
}

impl Serve {
    /// The address of the gateway, if it is on.
    pub fn gateway_addr(&self) -> Option<SocketAddr> {
        Some(self.gateway_addr).filter(|_| self.gateway)
    }
}

/// The roles of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// It serves callers.
    pub api: bool,
    /// It sends.
    pub dispatcher: bool,
}

impl FromStr for Roles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named: Vec<&str> = text.split(',').map(str::trim).collect();
        let known = |name: &&str| ["api", "dispatcher"].contains(name);
        if !named.iter().all(known) {
            return Err("is not api, dispatcher, or api,dispatcher".to_owned());
        }
        Ok(Self {
            api: named.contains(&"api"),
            dispatcher: named.contains(&"dispatcher"),
        })
    }
}

/// Whether the ports for callers speak TLS.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
struct TlsArgs {
    /// The server's certificate chain, PEM; reloaded when it changes. With it, the ports for
    /// callers speak TLS
    #[arg(long, env = "CANVAS_SCHEDULER_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, PEM
    #[arg(long, env = "CANVAS_SCHEDULER_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Certificate authorities for callers, PEM: callers must present a certificate that one of
    /// them signed (mutual TLS)
    #[arg(long, env = "CANVAS_SCHEDULER_TLS_CLIENT_CA", value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Whether to allow plain text beyond loopback, for example behind a proxy that terminates TLS:
    /// on or off
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_PLAINTEXT",
        default_value = "off",
        action = ArgAction::Set,
        value_parser = values::switch
    )]
    plaintext: bool,
}

/// The files of certificates and keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, PEM.
    pub certificates: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The authorities for callers; none means that callers need no certificate.
    pub client_ca: Option<PathBuf>,
}

impl TlsArgs {
    fn read(&self, violations: &mut Violations) -> Option<TlsFiles> {
        let pair = values::tls_pair(self.tls_cert.as_ref(), self.tls_key.as_ref(), violations);
        if self.tls_client_ca.is_some() && self.tls_cert.is_none() {
            violations.add("tls-client-ca", "needs --tls-cert and --tls-key");
        }
        pair.map(|(certificates, key)| TlsFiles {
            certificates,
            key,
            client_ca: self.tls_client_ca.clone(),
        })
    }
}

impl ServeArgs {
    /// The settings; meaningful only when no violation is added.
    pub fn read(self, violations: &mut Violations) -> Serve {
        let serve = Serve {
            database_url: self.database.read(violations),
            collector: self.traces.read(violations),
            tls: self.tls.read(violations),
            sink: self.sink.read(violations),
            ..self.serve
        };
        let safe = self.tls.plaintext || serve.tls.is_some();
        check_address("grpc-addr", serve.grpc_addr, safe, violations);
        if let Some(addr) = serve.gateway_addr() {
            check_address("gateway-addr", addr, safe, violations);
        }
        if !serve.roles.api && !self.sink.is_set() {
            violations.add(
                "sink",
                "is required with --roles dispatcher; set log, grpc, webhook or nats",
            );
        }
        check_lease(&serve, violations);
        serve
    }
}

/// Keys travel on the connection: plain text is allowed only on loopback, or with --plaintext on.
fn check_address(flag: &str, addr: SocketAddr, safe: bool, violations: &mut Violations) {
    if !safe && !addr.ip().is_loopback() {
        violations.add(
            flag,
            format!(
                "\"{addr}\" is not a loopback address; set --tls-cert and --tls-key, or \
                 --plaintext on"
            ),
        );
    }
}

/// A delivery must end well before another worker retries it.
fn check_lease(serve: &Serve, violations: &mut Violations) {
    let lease = serve.delivery.lease.to_std().unwrap_or_default();
    let timeout = serve.sink.as_ref().and_then(SinkSettings::timeout);
    if timeout.unwrap_or_default() >= lease * 3 / 4 {
        violations.add(
            "lease",
            format!(
                "{lease:?} is too short: three quarters of it must be more than --sink-timeout"
            ),
        );
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
