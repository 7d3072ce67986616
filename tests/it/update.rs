//! `UpdateCanvasSchedule`: a schedule replaces the previous one completely.

use canvas_scheduler::pb::v1;
use canvas_scheduler::pb::v1::{Applied, RevisionKind};
use serde_json::json;
use tonic::Code;

use crate::support::*;

on_both![
    an_update_overwrites_every_flag,
    without_an_id_the_only_open_schedule_is_updated,
    without_an_id_none_or_several_are_refused_and_nothing_changes,
    absent_properties_are_kept_and_present_ones_replaced,
    an_unchanged_update_is_still_a_revision,
    validate_only_writes_nothing_and_answers_the_waves,
    missed_zones_are_reported_and_require_all_refuses_them,
    an_etag_holds_until_the_next_change,
    a_cancelled_schedule_is_not_changed,
    a_schedule_of_another_canvas_is_answered_as_unknown,
    a_time_in_the_past_or_beyond_the_horizon_is_refused,
];

async fn an_update_overwrites_every_flag(database: &Database) {
    let app = TestApp::start(database).await;
    let first = app
        .created(create("canvas", local("2026-03-20T13:14:47")))
        .await;
    assert!(
        app.get(&first).await.waves.len() > 20,
        "a local time must reach the zones one after the other"
    );

    let answer = app
        .update(update(&first, at("2026-03-20T14:14:47")))
        .await
        .expect("updated");
    let expected = v1::Schedule {
        time: "2026-03-20T14:14:47Z".to_owned(),
        in_local_time: false,
        at_optimal_time: false,
    };
    let after = schedule_of(&answer);
    assert_eq!(
        (after.schedule.as_ref(), after.revision),
        (Some(&expected), 2),
        "an absent flag must mean false"
    );
    assert_eq!(
        (answer.applied(), answer.applied_zones),
        (Applied::All, first.total_zones)
    );
    assert!(answer.missed_zones.is_empty() && answer.waves.is_empty());

    let got = app.get(&first).await;
    assert_eq!(got.canvas_schedule.as_ref(), Some(after));
    let [wave] = got.waves.as_slice() else {
        panic!("one wave for everyone: {:?}", got.waves)
    };
    assert_eq!(
        wave.time.expect("a time").seconds,
        instant("2026-03-20T14:14:47Z").timestamp()
    );
    assert_eq!(
        (wave.zones.len(), wave.includes_unlisted_zones),
        (usize::try_from(first.total_zones).expect("a count"), true)
    );
    assert_eq!(after.next_wave_time, wave.time);

    let history = app.revisions(&first).await;
    let reply: Vec<_> = history
        .iter()
        .map(|one| {
            (
                one.revision,
                one.kind(),
                one.schedule.clone().expect("a schedule"),
            )
        })
        .collect();
    let earlier = v1::Schedule {
        time: "2026-03-20T13:14:47".to_owned(),
        in_local_time: true,
        at_optimal_time: false,
    };
    assert_eq!(
        reply,
        [
            (2, RevisionKind::Update, expected),
            (1, RevisionKind::Create, earlier)
        ],
        "newest first"
    );
    app.stop().await;
}

async fn without_an_id_the_only_open_schedule_is_updated(database: &Database) {
    let app = TestApp::start(database).await;
    let gone = app
        .created(create("canvas", at("2026-03-20T08:00:00Z")))
        .await;
    let meant = app
        .created(create("canvas", at("2026-03-20T09:00:00Z")))
        .await;
    let other = app
        .created(create("another canvas", at("2026-03-20T10:00:00Z")))
        .await;
    app.cancel(cancel(&gone)).await.expect("cancelled");
    let untouched = (app.seen(&gone).await, app.seen(&other).await);

    let answer = app
        .update(update_of_canvas("canvas", at("2026-03-21T09:00:00Z")))
        .await
        .expect("the one that is open");
    let after = schedule_of(&answer);
    assert_eq!(
        (after.schedule_id.as_str(), after.revision),
        (meant.schedule_id.as_str(), 2)
    );
    assert_eq!(
        time_of(&app.get(&meant).await.canvas_schedule.expect("a schedule")),
        "2026-03-21T09:00:00Z"
    );
    assert_eq!((app.seen(&gone).await, app.seen(&other).await), untouched);
}

