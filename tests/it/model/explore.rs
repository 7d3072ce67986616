//! Every short sequence of events, breadth-first, for what must hold after each.

use std::collections::{BTreeMap, HashSet};

use super::events::*;
use super::rules::{Stands, World};
use super::zones::Zones;
use crate::support::instant;

/// So many events after the creation.
const DEPTH: usize = 6;

/// The day before New York puts its clock forward.
const NOW: &str = "2026-03-07T18:30:00Z";

/// Local: one zone missed, one due at once, two to come. UTC: due at once. Optimal: days that have begun and one that has not.
const CREATIONS: [Wish; 3] = [
    Wish {
        kind: Kind::Local,
        hours: 0,
    },
    Wish {
        kind: Kind::Utc,
        hours: 0,
    },
    Wish {
        kind: Kind::Optimal,
        hours: 6,
    },
];

/// Terms that ask for nothing.
const PLAIN: Terms = Terms {
    etag: Etag::None,
    require_all: false,
};

/// What may happen after the creation.
fn events() -> Vec<Event> {
    let updates = [
        (Kind::Local, 1),
        (Kind::Utc, -1),
        (Kind::Utc, -2),
        (Kind::Optimal, 6),
    ];
    let mut events: Vec<Event> = updates
        .map(|(kind, hours)| Event::Update(Wish { kind, hours }, PLAIN))
        .to_vec();
    for terms in [
        Terms {
            etag: Etag::Stale,
            ..PLAIN
        },
        Terms {
            etag: Etag::Current,
            require_all: true,
        },
    ] {
        events.extend([
            Event::Update(
                Wish {
                    kind: Kind::Utc,
                    hours: 1,
                },
                terms,
            ),
            Event::Cancel(terms),
        ]);
    }
    for says in [
        Says::Delivered,
        Says::NotTaken,
        Says::Rejected,
        Says::Unknown,
    ] {
        events.extend([0, 1].map(|back| Event::DeliveryOutcome(back, says)));
    }
    events.extend([Move::Pause, Move::Lease, Move::Next].map(Event::Clock));
    events.extend([true, false].map(|on| Event::Brake { all: true, on }));
    events.extend([
        Event::Cancel(PLAIN),
        Event::Again,
        Event::Fire,
        Event::Retry,
        Event::RetryDispatch(1),
        Event::Rules,
        Event::Restart,
    ]);
    events
}

/// What the invariants remember of the way to a state.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Ledger {
    /// What was handed over by number, less what came back not taken from its first attempt.
    out: BTreeMap<u32, Zones>,
    highest: u32,
}

#[test]
fn what_must_always_hold_does_after_every_short_sequence_of_events() {
    let events = events();
    let mut known = HashSet::new();
    let mut level: Vec<(World, Ledger, Vec<Event>)> = vec![];
    for wish in CREATIONS {
        let (world, _, _) = World::at(instant(NOW).timestamp()).step(Event::Create(wish));
        level.push((world, Ledger::default(), vec![Event::Create(wish)]));
    }
    let mut steps = 0;
    for _ in 0..DEPTH {
        let mut next_level = vec![];
        for (world, ledger, path) in level {
            for event in &events {
                steps += 1;
                let (next, told, handed) = world.step(*event);
                let mut ledger = ledger.clone();
                let held = check(&world, *event, &next, told)
                    .and_then(|()| ledger.note(&world, *event, &next, &handed));
                let path = || path.iter().chain([event]).copied().collect::<Vec<_>>();
                held.unwrap_or_else(|broken| panic!("{broken}\nafter {:#?}\n{next:#?}", path()));
                if known.insert((next.clone(), ledger.clone())) {
                    next_level.push((next, ledger, path()));
                }
            }
        }
        level = next_level;
    }
    assert!(
        known.len() > 50_000,
        "{steps} steps led to no more than {} states",
        known.len()
    );
}

