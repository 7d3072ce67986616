//! A synchronous pair of PostgreSQL servers: the standby is cut off, the primary or its backends
//! end, the primary is lost, and the standby is promoted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::consumer::Consumer;
use super::cuts::insist;
use super::database::{own_postgres, test_name};
use super::delivery::sender_over;
use super::full_tablespace::{not_ready, ready};
use super::load::unique_time;
use super::postgres::Postgres;
use super::proxy::Proxy;
use super::recorded_load::{RecordedLoad, quiet};
use super::recorder::{Answer, Recorder, Verdict};
use super::server::{Client, PATIENCE, Server, key, migrate};

const CALLERS: usize = 12;
const SCHEDULES: usize = 6;
/// Acknowledged changes before a fault.
const BEFORE: u64 = 100;
/// Rounds in the normal suite.
const ROUNDS: usize = 2;
const LONG_ROUNDS: usize = 24;
/// How long callers go on between the faults and the loss of the primary.
const AFTER: Duration = Duration::from_secs(2);
/// The same where the limits of the service's own statements shall pass.
const LIMITS: Duration = Duration::from_secs(12);

/// What happens after the standby was cut off and commits wait for it, and before the primary is
/// lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The primary crashes and restarts.
    Crash,
    /// The backends that wait are terminated.
    Terminate,
    /// The statements of the backends that wait are cancelled.
    Cancel,
    /// The primary crashes, and the standby is cut off before the restart.
    CrashFirst,
    /// Nothing but time: the limits of the service's own statements pass.
    Wait,
}

/// A primary and its standby, and the proxies through which the standby and the service reach them.
struct Pair {
    primary: Postgres,
    standby: Postgres,
    replication: Proxy,
}

impl Pair {
    /// Adds a standby to a primary, and makes commits wait for it.
    fn of(primary: Postgres) -> Self {
        let replication = Proxy::start(primary.port());
        let standby = primary.standby(replication.port()).unwrap();
        primary.wait_for_standbys().unwrap();
        Self {
            primary,
            standby,
            replication,
        }
    }

    /// The standby hears nothing more of the primary.
    fn cut_off(&self) {
        self.replication.refuse();
        self.replication.cut_all();
    }

    /// Waits until commits of the service wait for the standby.
    fn commits_wait(&self) {
        let began = Instant::now();
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
                       AND application_name LIKE 'canvas-scheduler%'";
        while self.primary.psql("postgres", waiting).unwrap() == "0" {
            assert!(
                began.elapsed() < PATIENCE,
                "no commit waits for the standby"
            );
        }
    }

    /// Waits until no transaction of the service is open on the primary.
    fn no_transaction_is_open(&self) {
        let began = Instant::now();
        let open = "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL \
                    AND application_name LIKE 'canvas-scheduler%'";
        while self.primary.psql("postgres", open).unwrap() != "0" {
            assert!(began.elapsed() < PATIENCE, "a transaction does not end");
        }
    }

    /// Ends what waits for the standby.
    fn end_waiting(&self, function: &str) {
        let sql = format!(
            "SELECT count({function}(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
             AND application_name LIKE 'canvas-scheduler%'"
        );
        let ended = self.primary.psql("postgres", &sql).unwrap();
        assert_ne!(ended, "0", "no commit waited");
    }

    /// Everything up to the loss of the primary.
    fn suffer(&mut self, order: Order) {
        if order == Order::CrashFirst {
            self.primary.kill9();
            self.cut_off();
            self.primary.restart().unwrap();
            return self.commits_wait();
        }
        self.cut_off();
        self.commits_wait();
        match order {
            Order::Crash => {
                self.primary.kill9();
                self.primary.restart().unwrap();
            }
            Order::Terminate => self.end_waiting("pg_terminate_backend"),
            Order::Cancel => self.end_waiting("pg_cancel_backend"),
            Order::Wait | Order::CrashFirst => {}
        }
        self.commits_wait();
    }

    /// The primary is lost for good; the standby becomes the primary, with a new standby.
    fn fail_over(mut self, service: &Proxy) -> Self {
        self.primary.kill9();
        service.refuse();
        service.cut_all();
        self.standby.promote().unwrap();
        service.lead_to(self.standby.port());
        service.accept();
        Self::of(self.standby)
    }
}

/// Runs blocking work while callers go on.
async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A service in front of a pair.
struct Served {
    pair: Pair,
    proxy: Arc<Proxy>,
    consumer: Consumer,
    server: Server,
    client: Client,
    recorder: Recorder,
    ids: Vec<String>,
}

impl Served {
    async fn start() -> Option<Self> {
        let primary = own_postgres(&[])?;
        primary.createdb("test").unwrap();
        migrate(&primary.url("test"));
        let (proxy, consumer) = (Proxy::start(primary.port()), Consumer::start().await);
        let pair = off(|| Pair::of(primary)).await;
        let server = sender_over(&proxy.url("test"), &consumer).await;
        let (mut client, recorder) = (server.connect().await, Recorder::new());
        let mut ids = Vec::new();
        for _ in 0..SCHEDULES {
            let time_ms = unique_time();
            let (_, id) = recorder.create_with_id(&mut client, time_ms, "").await;
            ids.push(id.expect("created"));
        }
        Some(Self {
            pair,
            proxy: Arc::new(proxy),
            consumer,
            server,
            client,
            recorder,
            ids,
        })
    }

