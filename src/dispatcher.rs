//! The loop that sends: takes what is due, as much as workers are free, hands it to the sink, and writes what became of it.
//! `run()` is the loop around `run_once()`; no transaction is open while a sink is called.

mod hands;
mod settings;
mod upkeep;

use std::pin::pin;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock::{SharedClock, jitter, sleep_until};
use crate::domain::{Answer, DispatchMessage};
use crate::error::Error;
use crate::error::panic::caught;
use crate::service::{AttemptResult, Claimed, Leased, POLL, Service};
use crate::sink::SharedSink;
use crate::telemetry::metrics::DispatchMetrics;
use crate::telemetry::traces::{SpanStart, Traces};
use hands::Hands;
pub use settings::DispatcherSettings;

/// The most that is taken or finished at once. What one commit costs is spread over as many by then.
const BATCH_MOST: usize = 512;
/// From one pass that left nothing behind to the next: what comes due meanwhile goes in one transaction, which costs as much for one
/// as for a few. A wave that comes alone is not held up, since nothing was looked for shortly before.
const PACE: Duration = Duration::from_millis(5);
/// Between two tries while the database is away.
const OUTAGE_PAUSE: Duration = Duration::from_millis(100);

/// After so long it looks anew, whatever the clock says: waits are shorter, unless the clock was set back.
const WAIT_MOST: Duration = Duration::from_secs(1);

/// Fires, delivers and finishes.
pub struct Dispatcher {
    service: Service,
    sink: SharedSink,
    clock: SharedClock,
    hands: Hands,
    sending: DispatchMetrics,
    traces: Traces,
    answers: mpsc::Sender<AttemptResult>,
    deliveries: JoinSet<()>,
    finisher: JoinSet<()>,
    /// The most of the next firing; halved while firing fails, until what makes it fail stands alone.
    fire_most: usize,
    /// Whether the last pass took as many as it might, so that it may have left some behind.
    filled: bool,
    /// Whether the last pass failed, so that an outage is logged once.
    failing: bool,
}

/// What a pass came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// There may be more to do at once.
    More,
    /// No worker is free; or the sink takes nothing, and is tried again at that instant.
    Full(Option<DateTime<Utc>>),
    /// There is nothing to do before this instant, unless it is woken.
    Idle(DateTime<Utc>),
}

impl Dispatcher {
    /// A dispatcher with so many workers: the most dispatches that are in its hands, whatever is due. Call it on the runtime
    /// that is to run it.
    pub fn new(
        service: Service,
        sink: SharedSink,
        clock: SharedClock,
        workers: usize,
        sending: DispatchMetrics,
        traces: Traces,
    ) -> Self {
        let hands = Hands::new(workers, sending.clone());
        let (answers, queue) = mpsc::channel(workers);
        let mut finisher = JoinSet::new();
        finisher.spawn(finish(service.clone(), hands.clone(), queue));
        Self {
            service,
            sink,
            clock,
            hands,
            sending,
            traces,
            answers,
            deliveries: JoinSet::new(),
            finisher,
            fire_most: BATCH_MOST,
            filled: false,
            failing: false,
        }
    }

