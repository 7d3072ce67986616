use super::super::canvas_schedule::{Applied, SchedulePolicy, ScheduleState};
use super::super::command::{Cancel, Command, Create, Overwrite};
use super::super::id::CanvasId;
use super::super::payload::{Identifier, Recipient, Target};
use super::super::schedule::Schedule;
use super::super::zone::Zone;
use super::*;

const NOW: &str = "2026-03-01T12:00:00Z";

fn utc(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).expect(text).to_utc()
}

fn canvas() -> CanvasId {
    CanvasId::parse("canvas").expect("a canvas id")
}

fn schedule(time: &str, local: bool) -> Schedule {
    Schedule::parse(time, local, false).expect(time)
}

fn created(at: Schedule, target: Target) -> CanvasSchedule {
    let create = Create {
        canvas_id: canvas(),
        schedule: at,
        properties: None,
        target,
    };
    create
        .decide(
            ScheduleId::new(),
            Zone::utc(),
            utc(NOW),
            &SchedulePolicy::default(),
        )
        .expect("accepted")
        .after
}

fn for_everyone(at: Schedule) -> CanvasSchedule {
    created(
        at,
        Target {
            broadcast: true,
            ..Target::default()
        },
    )
}

fn overwrite(
    to: Schedule,
    current: &CanvasSchedule,
    now: DateTime<Utc>,
) -> Result<super::super::Outcome, Error> {
    let overwrite = Overwrite {
        canvas_id: canvas(),
        schedule: to,
        properties: None,
        etag: None,
        require_all: false,
    };
    Command::Overwrite(overwrite).decide(current, now, &SchedulePolicy::default())
}

/// A schedule for one instant, claimed at it.
fn claimed() -> ClaimedWave {
    let pending = for_everyone(schedule("2026-03-20T08:00:00Z", false));
    pending
        .claim(utc("2026-03-20T08:00:00Z"), &DeliveryPolicy::default())
        .expect("it is due")
}

fn settle(dispatch: &Dispatch, answer: &DeliveryOutcome, held: Hold) -> Option<Settled> {
    dispatch.settle(
        dispatch.attempt,
        answer,
        held,
        utc("2026-03-20T08:00:01Z"),
        1.0,
        &DeliveryPolicy::default(),
    )
}

fn unknown() -> DeliveryOutcome {
    DeliveryOutcome::Unknown {
        why: "timeout".to_owned(),
    }
}

fn not_taken() -> DeliveryOutcome {
    DeliveryOutcome::NotTaken {
        why: "503".to_owned(),
        retry_after: None,
    }
}

const CANCELLED: Hold = Hold {
    cancelled: true,
    paused: false,
};
const PAUSED: Hold = Hold {
    cancelled: false,
    paused: true,
};

#[test]
fn an_instant_is_claimed_once_and_not_before_it_is_due() {
    let pending = for_everyone(schedule("2026-03-20T08:00:00Z", false));
    assert_eq!(
        pending.claim(utc("2026-03-20T07:59:59.999Z"), &DeliveryPolicy::default()),
        None
    );
    let ClaimedWave { dispatch, after } = claimed();
    assert_eq!(
        (
            dispatch.number,
            dispatch.attempt,
            dispatch.state,
            dispatch.revision
        ),
        (1, 1, DispatchState::InFlight, 1)
    );
    assert_eq!(
        (dispatch.wave.zones, dispatch.wave.includes_unlisted_zones),
        (ZoneSet::all(), true)
    );
    assert_eq!(
        (
            after.state(),
            after.next_wave,
            after.last_number,
            after.revision
        ),
        (ScheduleState::Dispatched, None, 1, 1)
    );
    assert_eq!(
        after.claim(utc("2026-03-21T08:00:00Z"), &DeliveryPolicy::default()),
        None,
        "nothing is left"
    );
    assert_eq!(
        after.clone().with_dispatches(&[dispatch]),
        after,
        "the stored dispatches give the same schedule"
    );
}

