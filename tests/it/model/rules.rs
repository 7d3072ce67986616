//! The model: one schedule, whoever carries its dispatches, and the time.

use std::collections::BTreeMap;

use super::events::*;
use super::zones::{DAY, Rules, Time, UTC, Zones, instant};

/// Where a dispatch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Stands {
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
    pub stands: Stands,
    pub attempt: u32,
    /// The attempt after which it is a dead letter.
    pub last_attempt: u32,
    /// When its lease ends or it is tried again.
    pub retry_at: Option<Time>,
    pub fired_at: Time,
    pub finished_at: Option<Time>,
    /// Who carries its latest attempt; none once that process is gone.
    pub hand: Option<usize>,
}

/// How far the sending has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Pending,
    Dispatching,
    Dispatched,
    Cancelled,
}

/// What the service tells of a schedule.
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
    /// Zones, taken ones among them, whose time was too long past when the schedule was accepted.
    pub missed: Zones,
    pub updated_at: Time,
    pub cancelled_at: Option<Time>,
    pub fired: u32,
    /// Until then nothing fires, since a wave was not taken.
    rests_until: Time,
    pub dispatches: Vec<Dispatch>,
}

/// Whoever carries one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Hand {
    n: u32,
    first_attempt: bool,
    /// What the sink has said, once it has.
    pub said: Option<Says>,
}

/// All there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub now: Time,
    pub rules: Rules,
    /// The brake of all workspaces, and of the schedule's own.
    pub brakes: [bool; 2],
    pub schedule: Option<Schedule>,
    /// Everyone that anything was handed to since the process began.
    pub hands: Vec<Hand>,
    /// What the last accepted request was told, and when.
    remembered: Option<(Told, Time)>,
}

/// What an event comes to.
pub(super) type Step = (World, Told, Vec<HandedOver>);

impl World {
    /// Nothing but the time.
    pub(super) fn at(now: Time) -> Self {
        Self {
            now,
            rules: Rules::Real,
            brakes: [false; 2],
            schedule: None,
            hands: vec![],
            remembered: None,
        }
    }

    /// `(state, event) -> (state, answer, effects)`.
    pub(super) fn step(&self, event: Event) -> Step {
        let mut next = self.clone();
        let (mut told, mut handed) = (Told::Nothing, vec![]);
        match event {
            Event::Create(wish) => told = next.create(wish),
            Event::Update(wish, terms) => {
                told = next
                    .change(|schedule, now, rules| schedule.update(wish.at(now), terms, now, rules))
            }
            Event::Cancel(terms) => {
                told = next.change(|schedule, now, _| schedule.cancel(terms, now))
            }
            Event::Again => told = next.again(),
            Event::RetryDispatch(n) => told = next.retry_dispatch(n),
            Event::Fire => handed = next.claim(),
            Event::Retry => handed = next.retry(),
            other => next.happen(other),
        }
        (next, told, handed)
    }

