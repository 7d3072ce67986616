//! Random faults of all kinds under load, over both databases. The recorded history of every call
//! is checked for linearizability, against what is stored after a final kill, and against what the
//! consumer received.
//!
//! `FAULTS` sets the number of faults for each database, and `SEED` repeats the choices of a run;
//! what meets a fault depends on the machine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::consumer::Consumer;
use super::cuts::inject_at;
use super::database::{Folder, own_postgres, test_name};
use super::delivery::flags;
use super::injector::{EAGAIN, EIO, ENOMEM, ENOSPC, Effect, Injector, Library, Rule};
use super::injector::{Operation, Target};
use super::load::unique_time;
use super::lock_holder::Locked;
use super::postgres::{Disk, Postgres, ports};
use super::proxy::{Action, Proxy};
use super::recorded_load::{RecordedLoad, quiet};
use super::recorder::{Answer, Record, Recorder, Verdict};
use super::server::{PATIENCE, Server, key, migrate};

const CALLERS: usize = 12;
const SCHEDULES: usize = 6;
/// Acknowledged changes after each fault: the service has recovered.
const BETWEEN: u64 = 15;
/// Faults before everything is checked, and the next database begins.
const FAULTS_OF_A_DATABASE: usize = 50;
/// Faults in the normal suite.
const FEW: usize = 6;
/// Faults for each database in the long run.
const MANY: usize = 500;
const MEGABYTES: u32 = 96;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// The service is killed, and another process takes its port.
    Kill,
    /// The service is stopped for a while, at times for longer than its leases.
    Stop,
    /// Another file fills the disk of the database for a while.
    DiskFull,
    /// Another session locks a row, or the file.
    Lock,
    /// A call of SQLite to the operating system fails, once or several times.
    CallFails,
    /// The backends of the service are terminated.
    Terminate,
    /// The statements of the service are cancelled.
    Cancel,
    /// A connection is cut at some message.
    Cut,
    /// All connections are cut.
    CutAll,
    /// The connections that are open are forgotten.
    Forget,
    /// All connections, new ones included, are forgotten for a while.
    ForgetAll,
    /// Each message is delayed for a while.
    Delay,
    /// The database's port is closed for a while.
    Refuse,
    /// The database server crashes and restarts.
    Crash,
    /// The database server stops with a checkpoint, and starts.
    Restart,
}

const OF_POSTGRES: [Kind; 15] = [
    Kind::Kill,
    Kind::Stop,
    Kind::DiskFull,
    Kind::Lock,
    Kind::Terminate,
    Kind::Cancel,
    Kind::Cut,
    Kind::Cut,
    Kind::CutAll,
    Kind::Forget,
    Kind::ForgetAll,
    Kind::Delay,
    Kind::Refuse,
    Kind::Crash,
    Kind::Restart,
];
const OF_SQLITE: [Kind; 6] = [
    Kind::Kill,
    Kind::Stop,
    Kind::DiskFull,
    Kind::Lock,
    Kind::CallFails,
    Kind::CallFails,
];

/// The calls of SQLite that fail.
const CALLS: [(Operation, Target, Effect); 9] = [
    (Operation::Write, Target::Wal, Effect::Errno(ENOSPC)),
    (Operation::Write, Target::Wal, Effect::Errno(EIO)),
    (Operation::Write, Target::Wal, Effect::ShortWrite),
    (Operation::Sync, Target::Wal, Effect::Errno(EIO)),
    (Operation::Write, Target::Main, Effect::Errno(EIO)),
    (Operation::Sync, Target::Main, Effect::Errno(EIO)),
    (Operation::Read, Target::Wal, Effect::Errno(EIO)),
    (Operation::Lock, Target::Shm, Effect::Errno(EAGAIN)),
    (Operation::Allocate, Target::Memory, Effect::Errno(ENOMEM)),
];

/// Where the database is, and what can go wrong there.
struct Place {
    url: String,
    /// A small disk with the database, where this process may mount one. It is unmounted before
    /// the folder around it is removed.
    disk: Option<Disk>,
    base: Base,
}

