//! Wiring: opens the store, builds the service, mounts the listeners, runs the cores, drains in order.

pub mod accept;
mod admin_port;
mod clock_sync;
mod dispatcher_thread;
mod gauges;
mod listeners;
mod readiness;
mod routes;
mod startup;
mod tls;

use std::net::SocketAddr;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::clock::{SharedClock, sleep_until};
use crate::config::Serve;
use crate::domain::{DeliveryPolicy, Policy};
use crate::error::{Error, Violation};
use crate::layers::Stack;
use crate::layers::auth::Authenticator;
use crate::layers::concurrency_limit::ConcurrencyLimit;
use crate::layers::drain::Phase;
use crate::layers::measure::CallDurations;
use crate::service::Service;
use crate::service::access::Access;
use crate::service::admin::Admin;
use crate::sink::SharedSink;
use crate::store::{Durability, Options, Store, Writer};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;
use accept::{Bounds, ConnectionLimits};
use dispatcher_thread::{DispatcherThread, SinkSource};
use listeners::Listeners;
use readiness::Readiness;
use routes::{EnabledServices, Routes};
use startup::Startup;

/// Between passes that remove what has outlived its use.
const CLEAN_UP_EVERY: TimeDelta = TimeDelta::minutes(10);
/// The same when the clock was set back meanwhile.
const CLEAN_UP_MOST: Duration = Duration::from_secs(11 * 60);
/// After the drain: how long connections have to flush and writers to end.
const AFTER_DRAIN: Duration = Duration::from_secs(3);

/// A running server.
pub struct Server {
    grpc_addr: SocketAddr,
    gateway_addr: Option<SocketAddr>,
    admin_addr: SocketAddr,
    /// Goes on to the end of the stop, so that it can be watched.
    _admin_port: JoinSet<()>,
    service: Service,
    admin: Admin,
    access: Access,
    readiness: Readiness,
    traces: Traces,
    phase: watch::Sender<Phase>,
    drain: Duration,
    threads: Vec<oneshot::Receiver<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Opens the database, binds the port, serves, and sends to `sink`, or else to the one that is set, if any; not ready while
    /// migrations are pending.
    ///
    /// # Errors
    /// What is wrong with the database or the address.
    pub async fn start(
        settings: &Serve,
        clock: SharedClock,
        sink: Option<SharedSink>,
    ) -> Result<Self, Error> {
        let opened = OpenedStore::new(settings, clock.clone()).await?;
        Self::serve(settings, clock, sink, opened).await
    }

    /// As [`Self::start`], after applying pending migrations.
    ///
    /// # Errors
    /// What is wrong with the database or the address.
    pub async fn start_migrated(
        settings: &Serve,
        clock: SharedClock,
        sink: Option<SharedSink>,
    ) -> Result<Self, Error> {
        let opened = OpenedStore::new(settings, clock.clone()).await?;
        opened.store.migrate().await?;
        Self::serve(settings, clock, sink, opened).await
    }

