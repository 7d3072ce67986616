//! Schedules from creation to cancellation, and batches of updates.

use canvas_scheduler::domain::{DispatchId, ScheduleId};
use canvas_scheduler::pb::v1;
use canvas_scheduler::pb::v1::{Applied, CanvasScheduleState, RevisionKind, WaveMode};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::*;

on_both![
    a_schedule_keeps_its_recipients_with_their_properties,
    a_schedule_for_an_audience_and_one_for_everyone,
    the_dispatch_id_of_a_creation_is_that_of_its_first_dispatch,
    recipients_with_zones_have_waves_in_those_zones_only,
    an_optimal_day_has_a_wave_at_the_midnight_of_each_zone,
    a_cancelled_schedule_is_read_and_listed_as_cancelled,
    a_batch_applies_its_updates_in_their_order,
    an_invalid_entry_of_a_batch_fails_as_on_its_own_and_affects_no_other,
    a_batch_has_one_to_a_thousand_entries,
];

fn to(recipients: Vec<v1::Recipient>) -> v1::CreateCanvasScheduleRequest {
    v1::CreateCanvasScheduleRequest {
        broadcast: false,
        recipients,
        ..create("canvas", local("2026-03-20T13:14:47"))
    }
}

async fn a_schedule_keeps_its_recipients_with_their_properties(database: &Database) {
    let app = TestApp::start(database).await;
    let alias = v1::UserAlias {
        alias_name: "name".to_owned(),
        alias_label: "label".to_owned(),
    };
    let by_alias = v1::Recipient {
        identifier: Some(v1::recipient::Identifier::UserAlias(alias)),
        ..Default::default()
    };
    let by_email = v1::Recipient {
        identifier: Some(v1::recipient::Identifier::Email("a@example.com".to_owned())),
        prioritization: vec!["identified".to_owned(), "most_recently_updated".to_owned()],
        send_to_existing_only: Some(false),
        ..Default::default()
    };
    let with = |value: u8| v1::Recipient {
        context: Some(object(json!({ "v": value }))),
        ..user("a")
    };
    let stored = |value: u8| v1::Recipient {
        context: None,
        trigger_properties: with(value).context,
        ..user("a")
    };
    // The same text as another kind of identifier is another recipient.
    let request = v1::CreateCanvasScheduleRequest {
        canvas_entry_properties: Some(object(json!({ "own": [1, { "x": null }] }))),
        audience: Some(object(json!({ "AND": [{ "custom_attribute": "tier" }] }))),
        ..to(vec![
            with(1),
            by_alias.clone(),
            user_in("b", "Asia/Tokyo"),
            with(2),
            by_email.clone(),
            with(3),
            user("a@example.com"),
        ])
    };
    let made = app.create(request.clone()).await.expect("created");
    let schedule = made.canvas_schedule.expect("a schedule");
    let got = app.get(&schedule).await;
    let expected = [
        stored(3),
        by_alias,
        user_in("b", "Asia/Tokyo"),
        by_email,
        user("a@example.com"),
    ];
    assert_eq!(
        got.recipients, expected,
        "the last of several duplicates must win, at the position of the first"
    );
    assert_eq!(
        (got.trigger_properties, got.audience, got.broadcast),
        (request.canvas_entry_properties, request.audience, false)
    );
    assert_eq!(
        got.canvas_schedule,
        Some(schedule.clone()),
        "Get must return what Create answered"
    );
    assert_new(&schedule, got.waves.first().and_then(|wave| wave.time));
}

/// Checks a schedule that was just created for an audience and has its first wave at this time.
fn assert_new(schedule: &v1::CanvasSchedule, first_wave: Option<prost_types::Timestamp>) {
    let at_now = Some(prost_types::Timestamp {
        seconds: instant(NOW).timestamp(),
        nanos: 0,
    });
    assert_eq!(
        (schedule.revision, schedule.state(), schedule.create_time),
        (1, CanvasScheduleState::Pending, at_now)
    );
    assert_eq!(
        (
            schedule.update_time,
            schedule.cancel_time,
            schedule.default_time_zone.as_str()
        ),
        (at_now, None, "UTC")
    );
    assert_eq!(
        (schedule.open_zones, first_wave),
        (schedule.total_zones, schedule.next_wave_time)
    );
    assert!(schedule.total_zones > 500, "an audience is in every zone");
}

async fn a_schedule_for_an_audience_and_one_for_everyone(database: &Database) {
    let app = TestApp::start(database).await;
    let audience = Some(object(json!({})));
    let for_audience = v1::CreateCanvasScheduleRequest {
        audience: audience.clone(),
        ..to(vec![])
    };
    let got = app.get(&app.created(for_audience).await).await;
    assert_eq!(
        (
            got.audience,
            got.broadcast,
            got.recipients.len(),
            got.trigger_properties
        ),
        (audience, false, 0, None)
    );
    let got = app
        .get(&app.created(create("canvas", at(LATER))).await)
        .await;
    assert_eq!(
        (got.audience, got.broadcast, got.recipients.len()),
        (None, true, 0)
    );
    let [wave] = got.waves.as_slice() else {
        panic!("one wave: {:?}", got.waves)
    };
    assert!(wave.includes_unlisted_zones && wave.mode() == WaveMode::AtTime);
}

