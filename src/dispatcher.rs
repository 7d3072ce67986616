//! The dispatcher claims the waves that are due, delivers them to the sink, and settles the
//! outcomes.
//!
//! ```text
//!              ┌──────────────────────── Dispatcher::run ───────────────────────┐
//!              │                                                                │
//!   wake ────▶ │ capacity ─▶ next due ─▶ retry ─▶ claim ─▶ wait for the next wake │
//!              └────▲──────────────────────┬───────┬────────────────────────────┘
//!                   │                      │       │ dispatches, leased when claimed
//!                   │                      ▼       ▼
//!                   │                   deliver: one task a dispatch, no transaction open
//!                   │                          │
//!                   │                          ▼ outcome
//!                   └── a worker is free ── settle: as many outcomes as wait, in one transaction
//!                                              │
//!          ┌────────────────┬──────────────────┼─────────────────────┐
//!          ▼                ▼                  ▼                     ▼
//!      delivered     zones reopened     retried later        dead letter
//!                    (not taken)        (unknown)            (rejected, or no attempt left)
//! ```
//!
//! # The verbs
//!
//! - **claim** takes the earliest wave of a due schedule out of its open zones and writes it as a
//!   dispatch with a lease. The database is authoritative: `SKIP LOCKED` and the row's version keep
//!   two replicas from claiming one wave.
//! - **deliver** hands one dispatch to the sink, within three quarters of its lease.
//! - **settle** writes the outcome. Outcomes are idempotent: to write one twice changes nothing.
//! - **retry** leases a dispatch again: one of unknown outcome, or one whose lease has expired
//!   because its worker crashed, lost the database or is slow.
//! - **dead-letter** ends a dispatch that the consumer rejected, or whose last attempt had an
//!   unknown outcome. Only a caller retries it, with `RetryDispatch`.
//!
//! # What wakes the loop
//!
//! A pass claims everything that is due, up to the free workers. Then the loop sleeps until the
//! first of
//! - the instant at which the next wave or retry is due;
//! - [`Service::wake`]: a change in this process made a wave due sooner;
//! - a poll, 20 to 25 ms after the pass, which alone finds the changes of other replicas;
//! - a free worker, if none was free.
//!
//! Passes start at least 5 ms apart, so that waves that become due one after the other share a
//! transaction.
//!
//! # Back-pressure
//!
//! A pass claims no more than there are free workers. What is due beyond that stays in the
//! database, where an update or a cancellation still reaches it (docs/adr/0005). A worker is free
//! again once its outcome is settled, so a slow database slows down claiming, too.
//!
//! # The circuit breaker
//!
//! [`Breaker`](crate::domain::Breaker) limits what goes to a sink that takes nothing: it pauses for
//! 100 ms, doubled up to 5 s, then lets one dispatch through as a probe. Each dispatch that the
//! sink takes widens the window by one worker, up to all of them.
//!
//! # A wave that cannot be claimed
//!
//! A claim passes over schedules that another session has locked, and a settlement over outcomes
//! whose rows are locked; they are tried again later, with all others written. A fault while
//! claiming halves the number of waves of the next claim, so that none is repeated unchanged. A
//! single wave that still fails with an internal fault is postponed, so that those behind it are
//! claimed.
//!
//! # A commit that fails
//!
//! The commit of a claim or retry may have been carried out although it failed. The next pass reads
//! back what it leased and delivers what was committed; until then these dispatches count against
//! the free workers.
//!
//! # At stop
//!
//! `stop` ends the loop after the current pass: nothing that was claimed is dropped. Then the
//! deliveries in flight end and are settled, until `end`. A dispatch that is not settled by then is
//! retried by any replica once its lease expires, as after a crash.

mod delivery;
mod in_flight;
mod maintenance;
mod settings;
mod settling;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock::{SharedClock, jitter, sleep_until};
use crate::error::Error;
use crate::service::{AttemptResult, Leased, NextDue, POLL_INTERVAL, Service};
use crate::sink::SharedSink;
use crate::telemetry::metrics::DispatchMetrics;
use crate::telemetry::outage::OutageLog;
use crate::telemetry::traces::{SpanStart, Traces};
use delivery::Delivery;
use in_flight::InFlightDispatches;
pub use settings::DispatcherSettings;

