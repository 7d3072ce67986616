//! The settings of a server: of `serve` and `dev`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use super::{DatabaseArgs, Reader, Roles, Secret, SinkArgs, SinkSettings};

/// How to serve.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The address for gRPC; beyond loopback only with TLS or --plaintext on. Port 0 takes a free one
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_GRPC_ADDR",
        default_value = "127.0.0.1:50051"
    )]
    pub grpc_addr: String,
    /// The address for the documented JSON over HTTP, as --grpc-addr
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_GATEWAY_ADDR",
        default_value = "127.0.0.1:8080"
    )]
    pub gateway_addr: String,
    /// Whether the documented JSON is served over HTTP: on or off
    #[arg(long, env = "CANVAS_SCHEDULER_GATEWAY", default_value = "on")]
    pub gateway: String,
    /// The address for /metrics, /livez and /readyz: always plain HTTP, and no key is asked for. Port 0 takes a free one
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_ADMIN_ADDR",
        default_value = "127.0.0.1:9090"
    )]
    pub admin_addr: String,
    /// The collector that traces are sent to by OTLP over gRPC, such as http://127.0.0.1:4317 [default: none; or
    /// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or OTEL_EXPORTER_OTLP_ENDPOINT]
    #[arg(long, env = "CANVAS_SCHEDULER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// As OpenTelemetry names it.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", hide = true)]
    pub otel_exporter_otlp_traces_endpoint: Option<String>,
    /// As OpenTelemetry names it.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide = true)]
    pub otel_exporter_otlp_endpoint: Option<String>,
    /// Where dispatches go.
    #[command(flatten)]
    pub sink: SinkArgs,
    /// What this process does: api serves callers, dispatcher sends; one of them, or both with a comma between
    #[arg(long, env = "CANVAS_SCHEDULER_ROLES", default_value = "api,dispatcher")]
    pub roles: String,
    /// The server's certificate chain, PEM; read again when it changes. With it the port speaks TLS
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_TLS_CERT",
        value_name = "FILE",
        help_heading = "TLS"
    )]
    pub tls_cert: Option<String>,
    /// The private key of --tls-cert, PEM
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_TLS_KEY",
        value_name = "FILE",
        help_heading = "TLS"
    )]
    pub tls_key: Option<String>,
    /// Authorities of which callers must have a certificate (mutual TLS), PEM
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_TLS_CLIENT_CA",
        value_name = "FILE",
        help_heading = "TLS"
    )]
    pub tls_client_ca: Option<String>,
    /// Whether plain text may be spoken beyond loopback, as behind a proxy that ends TLS: on or off
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_PLAINTEXT",
        default_value = "off",
        help_heading = "TLS"
    )]
    pub plaintext: String,
    /// Networks of proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8,192.0.2.7 [default: none]
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_TRUSTED_PROXIES",
        default_value = "",
        hide_default_value = true,
        value_name = "NETWORKS"
    )]
    pub trusted_proxies: String,
    /// Whether callers may ask which methods there are, without a key: on or off
    #[arg(long, env = "CANVAS_SCHEDULER_REFLECTION", default_value = "on")]
    pub reflection: String,
    /// Threads that serve, each with a runtime of its own; 0 means one for each core
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_CORES",
        default_value = "0",
        help_heading = "Tuning"
    )]
    pub cores: String,
    /// Writers of the group commit on PostgreSQL, each with a connection (1 to 64); SQLite has one
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_WRITERS",
        default_value = "2",
        help_heading = "Tuning"
    )]
    pub writers: String,
    /// The most changes in one commit (1 to 1000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_COMMIT_MAX",
        default_value = "256",
        help_heading = "Tuning"
    )]
    pub commit_max: String,
    /// The most changes that wait for one writer (1 to 1000000); more are refused with UNAVAILABLE
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_QUEUE_MAX",
        default_value = "4096",
        help_heading = "Tuning"
    )]
    pub queue_max: String,
    /// The most database connections for reading (1 to 1000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_READ_CONNECTIONS",
        default_value = "8",
        help_heading = "Tuning"
    )]
    pub read_connections: String,
    /// The most dispatches that are in flight at once, whatever is due (1 to 10000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_WORKERS",
        default_value = "1024",
        help_heading = "Sending"
    )]
    pub workers: String,
    /// How long a dispatch is its worker's alone; a delivery may take three quarters of it. Then somebody else tries
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_LEASE",
        default_value = "60s",
        help_heading = "Sending"
    )]
    pub lease: String,
    /// After so many attempts whose outcome is unknown a dispatch is a dead letter (1 to 1000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_ATTEMPTS",
        default_value = "10",
        help_heading = "Sending"
    )]
    pub attempts: String,
    /// How far past a time may be and still be sent at once, such as 1h or 90m
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_LATENESS",
        default_value = "1h",
        help_heading = "Rules"
    )]
    pub lateness: String,
    /// How many days ahead a time may be (1 to 3660)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_HORIZON_DAYS",
        default_value = "366",
        help_heading = "Rules"
    )]
    pub horizon_days: String,
    /// How many days a schedule is kept after it was sent or cancelled (1 to 3660)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_RETENTION_DAYS",
        default_value = "90",
        help_heading = "Rules"
    )]
    pub retention_days: String,
    /// The newest revisions of a schedule that are kept (1 to 1000000000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_REVISIONS_KEPT",
        default_value = "100",
        help_heading = "Rules"
    )]
    pub revisions_kept: String,
    /// The most connections; one more is closed at once (1 to 1000000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_MAX_CONNECTIONS",
        default_value = "10000",
        help_heading = "Bounds"
    )]
    pub max_connections: String,
    /// The most connections of one address, but for trusted proxies; one more is closed at once (1 to 1000000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_MAX_CONNECTIONS_PER_ADDRESS",
        default_value = "1000",
        help_heading = "Bounds"
    )]
    pub max_connections_per_address: String,
    /// The most calls under way, over all connections; more are refused with UNAVAILABLE, health never (1 to 1000000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_MAX_IN_FLIGHT",
        default_value = "4096",
        help_heading = "Bounds"
    )]
    pub max_in_flight: String,
    /// The most megabytes of requests under way, beyond the first 4 KB of each; more are refused with UNAVAILABLE (4 to 1000000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_MAX_IN_FLIGHT_MEGABYTES",
        default_value = "32",
        help_heading = "Bounds"
    )]
    pub max_in_flight_megabytes: String,
    /// A connection from which no byte has come for so long is closed
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_FIRST_BYTE_TIMEOUT",
        default_value = "10s",
        help_heading = "Bounds"
    )]
    pub first_byte_timeout: String,
    /// A connection is asked to go after so long, give or take a tenth, and closed 30 s later
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_MAX_CONNECTION_AGE",
        default_value = "30m",
        help_heading = "Bounds"
    )]
    pub max_connection_age: String,
    /// The longest that a call may take, whatever deadline it states
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_MAX_CALL_TIME",
        default_value = "60s",
        help_heading = "Bounds"
    )]
    pub max_call_time: String,
    /// After SIGTERM: how long calls in flight may take to finish
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_DRAIN",
        default_value = "20s",
        help_heading = "Bounds"
    )]
    pub drain: String,
}