enum Base {
    Postgres {
        server: Arc<Mutex<Postgres>>,
        proxy: Proxy,
    },
    Sqlite {
        injector: Injector,
        _library: Library,
        _folder: Folder,
    },
}

/// A service under load, over a new database.
struct World {
    place: Place,
    consumer: Consumer,
    server: Server,
    flags: Vec<String>,
    recorder: Recorder,
    ids: Vec<String>,
    rng: Rng,
}

/// What a run has done.
#[derive(Debug, Default)]
struct Counts {
    /// Faults that were met, by kind.
    met: BTreeMap<Kind, usize>,
    /// Faults that no call met.
    missed: usize,
    /// The longest time to recover, by kind.
    recovery: BTreeMap<Kind, Duration>,
    calls: usize,
    acknowledged: usize,
    refused: usize,
    unknown_done: usize,
    unknown_not_done: usize,
    repeated: usize,
    reads: usize,
    schedules: usize,
    delivered: usize,
}

#[tokio::test]
async fn random_faults_lose_nothing_acknowledged_postgres() {
    run(of_postgres, &OF_POSTGRES, FEW).await;
}

#[tokio::test]
async fn random_faults_lose_nothing_acknowledged_sqlite() {
    run(of_sqlite, &OF_SQLITE, FEW).await;
}

#[tokio::test]
#[ignore = "half an hour: .ci/full runs it"]
async fn many_random_faults_lose_nothing_acknowledged_postgres() {
    run(of_postgres, &OF_POSTGRES, setting("FAULTS").unwrap_or(MANY)).await;
}

#[tokio::test]
#[ignore = "half an hour: .ci/full runs it"]
async fn many_random_faults_lose_nothing_acknowledged_sqlite() {
    run(of_sqlite, &OF_SQLITE, setting("FAULTS").unwrap_or(MANY)).await;
}

#[allow(
    clippy::disallowed_methods,
    reason = "a setting of the tests, not of the service"
)]
fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// A server with a database. `None` where PostgreSQL is not installed.
fn of_postgres() -> Option<Place> {
    // Backends of forgotten connections stay: the proxy acknowledges their keepalives.
    let postgres = own_postgres(&["max_connections=500"])?;
    let disk = postgres.createdb_on_disk("test", MEGABYTES).unwrap();
    if disk.is_none() {
        postgres.createdb("test").unwrap();
    }
    let proxy = Proxy::start(postgres.port());
    Some(Place {
        url: proxy.url("test"),
        base: Base::Postgres {
            server: Arc::new(Mutex::new(postgres)),
            proxy,
        },
        disk,
    })
}

/// A file. `None` where there is no C compiler.
fn of_sqlite() -> Option<Place> {
    let (library, folder) = (Library::compile()?, Folder::new());
    let disk = Disk::mount_here(folder.path().join("disk"), MEGABYTES).unwrap();
    let file = folder.path().join("disk/test.db");
    Some(Place {
        url: format!("sqlite://{}?mode=rwc", file.display()),
        base: Base::Sqlite {
            injector: Injector::new(&library, folder.path(), &file),
            _library: library,
            _folder: folder,
        },
        disk,
    })
}

async fn run(place: fn() -> Option<Place>, kinds: &[Kind], faults: usize) {
    let seed = setting("SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{}: SEED={seed}", test_name());
    let (mut rng, mut counts) = (Rng::with_seed(seed), Counts::default());
    let mut injected = 0;
    while injected < faults {
        let Some(place) = place() else { return };
        let of_this = FAULTS_OF_A_DATABASE.min(faults - injected);
        let world = World::start(place, rng.fork()).await;
        world.suffer(kinds, of_this, &mut counts).await;
        injected += of_this;
        println!("{}: {injected} injected", test_name());
    }
    println!("{}: SEED={seed}, {counts:#?}", test_name());
    assert!(counts.missed < faults / 2 + 1, "most faults are met");
}

/// Runs blocking work while callers go on.
async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Runs SQL on the database server, and not through the proxy.
async fn sql(server: &Arc<Mutex<Postgres>>, sql: String) -> String {
    let server = server.clone();
    off(move || server.lock().unwrap().psql("postgres", &sql).unwrap()).await
}