/// The most dispatches that one transaction claims, retries or settles: enough that the cost of a
/// commit for each is small.
const MAX_BATCH: usize = 512;
/// The least time from the start of a pass that claimed everything due to the next. What becomes
/// due meanwhile shares a transaction, which costs as much for one wave as for a few. A wave that
/// comes alone is not delayed: the last pass is longer ago.
const PASS_INTERVAL: Duration = Duration::from_millis(5);
/// The pause between two attempts while the database is unavailable.
const OUTAGE_PAUSE: Duration = Duration::from_millis(100);
/// The longest wait. Waits are shorter, unless the clock was set back.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Claims, delivers and settles.
pub struct Dispatcher {
    service: Service,
    sink: SharedSink,
    clock: SharedClock,
    in_flight: InFlightDispatches,
    metrics: DispatchMetrics,
    traces: Traces,
    outcomes: mpsc::Sender<AttemptResult>,
    deliveries: JoinSet<()>,
    settling: JoinSet<()>,
    /// The most waves of the next claim; halved by an internal fault, doubled by a success.
    claim_limit: usize,
    /// Whether the last pass claimed as many as it was allowed to, so that more may be due.
    filled: bool,
    /// When something is due next, if the last pass read it: a wave that was known in advance is
    /// then claimed at its instant without another read.
    next_due: Option<NextDue>,
    outages: OutageLog,
}

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// More may be due.
    More,
    /// No worker is free; or the sink takes nothing and is probed at this instant.
    Full(Option<DateTime<Utc>>),
    /// Nothing is due before this instant, unless a change wakes the dispatcher.
    Idle(DateTime<Utc>),
}

impl Dispatcher {
    /// A dispatcher that holds at most `workers` dispatches. Must be called on the runtime that
    /// runs it.
    pub fn new(
        service: Service,
        sink: SharedSink,
        clock: SharedClock,
        workers: usize,
        metrics: DispatchMetrics,
        traces: Traces,
    ) -> Self {
        let in_flight = InFlightDispatches::new(workers, metrics.clone());
        let (outcomes, queue) = mpsc::channel(workers);
        let mut settling = JoinSet::new();
        settling.spawn(settling::run(service.clone(), in_flight.clone(), queue));
        Self {
            service,
            sink,
            clock,
            in_flight,
            metrics,
            traces,
            outcomes,
            deliveries: JoinSet::new(),
            settling,
            claim_limit: MAX_BATCH,
            filled: false,
            next_due: None,
            outages: OutageLog::new("dispatching failed; retrying", "dispatching recovered"),
        }
    }

