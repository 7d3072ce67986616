//! `TestApp`: a server on a free port, with the test's database and a clock that the test moves.

#[path = "../support/bearer.rs"]
mod bearer;
pub(crate) mod calls;
pub(crate) mod database;
pub(crate) mod dispatcher;
pub(crate) mod gateway;
#[path = "../support/http.rs"]
pub(crate) mod plain_http;
pub(crate) mod sink;
pub(crate) mod stores;
#[path = "../support/trace_search.rs"]
mod trace_search;

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use canvas_scheduler::clock::ManualClock;
use canvas_scheduler::config::DatabaseUrl;
use canvas_scheduler::dispatcher::DispatcherSettings;
use canvas_scheduler::domain::{DeliveryPolicy, Permissions, Quota, QuotaKind, QuotaWindow};
use canvas_scheduler::pb::v1;
use canvas_scheduler::pb::v1::canvas_schedule_service_client::CanvasScheduleServiceClient;
use canvas_scheduler::server::accept::ConnectionSettings;
use canvas_scheduler::server::{Roles, Serve, Server};
use canvas_scheduler::service::admin::{Admin, KeyOrder, WorkspaceChange};
use canvas_scheduler::sink::SharedSink;
use canvas_scheduler::store::StoreSettings;
use chrono::{DateTime, TimeDelta, Utc};
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

pub(crate) use bearer::Bearer;
pub(crate) use calls::*;
pub(crate) use database::{Database, Kind};
pub(crate) use sink::RecordingSink;

/// The initial time of every clock.
pub(crate) const NOW: &str = "2026-03-01T12:00:00Z";

/// A time well after [`NOW`].
pub(crate) const LATER: &str = "2026-03-20T08:00:00Z";

/// The bound after which a test counts as hanging. Far longer than anything takes: no test fails
/// for being slow.
const HANG_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs each test on both databases, as `NAME::sqlite` and `NAME::postgres`. With `file:` SQLite
/// keeps a file, for tests that access the database from outside or open it twice.
macro_rules! on_both {
    (file: $($test:ident),+ $(,)?) => { $crate::support::on_both!(@ File $($test)+); };
    ($($test:ident),+ $(,)?) => { $crate::support::on_both!(@ Memory $($test)+); };
    (@ $sqlite:ident $($test:ident)+) => { $(
        mod $test {
            #[tokio::test]
            async fn sqlite() {
                let name = concat!(module_path!(), "::sqlite");
                $crate::support::run($crate::support::Kind::$sqlite, name, super::$test).await;
            }

            #[tokio::test]
            async fn postgres() {
                let name = concat!(module_path!(), "::postgres");
                $crate::support::run($crate::support::Kind::Postgres, name, super::$test).await;
            }
        }
    )+ };
}
pub(crate) use on_both;

/// Runs tests that need PostgreSQL.
macro_rules! on_postgres {
    ($($test:ident),+ $(,)?) => { $(
        mod $test {
            #[tokio::test]
            async fn postgres() {
                let name = concat!(module_path!(), "::postgres");
                $crate::support::run($crate::support::Kind::Postgres, name, super::$test).await;
            }
        }
    )+ };
}
pub(crate) use on_postgres;

/// Runs a test on its own migrated database, and asserts that no thread of a server has panicked.
pub(crate) async fn run(kind: Kind, name: &str, test: impl AsyncFnOnce(&Database)) {
    count_panics();
    let Some(database) = Database::new(kind, name) else {
        return;
    };
    soon(test(&database)).await;
    drop(database);
    let panics = PANICS.lock().expect("no panic while counting");
    assert!(
        panics.is_empty(),
        "a server panicked, in this or a concurrent test: {panics:?}"
    );
}

/// Awaits `future`, and fails a test that hangs.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG_TIMEOUT, future)
        .await
        .expect("it hangs")
}

/// Makes the server reload its keys. Each attempt takes at most 3 s.
async fn read_keys(server: &Server) {
    soon(async { while server.read_keys().await.is_err() {} }).await;
}

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Records every panic on a thread of a server, also one that a layer turns into an answer.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current()
                .name()
                .is_some_and(|name| name.starts_with("worker-") || name == "dispatcher")
            {
                PANICS
                    .lock()
                    .expect("no panic while counting")
                    .push(panic.to_string());
            }
            usual(panic);
        }));
    });
}

