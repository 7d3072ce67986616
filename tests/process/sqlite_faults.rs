//! SQLite when its calls to the operating system fail: no acknowledged write is lost, none that was
//! refused is there, and the service recovers.
//!
//! A fixed workload runs again and again. Each time, another call of SQLite fails. After some of
//! these runs the server is killed, and a new one has everything that was acknowledged.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use canvas_scheduler::pb::v1;
use canvas_scheduler::pb::v1::batch_update_canvas_schedules_result::Result as Entry;
use futures_util::FutureExt;
use prost::Message;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::consumer::Consumer;
use super::database::{Database, Folder, test_name};
use super::delivery::{arrived, flags, in_utc};
use super::history::{Contradiction, History};
use super::injector::{
    EACCES, EAGAIN, EIO, EMFILE, ENOMEM, ENOSPC, EROFS, Effect, Injector, Library, Operation, Rule,
    Target,
};
use super::load::{
    Call, Cancellation, cancel, millis, now_ms, one, reason, schedule_at, unique_time,
};
use super::server::{Client, PATIENCE, Server, key};

/// When the schedule that the workload cancels is due, from its creation on.
const CANCELLED_DUE_MS: i64 = 1_500;
/// The schedules of each of two batches that make SQLite checkpoint, and the properties of each:
/// together more than the 1,000 pages after which it does.
const HEAVY_BATCH: usize = 50;
const HEAVY_BYTES: usize = 48_000;
/// The schedules of another batch.
const LIGHT_BATCH: usize = 3;
/// Faults between two kills.
const LIGHT_RUNS: usize = 20;
const HEAVY_RUNS: usize = 5;
/// Servers that run at the same time.
const LANES: usize = 4;
/// The calls that a longer fault fails.
const LONGER: u64 = 20;
/// The calls that a fault fails during which the server is killed.
const FOREVER: u64 = u64::MAX / 2;
/// Lines of the server's log in a finding.
const LOG_LINES: usize = 8;
/// Of the allocations, and of the writes of a checkpoint, one in this many fails in the long run:
/// they are many and alike.
const ALLOCATION_STEP: usize = 20;
const CHECKPOINT_STEP: usize = 5;

/// A kind of fault, as SQLite reports it.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    operation: Operation,
    target: Target,
    effect: Effect,
    setting: Setting,
    /// Points of the short run.
    points: u64,
}

/// What the fault meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Setting {
    /// Small changes.
    Light,
    /// Changes that are large enough for a checkpoint.
    Heavy,
    /// The same, and SQLite reads the database by calls instead of mapping it.
    Unmapped,
    /// Small changes, after a failed commit, so that the store opens connections.
    Reopening,
    /// The start of the server.
    Starting,
}

impl Setting {
    const ALL: [Self; 5] = [
        Self::Light,
        Self::Heavy,
        Self::Unmapped,
        Self::Reopening,
        Self::Starting,
    ];

    fn is_heavy(self) -> bool {
        matches!(self, Self::Heavy | Self::Unmapped)
    }

    fn runs(self) -> usize {
        match self {
            Self::Light | Self::Reopening => LIGHT_RUNS,
            Self::Heavy | Self::Unmapped => HEAVY_RUNS,
            Self::Starting => 1,
        }
    }

    /// The fault that comes before.
    fn first(self) -> Option<Rule> {
        (self == Self::Reopening).then_some(Rule {
            operation: Operation::Sync,
            target: Target::Wal,
            effect: Effect::Errno(EIO),
            nth: 1,
            times: 1,
        })
    }
}

const fn kind(
    name: &'static str,
    (operation, target): (Operation, Target),
    effect: Effect,
    setting: Setting,
    points: u64,
) -> Kind {
    Kind {
        name,
        operation,
        target,
        effect,
        setting,
        points,
    }
}

