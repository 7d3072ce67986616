//! Compares the service with the model over random sequences of events, each continued until
//! nothing is left to send.

use std::fmt::{Debug, Write};
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::driver::Replica;
use super::events::*;
use super::rules::{View, World};
use super::zones::Time;
use crate::support::{Database, instant, on_both};

on_both![file:
    local_times_conform_to_the_model,
    instants_conform_to_the_model,
    optimal_times_conform_to_the_model,
    rare_sequences_conform_to_the_model,
];

/// The number of sequences of each kind on each database; `MODEL_SEQUENCES` overrides it.
const SEQUENCES: u64 = 350;
/// The seed of the first sequence; `MODEL_SEED` overrides it. Each further sequence has the next
/// seed.
const SEED: u64 = 1;
/// The bound of steps until a sequence ends.
const MAX_STEPS: usize = 200;
/// The bound of attempts to shorten a failing sequence.
const MAX_SHRINKS: usize = 400;

async fn local_times_conform_to_the_model(database: &Database) {
    check_conformance(database, Kind::Local).await;
}

async fn instants_conform_to_the_model(database: &Database) {
    check_conformance(database, Kind::Utc).await;
}

async fn optimal_times_conform_to_the_model(database: &Database) {
    check_conformance(database, Kind::Optimal).await;
}

async fn rare_sequences_conform_to_the_model(database: &Database) {
    use Event::{Answer, Claim, Clock, Create, Retry};
    let start = instant(STARTS[0]).timestamp();
    let local = Create(Wish {
        kind: Kind::Local,
        hours: 14,
    });
    let utc = Create(Wish {
        kind: Kind::Utc,
        hours: 0,
    });
    let (pause, not_taken) = (Clock(Move::Pause), SinkAnswer::NotTaken);
    let mut replica = Replica::open(database).await;
    for (case, events) in [
        (
            "a wave that was not taken waits, however many are due",
            vec![local, Clock(Move::Day), Claim, Answer(0, not_taken), Claim],
        ),
        (
            "a repeated answer to an attempt does not affect the next attempt",
            vec![
                utc,
                Claim,
                Answer(0, SinkAnswer::Unknown),
                pause,
                Retry,
                Answer(0, not_taken),
                pause,
                Retry,
                Answer(1, not_taken),
            ],
        ),
    ] {
        let picks = events.into_iter().map(Pick::This).collect();
        play(&mut replica, &Sequence { start, picks })
            .await
            .unwrap_or_else(|why| panic!("{case}\n{why}"));
    }
}

/// Plays sequences that start with a schedule of this kind.
async fn check_conformance(database: &Database, kind: Kind) {
    let mut replica = Replica::open(database).await;
    let first = setting("MODEL_SEED").unwrap_or(SEED);
    for seed in first..first + setting("MODEL_SEQUENCES").unwrap_or(SEQUENCES) {
        let mut tree = tree(seed, kind);
        if let Err(why) = play(&mut replica, &tree.current()).await {
            let why = shortest(&mut replica, &mut tree, why).await;
            panic!("{why}\nThe sequence of MODEL_SEED={seed}, shortened while it fails");
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a setting of the tests, not of the service"
)]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().expect(name))
}

fn tree(seed: u64, kind: Kind) -> impl ValueTree<Value = Sequence> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8] = kind as u8;
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        TestRng::from_seed(RngAlgorithm::ChaCha, &bytes),
    );
    sequences(kind).new_tree(&mut runner).expect("a sequence")
}

/// Shortens a failing sequence, and returns the failure of the shortest.
async fn shortest(
    replica: &mut Replica<'_>,
    tree: &mut impl ValueTree<Value = Sequence>,
    mut why: String,
) -> String {
    let mut shorter = tree.simplify();
    for _ in 0..MAX_SHRINKS {
        if !shorter {
            break;
        }
        shorter = match play(replica, &tree.current()).await {
            Ok(()) => tree.complicate(),
            Err(still) => {
                why = still;
                tree.simplify()
            }
        };
    }
    why
}

/// A sequence of events, some of which are chosen while it is played.
#[derive(Debug, Clone)]
struct Sequence {
    start: Time,
    picks: Vec<Pick>,
}

#[derive(Debug, Clone)]
enum Pick {
    /// This event.
    This(Event),
    /// An event that changes the current state.
    Effective(Index),
}

impl Pick {
    fn event(&self, world: &World) -> Event {
        match self {
            Self::This(event) => *event,
            Self::Effective(index) => {
                let effective: Vec<Event> = EVENTS
                    .iter()
                    .copied()
                    .filter(|event| world.step(*event).0 != *world)
                    .collect();
                *index.get(&effective)
            }
        }
    }
}

/// The candidates for an event that changes the state. Those that advance a schedule are repeated,
/// to be chosen more often.
static EVENTS: LazyLock<Vec<Event>> = LazyLock::new(|| {
    let mut events = vec![
        Event::Claim,
        Event::Claim,
        Event::Claim,
        Event::Claim,
        Event::Retry,
        Event::Retry,
        Event::Retry,
    ];
    events.extend([Move::Next, Move::Next, Move::Pause, Move::Lease, Move::Day].map(Event::Clock));
    for says in [
        SinkAnswer::NotTaken,
        SinkAnswer::Unknown,
        SinkAnswer::Rejected,
        SinkAnswer::Delivered,
    ] {
        events.extend([0, 1].map(|back| Event::Answer(back, says)));
    }
    for (kind, hours) in [(Kind::Local, 1), (Kind::Utc, 0), (Kind::Optimal, 6)] {
        events.push(Event::Update(
            Wish { kind, hours },
            Terms {
                etag: Etag::None,
                require_all: false,
            },
        ));
    }
    events.extend((1..4).map(Event::RetryDispatch));
    events.extend([true, false].map(|on| Event::Pause { all: false, on }));
    events.extend([
        Event::Restart,
        Event::Cancel(Terms {
            etag: Etag::Current,
            require_all: false,
        }),
    ]);
    events
});

