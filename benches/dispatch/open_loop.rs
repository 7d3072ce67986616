//! Updates at a fixed rate, independent of the answers to earlier ones.

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
/// Between two looks at how many are to be offered.
const TICK: Duration = Duration::from_millis(1);
/// So many may wait for their answers; one more is not sent, and counts as not kept.
const WAITING_MOST: usize = 8192;
/// How long the last answers may take.
const ANSWER_MOST: Duration = Duration::from_secs(20);

/// What is offered.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    /// The server, as address and port.
    pub address: String,
    /// A key for updates.
    pub key: String,
    /// How many a second.
    pub per_second: f64,
    /// To so many schedules.
    pub schedules: u64,
    /// The times to send.
    pub times: Times,
}

/// Updates under way.
pub(crate) struct Offered {
    thread: JoinHandle<Result<Kept, String>>,
    stop: Arc<AtomicBool>,
}

/// What became of them.
pub(crate) struct Kept {
    /// Those that were to be sent.
    pub offered: u64,
    /// Those that were acknowledged.
    pub kept: u64,
    /// The first that failed.
    pub first_failure: Option<String>,
    /// From when it was to be sent to its answer, in microseconds.
    pub latencies: Histogram<u64>,
}

impl Offered {
    /// Begins to offer.
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

    /// Offers no more, and waits for the last answers.
    ///
    /// # Errors
    /// The server was not reached at all.
    pub(crate) fn end(self) -> Fallible<Kept> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self
            .thread
            .join()
            .map_err(|_| "the thread that offers updates panicked")??)
    }
}

impl Kept {
    fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, 100_000_000, 3)
            .expect("bounds that a histogram can have");
        Self {
            offered: 0,
            kept: 0,
            first_failure: None,
            latencies,
        }
    }

    fn note(&mut self, answered: Result<Duration, String>) {
        match answered {
            Ok(took) => {
                self.kept += 1;
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
async fn run(offer: Offer, stop: &AtomicBool) -> Fallible<Kept> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Method::connect(&offer.address, UPDATE, &offer.key).await?);
    }
    let mut random = Random(u64::from(std::process::id()));
    let (mut all, mut waiting) = (Kept::new(), JoinSet::new());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let begin = Instant::now();
    let mut clients = clients.iter().cycle();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        while let Some(answered) = waiting.try_join_next() {
            all.note(answered?);
        }
        let due = Instant::now();
        let offered = (due.duration_since(begin).as_secs_f64() * offer.per_second) as u64;
        for _ in all.offered..offered {
            all.offered += 1;
            let request = update(random.below(offer.schedules), &offer.times, &mut random);
            match clients.next() {
                Some(client) if waiting.len() < WAITING_MOST => {
                    drop(waiting.spawn(answer(client.clone(), request, due)))
                }
                _ => all.note(Err(format!(
                    "{WAITING_MOST} updates wait for their answers"
                ))),
            }
        }
    }
    let last = Instant::now() + ANSWER_MOST;
    while let Ok(Some(answered)) = timeout_at(last, waiting.join_next()).await {
        all.note(answered?);
    }
    if !waiting.is_empty() {
        all.note(Err(format!(
            "{} updates waited for an answer for {ANSWER_MOST:?}",
            waiting.len()
        )));
    }
    Ok(all)
}

async fn answer(
    client: Method,
    request: v1::UpdateCanvasScheduleRequest,
    due: Instant,
) -> Result<Duration, String> {
    let answer: v1::UpdateCanvasScheduleResponse = client.call(&request).await?;
    checked(&request.schedule_id, 0, &answer).map(|_| due.elapsed())
}
