//! Callers in a closed loop. Each call asks for a unique time, so that it can be found in the
//! history.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use canvas_scheduler::pb::v1;
use chrono::DateTime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::server::{Client, PATIENCE};

/// The bound of calls of one caller.
const MAX_CALLS: usize = 200_000;
/// The pause after a refused call, without which a caller would call a dead server in a tight loop.
pub(crate) const BACK_OFF: Duration = Duration::from_millis(10);
/// How often a call with a request id is repeated until its outcome is known.
const MAX_REPEATS: usize = 500;

/// One call and how it ended.
#[derive(Debug)]
pub(crate) struct Call {
    /// The unique time that it asked for, in milliseconds.
    pub time_ms: i64,
    /// The schedule and revision of the answer, or the error.
    pub end: Result<(String, i64), Status>,
    /// How often it was repeated under its request id.
    pub repeats: usize,
}

impl Call {
    /// Whether the answer means that nothing was written.
    pub(crate) fn certainly_not_done(&self) -> bool {
        self.end.as_ref().is_err_and(refuses) || self.was_never_started()
    }

    /// Whether a GOAWAY arrived before the client's library sent the call, or the GOAWAY stated that
    /// the server had not started it. Other libraries repeat such a call; this one returns
    /// CANCELLED or INTERNAL.
    pub(crate) fn was_never_started(&self) -> bool {
        let Err(status) = &self.end else { return false };
        let mut cause = std::error::Error::source(status);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<hyper::Error>() {
                return error.is_canceled()
                    || format!("{error:?}").contains("GoAway(b\"\", NO_ERROR, Remote)");
            }
            cause = error.source();
        }
        false
    }

    /// Whether it succeeded, or failed with an error that is documented for a lost database or
    /// server.
    pub(crate) fn is_documented(&self) -> bool {
        self.end
            .as_ref()
            .err()
            .is_none_or(|status| match status.code() {
                Code::Unavailable => true,
                Code::Unknown => reason(status) == "OUTCOME_UNKNOWN",
                _ => false,
            })
    }
}

/// A cancellation and how it ended.
#[derive(Debug)]
pub(crate) struct Cancellation {
    /// The schedule.
    pub schedule_id: String,
    /// Whom it reached and its revision, or the error.
    pub end: Result<(v1::Applied, i64), Status>,
}

impl Cancellation {
    /// Whether the answer means that nothing was written.
    pub(crate) fn certainly_not_done(&self) -> bool {
        self.end.as_ref().is_err_and(refuses)
    }
}

/// Whether an error means that nothing was written.
fn refuses(status: &Status) -> bool {
    ["STORE_UNAVAILABLE", "BUSY", "INTERNAL"].contains(&reason(status).as_str())
}

/// The reason in the details of a status, or an empty string.
pub(crate) fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

/// The mix of calls.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mix {
    /// One call in this many is a creation; 0 for none.
    pub create_every: usize,
    /// One call in this many has a request id, and is repeated until its outcome is known; 0 for
    /// none.
    pub request_id_every: usize,
    /// Whether a caller stops at its first failed call.
    pub until_refused: bool,
}

/// A unique time, at least a day ahead.
pub(crate) fn unique_time() -> i64 {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    let tomorrow = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        + Duration::from_secs(24 * 60 * 60);
    let _first = NEXT.compare_exchange(
        0,
        i64::try_from(tomorrow.as_millis()).unwrap(),
        Ordering::Relaxed,
        Ordering::Relaxed,
    );
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The machine's time, in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    i64::try_from(
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_millis(),
    )
    .unwrap()
}

/// A schedule for an instant.
pub(crate) fn schedule_at(time_ms: i64) -> Option<v1::Schedule> {
    let time = DateTime::from_timestamp_millis(time_ms)
        .unwrap()
        .to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    Some(v1::Schedule {
        time,
        ..v1::Schedule::default()
    })
}

/// The instant of a schedule.
pub(crate) fn millis(schedule: Option<&v1::Schedule>) -> i64 {
    DateTime::parse_from_rfc3339(&schedule.expect("a schedule").time)
        .expect("a time")
        .timestamp_millis()
}

/// Creates a schedule.
pub(crate) async fn create(
    client: &mut Client,
    time_ms: i64,
    request_id: String,
) -> Result<(String, i64), Status> {
    let request = v1::CreateCanvasScheduleRequest {
        canvas_id: "canvas".to_owned(),
        schedule: schedule_at(time_ms),
        broadcast: true,
        request_id,
        ..Default::default()
    };
    let answer = client.create_canvas_schedule(request).await?.into_inner();
    Ok(answered(answer.canvas_schedule, time_ms))
}

/// Updates a schedule.
pub(crate) async fn update(
    client: &mut Client,
    schedule_id: &str,
    time_ms: i64,
    request_id: String,
) -> Result<(String, i64), Status> {
    let request = v1::UpdateCanvasScheduleRequest {
        canvas_id: "canvas".to_owned(),
        schedule_id: schedule_id.to_owned(),
        schedule: schedule_at(time_ms),
        request_id,
        ..Default::default()
    };
    let answer = client.update_canvas_schedule(request).await?.into_inner();
    let (told_id, revision) = answered(answer.canvas_schedule, time_ms);
    assert_eq!(
        told_id, schedule_id,
        "the answer must be about the requested schedule"
    );
    Ok((told_id, revision))
}

