//! A server in a child process.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use canvas_scheduler::pb::v1::canvas_schedule_service_client::CanvasScheduleServiceClient;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::ClientConfig;
use serde_json::Value;
use tokio::sync::watch;
use tonic::Streaming;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::bearer::Bearer;
use super::http::get;
use super::postgres::process::{Running, run};
use super::trace_search;

/// The bound for anything that should be quick. It only ends tests that hang: a machine under load
/// is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The generated client.
pub(crate) type Client = CanvasScheduleServiceClient<InterceptedService<Channel, Bearer>>;

/// The binary with these arguments, without settings from the environment, and with the admin port
/// on any free port.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_canvas-scheduler"));
    command
        .env_clear()
        .env("CANVAS_SCHEDULER_ADMIN_ADDR", "127.0.0.1:0")
        .args(args)
        .stdin(Stdio::null());
    command
}

/// Runs `migrate`.
pub(crate) fn migrate(url: &str) {
    run(&mut command(&["migrate", "--database-url", url]), PATIENCE).unwrap();
}

/// Creates a key of the workspace `default` with every permission, and sets quotas that no test
/// reaches.
pub(crate) fn key(url: &str) -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "key {} {}",
        std::process::id(),
        MADE.fetch_add(1, Ordering::Relaxed)
    );
    let set = [
        "workspace",
        "set",
        "default",
        "--requests",
        "1000000000/hour",
        "--broadcasts",
        "1000000000/minute",
        "--database-url",
        url,
    ];
    run(&mut command(&set), PATIENCE).unwrap();
    let create = [
        "api-key",
        "create",
        "--name",
        &name,
        "--permissions",
        "all",
        "--database-url",
        url,
    ];
    run(&mut command(&create), PATIENCE)
        .unwrap()
        .trim()
        .to_owned()
}

/// The lines that a process writes to a pipe.
#[derive(Clone)]
pub(crate) struct Lines(watch::Receiver<Vec<String>>);

impl Lines {
    /// Reads the output of `dev`, which contains its key.
    pub(crate) fn of_output(pipe: impl std::io::Read + Send + 'static) -> Self {
        Self::reading(pipe, |_| true)
    }

    /// Reads a log, searches all of it for keys, and keeps the lines that are `wanted`.
    fn of_log(pipe: impl std::io::Read + Send + 'static, wanted: fn(&str) -> bool) -> Self {
        Self::reading(pipe, move |line| {
            trace_search::search(line);
            wanted(line)
        })
    }

    /// Reads in another thread until the pipe closes.
    fn reading(
        pipe: impl std::io::Read + Send + 'static,
        wanted: impl Fn(&str) -> bool + Send + 'static,
    ) -> Self {
        let (sender, lines) = watch::channel(vec![]);
        std::thread::spawn(move || {
            for line in BufReader::new(pipe)
                .lines()
                .map_while(Result::ok)
                .filter(|line| wanted(line))
            {
                sender.send_modify(|lines: &mut Vec<String>| lines.push(line));
            }
        });
        Self(lines)
    }

    /// Waits for the first line for which `wanted` returns a value.
    pub(crate) async fn first<T>(&self, wanted: impl Fn(&str) -> Option<T>) -> T {
        let mut lines = self.0.clone();
        let found = |lines: &[String]| lines.iter().find_map(|line| wanted(line));
        // The value that `wait_for` returns keeps the lines locked, so drop it here.
        let came = tokio::time::timeout(PATIENCE, lines.wait_for(|lines| found(lines).is_some()))
            .await
            .is_ok_and(|came| came.is_ok());
        let all = self.all();
        assert!(came, "the line is missing from {all:#?}");
        found(&all).expect("the line")
    }

    /// Waits for the first line that is as `wanted`, or until the pipe closes.
    pub(crate) async fn first_or_end(&self, wanted: impl Fn(&str) -> bool) {
        let mut lines = self.0.clone();
        let found = lines.wait_for(|lines| lines.iter().any(|line| wanted(line)));
        let _found_or_closed = tokio::time::timeout(PATIENCE, found)
            .await
            .expect("a line, or the end");
    }