/// Settings with small bounds and free ports.
pub(crate) fn settings(database: &Database) -> Serve {
    let free_port = ([127, 0, 0, 1], 0).into();
    Serve {
        database_url: DatabaseUrl::parse(database.url()).expect("a valid URL"),
        grpc_addr: free_port,
        gateway_addr: free_port,
        admin_addr: free_port,
        cores: number(2),
        dispatcher: DispatcherSettings {
            workers: number(16),
        },
        delivery: DeliveryPolicy {
            // A test moves its clock by days during a delivery.
            lease: TimeDelta::days(300),
            ..DeliveryPolicy::default()
        },
        store: StoreSettings {
            read_connections: number(4),
            ..StoreSettings::default()
        },
        connections: ConnectionSettings {
            max_connections: 100,
            max_connections_per_address: 100,
            first_byte_timeout: Duration::from_secs(60),
            ..ConnectionSettings::default()
        },
        drain: Duration::from_secs(30),
        ..Serve::default()
    }
}

/// One writer, one change in its commit and one that waits.
pub(crate) fn one_at_a_time() -> StoreSettings {
    StoreSettings {
        writers: number(1),
        commit_max: number(1),
        queue_max: number(1),
        ..StoreSettings::default()
    }
}

/// A number that is not 0, of any width.
pub(crate) fn number<T: FromStr>(number: u32) -> T {
    number.to_string().parse().ok().expect("it fits")
}

/// Parses an instant.
pub(crate) fn instant(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).expect(text).to_utc()
}

/// The generated client.
pub(crate) type Client = CanvasScheduleServiceClient<InterceptedService<Channel, Bearer>>;

/// A running server and a client of it.
pub(crate) struct TestApp {
    pub clock: Arc<ManualClock>,
    pub channel: Channel,
    /// A key of the workspace `default` with every permission.
    pub key: String,
    addr: SocketAddr,
    server: Server,
}

impl TestApp {
    /// Starts a server over a migrated database.
    pub(crate) async fn start(database: &Database) -> Self {
        Self::start_with(database, |_| {}).await
    }

    /// The same with changed settings.
    pub(crate) async fn start_with(database: &Database, change: impl FnOnce(&mut Serve)) -> Self {
        let mut settings = settings(database);
        change(&mut settings);
        let clock = Arc::new(ManualClock::at(instant(NOW)));
        let server = Server::start_migrated(&settings, clock.clone(), None)
            .await
            .expect("the server starts");
        server
            .admin()
            .set_workspace("default", &unreachable_quotas())
            .await
            .expect("set");
        Self::with_key(server, clock).await
    }

    /// The same with a dispatcher that sends to `sink`, and with the time of `clock`.
    pub(crate) async fn start_sending(
        database: &Database,
        sink: &Arc<RecordingSink>,
        clock: &Arc<ManualClock>,
    ) -> Self {
        Self::start_in_roles(
            database,
            sink,
            clock,
            Roles {
                api: true,
                dispatcher: true,
            },
        )
        .await
    }

    /// The same with some of the roles.
    pub(crate) async fn start_in_roles(
        database: &Database,
        sink: &Arc<RecordingSink>,
        clock: &Arc<ManualClock>,
        roles: Roles,
    ) -> Self {
        let (sink, settings): (SharedSink, _) = (
            sink.clone(),
            Serve {
                roles,
                ..settings(database)
            },
        );
        let server = Server::start_migrated(&settings, clock.clone(), Some(sink))
            .await
            .expect("the server starts");
        server
            .admin()
            .set_workspace("default", &unreachable_quotas())
            .await
            .expect("set");
        Self::with_key(server, clock.clone()).await
    }

    /// Starts a second server over a database, whose quotas stay unchanged.
    pub(crate) async fn start_unchanged(database: &Database) -> Self {
        let clock = Arc::new(ManualClock::at(instant(NOW)));
        let server = Server::start_migrated(&settings(database), clock.clone(), None)
            .await
            .expect("the server starts");
        Self::with_key(server, clock).await
    }

    async fn with_key(server: Server, clock: Arc<ManualClock>) -> Self {
        let key = key(&server, "default", |_| {}).await;
        read_keys(&server).await;
        Self::of(server, clock, key)
    }

