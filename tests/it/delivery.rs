//! Delivery: what reaches the sink, and what callers read meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use canvas_scheduler::clock::{Clock, ManualClock};
use canvas_scheduler::domain::{DispatchMessage, Identifier};
use canvas_scheduler::pb::v1;
use canvas_scheduler::pb::v1::{Applied, CanvasScheduleState};
use canvas_scheduler::server::Roles;
use canvas_scheduler::sink::DeliveryOutcome;
use chrono::TimeDelta;
use serde_json::json;
use tonic::Code;

use crate::support::dispatcher::DispatchingApp;
use crate::support::sink::Reply;
use crate::support::stores::{not_taken, unknown};
use crate::support::*;

on_both![
    a_local_time_reaches_zones_in_the_order_of_their_instants,
    an_update_halfway_moves_only_the_open_zones,
    recipients_are_in_the_wave_of_their_zone_with_their_own_properties,
    the_properties_at_the_claim_are_sent_despite_later_updates,
    a_schedule_that_is_due_immediately_needs_no_poll,
    a_wave_accepted_late_is_sent_although_later_ones_were_sent,
    no_more_is_in_flight_than_there_are_workers,
    a_failing_sink_is_probed_and_updates_reach_every_zone,
    a_shutdown_finishes_dispatches_in_flight,
    a_clock_that_jumps_by_an_hour_sends_each_wave_once_and_none_early,
    nothing_is_sent_while_the_clock_is_not_trusted,
];

on_both![file: the_roles_can_be_split_between_processes];

/// The first day after [`NOW`].
const DAY: &str = "2026-03-02";

fn everyone(schedule: Option<v1::Schedule>) -> v1::CreateCanvasScheduleRequest {
    create("canvas", schedule)
}

/// Every delivered zone, and how often it was delivered.
fn zones(dispatches: &[DispatchMessage]) -> BTreeMap<&'static str, usize> {
    let mut counted = BTreeMap::new();
    dispatches
        .iter()
        .flat_map(|one| one.wave.zones.names())
        .for_each(|zone| *counted.entry(zone).or_default() += 1);
    counted
}

async fn a_local_time_reaches_zones_in_the_order_of_their_instants(database: &Database) {
    let test = DispatchingApp::start(database).await;
    let schedule = test
        .app
        .created(everyone(local(&format!("{DAY}T12:00:00"))))
        .await;
    let waves = test.app.get(&schedule).await.waves;
    for (n, wave) in waves.iter().enumerate() {
        let at = wave.time.expect("a time");
        let time = chrono::DateTime::from_timestamp(at.seconds, 0).expect("a time");
        test.clock
            .advance(time - test.clock.now() - TimeDelta::milliseconds(1));
        assert_eq!(test.sink.count(), n, "nothing may arrive before its time");
        test.clock.advance(TimeDelta::milliseconds(1));
        let seen = test.sink.at_least(n + 1).await;
        let dispatch = &seen[n];
        assert_eq!(dispatch.wave.zones.names(), wave.zones, "wave {n}");
        assert_eq!(
            (dispatch.wave.time, dispatch.number, dispatch.attempt),
            (time, u32::try_from(n).expect("few") + 1, 1)
        );
        assert_eq!(
            dispatch.wave.includes_unlisted_zones,
            wave.includes_unlisted_zones
        );
        assert_eq!(dispatch.lateness, TimeDelta::zero());
    }
    let seen = test.sink.seen();
    assert_eq!(seen.len(), waves.len());
    let counted = zones(&seen);
    assert_eq!(
        counted.len(),
        usize::try_from(schedule.total_zones).expect("a count"),
        "none forgotten"
    );
    assert!(counted.values().all(|times| *times == 1), "none twice");
    assert_eq!(
        seen.iter()
            .filter(|one| one.wave.includes_unlisted_zones)
            .count(),
        1
    );
    assert_eq!(
        seen.iter()
            .map(|one| one.id.to_string())
            .collect::<BTreeSet<_>>()
            .len(),
        seen.len()
    );
    let after = test
        .app
        .get(&schedule)
        .await
        .canvas_schedule
        .expect("a schedule");
    assert_eq!(
        (after.state(), after.open_zones, after.next_wave_time),
        (CanvasScheduleState::Dispatched, 0, None)
    );
    assert_eq!(
        (&after.etag, after.revision, after.update_time),
        (&schedule.etag, 1, schedule.update_time),
        "a claim must not change the revision"
    );
    let refused = refused(
        test.app.update(update(&schedule, at(LATER))).await,
        Code::FailedPrecondition,
        "NOTHING_LEFT_TO_CHANGE",
    );
    assert_eq!(
        instant(&refused.metadata["since"]),
        seen[seen.len() - 1].wave.time
    );
    test.app.stop().await;
}

