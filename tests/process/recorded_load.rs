//! Callers in a closed loop whose calls are recorded: changes of a few schedules that all callers
//! share, reads of them, and schedules of one caller that are due soon, some of them cancelled.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use canvas_scheduler::pb::v1::CanvasScheduleState;
use fastrand::Rng;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::history::every_schedule;
use super::load::{BACK_OFF, now_ms, unique_time};
use super::recorder::{Answer, Recorder};
use super::server::{Access, Client, PATIENCE};

/// A schedule that is due soon is due after at most this time.
const SOON_MS: i64 = 1_500;

/// Running callers.
pub(crate) struct RecordedLoad {
    tasks: JoinSet<()>,
    acknowledged: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
}

/// What one caller needs.
struct Caller {
    recorder: Recorder,
    client: Client,
    shared: Arc<[String]>,
    rng: Rng,
    count: Arc<watch::Sender<u64>>,
}

impl RecordedLoad {
    /// Starts `n` callers, each with its own connection.
    pub(crate) async fn start(
        access: &Access,
        recorder: &Recorder,
        shared: &[String],
        n: usize,
        seed: u64,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (count, acknowledged) = watch::channel(0);
        let (count, shared): (_, Arc<[String]>) = (Arc::new(count), shared.into());
        let mut tasks = JoinSet::new();
        for caller in 0..n {
            let mut caller = Caller {
                recorder: recorder.clone(),
                client: access.connect().await,
                shared: shared.clone(),
                rng: Rng::with_seed(seed.wrapping_add(caller as u64)),
                count: count.clone(),
            };
            let stopped = stopped.clone();
            tasks.spawn(async move {
                while !*stopped.borrow() {
                    caller.step().await;
                }
            });
        }
        Self {
            tasks,
            acknowledged,
            stop,
        }
    }

    /// Waits until `more` further changes are acknowledged. Returns how long that took.
    pub(crate) async fn acknowledged(&mut self, more: u64) -> Duration {
        let began = Instant::now();
        let enough = *self.acknowledged.borrow() + more;
        let waiting = self.acknowledged.wait_for(|count| *count >= enough);
        let came = tokio::time::timeout(PATIENCE * 2, waiting)
            .await
            .is_ok_and(|came| came.is_ok());
        assert!(came, "{more} more changes were not acknowledged in time");
        began.elapsed()
    }

    /// Stops every caller after its current step.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("callers must not panic");
            }
        };
        tokio::time::timeout(PATIENCE * 3, all)
            .await
            .expect("callers must end");
    }
}

impl Caller {
    async fn step(&mut self) {
        let id = self.shared[self.rng.usize(0..self.shared.len())].clone();
        let (recorder, client) = (self.recorder.clone(), &mut self.client);
        let named = |time_ms: i64| format!("request-{time_ms}");
        let answer = match self.rng.u8(0..100) {
            0..35 => recorder.update(client, &id, "").await,
            35..50 => {
                let time_ms = unique_time();
                recorder
                    .update_to(client, &id, time_ms, &named(time_ms))
                    .await
            }
            50..60 => recorder.batch(client, &[id]).await.remove(0),
            60..80 => recorder.get(client, &id).await,
            80..85 => recorder.create(client, unique_time(), "").await,
            85..90 => {
                let time_ms = unique_time();
                recorder.create(client, time_ms, &named(time_ms)).await
            }
            _ => return self.due_soon().await,
        };
        self.note(&answer).await;
    }

    /// Creates a schedule that is due soon, and cancels every second one at some time.
    async fn due_soon(&mut self) {
        let time_ms = soon(&mut self.rng);
        let recorder = self.recorder.clone();
        let request_id = if self.rng.bool() {
            format!("due-{time_ms}")
        } else {
            String::new()
        };
        let (answer, id) = recorder
            .create_with_id(&mut self.client, time_ms, &request_id)
            .await;
        self.note(&answer).await;
        let Some(id) = id else { return };
        if self.rng.bool() {
            let pause = self.rng.u64(0..SOON_MS as u64 / 2);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let request_id = if self.rng.bool() {
                format!("cancel-{time_ms}")
            } else {
                String::new()
            };
            let answer = recorder.cancel(&mut self.client, &id, &request_id).await;
            self.note(&answer).await;
            let answer = recorder.get(&mut self.client, &id).await;
            self.note(&answer).await;
        }
    }

    /// Counts an acknowledged change, and pauses after a failed call.
    async fn note(&self, answer: &Answer) {
        match answer {
            Answer::Done { .. } => self.count.send_modify(|count| *count += 1),
            Answer::Refused(_) | Answer::Unknown(_) => tokio::time::sleep(BACK_OFF).await,
            _ => {}
        }
    }
}

/// A time within [`SOON_MS`] that no other call asks for.
fn soon(rng: &mut Rng) -> i64 {
    static TAKEN: Mutex<BTreeSet<i64>> = Mutex::new(BTreeSet::new());
    let mut taken = TAKEN.lock().unwrap();
    loop {
        let time_ms = now_ms() + rng.i64(0..SOON_MS);
        if taken.insert(time_ms) {
            return time_ms;
        }
    }
}

/// Waits until every schedule that is due was sent and settled.
pub(crate) async fn quiet(client: &mut Client) {
    let began = Instant::now();
    loop {
        let now = now_ms();
        let waiting: Vec<String> = every_schedule(client)
            .await
            .into_iter()
            .filter(|one| match one.state() {
                CanvasScheduleState::Dispatching => true,
                CanvasScheduleState::Pending => one
                    .next_wave_time
                    .is_some_and(|at| at.seconds * 1000 < now + SOON_MS),
                _ => false,
            })
            .map(|one| one.schedule_id)
            .collect();
        if waiting.is_empty() {
            return;
        }
        assert!(
            began.elapsed() < PATIENCE * 2,
            "not sent and settled: {waiting:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
