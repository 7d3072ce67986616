//! Updates at a fixed rate, independent of the responses to earlier ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use canvas_scheduler::pb::v1;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::Fallible;
use super::grpc::Method;
use super::load::{UPDATE, checked, update};
use super::rows::{Random, Times};

const CONNECTIONS: usize = 8;
/// The interval at which due updates are sent.
const TICK_INTERVAL: Duration = Duration::from_millis(1);
/// The most updates that may wait for responses. Any further update is not sent and counts as
/// failed.
const MAX_WAITING: usize = 8192;
/// How long the last responses may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

/// The parameters of the load.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    /// The server's address and port.
    pub address: String,
    /// A key for updates.
    pub key: String,
    /// Updates a second.
    pub per_second: f64,
    /// The number of schedules to update.
    pub schedules: u64,
    /// The times to send.
    pub times: Times,
}

/// A running load.
pub(crate) struct Offered {
    thread: JoinHandle<Result<Results, String>>,
    stop: Arc<AtomicBool>,
}

/// The results of a load.
pub(crate) struct Results {
    /// Updates that were due.
    pub offered: u64,
    /// Updates that were acknowledged.
    pub acknowledged: u64,
    /// The first failure.
    pub first_failure: Option<String>,
    /// The time from when each update was due until its response, in microseconds.
    pub latencies: Histogram<u64>,
}

impl Offered {
    /// Starts the load in a thread.
    pub(crate) fn start(offer: Offer) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|why| why.to_string())?;
            runtime
                .block_on(run(offer, &stopped))
                .map_err(|why| why.to_string())
        });
        Self { thread, stop }
    }

    /// Stops the load and waits for the last responses.
    pub(crate) fn end(self) -> Fallible<Results> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self
            .thread
            .join()
            .map_err(|_| "the thread that offers updates panicked")??)
    }
}

impl Results {
    fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, 100_000_000, 3)
            .expect("bounds that a histogram can have");
        Self {
            offered: 0,
            acknowledged: 0,
            first_failure: None,
            latencies,
        }
    }

    fn record(&mut self, outcome: Result<Duration, String>) {
        match outcome {
            Ok(took) => {
                self.acknowledged += 1;
                self.latencies
                    .saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
            }
            Err(why) => drop(self.first_failure.get_or_insert(why)),
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of updates"
)]
async fn run(offer: Offer, stop: &AtomicBool) -> Fallible<Results> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Method::connect(&offer.address, UPDATE, &offer.key).await?);
    }
    let mut random = Random(u64::from(std::process::id()));
    let (mut all, mut waiting) = (Results::new(), JoinSet::new());
    let mut ticks = interval(TICK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let begin = Instant::now();
    let mut clients = clients.iter().cycle();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        while let Some(outcome) = waiting.try_join_next() {
            all.record(outcome?);
        }
        let due = Instant::now();
        let offered = (due.duration_since(begin).as_secs_f64() * offer.per_second) as u64;
        for _ in all.offered..offered {
            all.offered += 1;
            let request = update(random.below(offer.schedules), &offer.times, &mut random);
            match clients.next() {
                Some(client) if waiting.len() < MAX_WAITING => {
                    drop(waiting.spawn(send(client.clone(), request, due)))
                }
                _ => all.record(Err(format!(
                    "{MAX_WAITING} updates already wait for responses"
                ))),
            }
        }
    }
    let last = Instant::now() + RESPONSE_TIMEOUT;
    while let Ok(Some(outcome)) = timeout_at(last, waiting.join_next()).await {
        all.record(outcome?);
    }
    if !waiting.is_empty() {
        all.record(Err(format!(
            "{} updates received no response within {RESPONSE_TIMEOUT:?}",
            waiting.len()
        )));
    }
    Ok(all)
}

async fn send(
    client: Method,
    request: v1::UpdateCanvasScheduleRequest,
    due: Instant,
) -> Result<Duration, String> {
    let response: v1::UpdateCanvasScheduleResponse = client.call(&request).await?;
    checked(&request.schedule_id, 0, &response).map(|_| due.elapsed())
}