    async fn serve(
        settings: &Serve,
        clock: SharedClock,
        sink: Option<SharedSink>,
        opened: OpenedStore,
    ) -> Result<Self, Error> {
        let OpenedStore {
            store,
            mut writers,
            metrics,
            traces,
        } = opened;
        check_durability(&store).await?;
        let (phase, phases) = watch::channel(Phase::Serving);
        let mut listeners = Listeners::open(settings, bounds(settings), phases.clone()).await?;
        let (admin_listener, admin_addr) =
            listeners::bind("admin-addr", settings.admin_addr).await?;
        let service = Service::new(
            store.clone(),
            clock.clone(),
            policy(settings),
            delivery(settings),
        );
        let sink = sink
            .map(SinkSource::Given)
            .or_else(|| settings.sink.clone().map(SinkSource::Configured))
            .filter(|_| settings.roles.dispatcher);
        let sending = sink
            .as_ref()
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
        let startup = Startup::shut(readiness.clone(), access.clone());
        let stack = Stack {
            traces: traces.clone(),
            ..stack(settings, &access, &clock, &metrics, phases.clone())
        };
        let enabled = EnabledServices {
            api: settings.roles.api,
            reflection: settings.reflection,
        };
        let routes = Routes::new(&service, readiness.health(), startup.ready.clone(), enabled)?;
        let mut threads = Vec::new();
        for n in 0..settings.cores {
            // Writers are spread over the cores; where there are more writers than cores, the last core runs the rest.
            let own = if n + 1 == settings.cores {
                std::mem::take(&mut writers)
            } else {
                writers.pop().into_iter().collect()
            };
            let work = serve_core(
                listeners.add_worker(stack.clone().wrap(routes.clone()), &stack.in_flight),
                own,
            );
            threads.push(run_thread(format!("core-{n}"), work)?);
        }
        gauges::of_calls(
            &metrics,
            &stack.in_flight,
            listeners.counters(),
            settings.max_connections,
        )
        .map_err(Error::internal)?;
        gauges::of_store(&metrics, &store).map_err(Error::internal)?;
        gauges::of_process(&metrics, &readiness, &clock, listeners.tls())
            .map_err(Error::internal)?;
        if let (Some(sink), Some(sending)) = (sink, sending) {
            let (service, clock, workers, traces) = (
                service.clone(),
                clock.clone(),
                settings.workers,
                traces.clone(),
            );
            let dispatcher = DispatcherThread {
                service,
                sink,
                clock,
                workers,
                sending,
                traces,
            };
            threads.push(
                dispatcher
                    .start(startup.opened.subscribe(), phases.clone())
                    .await?,
            );
        }
        let admin = Admin::new(store.clone(), clock.clone());
        let mut tasks = vec![tokio::spawn(clock_sync::run(
            store.clone(),
            clock.clone(),
            readiness.clone(),
        ))];
        tasks.push(tokio::spawn(clean_up(service.clone(), clock)));
        if store.pending_migrations().await?.is_empty() {
            tasks.push(tokio::spawn(startup.open().await.keep_fresh()));
        } else {
            tasks.push(tokio::spawn(startup.open_with_schema(store)));
        }
        let (grpc_addr, gateway_addr) = listeners.addrs();
        let limits = ConnectionLimits::new(
            listeners.bounds(),
            settings.max_connections_per_address,
            settings.trusted_proxies.clone(),
        );
        tasks.extend(listeners.accept(&limits.counting(metrics.connections.clone())));
        let _admin_port = JoinSet::from_iter([admin_port::serve(
            admin_listener,
            metrics,
            readiness.clone(),
        )]);
        let drain = settings.drain;
        Ok(Self {
            grpc_addr,
            gateway_addr,
            admin_addr,
            _admin_port,
            service,
            admin,
            access,
            readiness,
            traces,
            phase,
            drain,
            threads,
            tasks,
        })
    }

    /// Where gRPC callers connect.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where metrics and readiness are asked for.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Where callers of the documented JSON connect; none when there is no gateway.
    pub fn gateway_addr(&self) -> Option<SocketAddr> {
        self.gateway_addr
    }

    /// The use cases, for the sample schedules of `dev`.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// What operators do, for the key of `dev`.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// Reads the keys now rather than within seconds, once one was made.
    ///
    /// # Errors
    /// The store's.
    pub async fn read_keys(&self) -> Result<(), Error> {
        self.access.read().await
    }

    /// Stops: health says NOT_SERVING, the port closes, streams end, calls in flight finish within the drain bound, what still
    /// runs then is answered UNAVAILABLE, and the writers commit what they hold. Always returns.
    pub async fn stop(self) {
        self.readiness.drain().await;
        self.phase.send_replace(Phase::Draining);
        for task in &self.tasks {
            // The accept loop ends by the phase; the others hold the store, which must go for the writers to end.
            task.abort();
        }
        drop((self.service, self.admin, self.access));
        let ended = async {
            for thread in self.threads {
                // One that panicked has ended too.
                let _ended = thread.await;
            }
        };
        tokio::pin!(ended);
        if tokio::time::timeout(self.drain, &mut ended).await.is_err() {
            tracing::warn!(
                drain_ms = self.drain.as_millis(),
                "calls or deliveries were still in flight at the end of the drain; callers are told UNAVAILABLE"
            );
            self.phase.send_replace(Phase::Ending);
            if tokio::time::timeout(AFTER_DRAIN, ended).await.is_err() {
                tracing::error!("a thread did not end in time; what it held is given up");
            }
        }
        self.traces.flush().await;
    }
}

/// The database, and where it is told what goes on.
struct OpenedStore {
    store: Store,
    writers: Vec<Writer>,
    metrics: Metrics,
    traces: Traces,
}

