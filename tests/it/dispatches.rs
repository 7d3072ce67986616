//! Dispatches in the API: lists, counts, dead letters, and cancellation.

use canvas_scheduler::pb::v1;
use canvas_scheduler::pb::v1::{Applied, CanvasScheduleState, DispatchState};
use canvas_scheduler::sink::DeliveryOutcome;
use tonic::Code;

use crate::support::dispatcher::DispatchingApp;
use crate::support::stores::{rejected, unknown};
use crate::support::*;

on_both![
    dispatches_are_listed_page_by_page_by_schedule_and_by_state,
    a_dead_letter_is_retried_under_its_id,
    a_cancellation_abandons_dispatches_with_an_unknown_outcome,
    unknown_dispatches_are_refused,
    a_page_of_dispatches_with_many_zones_is_shortened,
];

/// Lists every page.
async fn all(app: &TestApp, mut request: v1::ListDispatchesRequest) -> Vec<v1::Dispatch> {
    request.page_size = 3;
    let mut found = Vec::new();
    loop {
        let page = app.dispatches(request.clone()).await.expect("a page");
        assert!(page.dispatches.len() <= 3);
        found.extend(page.dispatches);
        if page.next_page_token.is_empty() {
            return found;
        }
        request.page_token = page.next_page_token;
    }
}

fn of(schedule: &v1::CanvasSchedule) -> v1::ListDispatchesRequest {
    v1::ListDispatchesRequest {
        schedule_id: schedule.schedule_id.clone(),
        ..Default::default()
    }
}

fn in_state(state: DispatchState) -> v1::ListDispatchesRequest {
    v1::ListDispatchesRequest {
        state: state.into(),
        ..Default::default()
    }
}

/// Waits until a number of a schedule's dispatches are in a state: the store settles the sink's
/// answer a moment later.
async fn until_in_state(
    app: &TestApp,
    schedule: &v1::CanvasSchedule,
    state: DispatchState,
    n: usize,
) -> Vec<v1::Dispatch> {
    soon(async {
        loop {
            let found = all(
                app,
                v1::ListDispatchesRequest {
                    state: state.into(),
                    ..of(schedule)
                },
            )
            .await;
            if found.len() == n {
                return found;
            }
        }
    })
    .await
}

async fn dispatches_are_listed_page_by_page_by_schedule_and_by_state(database: &Database) {
    let test = DispatchingApp::start(database).await;
    let first = test
        .app
        .created(create("first", local("2026-03-02T12:00:00")))
        .await;
    let second = test
        .app
        .created(create("second", at("2026-03-02T12:00:00Z")))
        .await;
    test.sink.reply(|dispatch| {
        let refused = dispatch.canvas_id.as_str() == "second";
        sink::Reply::Say(if refused {
            rejected()
        } else {
            DeliveryOutcome::Delivered
        })
    });
    let waves = test.app.get(&first).await.waves;
    test.move_to("2026-03-04T12:00:00Z");
    test.sink.at_least(waves.len() + 1).await;

    let of_first = until_in_state(&test.app, &first, DispatchState::Delivered, waves.len()).await;
    assert_eq!(
        of_first.iter().map(|one| one.number).collect::<Vec<_>>(),
        (1..=of_first.len() as i32).collect::<Vec<_>>()
    );
    for (dispatch, wave) in of_first.iter().zip(&waves) {
        assert_eq!(dispatch.wave.as_ref(), Some(wave));
        assert_eq!(
            (
                dispatch.attempt,
                dispatch.revision,
                dispatch.detail.as_str()
            ),
            (1, 1, "")
        );
        assert!(dispatch.finish_time.is_some() && dispatch.next_attempt_time.is_none());
    }
    let [dead] = until_in_state(&test.app, &second, DispatchState::Dead, 1)
        .await
        .try_into()
        .expect("one");
    assert_eq!(
        (dead.state(), dead.detail.as_str()),
        (DispatchState::Dead, "400")
    );
    assert_eq!(
        all(&test.app, in_state(DispatchState::Dead)).await,
        std::slice::from_ref(&dead)
    );
    assert_eq!(all(&test.app, of(&first)).await, of_first);
    let everything = all(&test.app, Default::default()).await;
    assert_eq!(
        (everything.len(), everything.last()),
        (of_first.len() + 1, Some(&dead)),
        "sorted by schedule and number"
    );
    for state in [
        DispatchState::InHand,
        DispatchState::Unknown,
        DispatchState::Abandoned,
    ] {
        assert_eq!(all(&test.app, in_state(state)).await, []);
    }
    let counts = test.app.get(&first).await.dispatches.expect("counts");
    assert_eq!(
        counts,
        v1::DispatchCounts {
            delivered: of_first.len() as i32,
            ..Default::default()
        }
    );
    test.app.stop().await;
}

async fn a_dead_letter_is_retried_under_its_id(database: &Database) {
    let test = DispatchingApp::start(database).await;
    test.sink.say(rejected());
    let schedule = test.app.created(create("canvas", at(NOW))).await;
    let first = test.sink.at_least(1).await.remove(0);
    let [dead] = until_in_state(&test.app, &schedule, DispatchState::Dead, 1)
        .await
        .try_into()
        .expect("one");
    assert_eq!(dead.dispatch_id, first.id.to_string());
    test.sink.say(DeliveryOutcome::Delivered);
    let retried = test.app.retry(&dead).await.expect("a dead letter");
    assert_eq!(
        (retried.state(), &retried.dispatch_id),
        (DispatchState::Unknown, &dead.dispatch_id)
    );
    let seen = test.sink.at_least(2).await;
    assert_eq!(
        (seen[1].id, seen[1].attempt),
        (first.id, 2),
        "immediately, without a poll"
    );
    let delivered = until_in_state(&test.app, &schedule, DispatchState::Delivered, 1).await;
    refused(
        test.app.retry(&delivered[0]).await,
        Code::FailedPrecondition,
        "DISPATCH_NOT_DEAD",
    );
    test.app.stop().await;
}