/// Everything that `serve` and `dev` are set to.
#[derive(Debug, Clone)]
pub struct Serve {
    /// May hold a password.
    pub database_url: Secret<String>,
    /// Beyond loopback only with `tls`, or because plain text was asked for by name.
    pub grpc_addr: SocketAddr,
    /// As `grpc_addr`; none when the gateway is off.
    pub gateway_addr: Option<SocketAddr>,
    /// For metrics and probes.
    pub admin_addr: SocketAddr,
    /// Where traces go, if they go anywhere: `http://host:port`.
    pub otlp_endpoint: Option<String>,
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
    /// Of requests, beyond the first of each. At least the largest one.
    pub max_in_flight_bytes: usize,
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

impl ServeArgs {
    /// The addresses for gRPC and for the gateway, if that is on, and the certificate of both.
    fn ports(
        &self,
        reader: &mut Reader,
    ) -> (Option<TlsFiles>, Option<(SocketAddr, Option<SocketAddr>)>) {
        let tls = reader.tls(self);
        let safe = reader.switch("plaintext", &self.plaintext) == Some(true) || tls.is_some();
        let grpc = reader.guarded("grpc-addr", &self.grpc_addr, safe);
        let on = reader.switch("gateway", &self.gateway);
        let gateway = reader.guarded(
            "gateway-addr",
            &self.gateway_addr,
            safe || on == Some(false),
        );
        (
            tls,
            grpc.zip(on.zip(gateway).map(|(on, gateway)| on.then_some(gateway))),
        )
    }