#[test]
fn a_local_day_is_handed_over_wave_by_wave_and_every_zone_once() {
    let mut current = for_everyone(schedule("2026-03-02T12:00:00", true));
    let (mut dispatches, mut now) = (vec![], utc(NOW));
    while let Some(next) = current.next_wave {
        assert!(next > now, "waves come in the order of their instants");
        assert_eq!(
            current.claim(
                next - TimeDelta::milliseconds(1),
                &DeliveryPolicy::default()
            ),
            None
        );
        now = next;
        let ClaimedWave { dispatch, after } =
            current.claim(now, &DeliveryPolicy::default()).expect("due");
        current = after;
        dispatches.push(dispatch);
    }
    assert!(dispatches.len() > 20, "{}", dispatches.len());
    let zones: usize = dispatches
        .iter()
        .map(|dispatch| dispatch.wave.zones.len())
        .sum();
    assert_eq!(
        (zones, current.claimed),
        (ZoneSet::all().len(), ZoneSet::all()),
        "each zone in exactly one wave"
    );
    assert_eq!(
        dispatches
            .iter()
            .filter(|dispatch| dispatch.wave.includes_unlisted_zones)
            .count(),
        1
    );
    assert!(
        dispatches
            .iter()
            .zip(1..)
            .all(|(dispatch, n)| dispatch.number == n)
    );
}

#[test]
fn an_update_under_way_moves_the_open_zones_only_to_utc_and_back() {
    let mut current = for_everyone(schedule("2026-03-02T12:00:00", true));
    let mut dispatches = vec![];
    for _ in 0..10 {
        let ClaimedWave { dispatch, after } = current
            .claim(
                current.next_wave.expect("a wave"),
                &DeliveryPolicy::default(),
            )
            .expect("due");
        current = after;
        dispatches.push(dispatch);
    }
    let now = current.last_claimed_at.expect("ten waves");
    for to in [
        schedule("2026-03-03T10:00:00Z", false),
        schedule("2026-03-03T12:00:00", true),
    ] {
        let outcome = overwrite(to, &current, now).expect("accepted");
        assert_eq!(
            (outcome.applied, outcome.applied_zones),
            (Applied::Some, current.open_zones().len())
        );
        current = outcome.after;
        assert!(dispatches.iter().all(
            |dispatch| dispatch.wave.zones.without(&current.open_zones()) == dispatch.wave.zones
        ));
    }
    while let Some(next) = current.next_wave {
        let ClaimedWave { dispatch, after } = current
            .claim(next, &DeliveryPolicy::default())
            .expect("due");
        current = after;
        dispatches.push(dispatch);
    }
    let zones: usize = dispatches
        .iter()
        .map(|dispatch| dispatch.wave.zones.len())
        .sum();
    assert_eq!(
        (zones, current.open_zones().len()),
        (ZoneSet::all().len(), 0)
    );
    assert_eq!(
        dispatches
            .iter()
            .filter(|dispatch| dispatch.wave.includes_unlisted_zones)
            .count(),
        1
    );
    let refused = overwrite(schedule("2026-03-05T10:00:00Z", false), &current, now);
    let since = rfc3339(dispatches.last().expect("a dispatch").claimed_at);
    assert_eq!(
        refused,
        Err(Error::NothingLeft {
            schedule_id: current.id.to_string(),
            since
        }),
        "since the last zone was handed over"
    );
}

#[test]
fn every_wave_that_is_due_goes_however_late() {
    let current = for_everyone(schedule("2026-03-02T12:00:00", true));
    let (mut current, late) = (current, utc("2026-03-10T00:00:00Z"));
    let mut zones = 0;
    while let Some(ClaimedWave { dispatch, after }) =
        current.claim(late, &DeliveryPolicy::default())
    {
        zones += dispatch.wave.zones.len();
        current = after;
    }
    assert_eq!(zones, ZoneSet::all().len());
}

#[test]
fn what_was_not_taken_is_open_again_under_a_new_number() {
    let ClaimedWave { dispatch, after } = claimed();
    let settled = settle(&dispatch, &not_taken(), Hold::default());
    assert_eq!(
        settled,
        Some(Settled::Reopened {
            retry_at: utc("2026-03-20T08:00:02Z")
        })
    );
    let again = after.with_dispatches(&[]).replanned();
    assert_eq!(
        (again.state(), again.next_wave, again.last_claimed_at),
        (
            ScheduleState::Pending,
            Some(utc("2026-03-20T08:00:00Z")),
            None
        )
    );
    let second = again
        .claim(utc("2026-03-20T08:00:02Z"), &DeliveryPolicy::default())
        .expect("due")
        .dispatch;
    assert_eq!((second.number, second.attempt), (2, 1));
}