async fn the_dispatch_id_of_a_creation_is_that_of_its_first_dispatch(database: &Database) {
    let app = TestApp::start(database).await;
    let made = app
        .create(create("canvas", at(LATER)))
        .await
        .expect("created");
    let schedule_id = made.canvas_schedule.expect("a schedule").schedule_id;
    let id = ScheduleId::parse(&schedule_id).expect("an id");
    assert_eq!(
        (id.0.get_version_num(), id.to_string()),
        (7, schedule_id),
        "a UUID version 7 in lower case"
    );
    assert_eq!(made.dispatch_id, DispatchId::of(id, 1).to_string());
    assert!(
        made.dispatch_id.len() == 32
            && made
                .dispatch_id
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    );
}

async fn recipients_with_zones_have_waves_in_those_zones_only(database: &Database) {
    let app = TestApp::start(database).await;
    let in_zones = to(vec![
        user_in("a", "europe/berlin"),
        user_in("b", "Asia/Tokyo"),
        user_in("c", "Europe/Paris"),
    ]);
    let schedule = app.created(in_zones).await;
    assert_eq!((schedule.total_zones, schedule.open_zones), (3, 3));
    let reply: Vec<_> = app
        .get(&schedule)
        .await
        .waves
        .into_iter()
        .map(|wave| (wave.zones, wave.includes_unlisted_zones))
        .collect();
    let zones = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        reply,
        [
            (zones(&["Asia/Tokyo"]), false),
            (zones(&["Europe/Berlin", "Europe/Paris"]), false)
        ]
    );
    app.update(update(&schedule, at(LATER)))
        .await
        .expect("updated");
    let waves = app.get(&schedule).await.waves;
    assert_eq!(
        waves
            .iter()
            .map(|wave| wave.zones.len())
            .collect::<Vec<_>>(),
        [3],
        "an update must keep the recipients"
    );

    let one_without = app
        .created(to(vec![user_in("a", "Asia/Tokyo"), user("b")]))
        .await;
    assert!(
        one_without.total_zones > 500,
        "the consumer knows the zone of the other recipient"
    );
}

async fn an_optimal_day_has_a_wave_at_the_midnight_of_each_zone(database: &Database) {
    let app = TestApp::start(database).await;
    let request = v1::CreateCanvasScheduleRequest {
        schedule: optimal("2026-03-20T23:59:59Z"),
        ..to(vec![user_in("a", "Asia/Tokyo")])
    };
    let got = app.get(&app.created(request).await).await;
    let [wave] = got.waves.as_slice() else {
        panic!("one wave: {:?}", got.waves)
    };
    let midnight = instant("2026-03-20T00:00:00+09:00").timestamp();
    assert_eq!(
        (wave.time.expect("a time").seconds, wave.mode()),
        (midnight, WaveMode::OptimalTime)
    );
}

async fn a_cancelled_schedule_is_read_and_listed_as_cancelled(database: &Database) {
    let app = TestApp::start(database).await;
    let kept = app.created(create("canvas", at(LATER))).await;
    let gone = app
        .created(create("canvas", local("2026-03-20T13:14:47")))
        .await;
    app.clock.advance(chrono::TimeDelta::seconds(1));
    let answer = app.cancel(cancel(&gone)).await.expect("cancelled");
    let after = answer.canvas_schedule.clone().expect("a schedule");
    assert_eq!(
        (answer.applied(), answer.applied_zones),
        (Applied::All, gone.total_zones)
    );
    assert_eq!(
        (after.state(), after.revision, after.next_wave_time),
        (CanvasScheduleState::Cancelled, 2, None)
    );
    assert_eq!(
        (after.cancel_time, after.schedule.clone()),
        (after.update_time, gone.schedule.clone())
    );
    assert_ne!(after.update_time, gone.update_time);
    let got = app.get(&gone).await;
    assert_eq!(
        (got.canvas_schedule, got.waves.len(), got.missed_zones.len()),
        (Some(after), 0, 0)
    );
    let kinds: Vec<_> = app
        .revisions(&gone)
        .await
        .iter()
        .map(v1::CanvasScheduleRevision::kind)
        .collect();
    assert_eq!(kinds, [RevisionKind::Cancel, RevisionKind::Create]);

    for (state, ids) in [
        (
            CanvasScheduleState::Unspecified,
            vec![&kept.schedule_id, &gone.schedule_id],
        ),
        (CanvasScheduleState::Pending, vec![&kept.schedule_id]),
        (CanvasScheduleState::Cancelled, vec![&gone.schedule_id]),
        (CanvasScheduleState::Dispatching, vec![]),
        (CanvasScheduleState::Dispatched, vec![]),
    ] {
        let filtered = v1::ListCanvasSchedulesRequest {
            state: state.into(),
            ..Default::default()
        };
        assert_eq!(
            app.list_ids(filtered).await.iter().collect::<Vec<_>>(),
            ids,
            "{state:?}"
        );
    }
}

