//! Records calls with their beginning, end and answer, and checks them against the history that the
//! service keeps and against what the consumer received.
//!
//! The check of linearizability is exact. The history orders the changes of a schedule: revision
//! `k` is one change, which its unique time identifies. So the order of a schedule's operations is
//! known up to reads of the same revision: change 1, reads of revision 1, change 2, and so on. Such
//! an order agrees with the clock unless an operation ended before another one began that precedes
//! it in that order: a cycle needs at least one such pair, because within one revision only the
//! clock orders reads. [`Verdict::linearize`] searches for such a pair. A change of unknown outcome
//! that is in the history has no end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use canvas_scheduler::pb::v1;
use canvas_scheduler::pb::v1::batch_update_canvas_schedules_result::Result as Entry;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::consumer::Received;
use super::delivery::in_utc;
use super::history::{every_schedule, revisions_of};
use super::load::{millis, now_ms, reason, schedule_at, unique_time};
use super::server::{Client, PATIENCE};

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Cancel,
    Get,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The change was acknowledged with this revision.
    Done {
        revision: i64,
        /// Whether it applied to every zone.
        all: bool,
    },
    /// A read returned this state.
    Read {
        revision: i64,
        time_ms: i64,
        cancelled: bool,
    },
    /// The schedule does not exist.
    NotFound,
    /// The schedule was cancelled before.
    Cancelled,
    /// Every zone was handed over before.
    HandedOver,
    /// The service did certainly nothing, for this reason.
    Refused(String),
    /// The call may or may not have had an effect.
    Unknown(String),
    /// An answer that the documentation does not mention for a lost database.
    Undocumented(String),
}

/// A call, with its repetitions under one request id.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub operation: Operation,
    /// Empty for a creation that was not acknowledged.
    pub schedule_id: String,
    /// The unique time that a creation or an update asks for.
    pub time_ms: i64,
    /// Empty for a call without one.
    pub request_id: String,
    pub began: Instant,
    pub ended: Instant,
    pub repeats: usize,
    pub answer: Answer,
}

/// Makes and records calls. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    records: Arc<Mutex<Vec<Record>>>,
    origin: (Instant, SystemTime),
}

/// What the service and the consumer have, compared with the records.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Acknowledged changes, all of which were found.
    pub acknowledged: usize,
    /// Changes that were certainly refused.
    pub refused: usize,
    /// Changes of unknown outcome that are in the history.
    pub unknown_done: usize,
    /// Changes of unknown outcome that are not in the history.
    pub unknown_not_done: usize,
    /// Changes that were repeated under their request id.
    pub repeated: usize,
    /// Reads whose state was compared with the history.
    pub reads: usize,
    /// Schedules whose calls were checked for linearizability.
    pub schedules: usize,
    /// Schedules that the consumer received.
    pub delivered: usize,
    /// What is wrong.
    pub violations: Vec<String>,
}

