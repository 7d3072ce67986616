//! The clock of the database jumps by an hour, forwards and backwards, between two passes of a dispatcher. libfaketime (Debian's
//! `faketime`) shows PostgreSQL the time that the test says.

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

/// Where Debian keeps the library, a folder for each architecture.
const LIBRARIES: &str = "/usr/lib";
const LIBRARY: &str = "faketime/libfaketime.so.1";
const HOUR: i64 = 3_600_000;
/// Schedules of a kind.
const SOME: usize = 20;
/// Schedules of a kind come due over so many milliseconds.
const SPAN: i64 = 500;
/// How far ahead a schedule is that must not come before the jump is seen: far longer than three looks take.
const FAR: i64 = 12_000;
/// Instants are kept to the millisecond, and one clock is measured by another.
const EARLY_MOST: i64 = 20;

/// A server whose clock the test sets.
struct Clocked {
    postgres: Postgres,
    setting: PathBuf,
    /// How far ahead its clock is.
    ahead: i64,
    _folder: Folder,
}

impl Clocked {
    /// One that shows the machine's time; none where there is no PostgreSQL or no library, which is told by the name of the test.
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
        // The server runs as another account.
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

    /// What its clock shows, in milliseconds since 1970.
    fn now(&self) -> i64 {
        machine(SystemTime::now()) + self.ahead
    }

    /// Sets its clock, and waits until the service goes by it.
    async fn jump(&mut self, ahead: i64, client: &mut Client) {
        set(&self.setting, ahead);
        self.ahead = ahead;
        let seen = async {
            while (self.now() - told(client, self.now() + 3 * HOUR).await).abs() > HOUR / 2 {}
        };
        tokio::time::timeout(PATIENCE, seen)
            .await
            .expect("the new time is seen");
    }
}

/// The time of the service, by which it says that a schedule was made; that one is for later than the test takes.
async fn told(client: &mut Client, far_ms: i64) -> i64 {
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
    reason = "a setting of the tests, not of the product"
)]
fn is_required() -> bool {
    std::env::var("REQUIRE_FAKETIME").is_ok_and(|value| value == "1")
}

/// Puts a whole file in the place of the other, since it may be read at any moment.
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

/// What was made due, and what came of it.
struct Waves<'a> {
    clients: &'a [Client],
    consumer: &'a Consumer,
    /// Of each schedule: not before this instant of the machine's clock, given how far ahead the other is when it comes.
    earliest: BTreeMap<String, i64>,
}

impl Waves<'_> {
    /// Makes some due from `first` on by a clock that is `ahead` when they come.
    async fn due(&mut self, first: i64, ahead: i64) -> BTreeSet<String> {
        let ids = due(self.clients, SOME, first, SPAN).await;
        self.earliest
            .extend(ids.iter().map(|id| (id.clone(), first - ahead)));
        ids
    }

    async fn come(&self, ids: &BTreeSet<String>) {
        self.consumer
            .until(|came| ids.is_subset(&arrived(came)))
            .await;
    }

    /// Each came once, and none before its time.
    fn check(&self) {
        let came = self.consumer.came();
        assert_eq!(
            arrived(&came),
            self.earliest.keys().cloned().collect(),
            "all came, and nothing else"
        );
        assert_eq!(came.len(), self.earliest.len(), "each came once");
        for one in &came {
            let earliest = self.earliest[&one.schedule_id];
            assert!(
                machine(one.at) >= earliest - EARLY_MOST,
                "{one:?} came before {earliest}"
            );
        }
    }
}

#[tokio::test]
async fn a_clock_that_jumps_by_an_hour_brings_each_wave_once_and_none_early_postgres() {
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
