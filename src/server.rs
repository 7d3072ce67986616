//! Wiring: opens the store, builds the service, mounts the faces, runs the cores, drains in order.

pub mod accept;
mod faces;
mod one_clock;
mod routes;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::clock::SharedClock;
use crate::config::{Serve, SinkSettings};
use crate::dispatcher::Dispatcher;
use crate::domain::{Delivery, Policy};
use crate::error::{Error, Violation};
use crate::layers::Stack;
use crate::layers::auth::Gate;
use crate::layers::drain::Phase;
use crate::layers::in_flight::InFlight;
use crate::service::Service;
use crate::service::access::Access;
use crate::service::admin::Admin;
use crate::sink::{self, SharedSink};
use crate::store::{Durability, Options, Store, Writer};
use accept::{Bounds, Door, Speech};
use faces::{Faces, Port};
use routes::{HEALTH_NAMES, Routes, Shown};

/// Between looks at the schema while migrations are pending.
const SCHEMA_POLL: Duration = Duration::from_secs(1);
/// Between passes that remove what has outlived its use.
const CLEAN_UP_EVERY: TimeDelta = TimeDelta::minutes(10);
/// After the drain: how long connections have to flush and writers to end.
const AFTER_DRAIN: Duration = Duration::from_secs(3);

/// A running server.
pub struct Server {
    grpc_addr: SocketAddr,
    gateway_addr: Option<SocketAddr>,
    service: Service,
    admin: Admin,
    access: Access,
    health: HealthReporter,
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
    pub async fn start(settings: &Serve, clock: SharedClock, sink: Option<SharedSink>) -> Result<Self, Error> {
        let (store, writers) = open(settings, clock.clone()).await?;
        Self::serve(settings, clock, sink, store, writers).await
    }

    /// As [`Self::start`], after applying pending migrations.
    ///
    /// # Errors
    /// What is wrong with the database or the address.
    pub async fn start_migrated(settings: &Serve, clock: SharedClock, sink: Option<SharedSink>) -> Result<Self, Error> {
        let (store, writers) = open(settings, clock.clone()).await?;
        store.migrate().await?;
        Self::serve(settings, clock, sink, store, writers).await
    }

    async fn serve(
        settings: &Serve,
        clock: SharedClock,
        sink: Option<SharedSink>,
        store: Store,
        mut writers: Vec<Writer>,
    ) -> Result<Self, Error> {
        check_durability(&store).await?;
        let grpc = Port::open("grpc-addr", settings.grpc_addr, settings.tls.as_ref(), Speech::Http2).await?;
        let gateway_addr = settings.gateway_addr.filter(|_| settings.roles.api);
        let gateway = match gateway_addr {
            Some(addr) => Some(Port::open("gateway-addr", addr, settings.tls.as_ref(), Speech::Http1AndHttp2).await?),
            None => None,
        };
        let (grpc_addr, gateway_addr) = (grpc.addr()?, gateway.as_ref().map(Port::addr).transpose()?);
        let service = Service::new(store.clone(), clock.clone(), policy(settings), delivery(settings));
        let (phase, phases) = watch::channel(Phase::Serving);
        let bounds = bounds(settings);
        let access = Access::new(store.clone(), clock.clone());
        let entry = Entry::shut(settings.roles.api, access.clone()).await;
        let gate = Gate { access: access.clone(), trusted_proxies: settings.trusted_proxies.as_slice().into(), clock: clock.clone() };
        let in_flight = InFlight::new(settings.max_in_flight);
        let stack = Stack { phase: phases.clone(), max_call: settings.max_call_time, in_flight, gate };
        let shown = Shown { api: settings.roles.api, reflection: settings.reflection };
        let routes = Routes::new(&service, entry.health.clone(), entry.ready.clone(), shown)?;
        let mut faces = Faces { grpc, gateway, bounds, phases: phases.clone() };
        let mut threads = Vec::new();
        for n in 0..settings.cores {
            // Writers are spread over the cores; where there are more writers than cores, the last core runs the rest.
            let own = if n + 1 == settings.cores { std::mem::take(&mut writers) } else { writers.pop().into_iter().collect() };
            let work = serve_core(faces.of_core(stack.clone().wrap(routes.clone())), own);
            threads.push(run_thread(format!("core-{n}"), work)?);
        }
        let sink = sink.map(Place::Made).or_else(|| settings.sink.clone().map(Place::Set)).filter(|_| settings.roles.dispatcher);
        let sends = sink.is_some();
        if let Some(sink) = sink {
            let sending = Sending { service: service.clone(), sink, clock: clock.clone(), workers: settings.workers };
            threads.push(sending.start(entry.opened.subscribe(), phases.clone()).await?);
        }
        let admin = Admin::new(store.clone(), clock.clone());
        let mut tasks = vec![tokio::spawn(one_clock::keep(store.clone(), clock.clone(), entry.health.clone(), sends))];
        tasks.push(tokio::spawn(clean_up(service.clone(), clock)));
        let health = entry.health.clone();
        if store.pending_migrations().await?.is_empty() {
            tasks.push(tokio::spawn(entry.open().await.keep_fresh()));
        } else {
            tasks.push(tokio::spawn(until_schema(store, entry)));
        }
        tasks.extend(faces.accept(&Door::new(bounds, settings.max_connections_per_address, settings.trusted_proxies.clone())));
        Ok(Self { grpc_addr, gateway_addr, service, admin, access, health, phase, drain: settings.drain, threads, tasks })
    }

