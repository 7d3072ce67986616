//! The model: one schedule, the workers with its dispatches, and the time.

use std::collections::BTreeMap;

use super::events::*;
use super::zones::{DAY, Rules, Time, UTC, Zones, instant};

/// The state of a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Status {
    InHand,
    Unknown,
    Delivered,
    Dead,
    Abandoned,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Dispatch {
    pub n: u32,
    pub revision: i64,
    pub wave: Wave,
    pub status: Status,
    pub attempt: u32,
    /// The attempt after which it becomes a dead letter.
    pub last_attempt: u32,
    /// When its lease expires or it is retried.
    pub retry_at: Option<Time>,
    pub fired_at: Time,
    pub finished_at: Option<Time>,
    /// The worker of the latest attempt, or `None` once its process has ended.
    pub worker: Option<usize>,
}

/// The state of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Pending,
    Dispatching,
    Dispatched,
    Cancelled,
}

/// A schedule as the service returns it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct View {
    pub ask: Ask,
    pub revision: i64,
    pub stage: Stage,
    pub open: Zones,
    pub missed: Zones,
    pub waves: Vec<Wave>,
    pub next_wave: Option<Time>,
    pub updated_at: Time,
    pub cancelled_at: Option<Time>,
    pub dispatches: Vec<Dispatch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Schedule {
    pub ask: Ask,
    pub revision: i64,
    /// Zones, claimed ones included, whose time was too far in the past when the schedule was
    /// accepted.
    pub missed: Zones,
    pub updated_at: Time,
    pub cancelled_at: Option<Time>,
    pub fired: u32,
    /// No claim before this instant, since a wave was not taken.
    rests_until: Time,
    pub dispatches: Vec<Dispatch>,
}

/// A worker with one attempt at a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Worker {
    n: u32,
    first_attempt: bool,
    /// The sink's answer, once there is one.
    pub answer: Option<SinkAnswer>,
}

/// The state of the model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub now: Time,
    pub rules: Rules,
    /// The pauses of every workspace, and of the schedule's.
    pub pauses: [bool; 2],
    pub schedule: Option<Schedule>,
    /// Every worker that has had an attempt since the process started.
    pub workers: Vec<Worker>,
    /// The answer to the last accepted request, and its time.
    remembered: Option<(Reply, Time)>,
}

/// The next state, the answer, and the deliveries.
pub(super) type Step = (World, Reply, Vec<Delivery>);

impl World {
    /// The state without a schedule.
    pub(super) fn at(now: Time) -> Self {
        Self {
            now,
            rules: Rules::Real,
            pauses: [false; 2],
            schedule: None,
            workers: vec![],
            remembered: None,
        }
    }

    /// `(state, event) -> (state, answer, effects)`.
    pub(super) fn step(&self, event: Event) -> Step {
        let mut next = self.clone();
        let (mut reply, mut deliveries) = (Reply::Nothing, vec![]);
        match event {
            Event::Create(wish) => reply = next.create(wish),
            Event::Update(wish, terms) => {
                reply = next
                    .change(|schedule, now, rules| schedule.update(wish.at(now), terms, now, rules))
            }
            Event::Cancel(terms) => {
                reply = next.change(|schedule, now, _| schedule.cancel(terms, now))
            }
            Event::Again => reply = next.replay(),
            Event::RetryDispatch(n) => reply = next.retry_dispatch(n),
            Event::Claim => deliveries = next.claim(),
            Event::Retry => deliveries = next.retry(),
            other => next.happen(other),
        }
        (next, reply, deliveries)
    }