async fn a_wave_accepted_late_is_sent_although_later_ones_were_sent(database: &Database) {
    let test = DispatchingApp::start(database).await;
    for (n, minutes) in [0, 30, 59].into_iter().enumerate() {
        let late = TimeDelta::minutes(minutes);
        test.app
            .created(everyone(at(&(test.clock.now() - late).to_rfc3339())))
            .await;
        assert_eq!(test.sink.at_least(n + 1).await[n].lateness, late);
    }
    test.app.stop().await;
}

async fn an_update_halfway_moves_only_the_open_zones(database: &Database) {
    let test = DispatchingApp::start(database).await;
    let schedule = test
        .app
        .created(everyone(local(&format!("{DAY}T12:00:00"))))
        .await;
    let waves = test.app.get(&schedule).await.waves;
    let half = waves.len() / 2;
    let time = waves[half - 1].time.expect("a time").seconds;
    test.clock
        .advance(chrono::DateTime::from_timestamp(time, 0).expect("a time") - test.clock.now());
    let handed_over = zones(&test.sink.at_least(half).await);
    let open = schedule.total_zones - i32::try_from(handed_over.len()).expect("a count");

    refused_for_taken_zones(&test, &schedule, handed_over.len()).await;
    let stale = v1::UpdateCanvasScheduleRequest {
        etag: schedule.etag.clone(),
        ..update(&schedule, at("2026-03-03T10:00:00Z"))
    };
    let to_utc = test
        .app
        .update(stale)
        .await
        .expect("the etag belongs to the revision, which claims do not change");
    assert_eq!(
        (to_utc.applied(), to_utc.applied_zones),
        (Applied::Some, open)
    );
    assert_eq!(
        schedule_of(&to_utc).state(),
        CanvasScheduleState::Dispatching
    );
    test.move_to("2026-03-03T09:59:59Z");
    assert_eq!(
        test.sink.count(),
        half,
        "the open zones must wait for their new time"
    );

    let back = test
        .app
        .update(update(&schedule, local("2026-03-04T12:00:00")))
        .await
        .expect("updated");
    assert_eq!((back.applied(), back.applied_zones), (Applied::Some, open));
    let rest = test.app.get(&schedule).await.waves;
    assert!(
        rest.iter()
            .flat_map(|wave| &wave.zones)
            .all(|zone| !handed_over.contains_key(zone.as_str()))
    );
    test.move_to("2026-03-06T00:00:00Z");
    let seen = test.sink.at_least(half + rest.len()).await;
    assert!(
        seen[half..].is_sorted_by_key(|one| one.wave.time),
        "the earliest must come first"
    );
    assert_each_zone_once(&seen, schedule.total_zones);
    assert!(seen[half..].iter().all(|one| one.revision == 3));
    test.app.stop().await;
}

/// Checks that an update of all zones is refused, since these many zones are taken.
async fn refused_for_taken_zones(
    test: &DispatchingApp,
    schedule: &v1::CanvasSchedule,
    taken: usize,
) {
    let all = v1::UpdateCanvasScheduleRequest {
        require_all: true,
        ..update(schedule, at("2026-03-03T10:00:00Z"))
    };
    let refusal = refused(
        test.app.update(all).await,
        Code::FailedPrecondition,
        "NOTHING_LEFT_TO_CHANGE",
    );
    assert_eq!(refusal.metadata["taken_zones"], taken.to_string());
}