impl World {
    async fn start(place: Place, rng: Rng) -> Self {
        migrate(&place.url);
        let consumer = Consumer::start().await;
        let mut flags = flags(&consumer, "32");
        // Each process takes the port of the one before it.
        let addr = format!("127.0.0.1:{}", ports::lasting().expect("a free port"));
        flags.extend(["--grpc-addr".to_owned(), addr]);
        let key = key(&place.url);
        let server = serve(&place, &flags, key).await;
        let (mut client, recorder) = (server.connect().await, Recorder::new());
        let mut ids = Vec::new();
        for _ in 0..SCHEDULES {
            let time_ms = unique_time();
            let (_, id) = recorder.create_with_id(&mut client, time_ms, "").await;
            ids.push(id.expect("created"));
        }
        Self {
            place,
            consumer,
            server,
            flags,
            recorder,
            ids,
            rng,
        }
    }

    /// Injects faults, and then checks everything.
    async fn suffer(mut self, kinds: &[Kind], faults: usize, counts: &mut Counts) {
        let (access, seed) = (self.server.access().clone(), self.rng.u64(..));
        let mut load = RecordedLoad::start(&access, &self.recorder, &self.ids, CALLERS, seed).await;
        load.acknowledged(BETWEEN).await;
        for n in 0..faults {
            let kind = kinds[self.rng.usize(0..kinds.len())];
            println!("{}: {n}: {kind:?}", test_name());
            let met = self.inject(kind).await;
            let recovered = load.acknowledged(BETWEEN).await;
            if met {
                *counts.met.entry(kind).or_default() += 1;
                let longest = counts.recovery.entry(kind).or_default();
                *longest = recovered.max(*longest);
            } else {
                counts.missed += 1;
            }
        }
        load.stop().await;
        quiet(&mut self.server.connect().await).await;
        self.kill().await;
        let mut client = self.server.connect().await;
        let differing = self.recorder.replay(&mut client, 0).await;
        assert_eq!(differing, Vec::<String>::new());
        let came = self.consumer.came();
        let verdict = self.recorder.check(&mut client, &came).await;
        counts.add(&verdict, self.recorder.records().len());
        verdict.assert_clean();
    }

    /// Kills the service, and starts another process on its port.
    async fn kill(&mut self) {
        self.server.kill9();
        self.server = serve(&self.place, &self.flags, self.server.key().to_owned()).await;
    }

    /// A pause of up to this many milliseconds, during which a fault lasts.
    async fn last(&mut self, at_most_ms: u64) {
        let pause = self.rng.u64(at_most_ms / 10..at_most_ms);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// Injects a fault and ends it. Returns whether anything met it.
    async fn inject(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::Kill => self.kill().await,
            Kind::Stop => {
                self.server.signal("STOP");
                self.last(3_000).await;
                self.server.signal("CONT");
            }
            Kind::DiskFull => return self.fill_disk().await,
            Kind::Lock => return self.lock().await,
            Kind::CallFails => return self.fail_calls().await,
            Kind::Cut => return self.cut().await,
            Kind::Terminate | Kind::Cancel | Kind::Crash | Kind::Restart => {
                self.trouble_server(kind).await;
            }
            Kind::CutAll | Kind::Forget | Kind::ForgetAll | Kind::Delay | Kind::Refuse => {
                self.trouble_connections(kind).await;
            }
        }
        true
    }

