use proptest::prelude::*;

use super::super::canvas_schedule::ScheduleState;
use super::super::payload::{Identifier, Recipient};
use super::*;

fn utc(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).expect(text).to_utc()
}

fn now() -> DateTime<Utc> {
    utc("2026-03-01T12:00:00Z")
}

fn canvas() -> CanvasId {
    CanvasId::parse("canvas").expect("a canvas id")
}

fn schedule(time: &str, local: bool, optimal: bool) -> Schedule {
    Schedule::parse(time, local, optimal).expect(time)
}

fn create(schedule: Schedule) -> Create {
    Create {
        canvas_id: canvas(),
        schedule,
        properties: None,
        target: Target {
            broadcast: true,
            ..Target::default()
        },
    }
}

fn created(at: Schedule) -> CanvasSchedule {
    create(at)
        .decide(
            ScheduleId::new(),
            Zone::utc(),
            now(),
            &SchedulePolicy::default(),
        )
        .expect("accepted")
        .after
}

fn overwrite(schedule: Schedule) -> Overwrite {
    Overwrite {
        canvas_id: canvas(),
        schedule,
        properties: None,
        etag: None,
        require_all: false,
    }
}

fn decide(command: Overwrite, current: &CanvasSchedule) -> Result<Outcome, Error> {
    Command::Overwrite(command).decide(current, now(), &SchedulePolicy::default())
}

#[test]
fn the_source_documents_overwrite_example() {
    let first = created(schedule("2026-03-20T13:14:47", true, false));
    let outcome = decide(
        overwrite(schedule("2026-03-20T14:14:47", false, false)),
        &first,
    )
    .expect("accepted");
    assert_eq!(outcome.after.schedule.to_string(), "2026-03-20T14:14:47Z");
    assert!(
        !outcome.after.schedule.in_local_time,
        "a flag left out means false"
    );
    assert_eq!((outcome.after.revision, outcome.applied), (2, Applied::All));
    assert_eq!(outcome.after.plan().waves.len(), 1, "one wave for everyone");
}

#[test]
fn an_unchanged_value_is_still_a_revision() {
    let first = created(schedule("2026-03-20T13:14:47", true, false));
    let same = decide(overwrite(first.schedule), &first)
        .expect("accepted")
        .after;
    assert_eq!(
        same,
        CanvasSchedule {
            revision: 2,
            ..first
        }
    );
}