    /// An event without an answer.
    fn happen(&mut self, event: Event) {
        match event {
            Event::Clock(by) => self.now = self.moved(by),
            Event::Answer(back, says) => self
                .worker(back)
                .map_or((), |worker| self.answer(worker, says)),
            Event::Pause { all, on } => self.pauses[usize::from(all)] = on,
            Event::Rules => {
                self.rules = if self.rules == Rules::Real {
                    Rules::Other
                } else {
                    Rules::Real
                }
            }
            Event::OtherRelease { .. } => self
                .schedule
                .iter_mut()
                .for_each(|schedule| schedule.rests_until = self.now),
            Event::Restart => {
                self.workers.clear();
                let dispatches = self
                    .schedule
                    .iter_mut()
                    .flat_map(|schedule| &mut schedule.dispatches);
                dispatches.for_each(|dispatch| dispatch.worker = None);
            }
            _ => {}
        }
    }

    /// The next event until nothing is left to send, with a sink that accepts everything.
    pub(super) fn to_do(&self) -> Option<Event> {
        if let Some(all) = self.pauses.iter().position(|on| *on) {
            return Some(Event::Pause {
                all: all == 1,
                on: false,
            });
        }
        if let Some(back) = self
            .workers
            .iter()
            .rev()
            .position(|worker| worker.answer.is_none())
        {
            return Some(Event::Answer(back, SinkAnswer::Delivered));
        }
        let does = |event: &Event| self.step(*event).0 != *self;
        [Event::Retry, Event::Claim, Event::Clock(Move::Next)]
            .into_iter()
            .find(does)
    }

    /// The worker of the last attempt, or of one before it.
    pub(super) fn worker(&self, back: usize) -> Option<usize> {
        self.workers.len().checked_sub(1 + back)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.pauses != [false; 2]
    }

    fn moved(&self, by: Move) -> Time {
        match by {
            Move::Pause => self.now + 10,
            Move::Lease => self.now + LEASE,
            Move::Day => self.now + DAY,
            Move::Next => self
                .schedule
                .iter()
                .filter_map(|schedule| schedule.next_after(self.now, self.rules))
                .min()
                .unwrap_or(self.now),
        }
    }

    fn create(&mut self, wish: Wish) -> Reply {
        let (ask, now) = (wish.at(self.now), self.now);
        let missed = match ask.accepted(Zones::all(), now, self.rules) {
            Ok(missed) => missed,
            Err(refused) => return refused,
        };
        let (fired, rests_until, dispatches) = (0, now, vec![]);
        self.schedule = Some(Schedule {
            ask,
            revision: 1,
            missed,
            updated_at: now,
            cancelled_at: None,
            fired,
            rests_until,
            dispatches,
        });
        self.remember(Reply::Accepted {
            revision: 1,
            applied: Applied::All,
            zones: Zones::all().len(),
            missed,
        })
    }

    /// A change that is refused changes nothing.
    fn change(
        &mut self,
        change: impl FnOnce(&mut Schedule, Time, Rules) -> Result<Zones, Reply>,
    ) -> Reply {
        let Some(before) = &self.schedule else {
            return Reply::Nothing;
        };
        let mut after = before.clone();
        let missed = match change(&mut after, self.now, self.rules) {
            Ok(missed) => missed,
            Err(refused) => return refused,
        };
        after.revision += 1;
        after.updated_at = self.now;
        let applied = if before.taken() == Zones::NONE {
            Applied::All
        } else {
            Applied::Some
        };
        let reply = Reply::Accepted {
            revision: after.revision,
            applied,
            zones: before.open().len(),
            missed,
        };
        self.schedule = Some(after);
        self.remember(reply)
    }

    fn remember(&mut self, reply: Reply) -> Reply {
        self.remembered = Some((reply, self.now));
        reply
    }

    /// Whether the id of the last accepted request is still known.
    pub(super) fn knows_last(&self) -> bool {
        self.remembered
            .is_some_and(|(_, at)| self.now < at + REPLAY_WINDOW)
    }

    /// A replay gets the first answer, whatever has happened since.
    fn replay(&self) -> Reply {
        self.remembered
            .filter(|_| self.knows_last())
            .map_or(Reply::Nothing, |(reply, _)| reply)
    }