#[test]
fn an_attempt_after_an_unknown_one_never_opens_zones_again() {
    let ClaimedWave { dispatch, .. } = claimed();
    let Some(Settled::Updated(unknown)) = settle(&dispatch, &unknown(), Hold::default()) else {
        panic!("kept")
    };
    assert_eq!(
        (unknown.state, unknown.retry_at),
        (DispatchState::Unknown, Some(utc("2026-03-20T08:00:02Z")))
    );
    let second = unknown.retry(
        Hold::default(),
        utc("2026-03-20T08:00:02Z"),
        &DeliveryPolicy::default(),
    );
    assert_eq!(
        (second.state, second.attempt, second.number),
        (DispatchState::InFlight, 2, 1)
    );
    let Some(Settled::Updated(still)) = settle(&second, &not_taken(), Hold::default()) else {
        panic!("kept")
    };
    assert_eq!(
        (still.state, still.attempt),
        (DispatchState::Unknown, 2),
        "the first may be there"
    );
    assert_eq!(
        still.last_attempt,
        second.last_attempt + 1,
        "the second does not count"
    );
    let third = still.retry(
        Hold::default(),
        utc("2026-03-20T08:00:09Z"),
        &DeliveryPolicy::default(),
    );
    let retried = third.settle(
        2,
        &not_taken(),
        Hold::default(),
        utc("2026-03-20T08:00:09Z"),
        0.0,
        &DeliveryPolicy::default(),
    );
    assert_eq!(
        (third.attempt, retried),
        (3, None),
        "the second attempt's outcome does not settle the third"
    );
}

#[test]
fn unknown_is_tried_with_growing_pauses_and_then_dies() {
    let delivery = DeliveryPolicy {
        attempts: 4,
        ..DeliveryPolicy::default()
    };
    let pauses = [1, 2, 3, 9, 10, 60].map(|attempt| delivery.pause(attempt, 1.0).num_seconds());
    assert_eq!(pauses, [1, 2, 4, 256, 300, 300]);
    assert_eq!(
        delivery.pause(3, 0.0),
        TimeDelta::seconds(2),
        "jitter takes up to a half"
    );
    let mut dispatch = Dispatch {
        last_attempt: 4,
        ..claimed().dispatch
    };
    for attempt in 1..=4 {
        assert_eq!(
            (dispatch.state, dispatch.attempt),
            (DispatchState::InFlight, attempt)
        );
        let Some(Settled::Updated(next)) = settle(&dispatch, &unknown(), Hold::default()) else {
            panic!("kept")
        };
        dispatch = next.retry(
            Hold::default(),
            next.retry_at.unwrap_or(next.claimed_at),
            &delivery,
        );
    }
    assert_eq!(
        (dispatch.state, dispatch.retry_at, dispatch.why.as_str()),
        (DispatchState::Dead, None, "timeout")
    );
}

#[test]
fn a_lease_that_ran_out_is_an_unknown_outcome() {
    let ClaimedWave { dispatch, .. } = claimed();
    let end = dispatch.retry_at.expect("a lease");
    let again = dispatch.retry(Hold::default(), end, &DeliveryPolicy::default());
    assert_eq!(
        (again.state, again.attempt, again.retry_at),
        (
            DispatchState::InFlight,
            2,
            Some(end + DeliveryPolicy::default().lease)
        )
    );
    assert!(
        dispatch
            .settle(
                1,
                &DeliveryOutcome::Delivered,
                Hold::default(),
                end,
                0.5,
                &DeliveryPolicy::default()
            )
            .is_some()
    );
    for answer in [
        not_taken(),
        unknown(),
        DeliveryOutcome::Rejected {
            why: "400".to_owned(),
        },
    ] {
        assert_eq!(
            again.settle(
                1,
                &answer,
                Hold::default(),
                end,
                0.5,
                &DeliveryPolicy::default()
            ),
            None,
            "a late {answer:?} has no say"
        );
    }
    let delivered = again.settle(
        1,
        &DeliveryOutcome::Delivered,
        Hold::default(),
        end,
        0.5,
        &DeliveryPolicy::default(),
    );
    let Some(Settled::Updated(delivered)) = delivered else {
        panic!("{delivered:?}")
    };
    assert_eq!(delivered.state, DispatchState::Delivered);
    let paused = dispatch.retry(PAUSED, end, &DeliveryPolicy::default());
    assert_eq!(
        (paused.state, paused.attempt, paused.retry_at),
        (DispatchState::Unknown, 1, Some(end + PAUSED_RETRY_INTERVAL))
    );
}