async fn a_batch_applies_its_updates_in_their_order(database: &Database) {
    // Commits smaller than the batch, so that it needs several.
    let app = TestApp::start_with(database, |settings| settings.store.commit_max = number(7)).await;
    let mut schedules = Vec::new();
    for n in 0..3 {
        schedules.push(app.created(create(&format!("canvas {n}"), at(LATER))).await);
    }
    let time = |n: usize| format!("2026-03-21T08:{:02}:{:02}Z", n / 60, n % 60);
    let requests = (0..90)
        .map(|n| update(&schedules[n % 3], at(&time(n))))
        .collect();
    let answers = app.batch(requests).await.expect("answers");
    for (n, answer) in answers.iter().enumerate() {
        let after = schedule_of(answer.as_ref().expect("updated"));
        let expected = (
            schedules[n % 3].schedule_id.as_str(),
            time(n),
            i64::try_from(n / 3 + 2).expect("a revision"),
        );
        assert_eq!(
            (
                after.schedule_id.as_str(),
                time_of(after).to_owned(),
                after.revision
            ),
            expected,
            "entry {n}"
        );
    }
    for (n, schedule) in schedules.iter().enumerate() {
        let history: Vec<String> = app
            .revisions(schedule)
            .await
            .iter()
            .rev()
            .skip(1)
            .map(|one| one.schedule.clone().expect("a schedule").time)
            .collect();
        assert_eq!(
            history,
            (0..30).map(|k| time(3 * k + n)).collect::<Vec<_>>()
        );
    }
}

async fn an_invalid_entry_of_a_batch_fails_as_on_its_own_and_affects_no_other(database: &Database) {
    let app = TestApp::start(database).await;
    let good = app.created(create("good", at(LATER))).await;
    let gone = app.created(create("gone", at(LATER))).await;
    for _ in 0..2 {
        app.created(create("twice", at(LATER))).await;
    }
    app.cancel(cancel(&gone)).await.expect("cancelled");
    let bad = [
        update(&gone, at(LATER)),
        update(
            &v1::CanvasSchedule {
                canvas_id: "other".to_owned(),
                ..good.clone()
            },
            at(LATER),
        ),
        update(&good, at("now")),
        update(&good, at("2026-02-01T00:00:00Z")),
        update(&good, at("2029-02-01T00:00:00Z")),
        v1::UpdateCanvasScheduleRequest {
            canvas_id: String::new(),
            request_id: "\0".to_owned(),
            ..update(&good, None)
        },
        v1::UpdateCanvasScheduleRequest {
            etag: "stale".to_owned(),
            ..update(&good, at(LATER))
        },
        update_of_canvas("nowhere", at(LATER)),
        update_of_canvas("twice", at(LATER)),
    ];
    let mut alone = Vec::new();
    for request in bad.clone() {
        alone.push(app.update(request).await.expect_err("alone"));
    }
    let before = app.seen(&gone).await;
    let requests = bad
        .iter()
        .flat_map(|bad| [bad.clone(), update(&good, at(LATER))])
        .collect();
    let answers = app.batch(requests).await.expect("answers");
    assert_eq!(answers.len(), 2 * bad.len());
    for (n, (pair, alone)) in answers.chunks(2).zip(&alone).enumerate() {
        let in_batch = pair[0].as_ref().expect_err("it must fail in a batch too");
        // The valid entries have changed the revision that the error of a stale etag contains.
        let reply = |status: &tonic::Status| {
            let text = format!("{} {:?}", status.message(), status.get_error_details());
            if alone.code() == Code::Aborted {
                String::new()
            } else {
                text
            }
        };
        assert_eq!(
            (in_batch.code(), reply(in_batch)),
            (alone.code(), reply(alone)),
            "entry {n}"
        );
        assert_eq!(
            refusal(Err::<(), _>(in_batch.clone())).reason,
            refusal(Err::<(), _>(alone.clone())).reason,
            "entry {n}"
        );
        let valid = pair[1].as_ref().expect("a valid entry must be applied");
        assert_eq!(
            schedule_of(valid).revision,
            i64::try_from(n + 2).expect("a revision")
        );
    }
    assert_eq!(app.seen(&gone).await, before, "nothing changed");
}

async fn a_batch_has_one_to_a_thousand_entries(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    for count in [0, 1001] {
        let refusal = refused(
            app.batch(vec![update(&schedule, at(LATER)); count]).await,
            Code::InvalidArgument,
            "INVALID_FIELDS",
        );
        assert_eq!(refusal.fields, ["requests"], "{count}");
    }
    assert_eq!(
        app.get(&schedule)
            .await
            .canvas_schedule
            .expect("a schedule")
            .revision,
        1,
        "nothing changed"
    );
    let answers = app
        .batch(vec![update(&schedule, at(LATER)); 1000])
        .await
        .expect("answers");
    let revisions: Vec<i64> = answers
        .iter()
        .map(|answer| schedule_of(answer.as_ref().expect("updated")).revision)
        .collect();
    assert_eq!(revisions, (2..=1001).collect::<Vec<_>>());
}