    /// The collector of traces: by our own name, or by OpenTelemetry's. In plain text: one that is far away is reached by way of
    /// an agent beside this process.
    fn collector(&self, reader: &mut Reader) -> Option<String> {
        let by_name = [
            &self.otlp_endpoint,
            &self.otel_exporter_otlp_traces_endpoint,
            &self.otel_exporter_otlp_endpoint,
        ];
        let stated = by_name
            .into_iter()
            .flatten()
            .find(|stated| !stated.is_empty())?;
        if stated
            .strip_prefix("http://")
            .is_some_and(|rest| !rest.is_empty())
        {
            return Some(stated.clone());
        }
        reader.fault(
            "otlp-endpoint",
            stated,
            "a URL such as http://127.0.0.1:4317",
        )
    }

    /// # Errors
    /// Every fault, a line each.
    #[allow(clippy::too_many_lines, reason = "a line for each setting")]
    pub fn read(&self) -> Result<Serve, Vec<String>> {
        let mut reader = Reader::default();
        let database_url = reader.database(&self.database);
        let (tls, addrs) = self.ports(&mut reader);
        let (admin_addr, otlp_endpoint) = (
            reader.address("admin-addr", &self.admin_addr),
            self.collector(&mut reader),
        );
        let trusted_proxies = reader.networks("trusted-proxies", &self.trusted_proxies);
        let reflection = reader.switch("reflection", &self.reflection);
        let (sink, roles) = (reader.sink(&self.sink), reader.roles(&self.roles));
        let (cores, writers) = (
            reader.number("cores", &self.cores, 0, 1024),
            reader.number("writers", &self.writers, 1, 64),
        );
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
        let revisions_kept =
            reader.number("revisions-kept", &self.revisions_kept, 1, 1_000_000_000);
        let max_connections = reader.number("max-connections", &self.max_connections, 1, 1_000_000);
        let max_connections_per_address = reader.number(
            "max-connections-per-address",
            &self.max_connections_per_address,
            1,
            1_000_000,
        );
        let max_in_flight = reader.number("max-in-flight", &self.max_in_flight, 1, 1_000_000);
        let max_in_flight_megabytes = reader.number::<usize>(
            "max-in-flight-megabytes",
            &self.max_in_flight_megabytes,
            4,
            1_000_000,
        );
        let first_byte_timeout = reader.duration("first-byte-timeout", &self.first_byte_timeout);
        let max_connection_age = reader.duration("max-connection-age", &self.max_connection_age);
        let (max_call_time, drain) = (
            reader.duration("max-call-time", &self.max_call_time),
            reader.duration("drain", &self.drain),
        );
        let read = move || {
            Some(Serve {
                database_url: database_url?,
                grpc_addr: addrs?.0,
                gateway_addr: addrs?.1,
                admin_addr: admin_addr?,
                otlp_endpoint,
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
                max_in_flight_bytes: max_in_flight_megabytes? << 20,
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

impl Reader {
    fn tls(&mut self, args: &ServeArgs) -> Option<TlsFiles> {
        let pair = self.pair(args.tls_cert.as_deref(), args.tls_key.as_deref());
        if args.tls_client_ca.is_some() && args.tls_cert.is_none() {
            self.faults
                .push("--tls-client-ca: needs --tls-cert and --tls-key".to_owned());
        }
        pair.map(|(certificates, key)| TlsFiles {
            certificates,
            key,
            client_ca: args.tls_client_ca.as_deref().map(Into::into),
        })
    }
}

fn cores_or_all(stated: usize) -> usize {
    if stated > 0 {
        stated
    } else {
        std::thread::available_parallelism().map_or(1, usize::from)
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
