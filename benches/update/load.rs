//! The load generator, a process of its own: closed-loop callers that update schedules and check every answer.

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
/// So many connections carry the callers, or one for each caller.
const CONNECTIONS_MOST: u64 = 8;
/// How long the last answers may take.
const ANSWER_MOST: Duration = Duration::from_secs(20);
/// A caller that failed so often stops.
const FAILURES_MOST: u64 = 20;

/// By which transport the callers come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Transport {
    /// gRPC, many callers to a connection.
    Grpc,
    /// The documented JSON over HTTP/1.1, a connection for each caller.
    Rest,
}

/// What a load generator is asked to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    /// By which transport.
    pub transport: Transport,
    /// The server's port for it, as address and port.
    pub address: String,
    /// The key of every caller.
    pub key: String,
    /// How many callers.
    pub callers: u64,
    /// How many schedules there are.
    pub schedules: u64,
    /// How long to measure, after the warm-up.
    pub seconds: u64,
    /// The times to send.
    pub times: Times,
}

/// What came of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Every acknowledged update, those of the warm-up too.
    pub acknowledged: u64,
    /// Acknowledged updates a second while it was measured.
    pub per_second: f64,
    /// Calls that failed or got a wrong answer.
    pub failures: u64,
    /// The first failure.
    pub first_failure: Option<String>,
    /// Microseconds that half of the calls stayed below.
    pub p50_us: u64,
    /// 99 % of them.
    pub p99_us: u64,
    /// 99.9 % of them.
    pub p999_us: u64,
}

/// Runs in a process of its own, so that its cost is told apart from the server's.
///
/// # Errors
/// It fails, or takes too long.
pub(crate) fn in_own_process(order: &Order) -> Fallible<Report> {
    let most = WARM_UP + Duration::from_secs(order.seconds) + 3 * ANSWER_MOST;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    let printed =
        super::support::process::run(command.arg(LOAD).arg(serde_json::to_string(order)?), most)?;
    Ok(serde_json::from_str(printed.trim())?)
}

/// The process of [`in_own_process`]: does what the order says and prints the report.
///
/// # Errors
/// The order cannot be read, or the server cannot be reached.
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
                    serve_callers(order, share, threads, begin).map_err(|fault| fault.to_string())
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

/// Counts of some callers.
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

    fn fail(&mut self, why: String) {
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

/// One thread's callers, on a runtime of its own.
fn serve_callers(
    order: &Order,
    callers: Range<u64>,
    threads: u64,
    begin: Instant,
) -> Fallible<Tally> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let connections = (CONNECTIONS_MOST / threads).min(callers.end - callers.start);
        let mut clients = Vec::new();
        for _ in (0..connections).filter(|_| order.transport == Transport::Grpc) {
            clients.push(Method::connect(&order.address, UPDATE, &order.key).await?);
        }
        let measured = begin + WARM_UP..begin + WARM_UP + Duration::from_secs(order.seconds);
        let mut running = tokio::task::JoinSet::new();
        for (n, at) in callers.zip(0..) {
            let way = match order.transport {
                Transport::Grpc => Way::Grpc(clients[at % clients.len()].clone()),
                Transport::Rest => Way::Rest(Connection::to(&order.address, &order.key).await?),
            };
            running.spawn(Caller::new(order, n, way, measured.clone()).run(begin));
        }
        let mut all = Tally::new();
        let last = tokio::time::Instant::from_std(measured.end + ANSWER_MOST);
        while let Ok(Some(ended)) = tokio::time::timeout_at(last, running.join_next()).await {
            all.add(ended?);
        }
        if !running.is_empty() {
            all.fail(format!(
                "{} callers waited for an answer for {ANSWER_MOST:?}",
                running.len()
            ));
        }
        Ok(all)
    })
}

/// How a caller's updates reach the server.
enum Way {
    Grpc(Method),
    Rest(Connection),
}

impl Way {
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

/// One caller: owner of a slice of the schedules, waiting for each answer before it asks again.
struct Caller {
    way: Way,
    times: Times,
    slice: Range<u64>,
    /// The last revision seen of each schedule of the slice; 0: none yet.
    seen: Vec<u32>,
    random: Random,
    measured: Range<Instant>,
    tally: Tally,
}

impl Caller {
    fn new(order: &Order, n: u64, way: Way, measured: Range<Instant>) -> Self {
        let slice = n * order.schedules / order.callers..(n + 1) * order.schedules / order.callers;
        let length =
            usize::try_from(slice.end - slice.start).expect("a slice that fits into memory");
        let seed = u64::from(std::process::id()) << 32 | n;
        Self {
            way,
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
        while Instant::now() < self.measured.end && self.tally.failures < FAILURES_MOST {
            let at = self.random.below(self.slice.end - self.slice.start);
            if let Err(why) = self.update(at).await {
                self.tally.fail(why);
            }
        }
        self.tally
    }

    /// Updates the schedule number `at` of the slice.
    async fn update(&mut self, at: u64) -> Result<(), String> {
        let request = update(self.slice.start + at, &self.times, &mut self.random);
        let seen = &mut self.seen[usize::try_from(at).expect("an index into the slice")];
        // Until it is known again what the schedule's revision is.
        let before = std::mem::take(seen);
        let begin = Instant::now();
        let answer = self.way.update(&request).await;
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

/// An update of the schedule of this number to any of the times.
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

/// The revision of an answer that is as it must be: about the schedule that was asked for, and one change further; 0 before: not
/// known.
pub(crate) fn checked(
    schedule_id: &str,
    before: u32,
    answer: &v1::UpdateCanvasScheduleResponse,
) -> Result<u32, String> {
    let after = answer
        .canvas_schedule
        .as_ref()
        .ok_or("an answer without a schedule")?;
    if after.schedule_id != schedule_id {
        return Err(format!(
            "asked for {schedule_id}, answered {}",
            after.schedule_id
        ));
    }
    let revision = u32::try_from(after.revision)
        .map_err(|_| format!("{schedule_id} is answered with revision {}", after.revision))?;
    let right = if before == 0 {
        revision >= 2
    } else {
        revision == before + 1
    };
    if right {
        Ok(revision)
    } else {
        Err(format!(
            "{schedule_id} went from revision {before} to {revision}"
        ))
    }
}