/// An operation: its rank in the order of its schedule, its beginning, and its end if it is known.
type Ranked<'a> = (i64, Instant, Option<Instant>, &'a Record);
/// The revisions of a schedule: kind and time, the oldest first.
type Revisions = Vec<(v1::RevisionKind, i64)>;

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            records: Arc::default(),
            origin: (Instant::now(), SystemTime::now()),
        }
    }

    /// The records so far.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Creates a schedule at this time.
    pub(crate) async fn create(
        &self,
        client: &mut Client,
        time_ms: i64,
        request_id: &str,
    ) -> Answer {
        self.create_with_id(client, time_ms, request_id).await.0
    }

    /// Creates a schedule at this time. Returns its id too if the call was acknowledged.
    pub(crate) async fn create_with_id(
        &self,
        client: &mut Client,
        time_ms: i64,
        request_id: &str,
    ) -> (Answer, Option<String>) {
        let request = v1::CreateCanvasScheduleRequest {
            canvas_id: "canvas".to_owned(),
            schedule: schedule_at(time_ms),
            recipients: vec![in_utc()],
            request_id: request_id.to_owned(),
            ..Default::default()
        };
        let call = || {
            let (mut client, request) = (client.clone(), request.clone());
            async move {
                let answer = client.create_canvas_schedule(request).await?;
                let schedule = answer.into_inner().canvas_schedule.expect("a schedule");
                let answer = done(schedule.revision, v1::Applied::All);
                Ok((schedule.schedule_id, answer))
            }
        };
        let (answer, id) = self
            .change(Operation::Create, "", time_ms, request_id, call)
            .await;
        let made = matches!(answer, Answer::Done { .. });
        (answer, made.then_some(id))
    }

    /// Updates a schedule to a unique time.
    pub(crate) async fn update(&self, client: &mut Client, id: &str, request_id: &str) -> Answer {
        self.update_to(client, id, unique_time(), request_id).await
    }

    /// Updates a schedule to this time.
    pub(crate) async fn update_to(
        &self,
        client: &mut Client,
        id: &str,
        time_ms: i64,
        request_id: &str,
    ) -> Answer {
        let request = update_request(id, time_ms, request_id);
        let call = || {
            let (mut client, request) = (client.clone(), request.clone());
            async move {
                let answer = client.update_canvas_schedule(request).await?.into_inner();
                Ok((id.to_owned(), updated(&answer)))
            }
        };
        self.change(Operation::Update, id, time_ms, request_id, call)
            .await
            .0
    }

    /// Cancels a schedule.
    pub(crate) async fn cancel(&self, client: &mut Client, id: &str, request_id: &str) -> Answer {
        let request = v1::CancelCanvasScheduleRequest {
            canvas_id: "canvas".to_owned(),
            schedule_id: id.to_owned(),
            request_id: request_id.to_owned(),
            ..Default::default()
        };
        let call = || {
            let (mut client, request) = (client.clone(), request.clone());
            async move {
                let answer = client.cancel_canvas_schedule(request).await?.into_inner();
                let schedule = answer.canvas_schedule.as_ref().expect("a schedule");
                Ok((id.to_owned(), done(schedule.revision, answer.applied())))
            }
        };
        self.change(Operation::Cancel, id, 0, request_id, call)
            .await
            .0
    }

    /// Updates these schedules in one batch, to unique times.
    pub(crate) async fn batch(&self, client: &mut Client, ids: &[String]) -> Vec<Answer> {
        let times: Vec<i64> = ids.iter().map(|_| unique_time()).collect();
        let requests = ids
            .iter()
            .zip(&times)
            .map(|(id, time_ms)| update_request(id, *time_ms, ""))
            .collect();
        let began = Instant::now();
        let answer = client
            .batch_update_canvas_schedules(v1::BatchUpdateCanvasSchedulesRequest { requests })
            .await;
        let answers: Vec<Answer> = match answer {
            Ok(answer) => {
                let results = answer.into_inner().results.into_iter();
                let entry = |result: v1::BatchUpdateCanvasSchedulesResult| match result
                    .result
                    .expect("a result")
                {
                    Entry::Response(response) => updated(&response),
                    Entry::Error(error) => {
                        use prost::Message;
                        let status = tonic_types::pb::Status {
                            code: error.code,
                            message: error.message.clone(),
                            details: error.details,
                        };
                        let code = Code::from(error.code);
                        let details = status.encode_to_vec().into();
                        classify(&Status::with_details(code, error.message, details))
                    }
                };
                results.map(entry).collect()
            }
            Err(status) => ids.iter().map(|_| classify(&status)).collect(),
        };
        for ((id, time_ms), answer) in ids.iter().zip(times).zip(&answers) {
            self.push(Record {
                operation: Operation::Update,
                schedule_id: id.clone(),
                time_ms,
                request_id: String::new(),
                began,
                ended: Instant::now(),
                repeats: 0,
                answer: answer.clone(),
            });
        }
        answers
    }

    /// Reads a schedule. A read that fails is recorded too.
    pub(crate) async fn get(&self, client: &mut Client, id: &str) -> Answer {
        let request = v1::GetCanvasScheduleRequest {
            schedule_id: id.to_owned(),
        };
        let began = Instant::now();
        let answer = match client.get_canvas_schedule(request).await {
            Ok(answer) => {
                let schedule = answer.into_inner().canvas_schedule.expect("a schedule");
                Answer::Read {
                    revision: schedule.revision,
                    time_ms: millis(schedule.schedule.as_ref()),
                    cancelled: schedule.state() == v1::CanvasScheduleState::Cancelled,
                }
            }
            Err(status) => classify(&status),
        };
        self.push(Record {
            operation: Operation::Get,
            schedule_id: id.to_owned(),
            time_ms: 0,
            request_id: String::new(),
            began,
            ended: Instant::now(),
            repeats: 0,
            answer: answer.clone(),
        });
        answer
    }

    /// Makes a change. With a request id it repeats the call until its outcome is known. Returns
    /// the schedule's id too.
    async fn change<F>(
        &self,
        operation: Operation,
        schedule_id: &str,
        time_ms: i64,
        request_id: &str,
        mut call: impl FnMut() -> F,
    ) -> (Answer, String)
    where
        F: Future<Output = Result<(String, Answer), Status>>,
    {
        let began = Instant::now();
        let (mut repeats, mut in_doubt) = (0, None);
        let (id, answer) = loop {
            let (id, answer) = match call().await {
                Ok((id, answer)) => (id, answer),
                Err(status) => (schedule_id.to_owned(), classify(&status)),
            };
            let known = !matches!(answer, Answer::Unknown(_) | Answer::Refused(_));
            if request_id.is_empty() || known || began.elapsed() > PATIENCE {
                break (id, answer);
            }
            if matches!(answer, Answer::Unknown(_)) {
                in_doubt = Some(answer);
            }
            repeats += 1;
            tokio::time::sleep(super::load::BACK_OFF).await;
        };
        // A refusal says nothing about the attempts before it.
        let answer = match (answer, in_doubt) {
            (Answer::Refused(_), Some(in_doubt)) => in_doubt,
            (answer, _) => answer,
        };
        self.push(Record {
            operation,
            schedule_id: id.clone(),
            time_ms,
            request_id: request_id.to_owned(),
            began,
            ended: Instant::now(),
            repeats,
            answer: answer.clone(),
        });
        (answer, id)
    }

    fn push(&self, record: Record) {
        self.records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(record);
    }

    /// Repeats every acknowledged change that has a request id and follows the first `skip`
    /// records, and returns those whose answer differs now.
    pub(crate) async fn replay(&self, client: &mut Client, skip: usize) -> Vec<String> {
        let mut differing = Vec::new();
        for record in self.records().into_iter().skip(skip) {
            let Answer::Done { .. } = record.answer else {
                continue;
            };
            if record.request_id.is_empty() {
                continue;
            }
            let own = Self::new();
            let (id, request_id) = (record.schedule_id.as_str(), record.request_id.as_str());
            let answer = match record.operation {
                Operation::Create => own.create(client, record.time_ms, request_id).await,
                Operation::Update => own.update_to(client, id, record.time_ms, request_id).await,
                Operation::Cancel => own.cancel(client, id, request_id).await,
                Operation::Get => continue,
            };
            let replayed = own.records().remove(0);
            if answer != record.answer || replayed.schedule_id != record.schedule_id {
                differing.push(format!("{record:?} was answered again by {replayed:?}"));
            }
        }
        differing
    }

    /// Reads all schedules with their revisions, and compares them with the records and with what
    /// the consumer received.
    pub(crate) async fn check(&self, client: &mut Client, came: &[Received]) -> Verdict {
        let mut stored = BTreeMap::new();
        for schedule in every_schedule(client).await {
            let revisions: Revisions = revisions_of(client, &schedule.schedule_id)
                .await
                .iter()
                .map(|one| (one.kind(), millis(one.schedule.as_ref())))
                .collect();
            stored.insert(schedule.schedule_id.clone(), revisions);
        }
        let records = self.records();
        let mut verdict = Verdict::default();
        verdict.changes(&records, &stored);
        verdict.linearize(&records, &stored);
        self.deliveries(&mut verdict, &records, &stored, came);
        verdict
    }

    /// Each schedule has one zone, and so one wave: once it is due it arrives, under one id, and
    /// not at all after a cancellation that applied to every zone; no change is accepted after its
    /// arrival.
    fn deliveries(
        &self,
        verdict: &mut Verdict,
        records: &[Record],
        stored: &BTreeMap<String, Revisions>,
        came: &[Received],
    ) {
        let mut arrivals: BTreeMap<&str, Vec<&Received>> = BTreeMap::new();
        for one in came {
            arrivals.entry(&one.schedule_id).or_default().push(one);
        }
        verdict.delivered = arrivals.len();
        for (id, all) in &arrivals {
            if !stored.contains_key(*id) {
                verdict.violation(format!("{id} was delivered and does not exist"));
            }
            let ids: BTreeSet<&str> = all.iter().map(|one| one.dispatch_id.as_str()).collect();
            if ids.len() > 1 {
                verdict.violation(format!("{id} was delivered under several ids: {ids:?}"));
            }
        }
        for (id, revisions) in stored {
            let newest = revisions.last().expect("a revision");
            let due = newest.0 != v1::RevisionKind::Cancel && newest.1 < now_ms();
            if due && !arrivals.contains_key(id.as_str()) {
                verdict.violation(format!("{id} was due and not delivered"));
            }
        }
        for record in records {
            let (Some(arrived), Answer::Done { all: true, .. }) =
                (arrivals.get(record.schedule_id.as_str()), &record.answer)
            else {
                continue;
            };
            let since_origin = arrived[0]
                .at
                .duration_since(self.origin.1)
                .unwrap_or_default();
            let changes_after = record.operation != Operation::Create
                && record.began > self.origin.0 + since_origin;
            if record.operation == Operation::Cancel || changes_after {
                verdict.violation(format!("{record:?} and {:?}", arrived[0]));
            }
        }
    }
}