const KINDS: [Kind; 31] = {
    use Effect::{Corrupt, Errno, ShortWrite};
    use Operation::{Allocate, Lock, Map, Open, Read, Sync, Truncate, Write};
    use Setting::{Heavy, Light, Reopening, Starting, Unmapped};
    use Target::{Main, Memory, Shm, Wal};
    [
        kind("FULL", (Write, Wal), Errno(ENOSPC), Light, 8),
        kind("FULL", (Write, Wal), ShortWrite, Light, 5),
        kind("IOERR_WRITE", (Write, Wal), Errno(EIO), Light, 5),
        kind("READONLY", (Write, Wal), Errno(EROFS), Light, 4),
        kind("IOERR_FSYNC", (Sync, Wal), Errno(EIO), Light, 8),
        kind("IOERR_READ", (Read, Wal), Errno(EIO), Light, 4),
        kind("CORRUPT", (Read, Wal), Corrupt, Light, 4),
        kind("BUSY", (Lock, Shm), Errno(EAGAIN), Light, 4),
        kind("NOMEM", (Allocate, Memory), Errno(ENOMEM), Light, 8),
        kind("IOERR_READ", (Read, Main), Errno(EIO), Unmapped, 3),
        kind("CORRUPT", (Read, Main), Corrupt, Unmapped, 3),
        kind("FULL", (Write, Main), Errno(ENOSPC), Heavy, 2),
        kind("FULL", (Write, Main), ShortWrite, Heavy, 1),
        kind("IOERR_WRITE", (Write, Main), Errno(EIO), Heavy, 1),
        kind("IOERR_FSYNC", (Sync, Main), Errno(EIO), Heavy, 1),
        kind("IOERR_TRUNCATE", (Truncate, Main), Errno(EIO), Heavy, 1),
        kind("CANTOPEN", (Open, Wal), Errno(EMFILE), Reopening, 1),
        kind("NOMEM", (Allocate, Memory), Errno(ENOMEM), Reopening, 4),
        kind("CANTOPEN", (Open, Main), Errno(EMFILE), Starting, 1),
        kind("READONLY", (Open, Main), Errno(EACCES), Starting, 1),
        kind("READONLY", (Open, Main), Errno(EROFS), Starting, 1),
        kind("CANTOPEN", (Open, Wal), Errno(EMFILE), Starting, 1),
        kind("READONLY", (Open, Shm), Errno(EACCES), Starting, 1),
        kind("BUSY", (Lock, Main), Errno(EAGAIN), Starting, 1),
        kind("IOERR_LOCK", (Lock, Main), Errno(EIO), Starting, 1),
        kind("BUSY", (Lock, Shm), Errno(EAGAIN), Starting, 1),
        kind("IOERR_SHMMAP", (Map, Shm), Errno(ENOMEM), Starting, 1),
        kind("IOERR_READ", (Read, Main), Errno(EIO), Starting, 1),
        kind("NOTADB", (Read, Main), Corrupt, Starting, 1),
        kind("IOERR_READ", (Read, Wal), Errno(EIO), Starting, 1),
        kind("NOMEM", (Allocate, Memory), Errno(ENOMEM), Starting, 2),
    ]
};

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({:?} {:?}, {:?}, {:?})",
            self.name, self.operation, self.target, self.effect, self.setting
        )
    }
}

/// The calls that fail in one run of the workload.
#[derive(Debug, Clone, Copy)]
struct Point {
    kind: Kind,
    nth: u64,
    times: u64,
}

impl Point {
    fn rules(self) -> Vec<Rule> {
        let own = Rule {
            operation: self.kind.operation,
            target: self.kind.target,
            effect: self.kind.effect,
            nth: self.nth,
            times: self.times,
        };
        self.kind.setting.first().into_iter().chain([own]).collect()
    }

    /// The index of the rule for its calls.
    fn own(self) -> usize {
        usize::from(self.kind.setting.first().is_some())
    }
}

/// The statement that makes this call, as far as the call shows it.
fn statement(kind: &Kind, offset: u64) -> &'static str {
    match (kind.operation, kind.target, offset) {
        (Operation::Write | Operation::Sync, Target::Wal, _) => "COMMIT",
        (Operation::Write | Operation::Sync | Operation::Truncate, _, _) => {
            "checkpoint after COMMIT"
        }
        (Operation::Lock, Target::Shm, 120) => "BEGIN IMMEDIATE",
        (Operation::Lock, Target::Shm, 121 | 122) => "checkpoint or recovery",
        (Operation::Lock, Target::Shm, 123..128) => "first read of a transaction",
        (Operation::Lock | Operation::Open, _, _) => "opening a connection",
        (Operation::Map, _, _) => "opening a connection",
        (Operation::Read, _, _) => "a statement that reads a page",
        (Operation::Allocate, _, _) => "any statement",
    }
}

/// A migrated database with a key, from which each server gets a copy.
struct Template {
    database: Database,
    key: String,
    library: Library,
}

impl Template {
    /// Returns `None`, and reports the test as skipped, where there is no C compiler.
    fn new() -> Option<Arc<Self>> {
        let library = Library::compile()?;
        let database = Database::sqlite();
        let key = key(&database.url());
        Some(Arc::new(Self {
            database,
            key,
            library,
        }))
    }