    /// Runs until `stop`, then settles the dispatches in flight, until `end` at the latest.
    pub async fn run(mut self, stop: impl Future<Output = ()>, end: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut maintenance = self.start_maintenance();
        loop {
            let (now, began) = (self.clock.now(), Instant::now());
            // `stop` does not cancel a pass: everything that it claims is delivered.
            let pass = self.run_once(now).await;
            self.outages.record(&pass);
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = self.wait(pass, began) => {}
            }
        }
        // The tasks hold the service, and shutdown waits until no task does.
        maintenance.shutdown().await;
        self.settle_in_flight(end).await;
    }

    fn start_maintenance(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let (service, clock) = (self.service.clone(), self.clock.clone());
        tasks.spawn(maintenance::maintain(service.clone(), clock.clone()));
        tasks.spawn(maintenance::measure(service, clock, self.metrics.clone()));
        tasks
    }

    /// One pass: leases what is due for another attempt, claims waves that are due, as many as
    /// workers are free, and delivers both. Claims nothing while the clock is not synchronized,
    /// since no wave is known to be due then. What was claimed before an error is delivered.
    pub async fn run_once(&mut self, now: DateTime<Utc>) -> Result<Pass, Error> {
        while self.deliveries.try_join_next().is_some() {}
        self.filled = false;
        if self.clock.unsteady().is_some() {
            return Ok(Pass::Idle(now + poll_interval()));
        }
        let settled = self.settle_claims().await;
        if self.in_flight.capacity(now) == 0 {
            self.filled = true;
            return Ok(Pass::Full(self.in_flight.paused_until(now)));
        }
        let known = self.next_due.take().filter(|known| known.is_due(now));
        let next = match known {
            Some(known) => known,
            None => self.service.next_due().await?,
        };
        let is_due = |at: Option<DateTime<Utc>>| at.is_some_and(|at| at <= now);
        // A fault of one does not keep the others from running.
        let retried = match is_due(next.retry) {
            true => self.retry(now).await,
            false => Ok(false),
        };
        let claimed = match is_due(next.wake) {
            true => self.claim(now).await,
            false => Ok(false),
        };
        let ((), more_retries, more_waves) = (settled?, retried?, claimed?);
        let more = more_retries || more_waves;
        if known.is_some() {
            // It may say too little of what comes next.
            return Ok(Pass::More);
        }
        // What is due but was not claimed is locked: only another read finds out more.
        let is_current = if more { self.filled } else { !next.is_due(now) };
        self.next_due = is_current.then_some(next);
        if more {
            return Ok(Pass::More);
        }
        let ahead = [next.wake, next.later_wake, next.retry]
            .into_iter()
            .flatten();
        let first = ahead.filter(|at| *at > now).min();
        let poll = now + poll_interval();
        Ok(Pass::Idle(first.map_or(poll, |at| at.min(poll))))
    }

    /// Delivers what was leased by commits that failed but were carried out.
    async fn settle_claims(&mut self) -> Result<(), Error> {
        if self.service.unsettled_claims() > 0 {
            let began = self.traces.now();
            let leased = self.service.settle_claims().await?;
            self.deliver(leased, began);
        }
        Ok(())
    }

    /// How many dispatches may be leased, up to `max`.
    fn capacity(&self, now: DateTime<Utc>, max: usize) -> usize {
        let free = self.in_flight.capacity(now);
        free.saturating_sub(self.service.unsettled_claims())
            .min(max)
    }

    /// Leases dispatches that are due for another attempt. Returns whether more are due.
    async fn retry(&mut self, now: DateTime<Utc>) -> Result<bool, Error> {
        let limit = self.capacity(now, MAX_BATCH);
        if limit == 0 {
            return Ok(false);
        }
        let began = self.traces.now();
        let retried = self.service.retry(limit).await?;
        self.filled |= retried.leased.len() >= limit;
        self.deliver(retried.leased, began);
        Ok(retried.more)
    }

    /// Claims waves that are due. Returns whether more are due.
    async fn claim(&mut self, now: DateTime<Utc>) -> Result<bool, Error> {
        let limit = self.capacity(now, self.claim_limit);
        if limit == 0 {
            return Ok(false);
        }
        let began = self.traces.now();
        match self.service.claim(limit).await {
            Ok(claimed) => {
                self.claim_limit = (self.claim_limit * 2).min(MAX_BATCH);
                self.filled |= claimed.leased.len() >= limit;
                self.deliver(claimed.leased, began);
                Ok(claimed.more)
            }
            Err(Error::Internal(cause)) if limit == 1 => {
                tracing::error!(cause, "a wave cannot be claimed; it is postponed");
                self.service.postpone_first().await?;
                Ok(true)
            }
            Err(error) => {
                // No claim is repeated unchanged.
                self.claim_limit = (limit / 2).max(1);
                Err(error)
            }
        }
    }

    /// Starts a delivery for each dispatch that was leased by a statement that began at `began`.
    fn deliver(&mut self, leased: Vec<Leased>, began: SpanStart) {
        self.in_flight.add(leased.len());
        for leased in leased {
            let span = self.traces.root_span("dispatch", began);
            span.set("dispatch.id", || leased.dispatch.id.to_string());
            span.set("dispatch.attempt", || i64::from(leased.dispatch.attempt));
            span.record_child("dispatch.fire", began);
            if leased.dispatch.attempt == 1 {
                self.metrics.observe_lag(seconds(leased.lag));
            }
            let delivery = Delivery {
                sink: self.sink.clone(),
                clock: self.clock.clone(),
                timeout: self.service.delivery_timeout(),
                in_flight: self.in_flight.clone(),
                outcomes: self.outcomes.clone(),
                metrics: self.metrics.clone(),
                span,
            };
            self.deliveries.spawn(delivery.run(leased));
        }
    }

    /// Waits after a pass that began at `began`, until there may be something to do.
    async fn wait(&self, pass: Result<Pass, Error>, began: Instant) {
        match pass {
            Ok(Pass::More) => {}
            Ok(Pass::Full(None)) => self.in_flight.worker_free().await,
            Ok(Pass::Full(Some(until))) => tokio::select! {
                () = self.in_flight.pause_over() => {}
                () = sleep_until(&self.clock, until, MAX_WAIT) => {}
            },
            // The Notify keeps a notification that came during the pass.
            Ok(Pass::Idle(until)) => tokio::select! {
                () = self.service.wake().notified() => {}
                () = sleep_until(&self.clock, until, MAX_WAIT) => {}
            },
            Err(_) => tokio::time::sleep(OUTAGE_PAUSE).await,
        }
        if !self.filled {
            tokio::time::sleep_until(began + PASS_INTERVAL).await;
        }
    }

    async fn settle_in_flight(self, end: impl Future<Output = ()>) {
        let Self {
            outcomes,
            mut deliveries,
            mut settling,
            ..
        } = self;
        // The settling task ends once every sender is dropped.
        drop(outcomes);
        let settled = async {
            while deliveries.join_next().await.is_some() {}
            while settling.join_next().await.is_some() {}
        };
        tokio::select! {
            () = settled => {}
            () = end => tracing::warn!(
                "stopped with deliveries in flight; they are retried when their leases expire"
            ),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn seconds(span: TimeDelta) -> f64 {
    span.num_milliseconds() as f64 / 1e3
}

/// [`POLL_INTERVAL`], shortened by up to a fifth so that replicas do not poll together.
fn poll_interval() -> TimeDelta {
    #[allow(clippy::cast_possible_truncation, reason = "a few milliseconds")]
    let less = (jitter() * 5.0) as i64;
    POLL_INTERVAL - TimeDelta::milliseconds(less)
}