    /// Runs until `stop`, then finishes what is in flight, until `end` at most. What is not finished by then is tried again by
    /// somebody when its lease has run out.
    pub async fn run(mut self, stop: impl Future<Output = ()>, end: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut upkeep = JoinSet::new();
        upkeep.spawn(upkeep::run(self.service.clone(), self.clock.clone()));
        upkeep.spawn(upkeep::count(
            self.service.clone(),
            self.clock.clone(),
            self.sending.clone(),
        ));
        loop {
            let (now, began) = (self.clock.now(), Instant::now());
            // Never cut off: what it takes it hands on.
            let pass = self.run_once(now).await;
            self.note(&pass);
            let wait = async {
                match pass {
                    Ok(Pass::More) => {}
                    Ok(Pass::Full(None)) => self.hands.freed().await,
                    Ok(Pass::Full(Some(until))) => tokio::select! {
                        () = self.hands.trusted() => {}
                        () = sleep_until(&self.clock, until, WAIT_MOST) => {}
                    },
                    // A ring during the pass is remembered.
                    Ok(Pass::Idle(until)) => tokio::select! {
                        () = self.service.wake().notified() => {}
                        () = sleep_until(&self.clock, until, WAIT_MOST) => {}
                    },
                    Err(_) => tokio::time::sleep(OUTAGE_PAUSE).await,
                }
                if !self.filled {
                    tokio::time::sleep_until(began + PACE).await;
                }
            };
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = wait => {}
            }
        }
        // It holds the service, whose end others wait for.
        upkeep.shutdown().await;
        self.finish_what_is_in_flight(end).await;
    }

    /// One pass at `now`, unless nobody can say how late it is: takes what is due for another attempt and then what is due for the
    /// first time, as many as workers are free, and hands them to the sink.
    ///
    /// # Errors
    /// The service's; what was taken before is handed over.
    pub async fn run_once(&mut self, now: DateTime<Utc>) -> Result<Pass, Error> {
        while self.deliveries.try_join_next().is_some() {}
        self.filled = false;
        if self.clock.unsteady().is_some() {
            return Ok(Pass::Idle(now + poll()));
        }
        let room = self.hands.room(now).min(BATCH_MOST);
        if room == 0 {
            self.filled = true;
            return Ok(Pass::Full(self.hands.quiet_until(now)));
        }
        let next = self.service.next_due().await?;
        let due = |at: Option<DateTime<Utc>>| at.is_some_and(|at| at <= now);
        let mut more = false;
        if due(next.retry) {
            let began = self.traces.now();
            let taken = self.service.retry(room).await?;
            more |= taken.more;
            self.filled |= taken.leased.len() >= room;
            self.deliver(taken.leased, began);
        }
        let room = self.hands.room(now).min(self.fire_most);
        if due(next.wake) && room > 0 {
            let began = self.traces.now();
            let taken = self.claim(room).await?;
            more |= taken.more;
            self.filled |= taken.leased.len() >= room;
            self.deliver(taken.leased, began);
        }
        if more {
            return Ok(Pass::More);
        }
        let ahead = [next.wake, next.retry]
            .into_iter()
            .flatten()
            .filter(|at| *at > now);
        Ok(Pass::Idle(ahead.fold(now + poll(), DateTime::min)))
    }

    /// Fires up to `room` waves. When that fails for one of them, ever fewer are fired at once, until that one stands alone and
    /// is set aside.
    async fn claim(&mut self, room: usize) -> Result<Claimed, Error> {
        match self.service.claim(room).await {
            Ok(taken) => {
                self.fire_most = (self.fire_most * 2).min(BATCH_MOST);
                Ok(taken)
            }
            Err(Error::Internal(cause)) if room == 1 => {
                tracing::error!(cause, "a wave cannot be fired");
                self.service.postpone_first().await?;
                Ok(Claimed {
                    more: true,
                    ..Claimed::default()
                })
            }
            Err(error) => {
                self.fire_most = if matches!(error, Error::Internal(_)) {
                    room / 2
                } else {
                    self.fire_most
                };
                Err(error)
            }
        }
    }

    /// Hands each to the sink, in a task of its own. They were taken by a statement that `began` then.
    fn deliver(&mut self, leased: Vec<Leased>, began: SpanStart) {
        self.hands.take_up(leased.len());
        for mut one in leased {
            let span = self.traces.root_span("dispatch", began);
            span.set("dispatch.id", || one.dispatch.id.to_string());
            span.set("dispatch.attempt", || i64::from(one.dispatch.attempt));
            span.record_child("dispatch.fire", began);
            let (sink, clock, most) = (
                self.sink.clone(),
                self.clock.clone(),
                self.service.delivery_most(),
            );
            let (hands, answers, sending) = (
                self.hands.clone(),
                self.answers.clone(),
                self.sending.clone(),
            );
            if one.dispatch.attempt == 1 {
                sending.observe_lag(seconds(one.lag));
            }
            self.deliveries.spawn(async move {
                if clock.now() >= one.until {
                    // Its lease ran out before it was begun: it is somebody else's.
                    return hands.put_down(1);
                }
                let mut finished = AttemptResult::of(&one, Answer::Unknown { why: String::new() });
                let (began, asking) = (Instant::now(), span.client_child("dispatch.deliver"));
                one.dispatch.traceparent = asking.traceparent();
                let answer = attempt(&sink, &one.dispatch, most).await;
                sending.observe_attempt(name_of(&answer), began.elapsed());
                asking.set("dispatch.answer", || name_of(&answer));
                asking.end();
                hands.answered(&answer, clock.now());
                finished.answer = answer;
                // It holds as many as there are workers, and its reader outlives us.
                let _sent = answers.send(finished).await;
            });
        }
    }

    /// Logs the first error of an outage, and its end.
    fn note(&mut self, pass: &Result<Pass, Error>) {
        match pass {
            Err(Error::Internal(cause)) if !self.failing => {
                tracing::error!(cause, "the dispatcher failed; it tries again")
            }
            Err(error) if !self.failing => {
                tracing::warn!(%error, "the dispatcher lost its database; it tries again")
            }
            Ok(_) if self.failing => tracing::info!("the dispatcher goes on"),
            _ => {}
        }
        self.failing = pass.is_err();
    }

    async fn finish_what_is_in_flight(self, end: impl Future<Output = ()>) {
        let Self {
            answers,
            mut deliveries,
            mut finisher,
            ..
        } = self;
        drop(answers);
        let ended = async {
            while deliveries.join_next().await.is_some() {}
            while finisher.join_next().await.is_some() {}
        };
        tokio::select! {
            () = ended => {}
            () = end => tracing::warn!("deliveries were still in flight at the end; they are tried again when their leases run out"),
        }
    }
}