    /// A folder with a copy.
    fn copy(&self) -> Folder {
        let Database::Sqlite(from) = &self.database else {
            panic!("SQLite expected")
        };
        let folder = Folder::new();
        for name in ["test.db", "test.db-wal"] {
            let file = from.path().join(name);
            if file.exists() {
                std::fs::copy(file, folder.path().join(name)).unwrap();
            }
        }
        folder
    }
}

/// What callers did and what they were answered.
#[derive(Default)]
struct Record {
    calls: Vec<Call>,
    cancellations: Vec<Cancellation>,
    /// Acknowledged schedules that are due at once.
    due: BTreeSet<String>,
    /// In which run and step each call was made, by its unique time.
    places: BTreeMap<i64, (usize, &'static str)>,
}

impl Record {
    fn acknowledged(&self) -> usize {
        let calls = self.calls.iter().filter(|call| call.end.is_ok()).count();
        let cancellations = self.cancellations.iter().filter(|one| one.end.is_ok());
        calls + cancellations.count()
    }
}

/// What happened to one point.
#[derive(Debug, Clone, Default)]
struct Outcome {
    /// The step and the statement whose call failed; `None` if the workload made fewer calls.
    failed_in: Option<(&'static str, &'static str)>,
    recovered_after: Duration,
}

/// How often each kind of call was made.
type Calls = BTreeMap<(Operation, Target), u64>;

/// The calls since the server started.
fn counted(injector: &Injector) -> Calls {
    KINDS
        .iter()
        .map(|kind| (kind.operation, kind.target))
        .map(|(operation, target)| ((operation, target), injector.count(operation, target)))
        .collect()
}

/// A server over SQLite whose calls can fail.
struct Service {
    folder: Folder,
    injector: Injector,
    consumer: Consumer,
    server: Server,
    client: Client,
    setting: Setting,
    calls_of_start: Calls,
    schedules: Vec<String>,
    record: Record,
    /// The point of each run.
    points: Vec<(Point, Outcome)>,
    step: &'static str,
    findings: Findings,
}

impl Service {
    /// Starts it; with a point of [`Setting::Starting`], while its calls fail.
    async fn start(template: &Template, setting: Setting, point: Option<Point>) -> Self {
        let folder = template.copy();
        let injector = Injector::new(
            &template.library,
            folder.path(),
            &folder.path().join("test.db"),
        );
        if setting == Setting::Unmapped {
            injector.refuse_to_map();
        }
        let points: Vec<_> = point
            .filter(|_| setting == Setting::Starting)
            .map(|point| (point, Outcome::default()))
            .into_iter()
            .collect();
        for (point, _) in &points {
            injector.arm(&point.rules());
        }
        let consumer = Consumer::start().await;
        let flags = flags(&consumer, "32");
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let server = Server::start_in(
            injector.environment(),
            &url(&folder),
            &flags,
            template.key.clone(),
            None,
        )
        .await;
        assert!(
            injector.is_loaded(),
            "the server has not loaded the library"
        );
        let client = server.connect().await;
        let calls_of_start = counted(&injector);
        let mut service = Self {
            calls_of_start,
            folder,
            injector,
            consumer,
            server,
            client,
            setting,
            schedules: vec![],
            record: Record::default(),
            points,
            step: "start",
            findings: Findings::default(),
        };
        service.step("setup");
        service.injector.disarm();
        let schedules = if setting.is_heavy() {
            HEAVY_BATCH
        } else {
            LIGHT_BATCH
        };
        for _ in 0..schedules + 2 {
            let id = service.create(None, false).await.expect("created");
            service.schedules.push(id);
        }
        service
    }

    /// Makes a creation or an update and records it. Returns the schedule if it succeeded.
    async fn create(&mut self, schedule: Option<usize>, named: bool) -> Option<String> {
        let id = schedule.map(|n| self.schedules[n].clone());
        let call = one(&mut self.client, id.as_deref(), named).await;
        let id = call.end.as_ref().ok().map(|(id, _)| id.clone());
        self.keep(call);
        id
    }

    fn keep(&mut self, call: Call) {
        let run = self.points.len();
        self.record.places.insert(call.time_ms, (run, self.step));
        if let Err(status) = &call.end {
            self.document(status);
        }
        self.record.calls.push(call);
    }