    /// Fills the disk until a call was refused, or for a while.
    async fn fill_disk(&mut self) -> bool {
        let Some(disk) = &self.place.disk else {
            return false;
        };
        let (recorder, from) = (&self.recorder, self.recorder.records().len());
        disk.fill();
        let began = Instant::now();
        let full = loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let records = recorder.records();
            let names_it = |one: &Record| match &one.answer {
                Answer::Refused(text) => text.contains("full"),
                _ => false,
            };
            if records[from..].iter().any(names_it) {
                break true;
            }
            if began.elapsed() > Duration::from_secs(8) {
                break false;
            }
        };
        disk.free();
        full
    }

    /// Locks a row or the file for a while.
    async fn lock(&mut self) -> bool {
        let id = self.ids[self.rng.usize(0..self.ids.len())].clone();
        let locked = match &self.place.base {
            Base::Postgres { server, .. } => {
                let url = server.lock().unwrap().url("test");
                Locked::row_at(&url, &id).await
            }
            Base::Sqlite { .. } => Locked::file_at(&self.place.url).await,
        };
        self.last(3_000).await;
        locked.is_some()
    }

    /// Makes calls of SQLite fail until one has, or for a while.
    async fn fail_calls(&mut self) -> bool {
        let (operation, target, effect) = CALLS[self.rng.usize(0..CALLS.len())];
        let rule = Rule {
            operation,
            target,
            effect,
            nth: self.rng.u64(1..60),
            times: if self.rng.bool() {
                1
            } else {
                self.rng.u64(2..40)
            },
        };
        let Base::Sqlite { injector, .. } = &self.place.base else {
            unreachable!()
        };
        injector.arm(&[rule]);
        let began = Instant::now();
        while injector.failed(0) < rule.times && began.elapsed() < Duration::from_secs(2) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let failed = injector.failed(0) > 0;
        injector.disarm();
        failed
    }

    /// Cuts a connection at some message from now on.
    async fn cut(&mut self) -> bool {
        let Base::Postgres { proxy, .. } = &self.place.base else {
            unreachable!()
        };
        let action = [Action::CutBefore, Action::CutAfter, Action::Forget][self.rng.usize(0..3)];
        let met = inject_at(proxy, self.rng.u64(1..400), move |_| action);
        let began = Instant::now();
        while met.lock().unwrap().is_none() && began.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        proxy.clear_rule();
        let label = met.lock().unwrap().take();
        println!("{}: {action:?} {label:?}", test_name());
        label.is_some()
    }

    async fn trouble_server(&mut self, kind: Kind) {
        let Base::Postgres { server, .. } = &self.place.base else {
            unreachable!()
        };
        let end = |function: &str| {
            format!(
                "SELECT count({function}(pid)) FROM pg_stat_activity WHERE datname = 'test' \
                 AND application_name LIKE 'canvas-scheduler%'"
            )
        };
        let of_work = server.clone();
        match kind {
            Kind::Terminate => drop(sql(server, end("pg_terminate_backend")).await),
            Kind::Cancel => drop(sql(server, end("pg_cancel_backend")).await),
            Kind::Crash => {
                off(move || {
                    let mut server = of_work.lock().unwrap();
                    server.kill9();
                    server.restart().unwrap();
                })
                .await;
            }
            _ => off(move || of_work.lock().unwrap().restart().unwrap()).await,
        }
    }

    async fn trouble_connections(&mut self, kind: Kind) {
        let delay = Duration::from_millis(self.rng.u64(3..30));
        let Base::Postgres { proxy, .. } = &self.place.base else {
            unreachable!()
        };
        match kind {
            Kind::CutAll => proxy.cut_all(),
            Kind::Forget => proxy.forget_open(),
            Kind::ForgetAll => proxy.forget_all(),
            Kind::Delay => proxy.delay(delay),
            _ => {
                proxy.refuse();
                proxy.cut_all();
            }
        }
        self.last(2_000).await;
        let Base::Postgres { proxy, .. } = &self.place.base else {
            unreachable!()
        };
        proxy.remember();
        proxy.delay(Duration::ZERO);
        proxy.accept();
    }
}

/// Starts a service over this place.
async fn serve(place: &Place, flags: &[String], key: String) -> Server {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let environment = match &place.base {
        Base::Postgres { .. } => &[][..],
        Base::Sqlite { injector, .. } => injector.environment(),
    };
    Server::start_in(environment, &place.url, &flags, key, None).await
}

impl Counts {
    fn add(&mut self, verdict: &Verdict, calls: usize) {
        self.calls += calls;
        self.acknowledged += verdict.acknowledged;
        self.refused += verdict.refused;
        self.unknown_done += verdict.unknown_done;
        self.unknown_not_done += verdict.unknown_not_done;
        self.repeated += verdict.repeated;
        self.reads += verdict.reads;
        self.schedules += verdict.schedules;
        self.delivered += verdict.delivered;
    }
}