async fn without_an_id_none_or_several_are_refused_and_nothing_changes(database: &Database) {
    let app = TestApp::start(database).await;
    let ask = || app.update(update_of_canvas("canvas", at("2026-03-21T09:00:00Z")));
    let open = |refusal: Refusal| {
        refusal
            .metadata
            .get("open_schedules")
            .cloned()
            .expect("how many")
    };
    assert_eq!(
        open(refused(ask().await, Code::NotFound, "NO_OPEN_SCHEDULE")),
        "0",
        "an unknown Canvas"
    );

    let one = app
        .created(create("canvas", at("2026-03-20T08:00:00Z")))
        .await;
    let two = app
        .created(create("canvas", local("2026-03-20T09:00:00")))
        .await;
    let before = (app.seen(&one).await, app.seen(&two).await);
    let several = refused(ask().await, Code::FailedPrecondition, "SCHEDULE_ID_NEEDED");
    assert!(several.message.contains('2'), "{several:?}");
    assert_eq!(open(several), "2");
    assert_eq!(
        (app.seen(&one).await, app.seen(&two).await),
        before,
        "nothing changed"
    );

    app.cancel(cancel(&one)).await.expect("cancelled");
    app.cancel(cancel(&two)).await.expect("cancelled");
    let before = (app.seen(&one).await, app.seen(&two).await);
    assert_eq!(
        open(refused(ask().await, Code::NotFound, "NO_OPEN_SCHEDULE")),
        "0",
        "cancelled schedules must not count"
    );
    assert_eq!(
        (app.seen(&one).await, app.seen(&two).await),
        before,
        "nothing changed"
    );
}

async fn absent_properties_are_kept_and_present_ones_replaced(database: &Database) {
    let app = TestApp::start(database).await;
    let first = json!({ "greeting": "hello", "n": 1.5, "deep": { "list": [1, null, true, "x"] } });
    let with = v1::CreateCanvasScheduleRequest {
        trigger_properties: Some(object(first.clone())),
        ..create("canvas", at(LATER))
    };
    let schedule = app.created(with).await;
    let stored = async || app.get(&schedule).await.trigger_properties;
    assert_eq!(stored().await, Some(object(first.clone())));

    app.update(update(&schedule, at(LATER)))
        .await
        .expect("updated");
    assert_eq!(stored().await, Some(object(first.clone())), "absent keeps");

    let under = |name: &str, value: serde_json::Value| {
        let (mut request, value) = (update(&schedule, at(LATER)), Some(object(value)));
        match name {
            "trigger_properties" => request.trigger_properties = value,
            "canvas_entry_properties" => request.canvas_entry_properties = value,
            _ => request.context = value,
        }
        request
    };
    let mut expected = vec![Some(object(first.clone())), Some(object(first))];
    for (n, name) in ["trigger_properties", "canvas_entry_properties", "context"]
        .into_iter()
        .enumerate()
    {
        app.update(under(name, json!({ "only": n })))
            .await
            .expect(name);
        assert_eq!(
            stored().await,
            Some(object(json!({ "only": n }))),
            "{name}: present properties must replace all of the old ones"
        );
        expected.push(Some(object(json!({ "only": n }))));
    }
    app.update(under("trigger_properties", json!({})))
        .await
        .expect("updated");
    assert_eq!(
        stored().await,
        Some(object(json!({}))),
        "an empty object counts as present"
    );
    expected.push(Some(object(json!({}))));
    let history: Vec<_> = app
        .revisions(&schedule)
        .await
        .into_iter()
        .rev()
        .map(|one| one.trigger_properties)
        .collect();
    assert_eq!(
        history, expected,
        "each revision must have its own properties"
    );
}