    /// Notes a status that is not documented for a lost database, nor for a fault of the service.
    fn document(&mut self, status: &Status) {
        let fault_of_service = self
            .points
            .last()
            .is_some_and(|(point, _)| ["CORRUPT", "NOMEM"].contains(&point.kind.name));
        let documented = match status.code() {
            Code::Unavailable => reason(status) == "STORE_UNAVAILABLE",
            Code::Unknown => reason(status) == "OUTCOME_UNKNOWN",
            Code::FailedPrecondition => reason(status) == "NOTHING_LEFT_TO_CHANGE",
            Code::Internal => fault_of_service && reason(status) == "INTERNAL",
            _ => false,
        };
        if !documented {
            let place = self.place();
            let what = format!("undocumented answer {:?}", status.code());
            self.findings
                .add(what, || format!("{place}: {}", status.message()));
        }
    }

    /// The current point and step, for findings.
    fn place(&self) -> String {
        match self.points.last() {
            Some((point, outcome)) => format!(
                "{}, call {} (times {}) in {:?}; step {}",
                point.kind, point.nth, point.times, outcome.failed_in, self.step
            ),
            None => format!("no fault yet; step {}", self.step),
        }
    }

    /// The end of the server's log.
    fn last_lines(&self) -> String {
        let lines = self.server.log().all();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Begins a step of the workload, and notes in which one the call failed.
    fn step(&mut self, step: &'static str) {
        if let Some((point, outcome)) = self.points.last_mut() {
            let failed = self.injector.failed(point.own()) > 0;
            if failed && outcome.failed_in.is_none() {
                let offset = self.injector.offset(point.own());
                outcome.failed_in = Some((self.step, statement(&point.kind, offset)));
            }
        }
        self.step = step;
    }

    /// Whether the fault is over: it has failed as many calls as it should.
    fn is_spent(&self) -> bool {
        let point = self.points.last();
        point.is_some_and(|(point, _)| self.injector.failed(point.own()) >= point.times)
    }

    /// Creates a schedule for one zone. Returns its id if the answer has one.
    async fn create_due(&mut self, time_ms: i64) -> Option<String> {
        let request = v1::CreateCanvasScheduleRequest {
            canvas_id: "canvas".to_owned(),
            schedule: schedule_at(time_ms),
            recipients: vec![in_utc()],
            ..Default::default()
        };
        let answer = self.client.create_canvas_schedule(request).await;
        let end = answer.map(|answer| {
            let made = answer.into_inner().canvas_schedule.expect("a schedule");
            (made.schedule_id, made.revision)
        });
        let id = end.as_ref().ok().map(|(id, _)| id.clone());
        self.keep(Call {
            time_ms,
            end,
            repeats: 0,
        });
        id
    }

    async fn batch(&mut self) {
        let properties = self.setting.is_heavy().then(|| prost_types::Struct {
            fields: [("text".to_owned(), unique_text(HEAVY_BYTES))].into(),
        });
        let targets = &self.schedules[2..];
        let requests: Vec<_> = targets
            .iter()
            .map(|id| v1::UpdateCanvasScheduleRequest {
                canvas_id: "canvas".to_owned(),
                schedule_id: id.clone(),
                schedule: schedule_at(unique_time()),
                trigger_properties: properties.clone(),
                ..Default::default()
            })
            .collect();
        let times: Vec<i64> = requests
            .iter()
            .map(|one| millis(one.schedule.as_ref()))
            .collect();
        let answer = self
            .client
            .batch_update_canvas_schedules(v1::BatchUpdateCanvasSchedulesRequest { requests })
            .await;
        let ends: Vec<_> = match answer {
            Ok(answer) => answer.into_inner().results.into_iter().map(entry).collect(),
            Err(status) => times.iter().map(|_| Err(status.clone())).collect(),
        };
        for (time_ms, end) in times.into_iter().zip(ends) {
            self.keep(Call {
                time_ms,
                end,
                repeats: 0,
            });
        }
    }

    async fn reads(&mut self) {
        let schedule_id = self.schedules[0].clone();
        let get = v1::GetCanvasScheduleRequest {
            schedule_id: schedule_id.clone(),
        };
        let revisions = v1::ListCanvasScheduleRevisionsRequest {
            schedule_id,
            page_size: 10,
            ..Default::default()
        };
        let list = v1::ListCanvasSchedulesRequest::default();
        let ends = [
            self.client.get_canvas_schedule(get).await.err(),
            self.client.list_canvas_schedules(list).await.err(),
            self.client
                .list_canvas_schedule_revisions(revisions)
                .await
                .err(),
        ];
        for status in ends.into_iter().flatten() {
            self.document(&status);
        }
    }

    /// The workload. Its calls are the same in each run, apart from those with which the dispatcher
    /// looks for due waves.
    async fn workload(&mut self, cancelled: &str) {
        self.step("create");
        self.create(None, false).await;
        self.step("create with request id");
        self.create(None, true).await;
        self.step("update");
        self.create(Some(0), false).await;
        self.step("update with request id");
        self.create(Some(1), true).await;
        self.step("batch update");
        for _ in 0..1 + usize::from(self.setting.is_heavy()) {
            self.batch().await;
        }
        self.step("cancel");
        let cancellation = cancel(&mut self.client, cancelled).await;
        if let Err(status) = &cancellation.end {
            self.document(status);
        }
        self.record.cancellations.push(cancellation);
        self.step("create, claim and settle");
        if let Some(id) = self.create_due(unique_due(Due::Now)).await {
            self.record.due.insert(id.clone());
            self.delivered(&id).await;
        }
        self.step("reads");
        self.reads().await;
        self.step("recovery");
    }

    /// Waits until a dispatch is settled, or the fault is over.
    async fn delivered(&mut self, id: &str) {
        let began = Instant::now();
        while !self.is_spent() && began.elapsed() < PATIENCE {
            let request = v1::GetCanvasScheduleRequest {
                schedule_id: id.to_owned(),
            };
            match self.client.get_canvas_schedule(request).await {
                Ok(got)
                    if got
                        .get_ref()
                        .dispatches
                        .is_some_and(|one| one.delivered > 0) =>
                {
                    return;
                }
                Ok(_) => {}
                // An acknowledged schedule must be there.
                Err(status) => {
                    self.document(&status);
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Runs the workload without a fault, and returns how often it makes each call.
    async fn calls_of_workload(&mut self) -> Calls {
        let cancelled = self.create_due(unique_due(Due::Later)).await;
        let before = counted(&self.injector);
        let rules: Vec<Rule> = self.setting.first().into_iter().collect();
        self.injector.arm(&rules);
        self.workload(&cancelled.expect("created")).await;
        self.injector.disarm();
        let mut after = counted(&self.injector);
        for (call, count) in &mut after {
            *count -= before[call];
        }
        if self.setting == Setting::Starting {
            self.calls_of_start.clone()
        } else {
            after
        }
    }

    /// Runs the workload with a fault. Returns whether the service recovered.
    async fn run(&mut self, point: Point) -> bool {
        let Some(cancelled) = self.create_due(unique_due(Due::Later)).await else {
            let place = self.place();
            self.findings.add("no creation", || place);
            return false;
        };
        if self.setting != Setting::Starting {
            self.points.push((point, Outcome::default()));
            self.injector.arm(&point.rules());
        }
        if point.times == FOREVER {
            self.until_refused(&cancelled).await;
            return false;
        }
        let ended = tokio::time::timeout(PATIENCE, self.workload(&cancelled)).await;
        self.injector.disarm();
        if ended.is_err() {
            let place = format!("{}; {}", self.place(), self.last_lines());
            self.findings.add("a call hangs", || place);
            return false;
        }
        self.recover().await
    }

    /// Makes changes until one fails, and leaves the fault as it is.
    async fn until_refused(&mut self, cancelled: &str) {
        let before = self.record.acknowledged() + 1;
        self.step("create");
        self.create(None, false).await;
        if self.record.acknowledged() == before {
            self.step("update");
            self.create(Some(0), false).await;
        }
        if self.record.acknowledged() == before + 1 {
            self.step("batch update");
            self.batch().await;
        }
        if self.record.acknowledged() == before + 1 + LIGHT_BATCH {
            self.step("cancel");
            let cancellation = cancel(&mut self.client, cancelled).await;
            self.record.cancellations.push(cancellation);
        }
    }

    /// Waits until the service is ready, makes a change, and sends what is due.
    async fn recover(&mut self) -> bool {
        let began = Instant::now();
        let mut last = String::new();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.server.ended(Duration::ZERO).await {
                let place = self.place();
                self.findings
                    .add("the process ended", || format!("{place}: {status}"));
                return false;
            }
            let (ready, body) = self.server.ask("/readyz").await;
            let changed = ready == 200 && self.create(Some(0), false).await.is_some();
            let all = arrived(&self.consumer.came());
            if changed && self.record.due.is_subset(&all) {
                let (_, outcome) = self.points.last_mut().expect("a point");
                outcome.recovered_after = began.elapsed();
                return true;
            }
            last = format!("changed: {changed}; ready: {body}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let place = self.place();
        self.findings
            .add("no recovery", || format!("{place}: {last}"));
        false
    }
}

fn url(folder: &Folder) -> String {
    let file = folder.path().join("test.db");
    format!("sqlite://{}?mode=rwc", file.display())
}

/// A text that no other schedule has: what does not change is not written again.
fn unique_text(bytes: usize) -> prost_types::Value {
    let text = format!("{:>bytes$}", unique_time());
    prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Now,
    /// After [`CANCELLED_DUE_MS`].
    Later,
}

/// A time that no other call of this process asks for: even now, odd later.
fn unique_due(due: Due) -> i64 {
    static LAST: [AtomicI64; 2] = [AtomicI64::new(0), AtomicI64::new(0)];
    let parity = i64::from(due == Due::Later);
    let earliest = now_ms() / 2 * 2 + parity * (1 + CANCELLED_DUE_MS);
    let last = &LAST[usize::from(due == Due::Later)];
    let next = |last: i64| earliest.max(last + 2);
    let before = last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
        Some(next(last))
    });
    next(before.unwrap())
}

/// The end of an entry of a batch.
fn entry(result: v1::BatchUpdateCanvasSchedulesResult) -> Result<(String, i64), Status> {
    match result.result.expect("a result") {
        Entry::Response(response) => {
            let schedule = response.canvas_schedule.expect("a schedule");
            Ok((schedule.schedule_id, schedule.revision))
        }
        Entry::Error(error) => {
            let code = Code::from(error.code);
            let message = error.message.clone();
            let status = tonic_types::pb::Status {
                code: error.code,
                message: error.message,
                details: error.details,
            };
            let details = status.encode_to_vec().into();
            Err(Status::with_details(code, message, details))
        }
    }
}

/// What runs found, summed up.
#[derive(Default)]
struct Totals {
    /// By kind: points whose call failed, and points that the workload did not reach.
    kinds: BTreeMap<String, (usize, usize)>,
    /// Points by the statement whose call failed, and the step of the workload.
    statements: BTreeMap<(&'static str, &'static str), usize>,
    acknowledged: usize,
    found: usize,
    refused: usize,
    unknown: usize,
    kills: usize,
    refused_starts: usize,
    slowest_recovery: Duration,
    findings: Findings,
}

/// What is wrong: how often, and the first example.
#[derive(Debug, Default)]
struct Findings(BTreeMap<String, (usize, String)>);

impl Findings {
    fn add(&mut self, what: impl Into<String>, example: impl FnOnce() -> String) {
        let found = self.0.entry(what.into()).or_insert_with(|| (0, example()));
        found.0 += 1;
    }

    fn extend(&mut self, other: Self) {
        for (what, (count, example)) in other.0 {
            self.0.entry(what).or_insert((0, example)).0 += count;
        }
    }
}

impl Totals {
    /// Counts a server that ended at its start. It must have said why.
    fn add_refused_start(&mut self, point: Point, panic: &Box<dyn Any + Send>) {
        let why = panic.downcast_ref::<String>().map_or("", String::as_str);
        if point.kind.setting == Setting::Starting && why.contains("cannot open") {
            self.refused_starts += 1;
        } else {
            let place = format!("{}, call {}: {why}", point.kind, point.nth);
            self.findings.add("no start", || place);
        }
    }

    fn add(&mut self, other: Self) {
        for (kind, (failed, missed)) in other.kinds {
            let sum = self.kinds.entry(kind).or_default();
            *sum = (sum.0 + failed, sum.1 + missed);
        }
        for (statement, count) in other.statements {
            *self.statements.entry(statement).or_default() += count;
        }
        self.acknowledged += other.acknowledged;
        self.found += other.found;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.kills += other.kills;
        self.refused_starts += other.refused_starts;
        self.slowest_recovery = self.slowest_recovery.max(other.slowest_recovery);
        self.findings.extend(other.findings);
    }

    fn print(&self) {
        let test = test_name();
        for (kind, (failed, missed)) in &self.kinds {
            println!("{test}: {kind}: {failed} points, {missed} not reached");
        }
        for ((statement, step), count) in &self.statements {
            println!("{test}: {count} points in {statement:?} during {step:?}");
        }
        let points: usize = self.kinds.values().map(|(failed, _)| failed).sum();
        println!(
            "{test}: {points} faults, {} kills: {} writes acknowledged, {} found after kill -9, \
             {} lost; {} refused, {} of unknown outcome; slowest recovery {:?}; {} starts refused",
            self.kills,
            self.acknowledged,
            self.found,
            self.acknowledged - self.found,
            self.refused,
            self.unknown,
            self.slowest_recovery,
            self.refused_starts
        );
    }

    fn check(&self) {
        self.print();
        assert!(self.findings.0.is_empty(), "{:#?}", self.findings.0);
        assert_eq!(
            self.acknowledged, self.found,
            "acknowledged writes are lost"
        );
    }
}

impl Service {
    /// Kills the server, starts another one over its files, and compares what it has with what
    /// callers were answered.
    async fn finish(mut self, template: &Template) -> Totals {
        self.step("after kill -9");
        self.server.kill9();
        self.injector.disarm();
        let flags = flags(&self.consumer, "32");
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let key = template.key.clone();
        let server = Server::start_with_key(&url(&self.folder), &flags, key).await;
        let mut client = server.connect().await;
        let history = History::read(&mut client).await;
        let mut findings = std::mem::take(&mut self.findings);
        let (tally, mut contradictions) = history.compare(&self.record.calls);
        let (cancelled, more) = history.compare_cancellations(&self.record.cancellations);
        contradictions.extend(more);
        for contradiction in contradictions {
            let what = if contradiction.lost {
                "acknowledged and lost"
            } else {
                "refused and there"
            };
            findings.add(what, || self.describe(&contradiction));
        }
        for (what, example) in self.undone(&mut client).await {
            findings.add(what, || example);
        }
        let mut totals = Totals {
            acknowledged: self.record.acknowledged(),
            found: tally.done + cancelled,
            refused: tally.refused,
            unknown: tally.unknown_done + tally.unknown_not_done,
            kills: 1,
            findings,
            ..Totals::default()
        };
        for (point, outcome) in &self.points {
            let kind = totals.kinds.entry(point.kind.to_string()).or_default();
            match outcome.failed_in {
                Some((step, statement)) => {
                    kind.0 += 1;
                    *totals.statements.entry((statement, step)).or_default() += 1;
                }
                None => kind.1 += 1,
            }
            totals.slowest_recovery = totals.slowest_recovery.max(outcome.recovered_after);
        }
        totals
    }

    /// The call and its run.
    fn describe(&self, contradiction: &Contradiction) -> String {
        let place = self.record.places.get(&contradiction.time_ms);
        let run = place.map(|(run, step)| match run.checked_sub(1) {
            Some(run) => {
                let (point, outcome) = &self.points[run];
                format!(
                    "{}, calls {} and {} more, which failed in {:?}; called in step {step}",
                    point.kind,
                    point.nth,
                    point.times - 1,
                    outcome.failed_in
                )
            }
            None => format!("before any fault, in step {step}"),
        });
        format!("{}: {}", run.unwrap_or_default(), contradiction.what)
    }

    /// Schedules whose acknowledged cancellation is undone, or that were dispatched nevertheless,
    /// and due schedules that were never dispatched.
    async fn undone(&self, client: &mut Client) -> Vec<(&'static str, String)> {
        let mut findings = Vec::new();
        let due = &self.record.due;
        let sent = tokio::time::timeout(
            PATIENCE,
            self.consumer.until(|came| due.is_subset(&arrived(came))),
        );
        if sent.await.is_err() {
            let missing = due.difference(&arrived(&self.consumer.came())).count();
            findings.push(("due and never dispatched", format!("{missing} schedules")));
        }
        let reached_all = |one: &&Cancellation| {
            one.end
                .as_ref()
                .is_ok_and(|(applied, _)| *applied == v1::Applied::All)
        };
        for one in self.record.cancellations.iter().filter(reached_all) {
            let schedule_id = one.schedule_id.clone();
            let request = v1::GetCanvasScheduleRequest { schedule_id };
            let got = client.get_canvas_schedule(request).await;
            let dispatches = got.ok().and_then(|got| got.into_inner().dispatches);
            let dispatched = dispatches.is_none_or(|one| {
                one.in_hand + one.unknown + one.delivered + one.dead + one.abandoned > 0
            });
            if dispatched || arrived(&self.consumer.came()).contains(&one.schedule_id) {
                findings.push(("cancelled and dispatched", one.schedule_id.clone()));
            }
        }
        findings
    }
}

/// Injects these points, a few in each server, in several lanes.
async fn inject(template: &Arc<Template>, points: Vec<Point>) -> Totals {
    // Those that end with a kill take the longest: first.
    let (killed, points): (Vec<Point>, Vec<Point>) =
        points.into_iter().partition(|point| point.times == FOREVER);
    let mut portions: VecDeque<Vec<Point>> = killed.into_iter().map(|one| vec![one]).collect();
    let mut queues: BTreeMap<Setting, VecDeque<Point>> = BTreeMap::new();
    for point in points {
        queues
            .entry(point.kind.setting)
            .or_default()
            .push_back(point);
    }
    for (setting, mut queue) in queues {
        while !queue.is_empty() {
            let size = setting.runs().min(queue.len());
            portions.push_back(queue.drain(..size).collect());
        }
    }
    let portions = Arc::new(Mutex::new(portions));
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        let (template, portions) = (template.clone(), portions.clone());
        lanes.spawn(async move {
            let mut totals = Totals::default();
            loop {
                let Some(portion) = portions.lock().unwrap().pop_front() else {
                    return totals;
                };
                let mut rest = VecDeque::from(portion);
                while let Some(first) = rest.front().copied() {
                    let start = Service::start(&template, first.kind.setting, Some(first));
                    // It panics if the server does not start.
                    let mut service = match AssertUnwindSafe(start).catch_unwind().await {
                        Ok(service) => service,
                        Err(panic) => {
                            totals.add_refused_start(first, &panic);
                            rest.pop_front();
                            continue;
                        }
                    };
                    while let Some(point) = rest.pop_front() {
                        if !service.run(point).await {
                            break;
                        }
                    }
                    totals.add(service.finish(&template).await);
                }
            }
        });
    }
    let mut totals = Totals::default();
    for lane in lanes.join_all().await {
        totals.add(lane);
    }
    totals
}

/// How often the workload makes the calls of each kind, and what these runs found.
async fn calls_by_kind(template: &Arc<Template>) -> (Vec<(Kind, u64)>, Totals) {
    let mut runs = JoinSet::new();
    for setting in Setting::ALL {
        let template = template.clone();
        runs.spawn(async move {
            let mut service = Service::start(&template, setting, None).await;
            let counts = service.calls_of_workload().await;
            (setting, counts, service.finish(&template).await)
        });
    }
    let (mut counted, mut totals) = (Vec::new(), Totals::default());
    for (setting, counts, found) in runs.join_all().await {
        totals.add(found);
        for kind in KINDS.iter().filter(|kind| kind.setting == setting) {
            let count = counts[&(kind.operation, kind.target)];
            println!("{}: {kind}: {count} calls", test_name());
            counted.push((*kind, count));
        }
    }
    (counted, totals)
}

/// Faults that last while the server is killed: what it refused at the end must not be there later,
/// although SQLite may have written it.
fn killed(calls: &[(Kind, u64)], points: u64) -> Vec<Point> {
    let commits = [
        (Operation::Write, Target::Wal),
        (Operation::Sync, Target::Wal),
    ];
    let of_commit = |kind: &Kind| {
        kind.setting == Setting::Light && commits.contains(&(kind.operation, kind.target))
    };
    let mut all = Vec::new();
    for (kind, count) in calls.iter().filter(|(kind, _)| of_commit(kind)) {
        for nth in spread(*count / 2, points) {
            all.push(Point {
                kind: *kind,
                nth,
                times: FOREVER,
            });
        }
    }
    all
}

/// The first of `count` calls, one near the last, and some between them: `points` in all. A run may
/// make some calls fewer than another.
fn spread(count: u64, points: u64) -> Vec<u64> {
    let count = count - count / 8;
    let points = points.min(count);
    (0..points)
        .map(|n| 1 + n * (count - 1) / (points - 1).max(1))
        .collect()
}

#[tokio::test]
async fn no_fault_of_a_file_loses_an_acknowledged_write() {
    let Some(template) = Template::new() else {
        return;
    };
    let (calls, mut totals) = calls_by_kind(&template).await;
    let mut points = killed(&calls, 1);
    for (kind, count) in calls {
        for (n, nth) in spread(count, kind.points).into_iter().enumerate() {
            let times = if n % 2 == 0 { 1 } else { LONGER };
            points.push(Point { kind, nth, times });
        }
    }
    totals.add(inject(&template, points).await);
    totals.check();
}

#[tokio::test]
#[ignore = "takes many minutes; .ci/full/run runs it"]
async fn no_fault_of_any_call_loses_an_acknowledged_write() {
    let Some(template) = Template::new() else {
        return;
    };
    let (calls, mut totals) = calls_by_kind(&template).await;
    let mut points = killed(&calls, u64::MAX);
    for (kind, count) in calls {
        let step = match (kind.operation, kind.target) {
            (Operation::Allocate, _) => ALLOCATION_STEP,
            (Operation::Write, Target::Main) => CHECKPOINT_STEP,
            _ => 1,
        };
        for nth in (1..=count).step_by(step) {
            points.push(Point {
                kind,
                nth,
                times: 1,
            });
            if nth % 3 == 0 {
                points.push(Point {
                    kind,
                    nth,
                    times: LONGER,
                });
            }
        }
    }
    totals.add(inject(&template, points).await);
    totals.check();
}