    /// What nobody is told of.
    fn happen(&mut self, event: Event) {
        match event {
            Event::Clock(by) => self.now = self.moved(by),
            Event::DeliveryOutcome(back, says) => {
                self.hand(back).map_or((), |hand| self.answer(hand, says))
            }
            Event::Brake { all, on } => self.brakes[usize::from(all)] = on,
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
                self.hands.clear();
                let dispatches = self
                    .schedule
                    .iter_mut()
                    .flat_map(|schedule| &mut schedule.dispatches);
                dispatches.for_each(|dispatch| dispatch.hand = None);
            }
            _ => {}
        }
    }

    /// What is left to do to the end, with a sink that takes everything.
    pub(super) fn to_do(&self) -> Option<Event> {
        if let Some(all) = self.brakes.iter().position(|on| *on) {
            return Some(Event::Brake {
                all: all == 1,
                on: false,
            });
        }
        if let Some(back) = self.hands.iter().rev().position(|hand| hand.said.is_none()) {
            return Some(Event::DeliveryOutcome(back, Says::Delivered));
        }
        let does = |event: &Event| self.step(*event).0 != *self;
        [Event::Retry, Event::Fire, Event::Clock(Move::Next)]
            .into_iter()
            .find(does)
    }

    /// Who was handed something last, or so many before.
    pub(super) fn hand(&self, back: usize) -> Option<usize> {
        self.hands.len().checked_sub(1 + back)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.brakes != [false; 2]
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

    fn create(&mut self, wish: Wish) -> Told {
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
        self.remember(Told::Accepted {
            revision: 1,
            applied: Applied::All,
            zones: Zones::all().len(),
            missed,
        })
    }

    /// A change that is refused changes nothing.
    fn change(
        &mut self,
        change: impl FnOnce(&mut Schedule, Time, Rules) -> Result<Zones, Told>,
    ) -> Told {
        let Some(before) = &self.schedule else {
            return Told::Nothing;
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
        let told = Told::Accepted {
            revision: after.revision,
            applied,
            zones: before.open().len(),
            missed,
        };
        self.schedule = Some(after);
        self.remember(told)
    }

    fn remember(&mut self, told: Told) -> Told {
        self.remembered = Some((told, self.now));
        told
    }

    /// Whether the last accepted request is still known by its id.
    pub(super) fn knows_last(&self) -> bool {
        self.remembered
            .is_some_and(|(_, at)| self.now < at + REMEMBERED)
    }

    /// It gets its first answer, whatever has happened since.
    fn again(&self) -> Told {
        self.remembered
            .filter(|_| self.knows_last())
            .map_or(Told::Nothing, |(told, _)| told)
    }

    /// Firing is taking: the earliest wave leaves the open zones, into somebody's hand.
    fn claim(&mut self) -> Vec<HandedOver> {
        let (paused, now, rules, hand) = (self.is_paused(), self.now, self.rules, self.hands.len());
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
            stands: Stands::InHand,
            attempt: 0,
            last_attempt: ATTEMPTS,
            retry_at: None,
            fired_at: now,
            finished_at: None,
            hand: None,
        };
        let handed = dispatch.hand_over(now, hand);
        schedule.dispatches.push(dispatch);
        self.hands.push(Hand {
            n: handed.n,
            first_attempt: true,
            said: None,
        });
        vec![handed]
    }

    /// What is due once more: its lease has run out, which tells as little as no answer, or its pause has ended.
    fn retry(&mut self) -> Vec<HandedOver> {
        let (paused, now, mut handed) = (self.is_paused(), self.now, vec![]);
        let Some(schedule) = &mut self.schedule else {
            return handed;
        };
        let cancelled = schedule.cancelled_at.is_some();
        for dispatch in schedule
            .dispatches
            .iter_mut()
            .filter(|dispatch| dispatch.retry_at.is_some_and(|at| at <= now))
        {
            if dispatch.stands == Stands::InHand {
                dispatch.unknown(now, cancelled, 0);
            }
            if dispatch.stands == Stands::Unknown && paused {
                dispatch.retry_at = Some(now + PAUSED_REST);
            } else if dispatch.stands == Stands::Unknown {
                handed.push(dispatch.hand_over(now, self.hands.len()));
                self.hands.push(Hand {
                    n: dispatch.n,
                    first_attempt: false,
                    said: None,
                });
            }
        }
        handed
    }

    /// An answer counts once, and only from who carries the latest attempt; but whoever has delivered has delivered.
    fn answer(&mut self, hand: usize, says: Says) {
        let (now, Some(schedule)) = (self.now, &mut self.schedule) else {
            return;
        };
        let carrier = &mut self.hands[hand];
        let says = *carrier.said.get_or_insert(says);
        let Some(at) = schedule
            .dispatches
            .iter()
            .position(|dispatch| dispatch.n == carrier.n)
        else {
            return;
        };
        let cancelled = schedule.cancelled_at.is_some();
        let dispatch = &mut schedule.dispatches[at];
        let counts = dispatch.stands == Stands::InHand && dispatch.hand == Some(hand);
        match says {
            Says::Delivered if dispatch.stands != Stands::Delivered => {
                dispatch.finish(Stands::Delivered, now)
            }
            Says::Rejected if counts => dispatch.finish(Stands::Dead, now),
            Says::Unknown if counts => dispatch.unknown(now, cancelled, PAUSE),
            // An earlier attempt may have arrived; this one does not count.
            Says::NotTaken if counts && !carrier.first_attempt => {
                dispatch.last_attempt += 1;
                dispatch.unknown(now, cancelled, PAUSE);
            }
            Says::NotTaken if counts => {
                schedule.dispatches.remove(at);
                schedule.rests_until = now + PAUSE;
            }
            _ => {}
        }
    }

    fn retry_dispatch(&mut self, n: u32) -> Told {
        let Some(schedule) = &mut self.schedule else {
            return Told::Nothing;
        };
        let cancelled_at = schedule.cancelled_at;
        let Some(dispatch) = schedule
            .dispatches
            .iter_mut()
            .find(|dispatch| dispatch.n == n)
        else {
            return Told::NoSuchDispatch;
        };
        if let Some(since) = cancelled_at {
            return Told::Cancelled { since };
        }
        if dispatch.stands != Stands::Dead {
            return Told::NotDead;
        }
        dispatch.stands = Stands::Unknown;
        dispatch.last_attempt = dispatch.attempt + ATTEMPTS;
        (dispatch.retry_at, dispatch.finished_at) = (Some(self.now), None);
        Told::Revived
    }
}

