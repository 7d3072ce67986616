//! The load generator, a separate process: closed-loop callers that update schedules and check
//! every response.

use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use canvas_scheduler::pb::v1;
use chrono::DateTime;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::grpc::Method;
use super::http1::Connection;
use super::rows::{Random, Times, canvas, id};
use super::settings::WARM_UP;
use super::{Fallible, LOAD};

/// The call under test.
pub(crate) const UPDATE: &str = "/canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule";
/// The callers share at most this many gRPC connections.
const MAX_CONNECTIONS: u64 = 8;
/// How long the last responses may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);
/// A caller stops after this many failures.
const MAX_FAILURES: u64 = 20;

/// The transport of the callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Transport {
    /// gRPC; callers share connections.
    Grpc,
    /// JSON over HTTP/1.1, one connection for each caller.
    Rest,
}

/// The parameters of a load generator.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The transport of the callers.
    pub transport: Transport,
    /// The server's address and port for that transport.
    pub address: String,
    /// The key of every caller.
    pub key: String,
    /// The number of callers.
    pub callers: u64,
    /// The number of schedules in the database.
    pub schedules: u64,
    /// The duration of the measurement after the warm-up, in seconds.
    pub seconds: u64,
    /// The times to send.
    pub times: Times,
}

/// The results of a load generator.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// All acknowledged updates, including the warm-up.
    pub acknowledged: u64,
    /// Acknowledged updates a second during the measurement.
    pub per_second: f64,
    /// Calls that failed or received a wrong response.
    pub failures: u64,
    /// The first failure.
    pub first_failure: Option<String>,
    /// The median latency in microseconds.
    pub p50_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
    /// The 99.9th percentile.
    pub p999_us: u64,
}

/// Runs the load generator in a separate process, so that its processor time is measured separately
/// from the server's.
pub(crate) fn in_own_process(order: &Order) -> Fallible<Report> {
    let timeout = WARM_UP + Duration::from_secs(order.seconds) + 3 * RESPONSE_TIMEOUT;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    let printed = super::support::process::run(
        command.arg(LOAD).arg(serde_json::to_string(order)?),
        timeout,
    )?;
    Ok(serde_json::from_str(printed.trim())?)
}

/// The main function of the load generator's process. Prints the report as JSON.
pub(crate) fn main(order: &str) -> Fallible<()> {
    let order: Order = serde_json::from_str(order)?;
    let threads = if order.callers >= 64 { 2 } else { 1 };
    let begin = Instant::now() + Duration::from_millis(200);
    let share = |n: u64| n * order.callers / threads..(n + 1) * order.callers / threads;
    let tallies: Vec<Fallible<Tally>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|n| {
                let (order, share) = (&order, share(n));
                scope.spawn(move || {
                    run_callers(order, share, threads, begin).map_err(|fault| fault.to_string())
                })
            })
            .collect();
        let joined = workers.into_iter().map(|worker| {
            worker
                .join()
                .map_err(|_| "a thread of the load generator panicked")
        });
        joined.map(|tally| Ok(tally??)).collect()
    });
    let mut all = Tally::new();
    for tally in tallies {
        all.add(tally?);
    }
    println!("{}", serde_json::to_string(&all.report(order.seconds))?);
    Ok(())
}

/// The counts of one or more callers.
struct Tally {
    latencies: Histogram<u64>,
    acknowledged: u64,
    failures: u64,
    first_failure: Option<String>,
}

impl Tally {
    fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, 100_000_000, 3)
            .expect("bounds that a histogram can have");
        Self {
            latencies,
            acknowledged: 0,
            failures: 0,
            first_failure: None,
        }
    }

    fn record_failure(&mut self, why: String) {
        self.failures += 1;
        self.first_failure.get_or_insert(why);
    }

    fn add(&mut self, other: Self) {
        self.latencies
            .add(other.latencies)
            .expect("histograms with equal bounds");
        self.acknowledged += other.acknowledged;
        self.failures += other.failures;
        self.first_failure = self.first_failure.take().or(other.first_failure);
    }

    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    fn report(self, seconds: u64) -> Report {
        Report {
            acknowledged: self.acknowledged,
            per_second: self.latencies.len() as f64 / seconds as f64,
            failures: self.failures,
            first_failure: self.first_failure,
            p50_us: self.latencies.value_at_quantile(0.5),
            p99_us: self.latencies.value_at_quantile(0.99),
            p999_us: self.latencies.value_at_quantile(0.999),
        }
    }
}