    async fn load(&self, seed: u64) -> RecordedLoad {
        let access = self.server.access();
        RecordedLoad::start(access, &self.recorder, &self.ids, CALLERS, seed).await
    }

    /// Compares everything with the records.
    async fn check(&mut self) -> Verdict {
        quiet(&mut self.client).await;
        let came = self.consumer.came();
        self.recorder.check(&mut self.client, &came).await
    }
}

#[tokio::test]
async fn a_lost_primary_loses_nothing_acknowledged_postgres() {
    rounds(ROUNDS).await;
}

#[tokio::test]
#[ignore = "minutes: .ci/full runs it"]
async fn many_lost_primaries_lose_nothing_acknowledged_postgres() {
    rounds(LONG_ROUNDS).await;
}

async fn rounds(count: usize) {
    let Some(mut served) = Served::start().await else {
        return;
    };
    let orders = [
        Order::Crash,
        Order::Terminate,
        Order::Cancel,
        Order::CrashFirst,
        Order::Wait,
    ];
    // The normal suite has no time for the last one.
    let orders = &orders[..orders.len().min(2 * count)];
    let (mut suffered, mut differing) = (vec![], vec![]);
    let first = fastrand::usize(0..orders.len());
    for round in 0..count {
        let order = orders[(first + round) % orders.len()];
        suffered.push(order);
        let skip = served.recorder.records().len();
        let mut load = served.load(round as u64).await;
        load.acknowledged(BEFORE).await;
        let (mut pair, proxy) = (served.pair, served.proxy.clone());
        pair = off(move || {
            pair.suffer(order);
            pair
        })
        .await;
        // Callers go on, and may get answers that the service reads back.
        tokio::time::sleep(if order == Order::Wait { LIMITS } else { AFTER }).await;
        served.pair = off(move || pair.fail_over(&proxy)).await;
        load.acknowledged(BEFORE).await;
        load.stop().await;
        differing.extend(served.recorder.replay(&mut served.client, skip).await);
    }
    let verdict = served.check().await;
    println!(
        "{}: {suffered:?}, {} replays with another answer, {verdict:?}",
        test_name(),
        differing.len()
    );
    assert_eq!(differing, Vec::<String>::new());
    verdict.assert_clean();
}

/// The old primary is fenced: it is read-only, and still answers.
#[tokio::test]
async fn reads_leave_an_old_primary_with_the_writes_postgres() {
    let Some(mut served) = Served::start().await else {
        return;
    };
    let mut load = served.load(0).await;
    // Until every connection of the pools is in use.
    load.acknowledged(10 * BEFORE).await;
    let (pair, proxy) = (served.pair, served.proxy.clone());
    served.pair = off(move || {
        let fence = "ALTER SYSTEM SET default_transaction_read_only = on";
        for sql in [fence, "SELECT pg_reload_conf()"] {
            pair.primary.psql("postgres", sql).unwrap();
        }
        pair.no_transaction_is_open();
        pair.standby.promote().unwrap();
        proxy.lead_to(pair.standby.port());
        pair
    })
    .await;
    load.acknowledged(10 * BEFORE).await;
    load.stop().await;
    // What is stored is read by a process that never knew the old primary.
    let reader = Server::start(&served.pair.standby.url("test"), &["--roles", "api"]).await;
    served.client = reader.connect().await;
    let verdict = served.check().await;
    println!("{}: {verdict:?}", test_name());
    verdict.assert_clean();
}

#[tokio::test]
async fn a_process_on_a_hot_standby_is_not_ready_until_it_is_promoted_postgres() {
    let Some(primary) = own_postgres(&[]) else {
        return;
    };
    primary.createdb("test").unwrap();
    migrate(&primary.url("test"));
    let key = key(&primary.url("test"));
    let standby = off(move || primary.standby(primary.port()).map(|one| (primary, one)))
        .await
        .unwrap();
    let (_primary, standby) = standby;
    let mut server = Server::listening(&standby.url("test"), &[]).await;
    server.set_key(key);
    not_ready(&server, "read-only").await;
    let mut client = server.connect().await;
    let recorder = Recorder::new();
    let answer = recorder.create(&mut client, unique_time(), "").await;
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    standby.promote().unwrap();
    ready(&server).await;
    insist(async || recorder.create(&mut client, unique_time(), "").await).await;
}

/// The URL names both servers; the first one is the standby.
#[tokio::test]
async fn a_process_follows_the_primary_among_several_hosts_postgres() {
    let Some(primary) = own_postgres(&[]) else {
        return;
    };
    primary.createdb("test").unwrap();
    let pair = off(|| Pair::of(primary)).await;
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/test?target_session_attrs=read-write",
        pair.standby.port(),
        pair.primary.port()
    );
    migrate(&url);
    let server = Server::start(&url, &[]).await;
    let (mut client, recorder) = (server.connect().await, Recorder::new());
    let (_, id) = recorder
        .create_with_id(&mut client, unique_time(), "")
        .await;
    let id = id.expect("created");
    let Pair {
        mut primary,
        standby,
        ..
    } = pair;
    let _standby = off(move || {
        primary.kill9();
        standby.promote().unwrap();
        standby
    })
    .await;
    insist(async || recorder.update(&mut client, &id, "").await).await;
    ready(&server).await;
    recorder.check(&mut client, &[]).await.assert_clean();
}