/// The days before daylight saving time starts and ends in New York: eight hours later a wall-clock
/// time is skipped, or happens twice.
const STARTS: [&str; 2] = ["2026-03-07T18:30:00Z", "2026-10-31T17:30:00Z"];

fn sequences(kind: Kind) -> impl Strategy<Value = Sequence> {
    let picks = prop::collection::vec(
        prop_oneof![2 => any::<Index>().prop_map(Pick::Effective), 1 => event().prop_map(Pick::This)],
        0..18,
    );
    (prop::sample::select(&STARTS[..]), hours(), picks).prop_map(
        move |(start, hours, mut picks)| {
            picks.insert(0, Pick::This(Event::Create(Wish { kind, hours })));
            Sequence {
                start: instant(start).timestamp(),
                picks,
            }
        },
    )
}

/// Hours from now: due, missed, barely not missed, within the day, in the gap or the overlap,
/// tomorrow, at and beyond the horizon.
fn hours() -> impl Strategy<Value = i64> {
    prop::sample::select(&[0, 1, -1, 2, 8, 13, 14, 30, -2, -20, 366 * 24, 366 * 24 + 1][..])
}

fn wish() -> impl Strategy<Value = Wish> {
    (
        prop::sample::select(&[Kind::Local, Kind::Utc, Kind::Optimal][..]),
        hours(),
    )
        .prop_map(|(kind, hours)| Wish { kind, hours })
}

fn terms() -> impl Strategy<Value = Terms> {
    let etag = prop::sample::select(&[Etag::None, Etag::Current, Etag::Stale][..]);
    (etag, prop::bool::weighted(0.3)).prop_map(|(etag, require_all)| Terms { etag, require_all })
}

fn event() -> impl Strategy<Value = Event> {
    let says = prop::sample::select(
        &[
            SinkAnswer::Delivered,
            SinkAnswer::NotTaken,
            SinkAnswer::Rejected,
            SinkAnswer::Unknown,
        ][..],
    );
    prop_oneof![
        3 => Just(Event::Claim),
        3 => Just(Event::Retry),
        3 => (0..4_usize, says).prop_map(|(back, says)| Event::Answer(back, says)),
        4 => (wish(), terms()).prop_map(|(wish, terms)| Event::Update(wish, terms)),
        2 => terms().prop_map(Event::Cancel),
        2 => Just(Event::Again),
        1 => (1..5_u32).prop_map(Event::RetryDispatch),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(all, on)| Event::Pause { all, on }),
        1 => any::<bool>().prop_map(|later| Event::OtherRelease { later }),
    ]
}

/// Plays a sequence and then what is left to do, and compares every step with the model.
async fn play(replica: &mut Replica<'_>, sequence: &Sequence) -> Result<(), String> {
    replica.begin(sequence.start).await;
    let (mut world, mut played) = (World::at(sequence.start), vec![]);
    for n in 0..MAX_STEPS {
        let Some(event) = sequence
            .picks
            .get(n)
            .map(|pick| pick.event(&world))
            .or_else(|| world.to_do())
        else {
            return lists(replica, &world).await;
        };
        played.push(event);
        world = step(replica, &world, event)
            .await
            .map_err(|why| format!("{why}\nafter {played:?}"))?;
    }
    Err(format!("the sequence does not end: {played:?}"))
}

async fn step(replica: &mut Replica<'_>, world: &World, event: Event) -> Result<World, String> {
    let (next, reply, deliveries) = world.step(event);
    let (actual_answer, actual_deliveries) = replica.step(event, &next).await;
    differs("answer", &reply, &actual_answer)?;
    differs("dispatches at the sink", &deliveries, &actual_deliveries)?;
    // Time alone changes no stored state.
    if !matches!(event, Event::Clock(_)) {
        differs("state", &view(&next), &replica.view().await)?;
    }
    Ok(next)
}

fn view(world: &World) -> Option<View> {
    world
        .schedule
        .as_ref()
        .map(|schedule| schedule.view(world.rules))
}

/// Compares the lists with the model.
async fn lists(replica: &Replica<'_>, world: &World) -> Result<(), String> {
    let Some(view) = view(world) else {
        return Ok(());
    };
    differs(
        "list of dispatches",
        &view.dispatches,
        &replica.dispatches().await,
    )?;
    differs(
        "list of revisions",
        &(1..=view.revision).rev().collect(),
        &replica.revisions().await,
    )
}

fn differs<T: Debug + PartialEq>(what: &str, model: &T, service: &T) -> Result<(), String> {
    if model == service {
        return Ok(());
    }
    let mut text = format!("{what}: the model and the service differ\n");
    let _written = write!(text, "model:   {model:?}\nservice: {service:?}");
    Err(text)
}