impl Dispatch {
    /// Into this hand for another attempt.
    fn hand_over(&mut self, now: Time, hand: usize) -> HandedOver {
        self.stands = Stands::InHand;
        self.attempt += 1;
        self.retry_at = Some(now + LEASE);
        self.hand = Some(hand);
        let (n, attempt, revision, wave) = (self.n, self.attempt, self.revision, self.wave);
        HandedOver {
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
            self.finish(Stands::Abandoned, now);
        } else if self.attempt >= self.last_attempt {
            self.finish(Stands::Dead, now);
        } else {
            self.stands = Stands::Unknown;
            self.retry_at = Some(now + pause);
        }
    }

    fn finish(&mut self, stands: Stands, now: Time) {
        self.stands = stands;
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

    /// The waves to come, the earliest first: of the open zones less those missed.
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
                    hand: None,
                    ..dispatch.clone()
                })
                .collect(),
        }
    }

    /// When there is something to do after `now`.
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

    /// Replaces the schedule for every open zone, and answers those that no wave will serve.
    fn update(&mut self, ask: Ask, terms: Terms, now: Time, rules: Rules) -> Result<Zones, Told> {
        self.check(self.open() != Zones::NONE, terms)?;
        let missed = ask.accepted(self.open(), now, rules)?;
        self.check_all(missed, terms)?;
        // Of what comes back not taken, too, as if it had never been fired.
        (self.ask, self.missed, self.rests_until) =
            (ask, ask.missed(Zones::all(), now, rules), now);
        Ok(missed)
    }

    /// Ends it for every open zone, and every further attempt.
    fn cancel(&mut self, terms: Terms, now: Time) -> Result<Zones, Told> {
        let tried_again = |dispatch: &Dispatch| dispatch.stands == Stands::Unknown;
        self.check(
            self.open() != Zones::NONE || self.dispatches.iter().any(tried_again),
            terms,
        )?;
        self.check_all(Zones::NONE, terms)?;
        self.cancelled_at = Some(now);
        self.dispatches
            .iter_mut()
            .filter(|dispatch| tried_again(dispatch))
            .for_each(|dispatch| dispatch.finish(Stands::Abandoned, now));
        Ok(Zones::NONE)
    }

    /// Of several reasons to refuse a change, the one that is told is the one that the caller can do least about.
    fn check(&self, reaches: bool, terms: Terms) -> Result<(), Told> {
        if let Some(since) = self.cancelled_at {
            return Err(Told::Cancelled { since });
        }
        if !reaches {
            let since = self
                .dispatches
                .iter()
                .map(|dispatch| dispatch.fired_at)
                .max()
                .unwrap_or(self.updated_at);
            return Err(Told::NothingLeft { since });
        }
        if terms.etag == Etag::Stale {
            Err(Told::Stale {
                revision: self.revision,
            })
        } else {
            Ok(())
        }
    }

    fn check_all(&self, missed: Zones, terms: Terms) -> Result<(), Told> {
        let taken = self.taken();
        let all = taken == Zones::NONE && missed == Zones::NONE;
        if all || !terms.require_all {
            Ok(())
        } else {
            Err(Told::NotAll {
                taken: taken.len(),
                missed: missed.len(),
            })
        }
    }
}

impl Ask {
    /// When the clock of `zone` reaches it; of an optimal time, when the day begins there.
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

    /// Whether that is too long past: an optimal day until it has ended, all else for an hour.
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
    fn accepted(self, open: Zones, now: Time, rules: Rules) -> Result<Zones, Told> {
        let missed = self.missed(open, now, rules);
        let served = open.without(missed);
        if served == Zones::NONE {
            return Err(Told::TimePast);
        }
        let beyond = served
            .iter()
            .any(|zone| self.reaches(zone, rules) > now + HORIZON);
        if beyond {
            Err(Told::BeyondHorizon)
        } else {
            Ok(missed)
        }
    }
}