    /// Starts a server over a database that may lack a schema. Its callers have an invalid key.
    pub(crate) async fn start_unmigrated(database: &Database) -> Self {
        let clock = Arc::new(ManualClock::at(instant(NOW)));
        let server = Server::start(&settings(database), clock.clone(), None)
            .await
            .expect("the server starts");
        Self::of(
            server,
            clock,
            format!("cs_{}_{}", "0".repeat(16), "0".repeat(48)),
        )
    }

    fn of(server: Server, clock: Arc<ManualClock>, key: String) -> Self {
        trace_if_wanted();
        let addr = server.grpc_addr();
        Self {
            clock,
            channel: channel_to(addr),
            key,
            addr,
            server,
        }
    }

    /// Creates a key of a workspace, with every permission unless `change` changes it.
    pub(crate) async fn key_of(
        &self,
        workspace: &str,
        change: impl FnOnce(&mut KeyOrder),
    ) -> String {
        key(&self.server, workspace, change).await
    }

    /// The operations of the command line.
    pub(crate) fn admin(&self) -> &Admin {
        self.server.admin()
    }

    /// The app's connection with its key, for calls without the client.
    pub(crate) fn keyed(&self) -> InterceptedService<Channel, Bearer> {
        InterceptedService::new(self.channel.clone(), Bearer::new(&self.key))
    }

    /// Makes the server reload its keys.
    pub(crate) async fn read_keys(&self) {
        read_keys(&self.server).await;
    }

    /// A client with another key on the app's connection.
    pub(crate) fn client_with(&self, key: &str) -> Client {
        client_on(self.channel.clone(), key)
    }

    /// The address of the admin port.
    pub(crate) fn admin_addr(&self) -> String {
        self.server.admin_addr().to_string()
    }

    /// The address for gRPC.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A client on the app's connection.
    pub(crate) fn client(&self) -> Client {
        client_on(self.channel.clone(), &self.key)
    }

    /// A client on a new connection.
    pub(crate) fn fresh_client(&self) -> Client {
        client_on(channel_to(self.addr), &self.key)
    }

    /// The address of the gateway.
    pub(crate) fn gateway(&self) -> SocketAddr {
        self.server.gateway_addr().expect("it has a gateway")
    }

    /// Stops the server.
    pub(crate) async fn stop(self) {
        self.server.stop().await;
    }

    pub(crate) async fn create(
        &self,
        request: v1::CreateCanvasScheduleRequest,
    ) -> Result<v1::CreateCanvasScheduleResponse, Status> {
        self.client()
            .create_canvas_schedule(request)
            .await
            .map(tonic::Response::into_inner)
    }

    /// Creates a schedule and returns it.
    pub(crate) async fn created(
        &self,
        request: v1::CreateCanvasScheduleRequest,
    ) -> v1::CanvasSchedule {
        self.create(request)
            .await
            .expect("created")
            .canvas_schedule
            .expect("a schedule")
    }

    pub(crate) async fn update(
        &self,
        request: v1::UpdateCanvasScheduleRequest,
    ) -> Result<v1::UpdateCanvasScheduleResponse, Status> {
        self.client()
            .update_canvas_schedule(request)
            .await
            .map(tonic::Response::into_inner)
    }

    pub(crate) async fn batch(
        &self,
        requests: Vec<v1::UpdateCanvasScheduleRequest>,
    ) -> Result<Vec<Entry>, Status> {
        let request = v1::BatchUpdateCanvasSchedulesRequest { requests };
        let answer = self
            .client()
            .batch_update_canvas_schedules(request)
            .await?
            .into_inner();
        Ok(answer.results.into_iter().map(entry).collect())
    }

    pub(crate) async fn cancel(
        &self,
        request: v1::CancelCanvasScheduleRequest,
    ) -> Result<v1::CancelCanvasScheduleResponse, Status> {
        self.client()
            .cancel_canvas_schedule(request)
            .await
            .map(tonic::Response::into_inner)
    }

    pub(crate) async fn try_get(
        &self,
        schedule_id: &str,
    ) -> Result<v1::GetCanvasScheduleResponse, Status> {
        let request = v1::GetCanvasScheduleRequest {
            schedule_id: schedule_id.to_owned(),
        };
        self.client()
            .get_canvas_schedule(request)
            .await
            .map(tonic::Response::into_inner)
    }

    /// Reads a schedule.
    pub(crate) async fn get(&self, of: &v1::CanvasSchedule) -> v1::GetCanvasScheduleResponse {
        self.try_get(&of.schedule_id)
            .await
            .expect("the schedule exists")
    }