async fn a_cancellation_abandons_dispatches_with_an_unknown_outcome(database: &Database) {
    let test = DispatchingApp::start(database).await;
    test.sink.say(unknown());
    let schedule = test.app.created(create("canvas", at(NOW))).await;
    test.sink.at_least(1).await;
    let [waiting] = until_in_state(&test.app, &schedule, DispatchState::Unknown, 1)
        .await
        .try_into()
        .expect("one");
    assert!(waiting.next_attempt_time.is_some());
    refused(
        test.app.update(update(&schedule, at(LATER))).await,
        Code::FailedPrecondition,
        "NOTHING_LEFT_TO_CHANGE",
    );
    let answer = test
        .app
        .cancel(cancel(&schedule))
        .await
        .expect("there are attempts to stop");
    assert_eq!(
        (
            answer.applied(),
            answer.applied_zones,
            answer.abandoned_dispatches
        ),
        (Applied::Some, 0, 1)
    );
    let got = test.app.get(&schedule).await;
    assert_eq!(
        got.canvas_schedule.expect("a schedule").state(),
        CanvasScheduleState::Cancelled
    );
    assert_eq!(
        got.dispatches,
        Some(v1::DispatchCounts {
            abandoned: 1,
            ..Default::default()
        })
    );
    // Another schedule, due long after the next attempt would have been, shows that its time has
    // passed.
    let other = test
        .app
        .created(create("other", at("2026-03-01T13:00:00Z")))
        .await;
    test.move_to("2026-03-01T13:00:00Z");
    let seen = test.sink.at_least(2).await;
    assert_eq!(
        (seen.len(), seen[1].schedule_id.to_string()),
        (2, other.schedule_id),
        "no further attempt may come"
    );
    let abandoned = all(&test.app, in_state(DispatchState::Abandoned)).await;
    refused(
        test.app.retry(&abandoned[0]).await,
        Code::FailedPrecondition,
        "SCHEDULE_CANCELLED",
    );
    test.app.stop().await;
}

async fn unknown_dispatches_are_refused(database: &Database) {
    let test = DispatchingApp::start(database).await;
    let schedule = test.app.created(create("canvas", at(LATER))).await;
    let unknown_id = "0198c5a0-7d2e-7c64-9f0b-2f1a0c9d3b11".to_owned();
    let request = v1::Dispatch {
        dispatch_id: "0".repeat(32),
        schedule_id: schedule.schedule_id.clone(),
        ..Default::default()
    };
    refused(
        test.app.retry(&request).await,
        Code::NotFound,
        "DISPATCH_NOT_FOUND",
    );
    refused(
        test.app
            .retry(&v1::Dispatch {
                schedule_id: unknown_id.clone(),
                ..request.clone()
            })
            .await,
        Code::NotFound,
        "SCHEDULE_NOT_FOUND",
    );
    let bad = v1::Dispatch {
        dispatch_id: "x".to_owned(),
        schedule_id: "x".to_owned(),
        ..request
    };
    assert_eq!(
        refused(
            test.app.retry(&bad).await,
            Code::InvalidArgument,
            "INVALID_FIELDS"
        )
        .fields,
        ["dispatch_id", "schedule_id"]
    );
    let listed = test
        .app
        .dispatches(v1::ListDispatchesRequest {
            schedule_id: unknown_id,
            ..Default::default()
        })
        .await;
    assert_eq!(
        listed.expect("a page").dispatches,
        [],
        "the list must be empty"
    );
    let bad = v1::ListDispatchesRequest {
        schedule_id: "x".to_owned(),
        state: 9,
        page_size: -1,
        page_token: "x".to_owned(),
    };
    let refusal = refused(
        test.app.dispatches(bad).await,
        Code::InvalidArgument,
        "INVALID_FIELDS",
    );
    assert_eq!(
        refusal.fields,
        ["page_size", "page_token", "schedule_id", "state"]
    );
    test.app.stop().await;
}

async fn a_page_of_dispatches_with_many_zones_is_shortened(database: &Database) {
    let test = DispatchingApp::start(database).await;
    for _ in 0..120 {
        test.app
            .created(create("canvas", at("2026-03-01T12:00:10Z")))
            .await;
    }
    test.move_to("2026-03-01T12:00:10Z");
    test.sink.at_least(120).await;
    let request = v1::ListDispatchesRequest {
        page_size: 1000,
        ..Default::default()
    };
    let page = test.app.dispatches(request.clone()).await.expect("a page");
    let bytes = prost::Message::encoded_len(&page);
    assert!(
        page.dispatches.len() < 120 && bytes <= 1024 * 1024 + 1024,
        "{} dispatches, {bytes} bytes",
        page.dispatches.len()
    );
    let rest = v1::ListDispatchesRequest {
        page_token: page.next_page_token,
        ..request
    };
    let rest = test.app.dispatches(rest).await.expect("a page");
    assert_eq!(
        (
            page.dispatches.len() + rest.dispatches.len(),
            rest.next_page_token.as_str()
        ),
        (120, ""),
        "no dispatch may be missing"
    );
    test.app.stop().await;
}