    /// A claim removes the earliest wave from the open zones.
    fn claim(&mut self) -> Vec<Delivery> {
        let (paused, now, rules, worker) =
            (self.is_paused(), self.now, self.rules, self.workers.len());
        let Some(schedule) = self
            .schedule
            .as_mut()
            .filter(|schedule| !paused && schedule.rests_until <= now)
        else {
            return vec![];
        };
        let Some(wave) = schedule
            .waves(rules)
            .first()
            .copied()
            .filter(|wave| wave.time <= now)
        else {
            return vec![];
        };
        schedule.fired += 1;
        let mut dispatch = Dispatch {
            n: schedule.fired,
            revision: schedule.revision,
            wave,
            status: Status::InHand,
            attempt: 0,
            last_attempt: ATTEMPTS,
            retry_at: None,
            fired_at: now,
            finished_at: None,
            worker: None,
        };
        let deliveries = dispatch.start_attempt(now, worker);
        schedule.dispatches.push(dispatch);
        self.workers.push(Worker {
            n: deliveries.n,
            first_attempt: true,
            answer: None,
        });
        vec![deliveries]
    }

    /// Claims due retries: of dispatches whose lease has expired, which is as uncertain as no
    /// answer, or whose pause has ended.
    fn retry(&mut self) -> Vec<Delivery> {
        let (paused, now, mut deliveries) = (self.is_paused(), self.now, vec![]);
        let Some(schedule) = &mut self.schedule else {
            return deliveries;
        };
        let cancelled = schedule.cancelled_at.is_some();
        for dispatch in schedule
            .dispatches
            .iter_mut()
            .filter(|dispatch| dispatch.retry_at.is_some_and(|at| at <= now))
        {
            if dispatch.status == Status::InHand {
                dispatch.unknown(now, cancelled, 0);
            }
            if dispatch.status == Status::Unknown && paused {
                dispatch.retry_at = Some(now + PAUSED_INTERVAL);
            } else if dispatch.status == Status::Unknown {
                deliveries.push(dispatch.start_attempt(now, self.workers.len()));
                self.workers.push(Worker {
                    n: dispatch.n,
                    first_attempt: false,
                    answer: None,
                });
            }
        }
        deliveries
    }

    /// An answer counts once, and only for the latest attempt; but a delivery always counts.
    fn answer(&mut self, worker: usize, says: SinkAnswer) {
        let (now, Some(schedule)) = (self.now, &mut self.schedule) else {
            return;
        };
        let carrier = &mut self.workers[worker];
        let says = *carrier.answer.get_or_insert(says);
        let Some(at) = schedule
            .dispatches
            .iter()
            .position(|dispatch| dispatch.n == carrier.n)
        else {
            return;
        };
        let cancelled = schedule.cancelled_at.is_some();
        let dispatch = &mut schedule.dispatches[at];
        let counts = dispatch.status == Status::InHand && dispatch.worker == Some(worker);
        match says {
            SinkAnswer::Delivered if dispatch.status != Status::Delivered => {
                dispatch.settle(Status::Delivered, now)
            }
            SinkAnswer::Rejected if counts => dispatch.settle(Status::Dead, now),
            SinkAnswer::Unknown if counts => dispatch.unknown(now, cancelled, PAUSE),
            // An earlier attempt may have arrived; this one does not count.
            SinkAnswer::NotTaken if counts && !carrier.first_attempt => {
                dispatch.last_attempt += 1;
                dispatch.unknown(now, cancelled, PAUSE);
            }
            SinkAnswer::NotTaken if counts => {
                schedule.dispatches.remove(at);
                schedule.rests_until = now + PAUSE;
            }
            _ => {}
        }
    }