    pub(crate) async fn list(
        &self,
        request: v1::ListCanvasSchedulesRequest,
    ) -> Result<v1::ListCanvasSchedulesResponse, Status> {
        self.client()
            .list_canvas_schedules(request)
            .await
            .map(tonic::Response::into_inner)
    }

    /// The ids of all schedules that match the filters of `request`, page after page.
    pub(crate) async fn list_ids(
        &self,
        mut request: v1::ListCanvasSchedulesRequest,
    ) -> Vec<String> {
        let mut ids = Vec::new();
        loop {
            let page = self.list(request.clone()).await.expect("a page");
            ids.extend(page.canvas_schedules.into_iter().map(|one| one.schedule_id));
            if page.next_page_token.is_empty() {
                return ids;
            }
            request.page_token = page.next_page_token;
        }
    }

    pub(crate) async fn revisions_page(
        &self,
        request: v1::ListCanvasScheduleRevisionsRequest,
    ) -> Result<v1::ListCanvasScheduleRevisionsResponse, Status> {
        self.client()
            .list_canvas_schedule_revisions(request)
            .await
            .map(tonic::Response::into_inner)
    }

    /// The revisions of a schedule, at most 1,000, newest first.
    pub(crate) async fn revisions(
        &self,
        of: &v1::CanvasSchedule,
    ) -> Vec<v1::CanvasScheduleRevision> {
        let request = v1::ListCanvasScheduleRevisionsRequest {
            schedule_id: of.schedule_id.clone(),
            page_size: 1000,
            page_token: String::new(),
        };
        self.revisions_page(request)
            .await
            .expect("revisions")
            .revisions
    }

    pub(crate) async fn dispatches(
        &self,
        request: v1::ListDispatchesRequest,
    ) -> Result<v1::ListDispatchesResponse, Status> {
        self.client()
            .list_dispatches(request)
            .await
            .map(tonic::Response::into_inner)
    }

    pub(crate) async fn retry(&self, of: &v1::Dispatch) -> Result<v1::Dispatch, Status> {
        let request = v1::RetryDispatchRequest {
            schedule_id: of.schedule_id.clone(),
            dispatch_id: of.dispatch_id.clone(),
        };
        Ok(self
            .client()
            .retry_dispatch(request)
            .await?
            .into_inner()
            .dispatch
            .expect("a dispatch"))
    }

    /// Reads a schedule and its revisions, to show that nothing changed.
    pub(crate) async fn seen(
        &self,
        of: &v1::CanvasSchedule,
    ) -> (
        v1::GetCanvasScheduleResponse,
        Vec<v1::CanvasScheduleRevision>,
    ) {
        (self.get(of).await, self.revisions(of).await)
    }
}

/// With `TRACED_INTO`, logs at trace level and searches the log for keys.
fn trace_if_wanted() {
    static STARTED: Once = Once::new();
    if trace_search::is_wanted() {
        let log = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_ansi(false);
        STARTED.call_once(|| log.with_writer(|| trace_search::Searched).init());
    }
}

/// A channel that connects at its first call.
pub(crate) fn channel_to(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}"))
        .expect("an address")
        .connect_lazy()
}

/// Quotas that no test reaches by accident.
fn unreachable_quotas() -> WorkspaceChange {
    let quota = Quota {
        limit: 1_000_000_000,
        window: QuotaWindow::Minute,
    };
    WorkspaceChange {
        default_zone: None,
        quotas: QuotaKind::ALL.map(|counted| (counted, quota)).to_vec(),
    }
}

/// Creates a key with a unique name.
async fn key(server: &Server, workspace: &str, change: impl FnOnce(&mut KeyOrder)) -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "key {} {}",
        std::process::id(),
        MADE.fetch_add(1, Ordering::Relaxed)
    );
    let mut order = KeyOrder {
        name,
        permissions: Permissions::all(),
        expires_at: None,
        allowlist: vec![],
    };
    change(&mut order);
    server
        .admin()
        .create_key(workspace, order, |_| Ok(()))
        .await
        .expect("a key")
        .reveal()
        .to_owned()
}

/// A client with a key on `channel`.
pub(crate) fn client_on(channel: Channel, key: &str) -> Client {
    CanvasScheduleServiceClient::with_interceptor(channel, Bearer::new(key))
        .max_decoding_message_size(64 * 1024 * 1024)
}