async fn an_unchanged_update_is_still_a_revision(database: &Database) {
    let app = TestApp::start(database).await;
    let first = app
        .created(create("canvas", local("2026-03-20T13:14:47")))
        .await;
    app.clock.advance(chrono::TimeDelta::milliseconds(1500));
    let answer = app
        .update(update(&first, local("2026-03-20T13:14:47")))
        .await
        .expect("updated");
    let after = schedule_of(&answer);
    assert_eq!(
        (after.revision, after.schedule.as_ref()),
        (2, first.schedule.as_ref())
    );
    assert_ne!(after.etag, first.etag);
    assert_eq!(
        (after.create_time, after.next_wave_time),
        (first.create_time, first.next_wave_time)
    );
    let moved = after.update_time.expect("a time");
    assert_eq!(
        (moved.seconds, moved.nanos),
        (instant(NOW).timestamp() + 1, 500_000_000)
    );
    assert_eq!(app.revisions(&first).await.len(), 2);
}

async fn validate_only_writes_nothing_and_answers_the_waves(database: &Database) {
    let app = TestApp::start(database).await;
    let first = app.created(create("canvas", at(LATER))).await;
    let before = app.seen(&first).await;
    let only = |request| v1::UpdateCanvasScheduleRequest {
        validate_only: true,
        request_id: "r".to_owned(),
        ..request
    };
    let reply = app
        .update(only(update(&first, local("2026-03-22T10:00:00"))))
        .await
        .expect("valid");
    assert_eq!(app.seen(&first).await, before, "nothing may be written");
    assert_eq!(
        app.update(only(update_of_canvas(
            "canvas",
            local("2026-03-22T10:00:00")
        )))
        .await
        .expect("valid"),
        reply
    );
    refused(
        app.update(only(update(&first, at("2026-03-01T10:00:00Z"))))
            .await,
        Code::InvalidArgument,
        "SCHEDULE_TIME_PAST",
    );
    assert_eq!(app.seen(&first).await, before, "nothing may be written");

    let create_only = v1::CreateCanvasScheduleRequest {
        validate_only: true,
        ..create("fresh", local("2026-03-22T10:00:00"))
    };
    let made = app.create(create_only).await.expect("valid");
    let would_be = made.canvas_schedule.expect("a schedule");
    assert_eq!(
        (
            would_be.schedule_id.as_str(),
            would_be.etag.as_str(),
            made.dispatch_id.as_str()
        ),
        ("", "", "")
    );
    let of_canvas = v1::ListCanvasSchedulesRequest {
        canvas_id: "fresh".to_owned(),
        ..Default::default()
    };
    assert_eq!(
        app.list_ids(of_canvas).await,
        Vec::<String>::new(),
        "nothing may be written"
    );

    // The id was not used up, and the change is as announced.
    let real = v1::UpdateCanvasScheduleRequest {
        request_id: "r".to_owned(),
        ..update(&first, local("2026-03-22T10:00:00"))
    };
    let answer = app.update(real).await.expect("updated");
    assert_eq!((schedule_of(&answer).revision, answer.waves.len()), (2, 0));
    assert_eq!(app.get(&first).await.waves, reply.waves);
    assert_eq!(made.waves, reply.waves);
    assert!(
        reply.waves.len() > 20
            && reply
                .waves
                .iter()
                .filter(|wave| wave.includes_unlisted_zones)
                .count()
                == 1
    );
}

