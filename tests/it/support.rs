//! `TestApp`: a server on a free port over the test's own database, with a clock that the test moves.

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
use canvas_scheduler::config::Secret;
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

/// What every clock shows at first.
pub(crate) const NOW: &str = "2026-03-01T12:00:00Z";

/// A time that is well ahead of [`NOW`].
pub(crate) const LATER: &str = "2026-03-20T08:00:00Z";

/// How long anything may take before it counts as hanging. Far beyond what anything takes: no test fails on time alone.
const HANGS: Duration = Duration::from_secs(120);

/// Runs each test on both databases, as `NAME::sqlite` and `NAME::postgres`. With `file:` SQLite keeps a file, for tests that
/// look at the database from outside or open it twice.
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

/// Runs one test on a migrated database of its own; no thread of a server may have panicked by then.
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
        "the server panicked, in this test or one beside it: {panics:?}"
    );
}

/// What `future` comes to; a test that hangs ends here.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, future).await.expect("it hangs")
}

/// Has the server read the keys; each attempt is bounded by 3 s.
async fn read_keys(server: &Server) {
    soon(async { while server.read_keys().await.is_err() {} }).await;
}

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes every panic on a server's own threads, also one that the stack turns into an answer.
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

/// Small bounds, a free port.
pub(crate) fn settings(database: &Database) -> Serve {
    let free_port = ([127, 0, 0, 1], 0).into();
    Serve {
        database_url: Secret(database.url().to_owned()),
        grpc_addr: free_port,
        gateway_addr: free_port,
        admin_addr: free_port,
        cores: number(2),
        dispatcher: DispatcherSettings {
            workers: number(16),
        },
        delivery: DeliveryPolicy {
            // The clock of a test moves by days while a delivery is under way.
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

/// An instant as a test writes it.
pub(crate) fn instant(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).expect(text).to_utc()
}

/// The generated client over HTTP/2.
pub(crate) type Client = CanvasScheduleServiceClient<InterceptedService<Channel, Bearer>>;

/// A running server and a client of it.
pub(crate) struct TestApp {
    pub clock: Arc<ManualClock>,
    pub channel: Channel,
    /// A key of the workspace `default` that may do everything.
    pub key: String,
    addr: SocketAddr,
    server: Server,
}

impl TestApp {
    /// A server over a migrated database.
    pub(crate) async fn start(database: &Database) -> Self {
        Self::start_with(database, |_| {}).await
    }

    /// The same, with settings that differ.
    pub(crate) async fn start_with(database: &Database, change: impl FnOnce(&mut Serve)) -> Self {
        let mut settings = settings(database);
        change(&mut settings);
        let clock = Arc::new(ManualClock::at(instant(NOW)));
        let server = Server::start_migrated(&settings, clock.clone(), None)
            .await
            .expect("the server starts");
        server
            .admin()
            .set_workspace("default", &endless())
            .await
            .expect("set");
        Self::of_keyed(server, clock).await
    }

    /// The same with a dispatcher that sends to `sink`, and the time that `clock` shows.
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

    /// The same in some of the roles.
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
            .set_workspace("default", &endless())
            .await
            .expect("set");
        Self::of_keyed(server, clock.clone()).await
    }

    /// A second server over a database whose limits stay as they are.
    pub(crate) async fn start_as_it_is(database: &Database) -> Self {
        let clock = Arc::new(ManualClock::at(instant(NOW)));
        let server = Server::start_migrated(&settings(database), clock.clone(), None)
            .await
            .expect("the server starts");
        Self::of_keyed(server, clock).await
    }

    async fn of_keyed(server: Server, clock: Arc<ManualClock>) -> Self {
        let key = key(&server, "default", |_| {}).await;
        read_keys(&server).await;
        Self::of(server, clock, key)
    }

    /// A server over a database as it is; its callers have a key that is none.
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
        log_everything_if_wanted();
        let addr = server.grpc_addr();
        Self {
            clock,
            channel: channel_to(addr),
            key,
            addr,
            server,
        }
    }

    /// A key of a workspace, which may do everything but for what `change` makes of it.
    pub(crate) async fn key_of(
        &self,
        workspace: &str,
        change: impl FnOnce(&mut KeyOrder),
    ) -> String {
        key(&self.server, workspace, change).await
    }

    /// What operators do.
    pub(crate) fn admin(&self) -> &Admin {
        self.server.admin()
    }

    /// The app's one connection with its key, for calls without the client.
    pub(crate) fn keyed(&self) -> InterceptedService<Channel, Bearer> {
        InterceptedService::new(self.channel.clone(), Bearer::new(&self.key))
    }

    /// Has the server read the keys now.
    pub(crate) async fn read_keys(&self) {
        read_keys(&self.server).await;
    }

    /// A client on the app's one connection with another key.
    pub(crate) fn client_with(&self, key: &str) -> Client {
        client_on(self.channel.clone(), key)
    }

    /// Where metrics and readiness are asked for.
    pub(crate) fn admin_addr(&self) -> String {
        self.server.admin_addr().to_string()
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A client on the app's one connection.
    pub(crate) fn client(&self) -> Client {
        client_on(self.channel.clone(), &self.key)
    }

    /// A client on a connection of its own.
    pub(crate) fn fresh_client(&self) -> Client {
        client_on(channel_to(self.addr), &self.key)
    }

    /// Where the gateway listens.
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

    /// A schedule that was created.
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

    /// All that the service tells of a schedule.
    pub(crate) async fn get(&self, of: &v1::CanvasSchedule) -> v1::GetCanvasScheduleResponse {
        self.try_get(&of.schedule_id).await.expect("it is there")
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

    /// The kept revisions of a schedule, at most 1,000, the newest first.
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

    /// What the service tells of a schedule and its history: to show that nothing changed.
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

/// What this process logs is searched for keys.
fn log_everything_if_wanted() {
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

/// Limits that no test reaches by chance.
fn endless() -> WorkspaceChange {
    let quota = Quota {
        limit: 1_000_000_000,
        window: QuotaWindow::Minute,
    };
    WorkspaceChange {
        default_zone: None,
        quotas: QuotaKind::ALL.map(|counted| (counted, quota)).to_vec(),
    }
}

/// A key that nobody else has the name of.
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
        .create_key(workspace, order)
        .await
        .expect("a key")
        .reveal()
        .to_owned()
}

/// A client on `channel` with a key.
pub(crate) fn client_on(channel: Channel, key: &str) -> Client {
    CanvasScheduleServiceClient::with_interceptor(channel, Bearer::new(key))
        .max_decoding_message_size(64 * 1024 * 1024)
}
