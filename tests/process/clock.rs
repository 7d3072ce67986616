//! The database's clock jumps by an hour, forwards and backwards, between two passes of a
//! dispatcher. libfaketime (Debian's `faketime`) gives PostgreSQL the time that the test sets.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use canvas_scheduler::pb::v1;

use super::consumer::Consumer;
use super::database::{Folder, own_postgres_in, test_name};
use super::delivery::{arrived, due, sender_over};
use super::load::schedule_at;
use super::postgres::Postgres;
use super::server::{Client, PATIENCE, migrate};

/// Where Debian installs the library, below a folder for each architecture.
const LIBRARIES: &str = "/usr/lib";
const LIBRARY: &str = "faketime/libfaketime.so.1";
const HOUR: i64 = 3_600_000;
/// The number of schedules of a kind.
const SCHEDULES: usize = 20;
/// The milliseconds over which schedules of a kind become due.
const SPAN: i64 = 500;
/// The milliseconds until a schedule that must not become due before the service notices the jump:
/// far more than three readings take.
const FAR: i64 = 12_000;
/// The milliseconds by which a wave may seem early: instants have milliseconds, and one clock is
/// measured by another.
const MAX_EARLY: i64 = 20;

/// A PostgreSQL server whose clock the test sets.
struct Clocked {
    postgres: Postgres,
    setting: PathBuf,
    /// How far its clock is ahead, in milliseconds.
    ahead: i64,
    _folder: Folder,
}

impl Clocked {
    /// Starts one with the machine's time. Returns `None`, and reports the test as skipped, without
    /// PostgreSQL or the library.
    fn start() -> Option<Self> {
        let Some(library) = library() else {
            assert!(
                !is_required(),
                "{} needs libfaketime, which is not installed, and REQUIRE_FAKETIME=1 is set",
                test_name()
            );
            println!("skipped: {} needs libfaketime", test_name());
            return None;
        };
        let folder = Folder::new();
        // The server runs under another account.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let setting = folder.path().join("clock");
        set(&setting, 0);
        let environment = [
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", setting.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        let postgres = own_postgres_in(environment.into(), &[])?;
        postgres.createdb("test").unwrap();
        Some(Self {
            postgres,
            setting,
            ahead: 0,
            _folder: folder,
        })
    }

    fn url(&self) -> String {
        self.postgres.url("test")
    }

    /// The time of its clock, in milliseconds since 1970.
    fn now(&self) -> i64 {
        machine(SystemTime::now()) + self.ahead
    }

    /// Sets its clock and waits until the service follows.
    async fn jump(&mut self, ahead: i64, client: &mut Client) {
        set(&self.setting, ahead);
        self.ahead = ahead;
        let seen = async {
            while (self.now() - service_time(client, self.now() + 3 * HOUR).await).abs() > HOUR / 2
            {
            }
        };
        tokio::time::timeout(PATIENCE, seen)
            .await
            .expect("the service follows the new time");
    }
}

/// The time of the service: the creation time of a new schedule that is due long after the test.
async fn service_time(client: &mut Client, far_ms: i64) -> i64 {
    let request = v1::CreateCanvasScheduleRequest {
        canvas_id: "time".to_owned(),
        schedule: schedule_at(far_ms),
        broadcast: true,
        ..Default::default()
    };
    let made = client
        .create_canvas_schedule(request)
        .await
        .expect("created")
        .into_inner();
    let at = made
        .canvas_schedule
        .and_then(|schedule| schedule.create_time)
        .expect("a time");
    at.seconds * 1000
}

fn library() -> Option<PathBuf> {
    let folders = fs::read_dir(LIBRARIES)
        .ok()?
        .flatten()
        .map(|folder| folder.path().join(LIBRARY));
    folders.into_iter().find(|library| library.exists())
}

#[allow(
    clippy::disallowed_methods,
    reason = "a setting of the tests, not of the service"
)]
fn is_required() -> bool {
    std::env::var("REQUIRE_FAKETIME").is_ok_and(|value| value == "1")
}

/// Replaces the file atomically, since the library may read it at any moment.
fn set(setting: &Path, ahead: i64) {
    let whole = setting.with_extension("new");
    fs::write(&whole, format!("{:+}\n", ahead / 1000)).unwrap();
    fs::rename(&whole, setting).unwrap();
}

fn machine(at: SystemTime) -> i64 {
    i64::try_from(
        at.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_millis(),
    )
    .unwrap()
}

/// The schedules that became due, and what the consumer received.
struct Waves<'a> {
    clients: &'a [Client],
    consumer: &'a Consumer,
    /// For each schedule, the earliest instant of the machine's clock at which it may arrive.
    earliest: BTreeMap<String, i64>,
}

impl Waves<'_> {
    /// Creates schedules that become due from `first` on, by a clock that is `ahead` by then.
    async fn due(&mut self, first: i64, ahead: i64) -> BTreeSet<String> {
        let ids = due(self.clients, SCHEDULES, first, SPAN).await;
        self.earliest
            .extend(ids.iter().map(|id| (id.clone(), first - ahead)));
        ids
    }

    async fn come(&self, ids: &BTreeSet<String>) {
        self.consumer
            .until(|came| ids.is_subset(&arrived(came)))
            .await;
    }

    /// Asserts that each arrived once, and none before its time.
    fn check(&self) {
        let came = self.consumer.came();
        assert_eq!(
            arrived(&came),
            self.earliest.keys().cloned().collect(),
            "exactly the expected schedules arrived"
        );
        assert_eq!(came.len(), self.earliest.len(), "each arrived once");
        for one in &came {
            let earliest = self.earliest[&one.schedule_id];
            assert!(
                machine(one.at) >= earliest - MAX_EARLY,
                "{one:?} arrived before {earliest}"
            );
        }
    }
}

#[tokio::test]
async fn a_clock_that_jumps_by_an_hour_delivers_each_wave_once_and_none_early_postgres() {
    let Some(mut clocked) = Clocked::start() else {
        return;
    };
    migrate(&clocked.url());
    let consumer = Consumer::start().await;
    let server = sender_over(&clocked.url(), &consumer).await;
    let clients = server.connections(4).await;
    let mut waves = Waves {
        clients: &clients,
        consumer: &consumer,
        earliest: BTreeMap::new(),
    };

    let before = waves.due(clocked.now() + 1_000, 0).await;
    waves.come(&before).await;
    let within = waves.due(clocked.now() + HOUR / 2, HOUR).await;
    let after = waves.due(clocked.now() + HOUR + FAR, HOUR).await;
    clocked.jump(HOUR, &mut clients[0].clone()).await;
    waves.come(&within.union(&after).cloned().collect()).await;

    let later = waves.due(clocked.now() + FAR, HOUR).await;
    clocked.jump(0, &mut clients[0].clone()).await;
    let now = waves.due(clocked.now() + 500, 0).await;
    waves.come(&now).await;
    assert!(
        arrived(&consumer.came()).is_disjoint(&later),
        "an hour and some seconds ahead again"
    );
    clocked.jump(HOUR, &mut clients[0].clone()).await;
    waves.come(&later).await;
    waves.check();
}