fn update_request(id: &str, time_ms: i64, request_id: &str) -> v1::UpdateCanvasScheduleRequest {
    v1::UpdateCanvasScheduleRequest {
        canvas_id: "canvas".to_owned(),
        schedule_id: id.to_owned(),
        schedule: schedule_at(time_ms),
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}

fn updated(answer: &v1::UpdateCanvasScheduleResponse) -> Answer {
    let schedule = answer.canvas_schedule.as_ref().expect("a schedule");
    done(schedule.revision, answer.applied())
}

fn done(revision: i64, applied: v1::Applied) -> Answer {
    Answer::Done {
        revision,
        all: applied == v1::Applied::All,
    }
}

/// What an error says about the call.
fn classify(status: &Status) -> Answer {
    let reason = reason(status);
    let text = || format!("{:?} {reason} {}", status.code(), status.message());
    // An error of the client's library: the service ended, or its port is closed.
    let local = std::error::Error::source(status).is_some();
    match (status.code(), reason.as_str()) {
        (Code::Unavailable, "STORE_UNAVAILABLE" | "BUSY" | "OVERLOADED") => Answer::Refused(text()),
        (Code::Unavailable, "DRAINING") if status.get_details_retry_info().is_some() => {
            Answer::Refused(text())
        }
        (Code::Unavailable, "DRAINING") | (Code::Unknown, "OUTCOME_UNKNOWN") => {
            Answer::Unknown(text())
        }
        (Code::NotFound, "SCHEDULE_NOT_FOUND") => Answer::NotFound,
        (Code::FailedPrecondition, "SCHEDULE_CANCELLED") => Answer::Cancelled,
        (Code::FailedPrecondition, "NOTHING_LEFT_TO_CHANGE") => Answer::HandedOver,
        (_, "") if local => Answer::Unknown(text()),
        _ => Answer::Undocumented(text()),
    }
}

impl Verdict {
    fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    /// Panics if anything is wrong.
    pub(crate) fn assert_clean(&self) {
        let some = &self.violations[..self.violations.len().min(10)];
        assert!(
            self.violations.is_empty(),
            "{} violations: {some:#?}",
            self.violations.len()
        );
    }

    /// Each acknowledged change is in the history once and as answered, no refused one is there,
    /// and there are no others.
    fn changes(&mut self, records: &[Record], stored: &BTreeMap<String, Revisions>) {
        let mut found: HashMap<i64, (&str, i64)> = HashMap::new();
        let mut cancelled: HashMap<&str, i64> = HashMap::new();
        for (id, revisions) in stored {
            for ((kind, time_ms), revision) in revisions.iter().zip(1_i64..) {
                let twice = if *kind == v1::RevisionKind::Cancel {
                    cancelled.insert(id, revision).is_some()
                } else {
                    found.insert(*time_ms, (id, revision)).is_some()
                };
                if twice {
                    self.violation(format!("{id}: revision {revision} repeats a change"));
                }
            }
        }
        let mut unexplained: BTreeSet<i64> = found.keys().copied().collect();
        let mut unexplained_cancels: BTreeSet<&str> = cancelled.keys().copied().collect();
        for record in records {
            let id = record.schedule_id.as_str();
            let is_cancel = record.operation == Operation::Cancel;
            let there = match record.operation {
                Operation::Get => continue,
                Operation::Cancel => cancelled.get(id).map(|revision| (id, *revision)),
                _ => found.get(&record.time_ms).copied(),
            };
            self.repeated += usize::from(record.repeats > 0);
            let explains = match &record.answer {
                Answer::Done { revision, .. } => {
                    self.acknowledged += 1;
                    if there != Some((id, *revision)) {
                        self.violation(format!("lost: {record:?}; stored: {there:?}"));
                    }
                    true
                }
                Answer::Unknown(_) => {
                    self.unknown_done += usize::from(there.is_some());
                    self.unknown_not_done += usize::from(there.is_none());
                    true
                }
                _ => {
                    self.refused += 1;
                    // Another call may have cancelled the schedule.
                    if there.is_some() && !is_cancel {
                        self.violation(format!("done although refused: {record:?}, {there:?}"));
                    }
                    false
                }
            };
            if let Answer::Undocumented(text) = &record.answer {
                self.violation(format!("undocumented: {text}"));
            }
            if explains && is_cancel {
                unexplained_cancels.remove(id);
            } else if explains {
                unexplained.remove(&record.time_ms);
            }
        }
        for time_ms in unexplained {
            self.violation(format!("no call asked for {:?}", found[&time_ms]));
        }
        for id in unexplained_cancels {
            self.violation(format!(
                "no call that may have had an effect cancelled {id}"
            ));
        }
    }

    /// Searches for operations whose order by revision contradicts the clock.
    fn linearize(&mut self, records: &[Record], stored: &BTreeMap<String, Revisions>) {
        let mut ranked: BTreeMap<&str, Vec<Ranked<'_>>> = BTreeMap::new();
        let created: HashMap<i64, &str> = stored
            .iter()
            .filter_map(|(id, revisions)| Some((revisions.first()?.1, id.as_str())))
            .collect();
        for record in records {
            let id = match record.operation {
                Operation::Create => created.get(&record.time_ms).copied().unwrap_or_default(),
                _ => record.schedule_id.as_str(),
            };
            let Some(revisions) = stored.get(id) else {
                if matches!(record.answer, Answer::Read { .. }) {
                    self.violation(format!("read, and it does not exist: {record:?}"));
                }
                continue;
            };
            match rank(record, revisions) {
                Ok(Some((rank, ends))) => ranked.entry(id).or_default().push((
                    rank,
                    record.began,
                    ends.then_some(record.ended),
                    record,
                )),
                Ok(None) => {}
                Err(why) => self.violation(why),
            }
            self.reads += usize::from(matches!(record.answer, Answer::Read { .. }));
        }
        self.schedules = ranked.len();
        for operations in ranked.values_mut() {
            operations.sort_by_key(|(rank, began, ..)| (*rank, *began));
            // The operation of a lower rank that began last.
            let mut last: Option<(Instant, &Record)> = None;
            for of_rank in operations.chunk_by(|one, other| one.0 == other.0) {
                for (_, _, ended, record) in of_rank {
                    if let (Some((began, earlier)), Some(ended)) = (last, ended)
                        && *ended < began
                    {
                        self.violation(format!(
                            "{record:?} ended before {earlier:?} began, which precedes it"
                        ));
                    }
                }
                let latest = of_rank
                    .iter()
                    .map(|one| (one.1, one.3))
                    .max_by_key(|one| one.0);
                last = last.into_iter().chain(latest).max_by_key(|one| one.0);
            }
        }
    }
}

/// The place of an operation in the order of its schedule, and whether its end bounds it; `None` if
/// it says nothing about the order.
fn rank(record: &Record, revisions: &Revisions) -> Result<Option<(i64, bool)>, String> {
    let change = |revision: i64| Some((2 * revision, true));
    let at_time = |time_ms: i64| {
        let same = |one: &(v1::RevisionKind, i64)| one.1 == time_ms;
        revisions.iter().position(same).map(|at| at as i64 + 1)
    };
    let cancelled = revisions
        .iter()
        .position(|(kind, _)| *kind == v1::RevisionKind::Cancel)
        .map(|at| at as i64 + 1);
    Ok(match &record.answer {
        Answer::Done { revision, .. } => change(*revision),
        // Only one call cancels a schedule, so that an unknown outcome is its own.
        Answer::Unknown(_) => match record.operation {
            Operation::Get => None,
            Operation::Cancel => cancelled.map(|revision| (2 * revision, false)),
            _ => at_time(record.time_ms).map(|revision| (2 * revision, false)),
        },
        Answer::Read {
            revision,
            time_ms,
            cancelled,
        } => {
            let stored = usize::try_from(revision - 1)
                .ok()
                .and_then(|at| revisions.get(at));
            let expected = (*time_ms, *cancelled);
            if stored.map(|(kind, time)| (*time, *kind == v1::RevisionKind::Cancel))
                != Some(expected)
            {
                return Err(format!("read another state than {stored:?}: {record:?}"));
            }
            Some((2 * revision + 1, true))
        }
        Answer::NotFound => Some((0, true)),
        Answer::Cancelled => match cancelled {
            Some(revision) => Some((2 * revision + 1, true)),
            None => return Err(format!("the schedule is not cancelled: {record:?}")),
        },
        Answer::HandedOver | Answer::Refused(_) | Answer::Undocumented(_) => None,
    })
}
