//! The service under test, as a child process with documented flags only.

#![allow(dead_code, reason = "shared: each bench uses a part of it")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::Fallible;
use super::support::process::{Running, run};

const BINARY: &str = env!("CARGO_BIN_EXE_canvas-scheduler");
/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the server may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the server may take to drain.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);

/// A running server.
pub(crate) struct Server {
    process: Running,
    address: String,
    gateway: String,
    key: String,
    log: Receiver<String>,
}

/// The command without settings from the environment.
fn command() -> Command {
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars_os()
        .filter(|(name, _)| name.to_string_lossy().starts_with("CANVAS_SCHEDULER_"))
    {
        command.env_remove(name);
    }
    command
}

/// Creates the schema.
pub(crate) fn migrate(url: &str) -> Fallible<()> {
    run(
        command().args(["migrate", "--database-url", url]),
        COMMAND_TIMEOUT,
    )?;
    Ok(())
}

/// Creates a key for updates, in a workspace whose quota is counted but never reached.
fn key(url: &str) -> Fallible<String> {
    static CREATED: AtomicU32 = AtomicU32::new(0);
    let name = format!("bench {}", CREATED.fetch_add(1, Ordering::Relaxed));
    run(
        command().args([
            "workspace",
            "set",
            "default",
            "--requests",
            "1000000000000/hour",
            "--database-url",
            url,
        ]),
        COMMAND_TIMEOUT,
    )?;
    let create = [
        "api-key",
        "create",
        "--name",
        &name,
        "--permissions",
        "update",
        "--database-url",
        url,
    ];
    Ok(run(command().args(create), COMMAND_TIMEOUT)?
        .trim()
        .to_owned())
}

impl Server {
    /// Starts the service on free ports, with `more` flags, and waits until it serves.
    pub(crate) fn start(url: &str, more: &[&str]) -> Fallible<Self> {
        let key = key(url)?;
        let mut command = command();
        let free = "127.0.0.1:0";
        command.args([
            "serve",
            "--database-url",
            url,
            "--grpc-addr",
            free,
            "--gateway-addr",
            free,
            "--admin-addr",
            free,
        ]);
        command.args(["--log-format", "json"]);
        command.args(more);
        let mut process = Running::start(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )?;
        let (lines, log) = channel();
        if let Some(output) = process.child().stdout.take() {
            forward(output, lines.clone());
        }
        if let Some(output) = process.child().stderr.take() {
            forward(output, lines);
        }
        let [address, gateway] = bound_addresses(&log)?;
        let server = Self {
            process,
            address,
            gateway,
            key,
            log,
        };
        server.wait_until_serving()?;
        Ok(server)
    }

    /// The address of the gateway, or an empty string without one.
    pub(crate) fn gateway(&self) -> &str {
        &self.gateway
    }

    /// The address for gRPC.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The key for callers.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The warnings and errors since the last call.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let is_warning = |line: &String| {
            ["\"WARN\"", "\"ERROR\"", "panicked"]
                .iter()
                .any(|word| line.contains(word))
        };
        self.log.try_iter().filter(is_warning).collect()
    }

    /// Stops the server with SIGTERM, as Kubernetes does. Fails unless it exits with 0 in time.
    pub(crate) fn stop(mut self) -> Fallible<()> {
        let status = self.process.stop("TERM", STOP_TIMEOUT)?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the service exited with {status} after SIGTERM").into())
        }
    }

    fn wait_until_serving(&self) -> Fallible<()> {
        let until = Instant::now() + START_TIMEOUT;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        loop {
            let checked = runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(5), serving(&self.address)).await
            });
            match checked {
                Ok(Ok(true)) => return Ok(()),
                other if Instant::now() >= until => {
                    return Err(format!("the service does not serve: {other:?}").into());
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

async fn serving(address: &str) -> Fallible<bool> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .connect()
        .await?;
    let answer = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await?;
    Ok(answer.into_inner().status() == ServingStatus::Serving)
}

/// Reads the log in a thread, so that the service never blocks on it.
fn forward(output: impl Read + Send + 'static, lines: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
}

/// The addresses for gRPC and of the gateway, which a pure dispatcher lacks, from the line that the
/// service logs once it listens.
fn bound_addresses(log: &Receiver<String>) -> Fallible<[String; 2]> {
    let until = Instant::now() + START_TIMEOUT;
    let mut lines = Vec::new();
    loop {
        let Ok(line) = log.recv_timeout(until.saturating_duration_since(Instant::now())) else {
            return Err(format!(
                "the service did not log its addresses: {}",
                lines.join(" / ")
            )
            .into());
        };
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if let [Some(grpc), gateway] =
            ["grpc_addr", "gateway_addr"].map(|name| parsed[name].as_str())
        {
            return Ok([grpc.to_owned(), gateway.unwrap_or_default().to_owned()]);
        }
        lines.push(line);
    }
}