    /// Where gRPC callers connect.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
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
        set_health(&self.health, &HEALTH_NAMES, ServingStatus::NotServing).await;
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
        if tokio::time::timeout(self.drain, &mut ended).await.is_ok() {
            return;
        }
        tracing::warn!(
            drain_ms = self.drain.as_millis(),
            "calls or deliveries were still in flight at the end of the drain; callers are told UNAVAILABLE"
        );
        self.phase.send_replace(Phase::Ending);
        if tokio::time::timeout(AFTER_DRAIN, ended).await.is_err() {
            tracing::error!("a thread did not end in time; what it held is given up");
        }
    }
}

async fn open(settings: &Serve, clock: SharedClock) -> Result<(Store, Vec<Writer>), Error> {
    let options = Options {
        writers: settings.writers,
        batch_max: settings.commit_max,
        queue_max: settings.queue_max,
        reads_max: settings.read_connections,
        revisions_kept: i64::from(settings.revisions_kept),
        ..Options::new(&settings.database_url)
    };
    Store::open(&options, clock, policy(settings)).await
}

fn policy(settings: &Serve) -> Policy {
    Policy {
        lateness: TimeDelta::from_std(settings.lateness).unwrap_or(TimeDelta::MAX),
        horizon: TimeDelta::days(i64::from(settings.horizon_days)),
        retention: TimeDelta::days(i64::from(settings.retention_days)),
    }
}

fn delivery(settings: &Serve) -> Delivery {
    Delivery { lease: TimeDelta::from_std(settings.lease).unwrap_or(TimeDelta::MAX), attempts: settings.attempts, ..Delivery::default() }
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
            tracing::warn!(setting, "the database may lose acknowledged changes in a failover; see docs/operations.md");
            Ok(())
        }
        Durability::Lost { setting } => {
            let message = format!("the database has {setting}, which loses acknowledged changes in a crash; fsync=on is needed");
            Err(Error::Invalid(vec![Violation::new("database-url", message)]))
        }
    }
}

async fn set_health(health: &HealthReporter, names: &[&str], status: ServingStatus) {
    for name in names {
        health.set_service_status(*name, status).await;
    }
}

/// Whether calls are served and waves fired: not before the schema is there.
struct Entry {
    health: HealthReporter,
    /// Looked at for each call.
    ready: Arc<AtomicBool>,
    /// The same, to be waited for.
    opened: watch::Sender<bool>,
    /// What serves once it is open.
    names: &'static [&'static str],
    /// Who is let in.
    access: Access,
}

impl Entry {
    async fn shut(api: bool, access: Access) -> Self {
        let health = HealthReporter::new();
        set_health(&health, &HEALTH_NAMES, ServingStatus::NotServing).await;
        let names = if api { &HEALTH_NAMES[..] } else { &HEALTH_NAMES[..1] };
        Self { health, ready: Arc::new(AtomicBool::new(false)), opened: watch::Sender::new(false), names, access }
    }