async fn missed_zones_are_reported_and_require_all_refuses_them(database: &Database) {
    let app = TestApp::start(database).await;
    let first = app
        .created(create("canvas", local("2026-03-20T13:14:47")))
        .await;
    let before = app.seen(&first).await;
    // It is noon in UTC, where 11:30 is half an hour past and due immediately; in Tokyo it is half
    // past nine in the evening.
    let all = v1::UpdateCanvasScheduleRequest {
        require_all: true,
        ..update(&first, local("2026-03-01T11:30:00"))
    };
    let refusal = refused(
        app.update(all).await,
        Code::FailedPrecondition,
        "NOTHING_LEFT_TO_CHANGE",
    );
    assert_eq!(app.seen(&first).await, before, "nothing changed");

    let answer = app
        .update(update(&first, local("2026-03-01T11:30:00")))
        .await
        .expect("updated");
    let missed = |zone: &str| answer.missed_zones.iter().any(|one| one == zone);
    assert!(
        missed("Asia/Tokyo")
            && missed("Europe/Berlin")
            && !missed("UTC")
            && !missed("America/New_York")
    );
    assert_eq!(
        refusal.metadata["missed_zones"],
        answer.missed_zones.len().to_string()
    );
    assert_eq!(
        (answer.applied(), answer.applied_zones),
        (Applied::All, first.total_zones),
        "missed zones must stay open"
    );
    let got = app.get(&first).await;
    assert_eq!(got.missed_zones, answer.missed_zones);
    let served: usize = got.waves.iter().map(|wave| wave.zones.len()).sum();
    assert_eq!(
        served + got.missed_zones.len(),
        usize::try_from(first.total_zones).expect("a count"),
        "every zone must be in one set"
    );
    let seconds = |wave: &v1::Wave| wave.time.expect("a time").seconds;
    assert!(
        seconds(&got.waves[0]) >= instant("2026-03-01T11:00:00Z").timestamp(),
        "no wave may be more than an hour past"
    );
    let utc = got
        .waves
        .iter()
        .find(|wave| wave.zones.iter().any(|zone| zone == "UTC"))
        .expect("the wave of UTC");
    assert_eq!(seconds(utc), instant("2026-03-01T11:30:00Z").timestamp());

    let again = app
        .update(update(&first, at(LATER)))
        .await
        .expect("the next update must reach them");
    assert!(again.missed_zones.is_empty());
    assert_eq!(
        app.get(&first).await.waves[0].zones.len(),
        usize::try_from(first.total_zones).expect("a count")
    );
}

async fn an_etag_holds_until_the_next_change(database: &Database) {
    let app = TestApp::start(database).await;
    let first = app.created(create("canvas", at(LATER))).await;
    let with = |etag: &str| v1::UpdateCanvasScheduleRequest {
        etag: etag.to_owned(),
        ..update(&first, local("2026-03-22T10:00:00"))
    };
    let answer = app.update(with(&first.etag)).await.expect("a fresh etag");
    let before = app.seen(&first).await;
    for stale in [first.etag.as_str(), "never issued", "0"] {
        let refusal = refused(app.update(with(stale)).await, Code::Aborted, "ETAG_STALE");
        assert_eq!(refusal.metadata["revision"], "2", "{stale}");
    }
    let late = v1::CancelCanvasScheduleRequest {
        etag: first.etag.clone(),
        ..cancel(&first)
    };
    refused(app.cancel(late).await, Code::Aborted, "ETAG_STALE");
    assert_eq!(app.seen(&first).await, before, "nothing changed");
    let fresh = v1::CancelCanvasScheduleRequest {
        etag: schedule_of(&answer).etag.clone(),
        ..cancel(&first)
    };
    app.cancel(fresh).await.expect("a fresh etag");
}

async fn a_cancelled_schedule_is_not_changed(database: &Database) {
    let app = TestApp::start(database).await;
    let first = app.created(create("canvas", at(LATER))).await;
    app.clock.advance(chrono::TimeDelta::seconds(5));
    app.cancel(cancel(&first)).await.expect("cancelled");
    let before = app.seen(&first).await;
    let refusal = refused(
        app.update(update(&first, at(LATER))).await,
        Code::FailedPrecondition,
        "SCHEDULE_CANCELLED",
    );
    assert_eq!(refusal.metadata["since"], "2026-03-01T12:00:05.000Z");
    refused(
        app.cancel(cancel(&first)).await,
        Code::FailedPrecondition,
        "SCHEDULE_CANCELLED",
    );
    let only = v1::UpdateCanvasScheduleRequest {
        validate_only: true,
        ..update(&first, at(LATER))
    };
    refused(
        app.update(only).await,
        Code::FailedPrecondition,
        "SCHEDULE_CANCELLED",
    );
    assert_eq!(app.seen(&first).await, before, "nothing changed");
}