#[test]
fn properties_are_kept_when_absent_and_replaced_whole_when_present() {
    let with = |text: &str| Some(Properties(serde_json::from_str(text).expect("JSON")));
    let at = schedule("2026-03-20T13:14:47", false, false);
    let first = Create {
        properties: with(r#"{"a":1,"b":2}"#),
        ..create(at)
    };
    let first = first
        .decide(
            ScheduleId::new(),
            Zone::utc(),
            now(),
            &SchedulePolicy::default(),
        )
        .expect("accepted")
        .after;
    let kept = decide(overwrite(at), &first).expect("accepted");
    assert_eq!(
        (kept.after.properties, kept.new_properties),
        (first.properties, None)
    );
    let replaced = decide(
        Overwrite {
            properties: with(r#"{"a":3}"#),
            ..overwrite(at)
        },
        &first,
    )
    .expect("accepted");
    assert_eq!(
        replaced.new_properties.map(|(_, json)| json),
        Some(r#"{"a":3}"#.to_owned())
    );
    assert_ne!(replaced.after.properties, first.properties);
}

#[test]
fn an_hour_past_is_sent_immediately_and_a_millisecond_more_is_refused() {
    let current = created(schedule("2026-03-20T13:14:47", true, false));
    let at_once = decide(
        overwrite(schedule("2026-03-01T11:00:00Z", false, false)),
        &current,
    )
    .expect("accepted");
    assert_eq!(at_once.after.next_wave, Some(utc("2026-03-01T11:00:00Z")));
    let refused = decide(
        overwrite(schedule("2026-03-01T10:59:59.999Z", false, false)),
        &current,
    );
    assert!(matches!(refused, Err(Error::TimePast(_))), "{refused:?}");
    let long_ago = decide(
        overwrite(schedule("2017-05-24T21:30:00Z", true, false)),
        &current,
    );
    assert!(matches!(long_ago, Err(Error::TimePast(_))), "{long_ago:?}");
}

#[test]
fn zones_far_past_are_missed_and_stay_open() {
    let current = created(schedule("2026-03-20T13:14:47", true, false));
    let outcome = decide(
        overwrite(schedule("2026-03-01T11:30:00", true, false)),
        &current,
    )
    .expect("accepted");
    let tokyo = Zone::parse("Asia/Tokyo").expect("a zone");
    assert!(outcome.missed.contains(tokyo) && !outcome.missed.contains(Zone::utc()));
    assert!(outcome.after.open_zones().contains(tokyo));
    assert_eq!(
        outcome.missed,
        outcome.after.plan().missed,
        "Get must return what the update answered"
    );
    assert_eq!(outcome.applied, Applied::All);
    let all = decide(
        Overwrite {
            require_all: true,
            ..overwrite(outcome.after.schedule)
        },
        &current,
    );
    assert!(
        matches!(all, Err(Error::NotAll { taken: 0, .. })),
        "{all:?}"
    );
}

#[test]
fn an_optimal_day_is_open_until_it_ends_in_a_zone() {
    let today = created(schedule("2026-03-01T00:00:00", false, true));
    let missed = today.plan().missed;
    let zone = |name| Zone::parse(name).expect("a zone");
    assert!(
        missed.contains(zone("Pacific/Kiritimati")),
        "it is 2 March there"
    );
    assert!(
        !missed.contains(zone("Etc/GMT+12")) && !missed.contains(zone("Asia/Tokyo")),
        "1 March has begun or is still going on"
    );
    assert!(
        today.open_zones().contains(zone("Pacific/Kiritimati")),
        "missed, and open to the next update"
    );
    let yesterday = create(schedule("2026-02-28T10:00:00", false, true));
    let outcome = yesterday.decide(
        ScheduleId::new(),
        Zone::utc(),
        now(),
        &SchedulePolicy::default(),
    );
    assert!(
        matches!(outcome, Err(Error::TimePast(_))),
        "noon UTC: 28 February has ended everywhere but at -12:00, where it ends now"
    );
}

#[test]
fn the_horizon_is_366_days_for_the_last_wave() {
    let current = created(schedule("2026-03-20T13:14:47", true, false));
    assert!(
        decide(
            overwrite(schedule("2027-03-02T12:00:00Z", false, false)),
            &current
        )
        .is_ok()
    );
    for (time, local) in [
        ("2027-03-02T12:00:00.001Z", false),
        ("2027-03-02T12:00:00", true),
        ("9999-12-31T23:59:59", true),
    ] {
        let refused = decide(overwrite(schedule(time, local, false)), &current);
        assert!(
            matches!(refused, Err(Error::BeyondHorizon(_))),
            "{time} {refused:?}"
        );
    }
}

#[test]
fn a_stale_etag_a_cancelled_schedule_and_another_canvas_are_refused() {
    let first = created(schedule("2026-03-20T13:14:47", true, false));
    let at = first.schedule;
    let second = decide(
        Overwrite {
            etag: Some(first.etag()),
            ..overwrite(at)
        },
        &first,
    )
    .expect("a fresh etag")
    .after;
    let stale = decide(
        Overwrite {
            etag: Some(first.etag()),
            ..overwrite(at)
        },
        &second,
    );
    assert_eq!(
        stale,
        Err(Error::StaleEtag {
            schedule_id: first.id.to_string(),
            revision: 2
        })
    );
    let other = CanvasId::parse("other").expect("a canvas id");
    let foreign = decide(
        Overwrite {
            canvas_id: other,
            ..overwrite(at)
        },
        &second,
    );
    assert_eq!(
        foreign,
        Err(Error::NotFound {
            schedule_id: first.id.to_string()
        })
    );
    let cancel = Command::Cancel(Cancel {
        canvas_id: canvas(),
        etag: Some(second.etag()),
        require_all: true,
    });
    let cancelled = cancel
        .decide(&second, now(), &SchedulePolicy::default())
        .expect("accepted")
        .after;
    assert_eq!(
        (cancelled.state(), cancelled.revision, cancelled.next_wave),
        (ScheduleState::Cancelled, 3, None)
    );
    assert!(cancelled.plan().waves.is_empty());
    assert!(matches!(
        decide(overwrite(at), &cancelled),
        Err(Error::Cancelled { .. })
    ));
    assert!(matches!(
        cancel.decide(&cancelled, now(), &SchedulePolicy::default()),
        Err(Error::Cancelled { .. })
    ));
}

#[test]
fn a_change_under_way_covers_the_open_zones_only() {
    let mut current = created(schedule("2026-03-20T13:14:47", true, false));
    let berlin = Zone::parse("Europe/Berlin").expect("a zone");
    current.claimed = [berlin].into_iter().collect();
    let at = schedule("2026-03-20T14:14:47", false, false);
    let outcome = decide(overwrite(at), &current).expect("accepted");
    assert_eq!(
        (outcome.applied, outcome.applied_zones),
        (Applied::Some, ZoneSet::all().len() - 1)
    );
    assert!(!outcome.after.plan().waves[0].zones.contains(berlin));
    assert!(matches!(
        decide(
            Overwrite {
                require_all: true,
                ..overwrite(at)
            },
            &current
        ),
        Err(Error::NotAll {
            taken: 1,
            missed: 0,
            ..
        })
    ));
    current.claimed = ZoneSet::all();
    assert_eq!(current.state(), ScheduleState::Dispatched);
    assert!(matches!(
        decide(overwrite(at), &current),
        Err(Error::NothingLeft { .. })
    ));
}

#[test]
fn recipients_that_all_state_a_zone_limit_the_waves() {
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
    let create = Create {
        target,
        ..create(schedule("2026-03-20T13:14:47", true, false))
    };
    let outcome = create
        .decide(
            ScheduleId::new(),
            Zone::utc(),
            now(),
            &SchedulePolicy::default(),
        )
        .expect("accepted");
    let waves = outcome.after.plan().waves;
    assert_eq!(
        waves
            .iter()
            .map(|wave| wave.zones.names())
            .collect::<Vec<_>>(),
        [["Asia/Tokyo"], ["Europe/Berlin"]]
    );
    assert!(
        waves.iter().all(|wave| !wave.includes_unlisted_zones),
        "no zone is unlisted"
    );
}

/// Any schedule that is accepted at [`now`] for every zone.
fn schedules() -> impl Strategy<Value = Schedule> {
    let from = utc("2026-03-03T00:00:00Z").timestamp_millis();
    let to = utc("2027-02-28T00:00:00Z").timestamp_millis();
    (from..to, any::<bool>(), any::<bool>()).prop_map(|(millis, local, optimal)| {
        Schedule::from_parts(millis, local, optimal).expect("in range")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_overwrite_never_depends_on_what_was_there_before(
        a in schedules(),
        b in schedules(),
        new in schedules(),
        taken in 0..ZoneSet::all().len(),
    ) {
        let mut before_a = created(a);
        before_a.claimed = Zone::all().take(taken).collect();
        let before_b = CanvasSchedule {
            schedule: b,
            next_wave: created(b).next_wave,
            ..before_a.clone()
        };
        let after_a = decide(overwrite(new), &before_a).expect("accepted");
        let after_b = decide(overwrite(new), &before_b).expect("accepted");
        prop_assert_eq!(&after_a, &after_b);
        prop_assert_eq!(
            after_a.after.next_wave,
            after_a.after.plan().waves.first().map(|wave| wave.time)
        );
    }
}