/// The name of an answer in metrics.
fn name_of(answer: &Answer) -> &'static str {
    match answer {
        Answer::Delivered => "delivered",
        Answer::NotTaken { .. } => "not_taken",
        Answer::Rejected { .. } => "rejected",
        Answer::Unknown { .. } => "unknown",
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn seconds(span: TimeDelta) -> f64 {
    span.num_milliseconds() as f64 / 1e3
}

/// How long the next look may be away.
fn poll() -> TimeDelta {
    // Up to a fifth less, so that replicas do not all come at once.
    #[allow(clippy::cast_possible_truncation, reason = "some milliseconds")]
    let less = (jitter() * 5.0) as i64;
    POLL - TimeDelta::milliseconds(less)
}

/// What the sink says of a dispatch within that time. A sink that panics is a failed attempt and no more.
async fn attempt(sink: &SharedSink, dispatch: &DispatchMessage, most: Duration) -> Answer {
    let delivery = pin!(tokio::time::timeout(most, sink.deliver(dispatch)));
    match caught(delivery).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Answer::Unknown {
            why: format!("no answer within {} s", most.as_secs()),
        },
        Err(panic) => {
            tracing::error!(panic, "a sink failed by a fault of ours");
            Answer::Unknown {
                why: "the sink failed".to_owned(),
            }
        }
    }
}

/// Writes what became of attempts, as many at once as there are, until everybody who could tell more is gone.
async fn finish(service: Service, hands: Hands, mut queue: mpsc::Receiver<AttemptResult>) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, BATCH_MOST).await > 0 {
        write(&service, &batch).await;
        hands.put_down(batch.len());
        batch.clear();
    }
}

/// Tries until it is written, or until the leases have run out and nobody waits for it any more.
async fn write(service: &Service, batch: &[AttemptResult]) {
    let give_up_at = Instant::now() + service.delivery_most();
    while let Err(error) = service.settle(batch).await {
        if let (Error::Internal(_), 2..) = (&error, batch.len()) {
            // One of them stands in the way: each is written alone.
            for one in batch {
                if let Err(error) = service.settle(std::slice::from_ref(one)).await {
                    given_up(&error, 1);
                }
            }
            return;
        }
        if matches!(error, Error::Internal(_)) || Instant::now() >= give_up_at {
            return given_up(&error, batch.len());
        }
        tokio::time::sleep(OUTAGE_PAUSE).await;
    }
}

fn given_up(error: &Error, dispatches: usize) {
    let cause = if let Error::Internal(cause) = error {
        cause.clone()
    } else {
        error.to_string()
    };
    tracing::error!(
        cause,
        dispatches,
        "what became of dispatches was not written; they are tried again when their leases run out"
    );
}