/// Runs the callers of one thread.
fn run_callers(
    order: &Order,
    callers: Range<u64>,
    threads: u64,
    begin: Instant,
) -> Fallible<Tally> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let connections = (MAX_CONNECTIONS / threads).min(callers.end - callers.start);
        let mut clients = Vec::new();
        for _ in (0..connections).filter(|_| order.transport == Transport::Grpc) {
            clients.push(Method::connect(&order.address, UPDATE, &order.key).await?);
        }
        let measured = begin + WARM_UP..begin + WARM_UP + Duration::from_secs(order.seconds);
        let mut running = tokio::task::JoinSet::new();
        for (n, at) in callers.zip(0..) {
            let client = match order.transport {
                Transport::Grpc => Client::Grpc(clients[at % clients.len()].clone()),
                Transport::Rest => Client::Rest(Connection::to(&order.address, &order.key).await?),
            };
            running.spawn(Caller::new(order, n, client, measured.clone()).run(begin));
        }
        let mut all = Tally::new();
        let last = tokio::time::Instant::from_std(measured.end + RESPONSE_TIMEOUT);
        while let Ok(Some(ended)) = tokio::time::timeout_at(last, running.join_next()).await {
            all.add(ended?);
        }
        if !running.is_empty() {
            all.record_failure(format!(
                "{} callers received no response within {RESPONSE_TIMEOUT:?}",
                running.len()
            ));
        }
        Ok(all)
    })
}

/// A caller's connection to the server.
enum Client {
    Grpc(Method),
    Rest(Connection),
}

impl Client {
    async fn update(
        &mut self,
        request: &v1::UpdateCanvasScheduleRequest,
    ) -> Result<v1::UpdateCanvasScheduleResponse, String> {
        match self {
            Self::Grpc(method) => method.call(request).await,
            Self::Rest(connection) => connection.update(request).await,
        }
    }
}

/// A caller. It alone updates its slice of the schedules, and waits for each response before the
/// next call.
struct Caller {
    client: Client,
    times: Times,
    slice: Range<u64>,
    /// The last revision seen of each schedule in the slice, or 0 if it is unknown.
    seen: Vec<u32>,
    random: Random,
    measured: Range<Instant>,
    tally: Tally,
}

impl Caller {
    fn new(order: &Order, n: u64, client: Client, measured: Range<Instant>) -> Self {
        let slice = n * order.schedules / order.callers..(n + 1) * order.schedules / order.callers;
        let length =
            usize::try_from(slice.end - slice.start).expect("a slice that fits into memory");
        let seed = u64::from(std::process::id()) << 32 | n;
        Self {
            client,
            times: order.times,
            slice,
            seen: vec![0; length],
            random: Random(seed),
            measured,
            tally: Tally::new(),
        }
    }

    async fn run(mut self, begin: Instant) -> Tally {
        tokio::time::sleep_until(tokio::time::Instant::from_std(begin)).await;
        while Instant::now() < self.measured.end && self.tally.failures < MAX_FAILURES {
            let at = self.random.below(self.slice.end - self.slice.start);
            if let Err(why) = self.update(at).await {
                self.tally.record_failure(why);
            }
        }
        self.tally
    }

    /// Updates schedule `at` of the slice.
    async fn update(&mut self, at: u64) -> Result<(), String> {
        let request = update(self.slice.start + at, &self.times, &mut self.random);
        let seen = &mut self.seen[usize::try_from(at).expect("an index into the slice")];
        // The revision is unknown until a response arrives.
        let before = std::mem::take(seen);
        let begin = Instant::now();
        let answer = self.client.update(&request).await;
        let end = Instant::now();
        let answer = answer?;
        self.tally.acknowledged += 1;
        *seen = checked(&request.schedule_id, before, &answer)?;
        if self.measured.contains(&end) {
            let micros = u64::try_from((end - begin).as_micros()).unwrap_or(u64::MAX);
            self.tally.latencies.saturating_record(micros);
        }
        Ok(())
    }
}

/// An update of schedule `number` to a random time.
pub(crate) fn update(
    number: u64,
    times: &Times,
    random: &mut Random,
) -> v1::UpdateCanvasScheduleRequest {
    let n = random.below(times.span_ms().unsigned_abs());
    let millis = times.earliest_ms() + i64::try_from(n).expect("a number of milliseconds");
    let time = DateTime::from_timestamp_millis(millis).expect("an instant in this century");
    let mut time = time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    if times.local {
        time.pop();
    }
    v1::UpdateCanvasScheduleRequest {
        canvas_id: canvas(number),
        schedule_id: id(number),
        schedule: Some(v1::Schedule {
            time,
            in_local_time: times.local,
            at_optimal_time: false,
        }),
        ..Default::default()
    }
}

/// Checks that a response is about the schedule and that the revision has advanced by one. Returns
/// the revision. `before` is 0 if the previous revision is unknown.
pub(crate) fn checked(
    schedule_id: &str,
    before: u32,
    answer: &v1::UpdateCanvasScheduleResponse,
) -> Result<u32, String> {
    let after = answer
        .canvas_schedule
        .as_ref()
        .ok_or("a response without a schedule")?;
    if after.schedule_id != schedule_id {
        return Err(format!(
            "the update of {schedule_id} returned {}",
            after.schedule_id
        ));
    }
    let revision = u32::try_from(after.revision)
        .map_err(|_| format!("{schedule_id} has the invalid revision {}", after.revision))?;
    let valid = if before == 0 {
        revision >= 2
    } else {
        revision == before + 1
    };
    if valid {
        Ok(revision)
    } else {
        Err(format!(
            "{schedule_id} went from revision {before} to {revision}"
        ))
    }
}