async fn a_schedule_of_another_canvas_is_answered_as_unknown(database: &Database) {
    let app = TestApp::start(database).await;
    let mine = app.created(create("canvas", at(LATER))).await;
    let before = app.seen(&mine).await;
    let unknown = v1::CanvasSchedule {
        schedule_id: "0198c5a0-7d2e-7c64-9f0b-2f1a0c9d3b11".to_owned(),
        ..mine.clone()
    };
    // The whole error, except for the requested id.
    let answer = |asked: &v1::CanvasSchedule, status: tonic::Status| {
        let details = tonic_types::StatusExt::get_error_details(&status);
        format!("{:?} {} {details:?}", status.code(), status.message())
            .replace(&asked.schedule_id, "ID")
    };
    let mut answers = Vec::new();
    for (asked, canvas_id) in [(&unknown, "canvas"), (&mine, "another canvas")] {
        let update = v1::UpdateCanvasScheduleRequest {
            canvas_id: canvas_id.to_owned(),
            ..update(asked, at(LATER))
        };
        let only = v1::UpdateCanvasScheduleRequest {
            validate_only: true,
            ..update.clone()
        };
        let cancel = v1::CancelCanvasScheduleRequest {
            canvas_id: canvas_id.to_owned(),
            ..cancel(asked)
        };
        refused(
            app.update(update.clone()).await,
            Code::NotFound,
            "SCHEDULE_NOT_FOUND",
        );
        answers.push([
            answer(asked, app.update(update).await.expect_err("not found")),
            answer(asked, app.update(only).await.expect_err("not found")),
            answer(asked, app.cancel(cancel).await.expect_err("not found")),
        ]);
    }
    assert_eq!(answers[0], answers[1]);
    refused(
        app.try_get(&unknown.schedule_id).await,
        Code::NotFound,
        "SCHEDULE_NOT_FOUND",
    );
    assert_eq!(app.seen(&mine).await, before, "nothing changed");
}

async fn a_time_in_the_past_or_beyond_the_horizon_is_refused(database: &Database) {
    let app = TestApp::start(database).await;
    let first = app.created(create("canvas", at(LATER))).await;
    let before = app.seen(&first).await;
    for (schedule, reason) in [
        (at("2026-03-01T10:59:59.999Z"), "SCHEDULE_TIME_PAST"),
        (at("2017-05-24T21:30:00Z"), "SCHEDULE_TIME_PAST"),
        (local("2017-05-24T21:30:00Z"), "SCHEDULE_TIME_PAST"),
        (optimal("2026-02-28T10:00:00"), "SCHEDULE_TIME_PAST"),
        (at("2027-03-02T12:00:00.001Z"), "SCHEDULE_BEYOND_HORIZON"),
        (local("2027-03-02T12:00:00"), "SCHEDULE_BEYOND_HORIZON"),
        (optimal("9999-12-31T00:00:00"), "SCHEDULE_BEYOND_HORIZON"),
    ] {
        let case = format!("{schedule:?}");
        let refusal = refused(
            app.update(update(&first, schedule.clone())).await,
            Code::InvalidArgument,
            reason,
        );
        assert_eq!(refusal.fields, ["schedule.time"], "{case}");
        refused(
            app.create(create("canvas", schedule)).await,
            Code::InvalidArgument,
            reason,
        );
    }
    assert_eq!(app.seen(&first).await, before, "nothing changed");
    assert_eq!(
        app.list_ids(Default::default()).await.len(),
        1,
        "nothing may be created"
    );
    let answer = app
        .update(update(&first, at("2026-03-01T11:00:00Z")))
        .await
        .expect("an hour past is due immediately");
    assert_eq!(
        schedule_of(&answer).next_wave_time.expect("a time").seconds,
        instant("2026-03-01T11:00:00Z").timestamp()
    );
}