/// Cancels a schedule.
pub(crate) async fn cancel(client: &mut Client, schedule_id: &str) -> Cancellation {
    let request = v1::CancelCanvasScheduleRequest {
        canvas_id: "canvas".to_owned(),
        schedule_id: schedule_id.to_owned(),
        ..Default::default()
    };
    let answer = client.cancel_canvas_schedule(request).await;
    Cancellation {
        schedule_id: schedule_id.to_owned(),
        end: answer.map(|answer| {
            let answer = answer.into_inner();
            let revision = answer
                .canvas_schedule
                .as_ref()
                .expect("a schedule")
                .revision;
            (answer.applied(), revision)
        }),
    }
}

/// The id and revision of an answer, which must have the requested time.
fn answered(schedule: Option<v1::CanvasSchedule>, time_ms: i64) -> (String, i64) {
    let schedule = schedule.expect("a schedule in the answer");
    assert_eq!(
        millis(schedule.schedule.as_ref()),
        time_ms,
        "the answer must have the requested time"
    );
    (schedule.schedule_id, schedule.revision)
}

/// Repeats a call after the delay in each refusal, while the database cannot be reached. A refused
/// call changed nothing.
pub(crate) async fn when_available<T>(
    mut call: impl AsyncFnMut() -> Result<T, Status>,
) -> Result<T, Status> {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        let end = call().await;
        let Err(status) = &end else { return end };
        if reason(status) != "STORE_UNAVAILABLE" || Instant::now() > give_up_at {
            return end;
        }
        tokio::time::sleep(
            status
                .get_details_retry_info()
                .and_then(|info| info.retry_delay)
                .expect("a retry delay"),
        )
        .await;
    }
}

/// Creates `n` schedules.
pub(crate) async fn schedules(client: &mut Client, n: usize) -> (Vec<String>, Vec<Call>) {
    let mut calls = Vec::new();
    for _ in 0..n {
        let time_ms = unique_time();
        calls.push(Call {
            time_ms,
            end: create(client, time_ms, String::new()).await,
            repeats: 0,
        });
    }
    (
        calls
            .iter()
            .map(|call| call.end.as_ref().expect("created").0.clone())
            .collect(),
        calls,
    )
}

/// Running callers.
pub(crate) struct Callers {
    tasks: JoinSet<Vec<Call>>,
    acknowledged: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
}

impl Callers {
    /// Starts `n` callers over these connections.
    pub(crate) fn start(clients: &[Client], schedules: &[String], n: usize, mix: Mix) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (count, acknowledged) = watch::channel(0);
        let (count, schedules): (_, Arc<[String]>) = (Arc::new(count), schedules.into());
        let mut tasks = JoinSet::new();
        for caller in 0..n {
            let client = clients[caller % clients.len()].clone();
            tasks.spawn(work(
                caller,
                client,
                schedules.clone(),
                mix,
                count.clone(),
                stopped.clone(),
            ));
        }
        Self {
            tasks,
            acknowledged,
            stop,
        }
    }

    /// Waits until `more` further calls are acknowledged.
    pub(crate) async fn acknowledged(&mut self, more: u64) {
        let enough = *self.acknowledged.borrow() + more;
        let waiting = self.acknowledged.wait_for(|count| *count >= enough);
        let came = tokio::time::timeout(PATIENCE * 2, waiting)
            .await
            .is_ok_and(|came| came.is_ok());
        assert!(came, "{more} more calls were not acknowledged in time");
    }

    /// Stops every caller and returns their calls.
    pub(crate) async fn stop(self) -> Vec<Call> {
        self.stop.send_replace(true);
        self.ended().await
    }

    /// Waits until every caller has ended, and returns their calls.
    pub(crate) async fn ended(mut self) -> Vec<Call> {
        let mut calls = Vec::new();
        let all = async {
            while let Some(done) = self.tasks.join_next().await {
                calls.extend(done.expect("callers must not panic"));
            }
        };
        tokio::time::timeout(PATIENCE * 2, all)
            .await
            .expect("callers must end");
        calls
    }
}

async fn work(
    caller: usize,
    mut client: Client,
    schedules: Arc<[String]>,
    mix: Mix,
    acknowledged: Arc<watch::Sender<u64>>,
    stopped: watch::Receiver<bool>,
) -> Vec<Call> {
    let mut calls = Vec::new();
    let every = |n: usize, of: usize| of > 0 && n % of == of - 1;
    for n in 0..MAX_CALLS {
        if *stopped.borrow() {
            break;
        }
        let creates = every(n, mix.create_every);
        let schedule_id = (!creates).then(|| schedules[(caller + n) % schedules.len()].as_str());
        let call = one(&mut client, schedule_id, every(n, mix.request_id_every)).await;
        let well = call.end.is_ok();
        calls.push(call);
        if well {
            acknowledged.send_modify(|count| *count += 1);
        } else if mix.until_refused {
            break;
        } else {
            tokio::time::sleep(BACK_OFF).await;
        }
    }
    calls
}

/// Makes one call. With a request id it repeats the call until its outcome is known.
pub(crate) async fn one(client: &mut Client, schedule_id: Option<&str>, named: bool) -> Call {
    let time_ms = unique_time();
    let request_id = if named {
        format!("request-{time_ms}")
    } else {
        String::new()
    };
    for repeats in 0.. {
        let end = match schedule_id {
            Some(id) => update(client, id, time_ms, request_id.clone()).await,
            None => create(client, time_ms, request_id.clone()).await,
        };
        let call = Call {
            time_ms,
            end,
            repeats,
        };
        if !named || call.end.is_ok() || !call.is_documented() || repeats == MAX_REPEATS {
            return call;
        }
        tokio::time::sleep(BACK_OFF).await;
    }
    unreachable!("the loop returns on its last repeat")
}