#[test]
fn a_cancelled_schedule_is_tried_no_more() {
    let ClaimedWave { dispatch, after } = claimed();
    for answer in [unknown(), not_taken()] {
        let second = Dispatch {
            attempt: 2,
            ..dispatch.clone()
        };
        let Some(Settled::Updated(laid)) = settle(&second, &answer, CANCELLED) else {
            panic!("kept")
        };
        assert_eq!(
            (laid.state, laid.retry_at),
            (DispatchState::Abandoned, None),
            "{answer:?}"
        );
    }
    assert!(
        matches!(
            settle(&dispatch, &not_taken(), CANCELLED),
            Some(Settled::Reopened { .. })
        ),
        "it was never sent"
    );
    let expired = dispatch.retry(
        CANCELLED,
        utc("2026-03-21T00:00:00Z"),
        &DeliveryPolicy::default(),
    );
    let waiting = Dispatch {
        state: DispatchState::Unknown,
        ..dispatch.clone()
    }
    .retry(CANCELLED, utc(NOW), &DeliveryPolicy::default());
    assert_eq!(
        [expired.state, waiting.state],
        [DispatchState::Abandoned; 2]
    );
    let cancelled = CanvasSchedule {
        cancelled_at: Some(utc(NOW)),
        next_wave: None,
        ..after
    };
    assert_eq!(
        cancelled.claim(utc("2027-01-01T00:00:00Z"), &DeliveryPolicy::default()),
        None
    );
    let dead = Dispatch {
        state: DispatchState::Dead,
        ..dispatch
    };
    assert!(matches!(
        dead.retry_dead_letter(&cancelled, utc(NOW), &DeliveryPolicy::default()),
        Err(Error::Cancelled { .. })
    ));
}

#[test]
fn only_a_dead_letter_can_be_retried_by_the_api() {
    let ClaimedWave { dispatch, after } = claimed();
    let Some(Settled::Updated(dead)) = settle(
        &dispatch,
        &DeliveryOutcome::Rejected {
            why: "400".to_owned(),
        },
        Hold::default(),
    ) else {
        panic!("kept")
    };
    assert_eq!(
        (dead.state, dead.why.as_str(), dead.retry_at),
        (DispatchState::Dead, "400", None)
    );
    let revived = dead
        .retry_dead_letter(&after, utc(NOW), &DeliveryPolicy::default())
        .expect("a dead letter");
    assert_eq!(
        (revived.state, revived.last_attempt, revived.retry_at),
        (DispatchState::Unknown, 11, Some(utc(NOW)))
    );
    let second = revived.retry(Hold::default(), utc(NOW), &DeliveryPolicy::default());
    assert_eq!(
        (second.state, second.attempt, second.id(after.id)),
        (DispatchState::InFlight, 2, dispatch.id(after.id))
    );
    let refused = dispatch.retry_dead_letter(&after, utc(NOW), &DeliveryPolicy::default());
    assert_eq!(
        refused,
        Err(Error::NotDead {
            dispatch_id: DispatchId::of(after.id, 1).to_string()
        })
    );
}

#[test]
fn only_the_zones_that_recipients_state_are_fired() {
    let user = |zone: &str| Recipient {
        identifier: Identifier::ExternalUserId(zone.to_owned()),
        prioritization: vec![],
        trigger_properties: None,
        send_to_existing_only: None,
        attributes: serde_json::json!({ "time_zone": zone })
            .as_object()
            .cloned(),
    };
    let target = Target {
        recipients: vec![user("Asia/Tokyo"), user("Europe/Berlin")],
        ..Target::default()
    };
    let utc_only = created(schedule("2026-03-20T08:00:00Z", false), target.clone());
    let claimed = utc_only
        .claim(utc("2026-03-20T08:00:00Z"), &DeliveryPolicy::default())
        .expect("due");
    assert_eq!(
        claimed.dispatch.wave.zones.names(),
        ["Asia/Tokyo", "Europe/Berlin"]
    );
    assert_eq!(claimed.after.state(), ScheduleState::Dispatched);
    let cancel = Command::Cancel(Cancel {
        canvas_id: canvas(),
        etag: None,
        require_all: false,
    });
    assert!(matches!(
        cancel.decide(&claimed.after, utc(NOW), &SchedulePolicy::default()),
        Err(Error::NothingLeft { .. })
    ));
    let unknown = Dispatch {
        state: DispatchState::Unknown,
        ..claimed.dispatch
    };
    let stopped = cancel
        .decide(
            &claimed.after.with_dispatches(&[unknown]),
            utc(NOW),
            &SchedulePolicy::default(),
        )
        .expect("there is something to stop");
    assert_eq!(
        (
            stopped.applied,
            stopped.applied_zones,
            stopped.after.state()
        ),
        (Applied::Some, 0, ScheduleState::Cancelled)
    );
}
