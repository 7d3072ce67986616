//! A running server: it opens the database, starts the worker threads and the dispatcher, accepts
//! connections, and drains in order.

pub mod accept;
mod admin_port;
mod clock_sync;
mod database;
mod dispatcher_thread;
mod gauges;
mod listeners;
mod readiness;
mod routes;
mod settings;
mod startup;
mod threads;
mod tls;

use std::net::SocketAddr;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::clock::{SharedClock, sleep_until};
use crate::error::Error;
use crate::layers::Stack;
use crate::layers::auth::Authenticator;
use crate::layers::body_limit::BodyLimit;
use crate::layers::concurrency_limit::ConcurrencyLimit;
use crate::layers::drain::Phase;
use crate::layers::measure::CallDurations;
use crate::layers::unsent::ProcessUnsent;
use crate::service::Service;
use crate::service::access::Access;
use crate::service::admin::Admin;
use crate::sink::SharedSink;
use crate::store::{Store, StoreSessions, Writer};
use crate::telemetry::metrics::{DispatchMetrics, Metrics};
use crate::telemetry::traces::Traces;
use accept::ConnectionLimits;
use admin_port::AdminPort;
use database::OpenDatabase;
use dispatcher_thread::{DispatcherThread, SinkSource};
use listeners::Listeners;
use readiness::Readiness;
use routes::{EnabledServices, Routes};
pub use settings::{Roles, Serve, ServeArgs, TlsFiles};
use startup::Startup;

/// The time between passes that remove expired rows.
const CLEAN_UP_INTERVAL: TimeDelta = TimeDelta::minutes(10);
/// The same when the clock was set back meanwhile.
const MAX_CLEAN_UP_WAIT: Duration = Duration::from_secs(11 * 60);
/// After the drain: how long connections may take to flush, and writers to end.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// A running server.
pub struct Server {
    grpc_addr: SocketAddr,
    gateway_addr: Option<SocketAddr>,
    admin_addr: SocketAddr,
    /// Serves to the end of the stop, so that operators can watch it.
    _admin_port: JoinSet<()>,
    service: Service,
    admin: Admin,
    access: Access,
    readiness: Readiness,
    traces: Traces,
    sessions: StoreSessions,
    phase: watch::Sender<Phase>,
    drain: Duration,
    threads: Vec<oneshot::Receiver<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts a server that sends to `sink`, or to the configured sink. It is not ready while
    /// migrations are pending.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the database, an address, a certificate or the sink cannot be used.
    pub async fn start(
        settings: &Serve,
        clock: SharedClock,
        sink: Option<SharedSink>,
    ) -> Result<Self, Error> {
        let database = OpenDatabase::open(settings, clock.clone())?;
        Box::pin(Self::serve(settings, clock, sink, database)).await
    }

    /// [`Self::start`], after waiting for the database and applying pending migrations.
    ///
    /// # Errors
    /// As [`Self::start`], and those of the migrations.
    pub async fn start_migrated(
        settings: &Serve,
        clock: SharedClock,
        sink: Option<SharedSink>,
    ) -> Result<Self, Error> {
        let database = OpenDatabase::open(settings, clock.clone())?;
        database::judge(database.store.sessions.wait_until_usable().await?)?;
        database.store.migrate().await?;
        Box::pin(Self::serve(settings, clock, sink, database)).await
    }

    /// Its future is large: callers box it, so that theirs stay small.
    async fn serve(
        settings: &Serve,
        clock: SharedClock,
        sink: Option<SharedSink>,
        database: OpenDatabase,
    ) -> Result<Self, Error> {
        let (phase, phases) = watch::channel(Phase::Serving);
        let mut listeners = Listeners::bind(settings, phases.clone()).await?;
        let admin_port = AdminPort::bind(settings.admin_addr).await?;
        let sink = SinkSource::choose(settings, sink);
        let parts = Parts::new(settings, clock, &database, sink.as_ref(), phases).await?;
        let mut threads = parts.start_workers(&mut listeners, database.writers)?;
        parts.register_gauges(&listeners)?;
        if let Some(sink) = sink {
            threads.push(parts.start_dispatcher(sink).await?);
        }
        let mut tasks = Box::pin(parts.start_tasks()).await?;
        let sessions = parts.store.sessions.clone();
        let (grpc_addr, gateway_addr) = listeners.addrs();
        tasks.extend(listeners.accept(&parts.connection_limits()));
        Ok(Self {
            grpc_addr,
            gateway_addr,
            admin_addr: admin_port.addr(),
            _admin_port: admin_port.serve(parts.metrics, parts.readiness.clone()),
            service: parts.service,
            admin: Admin::new(parts.store, parts.clock),
            access: parts.access,
            readiness: parts.readiness,
            traces: parts.traces,
            sessions,
            phase,
            drain: settings.drain,
            threads,
            tasks,
        })
    }

