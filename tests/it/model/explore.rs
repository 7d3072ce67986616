//! Checks invariants after every short sequence of events, breadth-first.

use std::collections::{BTreeMap, HashSet};

use super::events::*;
use super::rules::{Status, World};
use super::zones::Zones;
use crate::support::instant;

/// The number of events after the creation.
const DEPTH: usize = 6;

/// The day before daylight saving time starts in New York.
const NOW: &str = "2026-03-07T18:30:00Z";

/// Local: one zone missed, one due, two pending. UTC: due. Optimal: days that have started and one
/// that has not.
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

/// No conditions.
const PLAIN: Terms = Terms {
    etag: Etag::None,
    require_all: false,
};

/// The events that may follow the creation.
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
        SinkAnswer::Delivered,
        SinkAnswer::NotTaken,
        SinkAnswer::Rejected,
        SinkAnswer::Unknown,
    ] {
        events.extend([0, 1].map(|back| Event::Answer(back, says)));
    }
    events.extend([Move::Pause, Move::Lease, Move::Next].map(Event::Clock));
    events.extend([true, false].map(|on| Event::Pause { all: true, on }));
    events.extend([
        Event::Cancel(PLAIN),
        Event::Again,
        Event::Claim,
        Event::Retry,
        Event::RetryDispatch(1),
        Event::Rules,
        Event::Restart,
    ]);
    events
}

/// The history that the invariants need.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Ledger {
    /// The deliveries by number, without those whose first attempt was not taken.
    out: BTreeMap<u32, Zones>,
    highest: u32,
}

#[test]
fn invariants_hold_after_every_short_sequence_of_events() {
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
                let (next, reply, deliveries) = world.step(*event);
                let mut ledger = ledger.clone();
                let held = check(&world, *event, &next, reply)
                    .and_then(|()| ledger.note(&world, *event, &next, &deliveries));
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
        "{steps} steps reached only {} states",
        known.len()
    );
}

/// Checks the invariants of one step.
fn check(before: &World, event: Event, after: &World, reply: Reply) -> Result<(), String> {
    let (Some(old), Some(new)) = (&before.schedule, &after.schedule) else {
        return Ok(());
    };
    let accepted = matches!(reply, Reply::Accepted { .. }) && event != Event::Again;
    ensure(
        new.revision == old.revision + i64::from(accepted),
        "the revision counts accepted changes",
    )?;
    ensure(
        reply == Reply::Nothing || accepted || reply == Reply::Retried || before == after,
        "refused and repeated requests change nothing",
    )?;
    if let (Reply::Accepted { applied, zones, .. }, true) = (reply, accepted) {
        ensure(
            (applied == Applied::All) == old.dispatches.is_empty() && zones == old.open().len(),
            "`applied` is right",
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
        "no zone is lost",
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
        "a zone is pending, missed, or in one dispatch",
    )?;
    for dispatch in &new.dispatches {
        let was = old
            .dispatches
            .iter()
            .find(|old| old.n == dispatch.n)
            .map(|old| (old.status, old.attempt, old.last_attempt));
        let exhausted =
            was.is_some_and(|(status, attempt, last)| status == Status::InHand && attempt >= last);
        let rejected = answer(event, after) == Some(SinkAnswer::Rejected);
        let died =
            dispatch.status == Status::Dead && was.map(|(status, ..)| status) != Some(Status::Dead);
        ensure(
            !died || rejected || exhausted,
            "a dead letter was rejected or has used up its attempts",
        )?;
        let waits = matches!(dispatch.status, Status::InHand | Status::Unknown);
        ensure(
            waits == dispatch.retry_at.is_some() && waits == dispatch.finished_at.is_none(),
            "an unfinished schedule has a next due instant",
        )?;
        ensure(
            new.cancelled_at.is_none() || dispatch.status != Status::Unknown,
            "a cancelled schedule has no retries",
        )?;
    }
    Ok(())
}

/// The sink's answer in this event, which may be a repeated one.
fn answer(event: Event, after: &World) -> Option<SinkAnswer> {
    let Event::Answer(back, _) = event else {
        return None;
    };
    after.workers[after.worker(back)?].answer
}

impl Ledger {
    /// Checks the invariants of deliveries.
    fn note(
        &mut self,
        before: &World,
        event: Event,
        after: &World,
        deliveries: &[Delivery],
    ) -> Result<(), String> {
        if let (Some(SinkAnswer::NotTaken), Some(new)) = (answer(event, after), &after.schedule) {
            // Only this answer undoes a claim.
            self.out
                .retain(|n, _| new.dispatches.iter().any(|dispatch| dispatch.n == *n));
        }
        let stopped = before.is_paused()
            || before
                .schedule
                .as_ref()
                .is_some_and(|schedule| schedule.cancelled_at.is_some());
        ensure(
            deliveries.is_empty() || !stopped,
            "nothing is delivered during a pause or after a cancellation",
        )?;
        for one in deliveries {
            ensure(one.wave.time <= before.now, "nothing is early")?;
            if one.attempt == 1 {
                ensure(one.n > self.highest, "a number is never used again")?;
                let out = self
                    .out
                    .values()
                    .fold(Zones::NONE, |sum, zones| sum.and(*zones));
                ensure(
                    one.wave.zones.without(out) == one.wave.zones,
                    "no zone is delivered twice",
                )?;
                self.out.insert(one.n, one.wave.zones);
                self.highest = one.n;
            } else {
                ensure(
                    self.out.get(&one.n) == Some(&one.wave.zones),
                    "a retry is of the same dispatch",
                )?;
            }
        }
        let out: BTreeMap<u32, Zones> = after
            .schedule
            .iter()
            .flat_map(|new| &new.dispatches)
            .map(|dispatch| (dispatch.n, dispatch.wave.zones))
            .collect();
        ensure(out == self.out, "deliveries that may have arrived are kept")
    }
}

fn ensure(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}