fn assert_each_zone_once(seen: &[DispatchMessage], total_zones: i32) {
    let counted = zones(seen);
    assert_eq!(
        (counted.len(), counted.values().max()),
        (usize::try_from(total_zones).expect("a count"), Some(&1))
    );
    assert_eq!(
        seen.iter()
            .filter(|one| one.wave.includes_unlisted_zones)
            .count(),
        1
    );
}

async fn recipients_are_in_the_wave_of_their_zone_with_their_own_properties(database: &Database) {
    let test = DispatchingApp::start(database).await;
    let request = v1::CreateCanvasScheduleRequest {
        broadcast: false,
        recipients: vec![
            v1::Recipient {
                trigger_properties: Some(object(json!({ "b": 2 }))),
                ..user_in("tokyo", "Asia/Tokyo")
            },
            user_in("berlin", "Europe/Berlin"),
            user("anywhere"),
        ],
        trigger_properties: Some(object(json!({ "a": 1, "b": 1 }))),
        ..everyone(local(&format!("{DAY}T12:00:00")))
    };
    let schedule = test.app.created(request).await;
    let waves = test.app.get(&schedule).await.waves.len();
    test.move_to("2026-03-04T00:00:00Z");
    for dispatch in test.sink.at_least(waves).await {
        let names = dispatch.wave.zones.names();
        let mut expected = vec![];
        expected.extend(
            names
                .contains(&"Asia/Tokyo")
                .then(|| ("tokyo", json!({ "a": 1, "b": 2 }))),
        );
        expected.extend(
            names
                .contains(&"Europe/Berlin")
                .then(|| ("berlin", json!({ "a": 1, "b": 1 }))),
        );
        expected.push(("anywhere", json!({ "a": 1, "b": 1 })));
        let came = dispatch
            .target
            .recipients
            .iter()
            .map(|one| match &one.identifier {
                Identifier::ExternalUserId(id) => (id.as_str(), json!(one.trigger_properties)),
                other => panic!("{other:?}"),
            });
        assert_eq!(came.collect::<Vec<_>>(), expected, "{names:?}");
        assert_eq!(json!(dispatch.properties), json!({ "a": 1, "b": 1 }));
    }
    test.app.stop().await;
}

async fn the_properties_at_the_claim_are_sent_despite_later_updates(database: &Database) {
    let test = DispatchingApp::start(database).await;
    let with = |value: i32| Some(object(json!({ "value": value })));
    let request = v1::CreateCanvasScheduleRequest {
        trigger_properties: with(1),
        ..everyone(local(&format!("{DAY}T12:00:00")))
    };
    let schedule = test.app.created(request).await;
    test.sink.say(unknown());
    test.move_to("2026-03-02T00:00:00Z");
    let first = test.sink.at_least(1).await.remove(0);
    let change = v1::UpdateCanvasScheduleRequest {
        trigger_properties: with(2),
        ..update(&schedule, local("2026-03-12T12:00:00"))
    };
    test.app.update(change).await.expect("updated");
    test.sink.say(DeliveryOutcome::Delivered);
    let tried_again = |sink: &RecordingSink| sink.taken().iter().any(|one| one.id == first.id);
    test.sink
        .in_time(&test.clock, TimeDelta::milliseconds(500), tried_again)
        .await;
    let again = test
        .sink
        .taken()
        .into_iter()
        .find(|one| one.id == first.id)
        .expect("retried");
    assert_eq!(
        (json!(again.properties), again.revision),
        (json!({ "value": 1 }), 1),
        "the payload must be that of the claim"
    );
    assert!(again.attempt >= 2 && again.wave == first.wave);
    test.app.stop().await;
}