/// What must hold of one step, whatever came before it.
fn check(before: &World, event: Event, after: &World, told: Told) -> Result<(), String> {
    let (Some(old), Some(new)) = (&before.schedule, &after.schedule) else {
        return Ok(());
    };
    let accepted = matches!(told, Told::Accepted { .. }) && event != Event::Again;
    ensure(
        new.revision == old.revision + i64::from(accepted),
        "the revision counts the accepted changes",
    )?;
    ensure(
        told == Told::Nothing || accepted || told == Told::Revived || before == after,
        "what is refused or repeated changes nothing",
    )?;
    if let (Told::Accepted { applied, zones, .. }, true) = (told, accepted) {
        ensure(
            (applied == Applied::All) == old.dispatches.is_empty() && zones == old.open().len(),
            "applied says the truth",
        )?;
    }
    let in_a_wave = new
        .waves(after.rules)
        .iter()
        .fold(Zones::NONE, |sum, wave| sum.and(wave.zones));
    let missed = if new.cancelled_at.is_some() {
        new.open()
    } else {
        new.missed.without(new.taken())
    };
    ensure(
        in_a_wave.and(missed).and(new.taken()) == Zones::all(),
        "no zone is forgotten",
    )?;
    let of_each = in_a_wave.len()
        + missed.len()
        + new
            .dispatches
            .iter()
            .map(|dispatch| dispatch.wave.zones.len())
            .sum::<usize>();
    ensure(
        of_each == Zones::all().len(),
        "a zone is to come, missed, or in one dispatch",
    )?;
    for dispatch in &new.dispatches {
        let was = old
            .dispatches
            .iter()
            .find(|old| old.n == dispatch.n)
            .map(|old| (old.stands, old.attempt, old.last_attempt));
        let exhausted =
            was.is_some_and(|(stands, attempt, last)| stands == Stands::InHand && attempt >= last);
        let rejected = said(event, after) == Some(Says::Rejected);
        let died =
            dispatch.stands == Stands::Dead && was.map(|(stands, ..)| stands) != Some(Stands::Dead);
        ensure(
            !died || rejected || exhausted,
            "a dead letter was refused or tried too often",
        )?;
        let waits = matches!(dispatch.stands, Stands::InHand | Stands::Unknown);
        ensure(
            waits == dispatch.retry_at.is_some() && waits == dispatch.finished_at.is_none(),
            "what is not finished is looked at again",
        )?;
        ensure(
            new.cancelled_at.is_none() || dispatch.stands != Stands::Unknown,
            "a cancelled schedule has nothing that is tried again",
        )?;
    }
    Ok(())
}

/// What the sink said in this event, which may be what it said before.
fn said(event: Event, after: &World) -> Option<Says> {
    let Event::DeliveryOutcome(back, _) = event else {
        return None;
    };
    after.hands[after.hand(back)?].said
}

impl Ledger {
    /// What must hold of all that was handed over.
    fn note(
        &mut self,
        before: &World,
        event: Event,
        after: &World,
        handed: &[HandedOver],
    ) -> Result<(), String> {
        if let (Some(Says::NotTaken), Some(new)) = (said(event, after), &after.schedule) {
            // Nothing but this makes what was handed over as if it had never been fired.
            self.out
                .retain(|n, _| new.dispatches.iter().any(|dispatch| dispatch.n == *n));
        }
        let stopped = before.is_paused()
            || before
                .schedule
                .as_ref()
                .is_some_and(|schedule| schedule.cancelled_at.is_some());
        ensure(
            handed.is_empty() || !stopped,
            "nothing is handed over while paused, or once cancelled",
        )?;
        for one in handed {
            ensure(one.wave.time <= before.now, "nothing is early")?;
            if one.attempt == 1 {
                ensure(one.n > self.highest, "a number is never used again")?;
                let out = self
                    .out
                    .values()
                    .fold(Zones::NONE, |sum, zones| sum.and(*zones));
                ensure(
                    one.wave.zones.without(out) == one.wave.zones,
                    "no zone is handed over twice",
                )?;
                self.out.insert(one.n, one.wave.zones);
                self.highest = one.n;
            } else {
                ensure(
                    self.out.get(&one.n) == Some(&one.wave.zones),
                    "a further attempt is of the same dispatch",
                )?;
            }
        }
        let out: BTreeMap<u32, Zones> = after
            .schedule
            .iter()
            .flat_map(|new| &new.dispatches)
            .map(|dispatch| (dispatch.n, dispatch.wave.zones))
            .collect();
        ensure(
            out == self.out,
            "what was handed over and did not come back is kept",
        )
    }
}

fn ensure(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}