impl OpenedStore {
    async fn new(settings: &Serve, clock: SharedClock) -> Result<Self, Error> {
        let metrics = Metrics::new().map_err(Error::internal)?;
        let traces = settings
            .otlp_endpoint
            .as_deref()
            .map(Traces::export_to)
            .transpose();
        let traces = traces
            .map_err(|why| Error::Invalid(vec![Violation::new("otlp-endpoint", why)]))?
            .unwrap_or_default();
        let options = Options {
            writers: settings.writers,
            batch_max: settings.commit_max,
            queue_max: settings.queue_max,
            reads_max: settings.read_connections,
            revisions_kept: i64::from(settings.revisions_kept),
            writes: metrics.commit.clone(),
            ..Options::new(&settings.database_url.0)
        };
        let (store, writers) = Store::open(&options, clock, policy(settings)).await?;
        Ok(Self {
            store,
            writers,
            metrics,
            traces,
        })
    }
}

/// What every call passes.
fn stack(
    settings: &Serve,
    access: &Access,
    clock: &SharedClock,
    metrics: &Metrics,
    phase: watch::Receiver<Phase>,
) -> Stack {
    let (access, clock, calls) = (access.clone(), clock.clone(), metrics.calls.clone());
    let authenticator = Authenticator {
        access,
        trusted_proxies: settings.trusted_proxies.as_slice().into(),
        clock,
        calls: calls.clone(),
    };
    let (max_call, in_flight) = (
        settings.max_call_time,
        ConcurrencyLimit::new(settings.max_in_flight, settings.max_in_flight_bytes),
    );
    Stack {
        phase,
        max_call,
        in_flight,
        authenticator,
        durations: CallDurations::new(calls),
        traces: Traces::default(),
    }
}

fn policy(settings: &Serve) -> Policy {
    Policy {
        lateness: TimeDelta::from_std(settings.lateness).unwrap_or(TimeDelta::MAX),
        horizon: TimeDelta::days(i64::from(settings.horizon_days)),
        retention: TimeDelta::days(i64::from(settings.retention_days)),
    }
}

fn delivery(settings: &Serve) -> DeliveryPolicy {
    DeliveryPolicy {
        lease: TimeDelta::from_std(settings.lease).unwrap_or(TimeDelta::MAX),
        attempts: settings.attempts,
        ..DeliveryPolicy::default()
    }
}

fn bounds(settings: &Serve) -> Bounds {
    Bounds {
        first_byte: settings.first_byte_timeout,
        max_age: settings.max_connection_age,
        max_connections: settings.max_connections,
        ..Bounds::default()
    }
}

/// Refuses a database that forgets what was acknowledged, and warns of one that may in a failover.
async fn check_durability(store: &Store) -> Result<(), Error> {
    match store.durability().await? {
        Durability::Durable => Ok(()),
        Durability::Weakened { setting } => {
            tracing::warn!(
                setting,
                "the database may lose acknowledged changes in a failover; see docs/operations.md"
            );
            Ok(())
        }
        Durability::Lost { setting } => {
            let message = format!(
                "the database has {setting}, which loses acknowledged changes in a crash; fsync=on is needed"
            );
            Err(Error::Invalid(vec![Violation::new(
                "database-url",
                message,
            )]))
        }
    }
}

async fn clean_up(service: Service, clock: SharedClock) {
    loop {
        sleep_until(&clock, clock.now() + CLEAN_UP_EVERY, CLEAN_UP_MOST).await;
        if let Err(error) = service.clean_up().await {
            tracing::warn!(%error, "what has outlived its use was not removed; the next pass takes it too");
        }
    }
}

/// Serves the connections that a core is handed and runs its share of the writers; ends when both have ended.
async fn serve_core(listeners: impl Future<Output = ()>, writers: Vec<Writer>) {
    let writers: Vec<_> = writers
        .into_iter()
        .map(|writer| tokio::spawn(writer.run()))
        .collect();
    listeners.await;
    // The service is gone with the connections; once every core has come this far the queues close and the writers end.
    for writer in writers {
        if let Err(panic) = writer.await {
            tracing::error!(%panic, "a writer ended by a fault of ours");
        }
    }
}

/// Starts a thread with a runtime of its own. Answers when its work has ended.
fn run_thread(
    name: String,
    work: impl Future<Output = ()> + Send + 'static,
) -> Result<oneshot::Receiver<()>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::internal)?;
    let (ended, ends) = oneshot::channel();
    let run = move || {
        runtime.block_on(work);
        runtime.shutdown_background();
        // Nobody waits once the bound on stopping has passed.
        let _late = ended.send(());
    };
    std::thread::Builder::new()
        .name(name)
        .spawn(run)
        .map_err(Error::internal)?;
    Ok(ends)
}