    /// The address of the gRPC port.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// The address of the admin port.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// The address of the REST gateway, if it is on.
    pub fn gateway_addr(&self) -> Option<SocketAddr> {
        self.gateway_addr
    }

    /// The use cases, for the sample schedules of `dev`.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The use cases of operators, for the key of `dev`.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// Reloads the keys immediately, so that a new one works.
    pub async fn read_keys(&self) -> Result<(), Error> {
        self.access.reload().await
    }

    /// Stops: health reports NOT_SERVING, the ports close, streams end, calls in flight may finish
    /// within the drain timeout, then the rest are answered with UNAVAILABLE, and the writers
    /// commit what they took. Then the database is closed; a SQLite file contains everything.
    /// Always returns.
    pub async fn stop(self) {
        self.readiness.drain().await;
        self.phase.send_replace(Phase::Draining);
        for task in &self.tasks {
            // The accept loops end with the phase. The other tasks hold the store, which must be
            // dropped for the writers to end.
            task.abort();
        }
        for task in self.tasks {
            // An error means that it was aborted, as it should be.
            let _aborted = task.await;
        }
        drop((self.service, self.admin, self.access));
        drain(self.threads, &self.phase, self.drain).await;
        self.sessions.close().await;
        self.traces.flush().await;
    }
}

/// Waits for the threads to end; at the timeout it cuts off what they still do.
async fn drain(
    threads: Vec<oneshot::Receiver<()>>,
    phase: &watch::Sender<Phase>,
    timeout: Duration,
) {
    let ended = async {
        for thread in threads {
            // An error means that the thread panicked, so it has ended too.
            let _ended = thread.await;
        }
    };
    tokio::pin!(ended);
    if tokio::time::timeout(timeout, &mut ended).await.is_ok() {
        return;
    }
    tracing::warn!(
        drain_ms = timeout.as_millis(),
        "the drain timed out with calls or deliveries in flight; callers get UNAVAILABLE"
    );
    phase.send_replace(Phase::Ending);
    if tokio::time::timeout(END_TIMEOUT, ended).await.is_err() {
        tracing::error!("a thread did not end in time; its work is abandoned");
    }
}

/// The parts of a server that is starting.
struct Parts<'a> {
    settings: &'a Serve,
    clock: SharedClock,
    store: Store,
    metrics: Metrics,
    traces: Traces,
    service: Service,
    access: Access,
    readiness: Readiness,
    startup: Startup,
    stack: Stack,
    /// Only in a process that sends.
    sending: Option<DispatchMetrics>,
    phases: watch::Receiver<Phase>,
}

impl<'a> Parts<'a> {
    async fn new(
        settings: &'a Serve,
        clock: SharedClock,
        database: &OpenDatabase,
        sink: Option<&SinkSource>,
        phases: watch::Receiver<Phase>,
    ) -> Result<Self, Error> {
        let (store, metrics) = (database.store.clone(), database.metrics.clone());
        let traces = traces(settings)?;
        let sending = sink
            .map(|sink| metrics.dispatch(sink.name()))
            .transpose()
            .map_err(Error::internal)?;
        let readiness = Readiness::new(
            settings.roles,
            sink.is_some(),
            sending.clone().unwrap_or_default(),
        )
        .await;
        let access = Access::new(store.clone(), clock.clone());
        let authenticator = Authenticator {
            access: access.clone(),
            trusted_proxies: settings.trusted_proxies.clone(),
            clock: clock.clone(),
            calls: metrics.calls.clone(),
        };
        let stack = Stack {
            phase: phases.clone(),
            max_call: settings.calls.max_call_time,
            concurrency: ConcurrencyLimit::new(settings.calls.max_in_flight),
            bodies: BodyLimit::new(settings.calls.max_in_flight_bytes),
            unsent: ProcessUnsent::default(),
            authenticator,
            durations: CallDurations::new(metrics.calls.clone()),
            traces: traces.clone(),
        };
        Ok(Self {
            settings,
            service: Service::new(
                store.clone(),
                clock.clone(),
                settings.policy,
                settings.delivery,
            ),
            startup: Startup::new(readiness.clone(), access.clone()),
            clock,
            store,
            metrics,
            traces,
            access,
            readiness,
            stack,
            sending,
            phases,
        })
    }