async fn a_schedule_that_is_due_immediately_needs_no_poll(database: &Database) {
    let test = DispatchingApp::start(database).await;
    // The clock stands still, so that only the change itself can wake the dispatcher.
    test.app.created(everyone(at(NOW))).await;
    assert_eq!(test.sink.at_least(1).await.len(), 1);
    let later = test.app.created(everyone(at(LATER))).await;
    test.app
        .update(update(&later, at("2026-03-01T11:30:00Z")))
        .await
        .expect("half an hour late is due immediately");
    let seen = test.sink.at_least(2).await;
    assert_eq!(
        (seen[1].lateness, seen[1].revision),
        (TimeDelta::minutes(30), 2)
    );
    test.app.stop().await;
}

async fn no_more_is_in_flight_than_there_are_workers(database: &Database) {
    let test = DispatchingApp::start(database).await;
    let workers = settings(database).dispatcher.workers.get();
    let mut schedules = vec![];
    for n in 0..workers * 3 {
        schedules.push(
            test.app
                .created(everyone(at(&format!("2026-03-01T12:01:{n:02}Z"))))
                .await,
        );
    }
    test.sink.reply(|_| Reply::Hang);
    test.move_to("2026-03-01T12:10:00Z");
    test.sink.at_least(workers).await;
    test.clock.advance(TimeDelta::milliseconds(100));
    let mut open = 0;
    for schedule in &schedules {
        open += usize::from(
            test.app
                .get(schedule)
                .await
                .canvas_schedule
                .expect("a schedule")
                .open_zones
                > 0,
        );
    }
    assert_eq!(
        (test.sink.count(), open),
        (workers, workers * 2),
        "a schedule without a free worker must stay open to changes"
    );
    test.app
        .update(update(schedules.last().expect("some"), at(LATER)))
        .await
        .expect("open");
    // The deliveries never end, so do not wait for a stop: the runtime ends with the test.
}

async fn a_failing_sink_is_probed_and_updates_reach_every_zone(database: &Database) {
    let test = DispatchingApp::start(database).await;
    let mut schedules = vec![];
    for n in 0..30 {
        schedules.push(
            test.app
                .created(everyone(at(&format!("2026-03-01T12:01:{n:02}Z"))))
                .await,
        );
    }
    test.sink.say(not_taken());
    test.move_to("2026-03-01T12:02:00Z");
    let workers = settings(database).dispatcher.workers.get();
    test.sink.at_least(workers).await;
    // For a minute: the dispatches in flight, then one probe after the other.
    let (before, until) = (test.sink.count(), instant("2026-03-01T12:03:00Z"));
    test.sink
        .in_time(&test.clock, TimeDelta::seconds(1), |_| {
            test.clock.now() >= until
        })
        .await;
    let probes = test.sink.count() - before;
    assert!(probes <= 40, "{probes} probes in a minute");
    let moved = until_open(&test, &schedules[0]).await;
    assert_eq!(moved.applied(), Applied::All, "every zone must be open");
    test.sink.say(DeliveryOutcome::Delivered);
    test.sink
        .in_time(&test.clock, TimeDelta::seconds(1), |sink| {
            sink.taken().len() == 30
        })
        .await;
    let delivered: BTreeSet<_> = test
        .sink
        .taken()
        .iter()
        .map(|one| one.schedule_id.to_string())
        .collect();
    assert_eq!(delivered.len(), 30, "everything must arrive once");
    test.app.stop().await;
}

/// Updates a schedule, once the store has settled the last probe and reopened it.
async fn until_open(
    test: &DispatchingApp,
    of: &v1::CanvasSchedule,
) -> v1::UpdateCanvasScheduleResponse {
    soon(async {
        loop {
            match test
                .app
                .update(update(of, at("2026-03-01T12:30:00Z")))
                .await
            {
                Ok(answer) => return answer,
                Err(status) => assert_eq!(
                    refusal(Err::<(), _>(status)).reason,
                    "NOTHING_LEFT_TO_CHANGE"
                ),
            }
        }
    })
    .await
}