    /// From here on calls are served and waves fired. Answers who is let in, to be kept fresh.
    async fn open(self) -> Access {
        match self.access.read().await {
            Ok(()) if self.access.nobody_may_call() => {
                tracing::warn!(
                    "there is no key yet, so nobody may call; make one: canvas-scheduler api-key create --name NAME --permissions all"
                );
            }
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "the keys cannot be read yet"),
        }
        self.ready.store(true, Ordering::Relaxed);
        self.opened.send_replace(true);
        set_health(&self.health, self.names, ServingStatus::Serving).await;
        self.access
    }
}

/// Lets callers in once no migration is pending.
async fn until_schema(store: Store, entry: Entry) {
    tracing::warn!("not ready: migrations are pending; run `canvas-scheduler migrate`");
    loop {
        match store.pending_migrations().await {
            Ok(pending) if pending.is_empty() => break,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "not ready: the schema cannot be looked at"),
        }
        tokio::time::sleep(SCHEMA_POLL).await;
    }
    drop(store);
    let access = entry.open().await;
    tracing::info!("ready: the schema is there");
    access.keep_fresh().await;
}

async fn clean_up(service: Service, clock: SharedClock) {
    loop {
        clock.sleep_until(clock.now() + CLEAN_UP_EVERY).await;
        if let Err(error) = service.clean_up().await {
            tracing::warn!(%error, "what has outlived its use was not removed; the next pass takes it too");
        }
    }
}

/// Serves the connections that a core is handed and runs its share of the writers; ends when both have ended.
async fn serve_core(faces: impl Future<Output = ()>, writers: Vec<Writer>) {
    let writers: Vec<_> = writers.into_iter().map(|writer| tokio::spawn(writer.run())).collect();
    faces.await;
    // The service is gone with the connections; once every core has come this far the queues close and the writers end.
    for writer in writers {
        if let Err(panic) = writer.await {
            tracing::error!(%panic, "a writer ended by a fault of ours");
        }
    }
}

/// Where dispatches go.
enum Place {
    /// To this sink.
    Made(SharedSink),
    /// To the one that is set.
    Set(SinkSettings),
}

impl Place {
    /// The sink, made on the runtime that delivers.
    async fn open(self, clock: &SharedClock) -> Result<SharedSink, Error> {
        match self {
            Self::Made(sink) => Ok(sink),
            Self::Set(settings) => sink::open(&settings, clock.clone()).await,
        }
    }
}

/// What the dispatcher's thread is made of.
struct Sending {
    service: Service,
    sink: Place,
    clock: SharedClock,
    workers: usize,
}

impl Sending {
    /// Starts the thread of the dispatcher, which fires from when the schema is there until the drain begins.
    ///
    /// # Errors
    /// What is wrong with the sink.
    async fn start(self, opened: watch::Receiver<bool>, phases: watch::Receiver<Phase>) -> Result<oneshot::Receiver<()>, Error> {
        let (tell, told) = oneshot::channel();
        let ends = run_thread("dispatcher".to_owned(), async move {
            let Self { service, sink, clock, workers } = self;
            let sink = match sink.open(&clock).await {
                Ok(sink) => sink,
                Err(error) => return drop(tell.send(Err(error))),
            };
            drop(tell.send(Ok(())));
            send(Dispatcher::new(service, sink, clock, workers), opened, phases).await;
        })?;
        told.await.map_err(Error::internal)??;
        Ok(ends)
    }
}

/// Runs a dispatcher once the schema is there, until the drain begins.
async fn send(dispatcher: Dispatcher, mut opened: watch::Receiver<bool>, phases: watch::Receiver<Phase>) {
    let (mut draining, mut ending) = (phases.clone(), phases);
    let stop = Phase::Draining.reached(&mut draining);
    tokio::pin!(stop);
    tokio::select! {
        () = &mut stop => return,
        // Nobody opens any more once the sender is gone; then the drain has begun, too.
        opened = opened.wait_for(|opened| *opened) => if opened.is_err() { return },
    }
    dispatcher.run(stop, Phase::Ending.reached(&mut ending)).await;
}

/// Starts a thread with a runtime of its own. Answers when its work has ended.
fn run_thread(name: String, work: impl Future<Output = ()> + Send + 'static) -> Result<oneshot::Receiver<()>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::internal)?;
    let (ended, ends) = oneshot::channel();
    let run = move || {
        runtime.block_on(work);
        runtime.shutdown_background();
        // Nobody waits once the bound on stopping has passed.
        let _late = ended.send(());
    };
    std::thread::Builder::new().name(name).spawn(run).map_err(Error::internal)?;
    Ok(ends)
}