    fn retry_dispatch(&mut self, n: u32) -> Reply {
        let Some(schedule) = &mut self.schedule else {
            return Reply::Nothing;
        };
        let cancelled_at = schedule.cancelled_at;
        let Some(dispatch) = schedule
            .dispatches
            .iter_mut()
            .find(|dispatch| dispatch.n == n)
        else {
            return Reply::NoSuchDispatch;
        };
        if let Some(since) = cancelled_at {
            return Reply::Cancelled { since };
        }
        if dispatch.status != Status::Dead {
            return Reply::NotDead;
        }
        dispatch.status = Status::Unknown;
        dispatch.last_attempt = dispatch.attempt + ATTEMPTS;
        (dispatch.retry_at, dispatch.finished_at) = (Some(self.now), None);
        Reply::Retried
    }
}

impl Dispatch {
    /// Starts another attempt.
    fn start_attempt(&mut self, now: Time, worker: usize) -> Delivery {
        self.status = Status::InHand;
        self.attempt += 1;
        self.retry_at = Some(now + LEASE);
        self.worker = Some(worker);
        let (n, attempt, revision, wave) = (self.n, self.attempt, self.revision, self.wave);
        Delivery {
            n,
            attempt,
            revision,
            wave,
            lateness: now - wave.time,
            recipients: wave.zones,
        }
    }

    fn unknown(&mut self, now: Time, cancelled: bool, pause: Time) {
        if cancelled {
            self.settle(Status::Abandoned, now);
        } else if self.attempt >= self.last_attempt {
            self.settle(Status::Dead, now);
        } else {
            self.status = Status::Unknown;
            self.retry_at = Some(now + pause);
        }
    }

    fn settle(&mut self, status: Status, now: Time) {
        self.status = status;
        (self.retry_at, self.finished_at) = (None, Some(now));
    }
}

impl Schedule {
    /// The zones of its dispatches.
    pub(super) fn taken(&self) -> Zones {
        self.dispatches.iter().fold(Zones::NONE, |taken, dispatch| {
            taken.and(dispatch.wave.zones)
        })
    }

    pub(super) fn open(&self) -> Zones {
        Zones::all().without(self.taken())
    }

    /// The pending waves, earliest first: of the open zones that are not missed.
    pub(super) fn waves(&self, rules: Rules) -> Vec<Wave> {
        if self.cancelled_at.is_some() {
            return vec![];
        }
        let mut by_time: BTreeMap<Time, Zones> = BTreeMap::new();
        for zone in self.open().without(self.missed).iter() {
            let zones = by_time.entry(self.ask.reaches(zone, rules)).or_default();
            *zones = zones.and([zone].into_iter().collect());
        }
        let optimal = self.ask.kind == Kind::Optimal;
        by_time
            .into_iter()
            .map(|(time, zones)| Wave {
                time,
                zones,
                unlisted: zones.has(UTC),
                optimal,
            })
            .collect()
    }

    fn stage(&self) -> Stage {
        match (self.cancelled_at, self.taken(), self.open()) {
            (Some(_), ..) => Stage::Cancelled,
            (_, Zones::NONE, _) => Stage::Pending,
            (.., Zones::NONE) => Stage::Dispatched,
            _ => Stage::Dispatching,
        }
    }

    pub(super) fn view(&self, rules: Rules) -> View {
        let waves = self.waves(rules);
        View {
            ask: self.ask,
            revision: self.revision,
            stage: self.stage(),
            open: self.open(),
            missed: if self.cancelled_at.is_some() {
                Zones::NONE
            } else {
                self.missed.without(self.taken())
            },
            next_wave: waves.first().map(|wave| wave.time),
            waves,
            updated_at: self.updated_at,
            cancelled_at: self.cancelled_at,
            dispatches: self
                .dispatches
                .iter()
                .map(|dispatch| Dispatch {
                    worker: None,
                    ..dispatch.clone()
                })
                .collect(),
        }
    }

    /// The next instant after `now` at which something is due.
    fn next_after(&self, now: Time, rules: Rules) -> Option<Time> {
        let wave = self
            .waves(rules)
            .first()
            .map(|wave| wave.time.max(self.rests_until));
        let again = self
            .dispatches
            .iter()
            .filter_map(|dispatch| dispatch.retry_at);
        again.chain(wave).filter(|at| *at > now).min()
    }