    /// Waits until `count` lines contain this text.
    pub(crate) async fn times(&self, count: usize, text: &str) {
        let mut lines = self.0.clone();
        let enough =
            |lines: &Vec<String>| lines.iter().filter(|line| line.contains(text)).count() >= count;
        let came = tokio::time::timeout(PATIENCE, lines.wait_for(enough))
            .await
            .is_ok_and(|came| came.is_ok());
        assert!(came, "{text:?} is not {count} times in {:#?}", self.all());
    }

    /// Waits until the pipe closes, and returns every line.
    pub(crate) async fn read_to_end(&self) -> Vec<String> {
        let mut lines = self.0.clone();
        let closed = async { while lines.changed().await.is_ok() {} };
        tokio::time::timeout(PATIENCE, closed)
            .await
            .expect("the pipe closes");
        self.all()
    }

    /// The lines so far.
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.borrow().clone()
    }
}

/// The address and credentials by which a caller reaches a server.
#[derive(Clone)]
pub(crate) struct Access {
    addr: String,
    key: String,
    tls: Option<ClientConfig>,
}

impl Access {
    /// A connection without a key.
    pub(crate) async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint =
            Endpoint::from_shared(format!("{scheme}://{}", self.addr))?.connect_timeout(PATIENCE);
        let Some(tls) = &self.tls else {
            return endpoint.connect().await;
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls.clone())
            .https_only();
        let named = https.with_server_name_resolver(FixedServerNameResolver::new(
            "localhost".try_into().unwrap(),
        ));
        endpoint
            .connect_with_connector(named.enable_http2().wrap_connector(tcp))
            .await
    }

    /// Opens a connection, if the server accepts one.
    pub(crate) async fn try_connect(&self) -> Result<Client, tonic::transport::Error> {
        let channel = self.channel().await?;
        Ok(
            CanvasScheduleServiceClient::with_interceptor(channel, Bearer::new(&self.key))
                .max_decoding_message_size(16 << 20),
        )
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Client {
        self.try_connect().await.expect("it listens")
    }

    /// The same for callers with this TLS configuration.
    pub(crate) fn by(&self, tls: ClientConfig) -> Self {
        Self {
            tls: Some(tls),
            ..self.clone()
        }
    }

    /// The same for callers with another key.
    pub(crate) fn with(&self, key: &str) -> Self {
        Self {
            key: key.to_owned(),
            ..self.clone()
        }
    }
}

/// A running `serve`.
pub(crate) struct Server {
    running: Running,
    log: Lines,
    gateway: Option<String>,
    access: Access,
    admin_addr: String,
}

impl Server {
    /// Creates a key, starts the server and waits until it serves.
    pub(crate) async fn start(url: &str, more: &[&str]) -> Self {
        Self::start_with_key(url, more, key(url)).await
    }

    /// Starts the server for callers with this key, and waits until it serves.
    pub(crate) async fn start_with_key(url: &str, more: &[&str], key: String) -> Self {
        Self::start_with(url, more, key, None).await
    }

    /// The same for callers that may use TLS.
    pub(crate) async fn start_with(
        url: &str,
        more: &[&str],
        key: String,
        tls: Option<ClientConfig>,
    ) -> Self {
        Self::start_in(&[], url, more, key, tls).await
    }