    /// Starts the threads that serve connections. Each also runs some of the writers.
    fn start_workers(
        &self,
        listeners: &mut Listeners,
        mut writers: Vec<Writer>,
    ) -> Result<Vec<oneshot::Receiver<()>>, Error> {
        let enabled = EnabledServices {
            api: self.settings.roles.api,
            reflection: self.settings.reflection,
        };
        let (health, ready) = (self.readiness.health(), self.startup.ready.clone());
        let routes = Routes::new(&self.service, health, ready, enabled)?;
        let workers = self.settings.cores.get();
        let start = |n| {
            // One writer a worker; the last worker runs the rest.
            let own = if n + 1 == workers {
                std::mem::take(&mut writers)
            } else {
                writers.pop().into_iter().collect()
            };
            let service = self.stack.clone().wrap(routes.clone());
            let connections = listeners.add_worker(service);
            threads::start(
                format!("worker-{n}"),
                threads::serve_worker(connections, own),
            )
        };
        (0..workers).map(start).collect()
    }

    fn register_gauges(&self, listeners: &Listeners) -> Result<(), Error> {
        let metrics = &self.metrics;
        let max_connections = self.settings.connections.max_connections;
        gauges::of_calls(
            metrics,
            &self.stack.concurrency,
            listeners.counters(),
            max_connections,
        )
        .and_then(|()| gauges::of_store(metrics, &self.store))
        .and_then(|()| gauges::of_process(metrics, &self.readiness, &self.clock, listeners.tls()))
        .map_err(Error::internal)
    }

    async fn start_dispatcher(&self, sink: SinkSource) -> Result<oneshot::Receiver<()>, Error> {
        let thread = DispatcherThread {
            service: self.service.clone(),
            sink,
            clock: self.clock.clone(),
            settings: self.settings.dispatcher,
            sending: self.sending.clone().unwrap_or_default(),
            traces: self.traces.clone(),
        };
        thread
            .start(self.startup.subscribe(), self.phases.clone())
            .await
    }

    /// Starts the tasks of the main thread: clock synchronization, retention, keys and readiness.
    async fn start_tasks(&self) -> Result<Vec<JoinHandle<()>>, Error> {
        let (store, clock) = (self.store.clone(), self.clock.clone());
        let clock_sync = clock_sync::run(store.clone(), clock.clone(), self.readiness.clone());
        let startup = self.startup.clone();
        let watch = database::watch(store.clone(), self.access.clone(), self.readiness.clone());
        let keys = if startup.try_open(&store).await? {
            tokio::spawn(self.access.clone().keep_fresh())
        } else {
            tokio::spawn(startup.open_when_possible(store))
        };
        let clean_up = tokio::spawn(clean_up(self.service.clone(), clock));
        let (clock_sync, watch) = (tokio::spawn(clock_sync), tokio::spawn(watch));
        Ok(vec![clock_sync, clean_up, keys, watch])
    }

    fn connection_limits(&self) -> ConnectionLimits {
        ConnectionLimits::new(
            self.settings.connections,
            self.settings.trusted_proxies.clone(),
            self.metrics.connections.clone(),
        )
    }
}

fn traces(settings: &Serve) -> Result<Traces, Error> {
    let traces = settings.collector.as_ref().map(Traces::export_to);
    let traces = traces
        .transpose()
        .map_err(|why| Error::invalid("otlp-endpoint", why))?;
    Ok(traces.unwrap_or_default())
}

async fn clean_up(service: Service, clock: SharedClock) {
    loop {
        sleep_until(&clock, clock.now() + CLEAN_UP_INTERVAL, MAX_CLEAN_UP_WAIT).await;
        if let Err(error) = service.clean_up().await {
            tracing::warn!(%error, "expired rows could not be removed; the next pass retries");
        }
    }
}