    /// Replaces the schedule for every open zone, and returns the missed zones.
    fn update(&mut self, ask: Ask, terms: Terms, now: Time, rules: Rules) -> Result<Zones, Reply> {
        self.check(self.open() != Zones::NONE, terms)?;
        let missed = ask.accepted(self.open(), now, rules)?;
        self.check_all(missed, terms)?;
        // Also those of waves that are reopened later.
        (self.ask, self.missed, self.rests_until) =
            (ask, ask.missed(Zones::all(), now, rules), now);
        Ok(missed)
    }

    /// Cancels every open zone, and every further attempt.
    fn cancel(&mut self, terms: Terms, now: Time) -> Result<Zones, Reply> {
        let tried_again = |dispatch: &Dispatch| dispatch.status == Status::Unknown;
        self.check(
            self.open() != Zones::NONE || self.dispatches.iter().any(tried_again),
            terms,
        )?;
        self.check_all(Zones::NONE, terms)?;
        self.cancelled_at = Some(now);
        self.dispatches
            .iter_mut()
            .filter(|dispatch| tried_again(dispatch))
            .for_each(|dispatch| dispatch.settle(Status::Abandoned, now));
        Ok(Zones::NONE)
    }

    /// Of several reasons to refuse a change, returns the one that the caller can do least about.
    fn check(&self, reaches: bool, terms: Terms) -> Result<(), Reply> {
        if let Some(since) = self.cancelled_at {
            return Err(Reply::Cancelled { since });
        }
        if !reaches {
            let since = self
                .dispatches
                .iter()
                .map(|dispatch| dispatch.fired_at)
                .max()
                .unwrap_or(self.updated_at);
            return Err(Reply::NothingLeft { since });
        }
        if terms.etag == Etag::Stale {
            Err(Reply::Stale {
                revision: self.revision,
            })
        } else {
            Ok(())
        }
    }

    fn check_all(&self, missed: Zones, terms: Terms) -> Result<(), Reply> {
        let taken = self.taken();
        let all = taken == Zones::NONE && missed == Zones::NONE;
        if all || !terms.require_all {
            Ok(())
        } else {
            Err(Reply::NotAll {
                taken: taken.len(),
                missed: missed.len(),
            })
        }
    }
}

impl Ask {
    /// When the clock of `zone` reaches the time; for an optimal time, when the day starts there.
    fn reaches(self, zone: usize, rules: Rules) -> Time {
        match self.kind {
            Kind::Utc => self.time,
            Kind::Local => instant(self.time, zone, rules),
            Kind::Optimal => instant(self.day(), zone, rules),
        }
    }

    fn day(self) -> Time {
        self.time - self.time.rem_euclid(DAY)
    }

    /// Whether the time is too far in the past: an optimal day after its end, everything else after
    /// an hour.
    fn is_missed(self, zone: usize, now: Time, rules: Rules) -> bool {
        match self.kind {
            Kind::Optimal => instant(self.day() + DAY, zone, rules) <= now,
            _ => self.reaches(zone, rules) + LATENESS < now,
        }
    }

    fn missed(self, of: Zones, now: Time, rules: Rules) -> Zones {
        of.iter()
            .filter(|zone| self.is_missed(*zone, now, rules))
            .collect()
    }

    /// The zones missed, if it is accepted for these.
    fn accepted(self, open: Zones, now: Time, rules: Rules) -> Result<Zones, Reply> {
        let missed = self.missed(open, now, rules);
        let served = open.without(missed);
        if served == Zones::NONE {
            return Err(Reply::TimePast);
        }
        let beyond = served
            .iter()
            .any(|zone| self.reaches(zone, rules) > now + HORIZON);
        if beyond {
            Err(Reply::BeyondHorizon)
        } else {
            Ok(missed)
        }
    }
}