async fn the_roles_can_be_split_between_processes(database: &Database) {
    let clock = Arc::new(ManualClock::at(instant(NOW)));
    let sinks = [RecordingSink::new(), RecordingSink::new()];
    let api = TestApp::start_in_roles(
        database,
        &sinks[0],
        &clock,
        Roles {
            api: true,
            dispatcher: false,
        },
    )
    .await;
    let dispatcher = TestApp::start_in_roles(
        database,
        &sinks[1],
        &clock,
        Roles {
            api: false,
            dispatcher: true,
        },
    )
    .await;
    api.created(everyone(at("2026-03-01T12:00:10Z"))).await;
    clock.advance(TimeDelta::seconds(10));
    assert_eq!(sinks[1].at_least(1).await.len(), 1);
    assert_eq!(
        sinks[0].count(),
        0,
        "a server without the dispatcher role must not send"
    );
    refused(
        dispatcher.create(everyone(at(LATER))).await,
        Code::Unimplemented,
        "METHOD_UNKNOWN",
    );
    dispatcher.stop().await;
    api.stop().await;
}

async fn a_shutdown_finishes_dispatches_in_flight(database: &Database) {
    if !database.is_postgres() {
        // A database in memory would end with the server.
        return;
    }
    let test = DispatchingApp::start(database).await;
    for _ in 0..10 {
        test.app.created(everyone(at("2026-03-01T12:05:00Z"))).await;
    }
    test.move_to("2026-03-01T12:05:00Z");
    test.sink.at_least(10).await;
    test.app.stop().await;
    assert_eq!(
        database
            .count("SELECT count(*) FROM dispatch WHERE state = 2 AND retry_ms IS NULL")
            .await,
        10
    );
    assert_eq!(database.count("SELECT count(*) FROM dispatch").await, 10);
}

async fn a_clock_that_jumps_by_an_hour_sends_each_wave_once_and_none_early(database: &Database) {
    let test = DispatchingApp::start(database).await;
    let mut times = vec![];
    for minute in (0..60).step_by(5) {
        let time = format!("2026-03-01T13:{minute:02}:00Z");
        test.app.created(everyone(at(&time))).await;
        times.push(instant(&time));
    }
    // Each wave must come once, and not before the clock has shown its time.
    let mut shown = instant(NOW);
    for to in [
        "13:20:00", "12:20:00", "13:20:00", "13:30:00", "14:30:00", "13:35:00", "12:00:00",
        "14:31:00",
    ] {
        test.move_to(&format!("2026-03-01T{to}Z"));
        shown = shown.max(test.clock.now());
        let due = times.iter().filter(|time| **time <= shown).count();
        let seen = test.sink.at_least(due).await;
        assert_eq!(seen.len(), due, "{to}");
        assert!(seen.iter().all(|one| one.wave.time <= shown), "{to}");
    }
    let ids: BTreeSet<_> = test
        .sink
        .seen()
        .iter()
        .map(|one| one.id.to_string())
        .collect();
    assert_eq!((test.sink.count(), ids.len()), (times.len(), times.len()));
    test.app.stop().await;
}

async fn nothing_is_sent_while_the_clock_is_not_trusted(database: &Database) {
    let test = DispatchingApp::start(database).await;
    let early = test.app.created(everyone(at("2026-03-01T12:00:10Z"))).await;
    test.clock.set_unsteady(true);
    test.move_to("2026-03-01T12:01:00Z");
    // An update is accepted, and shows that the due wave was not claimed.
    let moved = test
        .app
        .update(update(&early, at("2026-03-01T12:00:30Z")))
        .await
        .expect("updates must be accepted");
    assert_eq!((moved.applied(), test.sink.count()), (Applied::All, 0));
    test.clock.set_unsteady(false);
    test.clock.advance(TimeDelta::milliseconds(25));
    let seen = test.sink.at_least(1).await;
    assert_eq!(
        (seen.len(), seen[0].wave.time),
        (1, instant("2026-03-01T12:00:30Z"))
    );
    test.app.stop().await;
}