    /// The same with these variables in its environment.
    pub(crate) async fn start_in(
        environment: &[(&'static str, String)],
        url: &str,
        more: &[&str],
        key: String,
        tls: Option<ClientConfig>,
    ) -> Self {
        let mut server = Self::listening_in(environment, url, more).await;
        (server.access.key, server.access.tls) = (key, tls);
        let mut health = server.watch().await;
        let serving = async {
            while next_status(&mut health).await.expect("the stream goes on")
                != ServingStatus::Serving
            {}
        };
        tokio::time::timeout(PATIENCE, serving)
            .await
            .expect("SERVING in time");
        server
    }

    /// Starts the server and waits until it listens. Its callers have an invalid key.
    pub(crate) async fn listening(url: &str, more: &[&str]) -> Self {
        Self::listening_in(&[], url, more).await
    }

    async fn listening_in(
        environment: &[(&'static str, String)],
        url: &str,
        more: &[&str],
    ) -> Self {
        let addrs = [
            "--grpc-addr",
            "127.0.0.1:0",
            "--gateway-addr",
            "127.0.0.1:0",
        ];
        let args = [
            &["serve", "--database-url", url][..],
            &addrs,
            &["--log-format", "json", "--revisions-kept", "1000000"],
        ]
        .concat();
        // No flag may appear twice, so leave out those that `more` sets.
        let mut all: Vec<&str> = args[..1].to_vec();
        all.extend(
            args[1..]
                .chunks(2)
                .filter(|pair| !more.contains(&pair[0]))
                .flatten(),
        );
        all.extend(more);
        let everything = trace_search::is_wanted_of_processes() && !more.contains(&"--log-level");
        if everything {
            all.extend(["--log-level", "trace"]);
        }
        let mut serve = command(&all);
        serve.envs(environment.iter().cloned());
        let mut running =
            Running::start(serve.stdout(Stdio::null()).stderr(Stdio::piped())).unwrap();
        let usual = |line: &str| {
            !line.contains("\"level\":\"TRACE\"") && !line.contains("\"level\":\"DEBUG\"")
        };
        let log = Lines::of_log(
            running.child().stderr.take().unwrap(),
            if everything { usual } else { |_| true },
        );
        let line = log.first(|line| message(line, "listening")).await;
        let addr = |name: &str| {
            line[name]
                .as_str()
                .map(|addr| addr.replace("0.0.0.0", "127.0.0.1"))
        };
        let (addr, gateway, admin_addr) = (
            addr("grpc_addr").unwrap(),
            addr("gateway_addr"),
            addr("admin_addr").unwrap(),
        );
        let access = Access {
            addr,
            key: format!("cs_{}_{}", "0".repeat(16), "0".repeat(48)),
            tls: None,
        };
        Self {
            running,
            log,
            gateway,
            access,
            admin_addr,
        }
    }

    /// The address for gRPC.
    pub(crate) fn addr(&self) -> &str {
        &self.access.addr
    }

    /// Requests `path` from the admin port.
    pub(crate) async fn ask(&self, path: &str) -> (u16, String) {
        get(&self.admin_addr, path).await
    }

    /// The address of the gateway.
    pub(crate) fn gateway(&self) -> &str {
        self.gateway.as_deref().expect("it has a gateway")
    }

    /// The key of its callers.
    pub(crate) fn key(&self) -> &str {
        &self.access.key
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Gives its callers another key.
    pub(crate) fn set_key(&mut self, key: String) {
        self.access.key = key;
    }

    /// How callers reach it.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// Its log.
    pub(crate) fn log(&self) -> &Lines {
        &self.log
    }

    /// The log lines with this message.
    pub(crate) fn logged(&self, text: &str) -> Vec<Value> {
        self.log
            .all()
            .iter()
            .filter_map(|line| message(line, text))
            .collect()
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Client {
        self.access.connect().await
    }

    /// Opens `n` connections.
    pub(crate) async fn connections(&self, n: usize) -> Vec<Client> {
        let mut clients = Vec::new();
        for _ in 0..n {
            clients.push(self.connect().await);
        }
        clients
    }

    /// Opens a `Health/Watch`.
    pub(crate) async fn watch(&self) -> Streaming<HealthCheckResponse> {
        let channel = self.access.channel().await.expect("it listens");
        HealthClient::new(channel)
            .watch(HealthCheckRequest::default())
            .await
            .expect("it watches")
            .into_inner()
    }

    /// Sends a signal such as `TERM`.
    pub(crate) fn signal(&mut self, signal: &str) {
        self.running.signal(signal);
    }

    /// Sends SIGKILL and waits.
    pub(crate) fn kill9(&mut self) {
        self.running.kill();
    }

    /// Waits for its end for at most `timeout`, without blocking the runtime.
    pub(crate) async fn ended(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let looked = async {
            loop {
                if let Some(status) = self.running.ended() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(timeout, looked).await.ok()
    }
}

/// The fields of a JSON log line with this message.
pub(crate) fn message(line: &str, text: &str) -> Option<Value> {
    let fields: Value = serde_json::from_str(line).ok()?;
    (fields["message"] == text).then_some(fields)
}

/// The next status of a watch; `None` once the stream has ended.
pub(crate) async fn next_status(
    health: &mut Streaming<HealthCheckResponse>,
) -> Option<ServingStatus> {
    health
        .message()
        .await
        .ok()
        .flatten()
        .map(|answer| answer.status())
}
