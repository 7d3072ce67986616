//! `request_id`: a replay within 24 hours returns the first answer and changes nothing.

use std::collections::HashSet;
use std::net::SocketAddr;

use canvas_scheduler::pb::v1;
use chrono::TimeDelta;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::*;

on_both![
    a_replay_returns_the_first_answer_and_changes_nothing,
    a_replay_of_an_update_without_an_id_ignores_later_changes,
    entries_of_a_batch_replay_as_updates_do,
    a_refused_entry_does_not_use_up_its_id,
    an_id_with_another_payload_is_refused,
    an_id_is_free_again_after_a_day,
    concurrent_callers_create_one_revision,
    concurrent_callers_create_one_schedule,
    a_lost_answer_is_received_by_repeating,
];

const DAY: TimeDelta = TimeDelta::hours(24);

fn created_as(
    request_id: &str,
    canvas_id: &str,
    schedule: Option<v1::Schedule>,
) -> v1::CreateCanvasScheduleRequest {
    v1::CreateCanvasScheduleRequest {
        request_id: request_id.to_owned(),
        ..create(canvas_id, schedule)
    }
}

fn updated_as(
    request_id: &str,
    request: v1::UpdateCanvasScheduleRequest,
) -> v1::UpdateCanvasScheduleRequest {
    v1::UpdateCanvasScheduleRequest {
        request_id: request_id.to_owned(),
        ..request
    }
}

fn cancelled_as(
    request_id: &str,
    request: v1::CancelCanvasScheduleRequest,
) -> v1::CancelCanvasScheduleRequest {
    v1::CancelCanvasScheduleRequest {
        request_id: request_id.to_owned(),
        ..request
    }
}

async fn a_replay_returns_the_first_answer_and_changes_nothing(database: &Database) {
    let app = TestApp::start(database).await;
    // Half an hour ahead in UTC, so that some zones are missed: the replay must report the same
    // ones.
    let create = created_as("create", "canvas", local("2026-03-01T12:30:00"));
    let made = app.create(create.clone()).await.expect("created");
    assert!(!made.missed_zones.is_empty() && !made.dispatch_id.is_empty());
    let schedule = made.canvas_schedule.clone().expect("a schedule");
    let update = updated_as("update", update(&schedule, at("2026-03-01T12:30:00Z")));
    let updated = app.update(update.clone()).await.expect("updated");
    assert_eq!(schedule_of(&updated).revision, 2);
    let before = app.seen(&schedule).await;
    let replay_both = async || {
        assert_eq!(
            app.create(create.clone()).await.expect("the first answer"),
            made
        );
        assert_eq!(
            app.update(update.clone()).await.expect("the first answer"),
            updated
        );
    };
    replay_both().await;
    assert_eq!(app.seen(&schedule).await, before, "nothing may be created");

    // The requested time has passed: a first call would be refused.
    app.clock.advance(TimeDelta::hours(20));
    let late = app
        .update(v1::UpdateCanvasScheduleRequest {
            request_id: String::new(),
            ..update.clone()
        })
        .await;
    refused(late, Code::InvalidArgument, "SCHEDULE_TIME_PAST");
    replay_both().await;

    let cancel = cancelled_as("cancel", cancel(&schedule));
    let cancelled = app.cancel(cancel.clone()).await.expect("cancelled");
    let before = app.seen(&schedule).await;
    app.clock.advance(TimeDelta::hours(1));
    assert_eq!(
        app.cancel(cancel.clone()).await.expect("the first answer"),
        cancelled
    );
    // The schedule has changed since: a first call would be refused.
    replay_both().await;
    assert_eq!(app.seen(&schedule).await, before, "nothing may be created");
    assert_eq!(
        app.list_ids(Default::default()).await,
        [schedule.schedule_id.as_str()]
    );
}

async fn a_replay_of_an_update_without_an_id_ignores_later_changes(database: &Database) {
    let app = TestApp::start(database).await;
    let first = app.created(create("canvas", at(LATER))).await;
    let asked = updated_as(
        "r",
        update_of_canvas("canvas", local("2026-03-21T09:00:00")),
    );
    let answer = app.update(asked.clone()).await.expect("updated");
    let second = app.created(create("canvas", at(LATER))).await;
    let before = (app.seen(&first).await, app.seen(&second).await);
    assert_eq!(
        app.update(asked.clone()).await.expect("the first answer"),
        answer,
        "with two schedules open"
    );
    assert_eq!((app.seen(&first).await, app.seen(&second).await), before);
    app.cancel(cancel(&first)).await.expect("cancelled");
    app.cancel(cancel(&second)).await.expect("cancelled");
    assert_eq!(
        app.update(asked).await.expect("the first answer"),
        answer,
        "with none open"
    );
}

async fn entries_of_a_batch_replay_as_updates_do(database: &Database) {
    let app = TestApp::start(database).await;
    let one = app.created(create("one", at(LATER))).await;
    let two = app.created(create("two", at(LATER))).await;
    let entries = vec![
        updated_as("a", update(&one, at("2026-03-21T01:00:00Z"))),
        updated_as("b", update(&two, at("2026-03-21T02:00:00Z"))),
        // Its replay is in the same batch.
        updated_as("a", update(&one, at("2026-03-21T01:00:00Z"))),
        updated_as("b", update(&two, at("2026-03-21T03:00:00Z"))),
        updated_as("c", update_of_canvas("one", at("2026-03-21T04:00:00Z"))),
    ];
    let first = app.batch(entries.clone()).await.expect("answers");
    let ok = |n: usize| first[n].clone().expect("updated");
    assert_eq!(
        [0, 1, 2, 4].map(|n| schedule_of(&ok(n)).revision),
        [2, 2, 2, 3]
    );
    assert_eq!(ok(0), ok(2), "a replay must return the same answer");
    refused(first[3].clone(), Code::AlreadyExists, "REQUEST_ID_REUSED");
    let before = (app.seen(&one).await, app.seen(&two).await);

    let again = app.batch(entries.clone()).await.expect("answers");
    for n in [0, 1, 2, 4] {
        assert_eq!(again[n].clone().expect("the first answer"), ok(n), "{n}");
        assert_eq!(
            app.update(entries[n].clone())
                .await
                .expect("the first answer"),
            ok(n),
            "on its own it is the same request"
        );
    }
    refused(again[3].clone(), Code::AlreadyExists, "REQUEST_ID_REUSED");
    assert_eq!(
        (app.seen(&one).await, app.seen(&two).await),
        before,
        "nothing may be created"
    );
}

async fn a_refused_entry_does_not_use_up_its_id(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let stale = v1::UpdateCanvasScheduleRequest {
        etag: "stale".to_owned(),
        ..update(&schedule, at(LATER))
    };
    let entries = vec![
        updated_as("r", stale),
        updated_as("r", update(&schedule, at("2026-03-21T01:00:00Z"))),
        update(&schedule, at("2026-03-21T02:00:00Z")),
    ];
    let answers = app.batch(entries).await.expect("answers");
    refused(answers[0].clone(), Code::Aborted, "ETAG_STALE");
    let revisions = [1, 2].map(|n| schedule_of(answers[n].as_ref().expect("updated")).revision);
    assert_eq!(revisions, [2, 3], "in order");
    assert_eq!(
        time_of(
            &app.get(&schedule)
                .await
                .canvas_schedule
                .expect("a schedule")
        ),
        "2026-03-21T02:00:00Z"
    );
}

async fn an_id_with_another_payload_is_refused(database: &Database) {
    let app = TestApp::start(database).await;
    let made = app
        .create(created_as("create", "canvas", at(LATER)))
        .await
        .expect("created")
        .canvas_schedule
        .expect("a schedule");
    app.update(updated_as("update", update(&made, at(LATER))))
        .await
        .expect("updated");
    let other = app.created(create("other", at(LATER))).await;
    let before = (app.seen(&made).await, app.seen(&other).await);

    let update_of = |id: &str, request| updated_as(id, request);
    let base = update(&made, at(LATER));
    for (case, request) in changed_updates(&made, &other) {
        let refusal = refusal(app.update(update_of("update", request)).await);
        assert_eq!(
            (refusal.code, refusal.reason.as_str()),
            (Code::AlreadyExists, "REQUEST_ID_REUSED"),
            "{case}"
        );
        assert!(refusal.message.contains("update"), "{refusal:?}");
    }
    // An id is unique in a workspace, across methods.
    refused(
        app.update(update_of("create", base)).await,
        Code::AlreadyExists,
        "REQUEST_ID_REUSED",
    );
    refused(
        app.create(created_as("create", "other", at(LATER))).await,
        Code::AlreadyExists,
        "REQUEST_ID_REUSED",
    );
    refused(
        app.cancel(cancelled_as("update", cancel(&made))).await,
        Code::AlreadyExists,
        "REQUEST_ID_REUSED",
    );
    assert_eq!(
        (app.seen(&made).await, app.seen(&other).await),
        before,
        "nothing changed"
    );
    assert_eq!(
        app.list_ids(Default::default()).await.len(),
        2,
        "nothing may be created"
    );
}

/// Updates that each differ in one field from the update of `made`.
fn changed_updates(
    made: &v1::CanvasSchedule,
    other: &v1::CanvasSchedule,
) -> [(&'static str, v1::UpdateCanvasScheduleRequest); 8] {
    let base = update(made, at(LATER));
    [
        ("another time", update(made, at("2026-03-20T08:00:01Z"))),
        ("another flag", update(made, local(LATER))),
        ("another schedule", update(other, at(LATER))),
        ("no schedule_id", update_of_canvas("canvas", at(LATER))),
        (
            "properties",
            v1::UpdateCanvasScheduleRequest {
                trigger_properties: Some(Default::default()),
                ..base.clone()
            },
        ),
        (
            "an etag",
            v1::UpdateCanvasScheduleRequest {
                etag: made.etag.clone(),
                ..base.clone()
            },
        ),
        (
            "require_all",
            v1::UpdateCanvasScheduleRequest {
                require_all: true,
                ..base.clone()
            },
        ),
        (
            "another Canvas",
            v1::UpdateCanvasScheduleRequest {
                canvas_id: "other".to_owned(),
                ..base.clone()
            },
        ),
    ]
}

async fn an_id_is_free_again_after_a_day(database: &Database) {
    let app = TestApp::start(database).await;
    let made = app
        .create(created_as("c", "canvas", at(LATER)))
        .await
        .expect("created")
        .canvas_schedule
        .expect("a schedule");
    let answer = app
        .update(updated_as("u", update(&made, at(LATER))))
        .await
        .expect("updated");
    let answer_without_id = app
        .update(updated_as("n", update_of_canvas("canvas", at(LATER))))
        .await
        .expect("updated");
    app.clock.advance(DAY - TimeDelta::milliseconds(1));
    assert_eq!(
        app.update(updated_as("u", update(&made, at(LATER))))
            .await
            .expect("the first answer"),
        answer
    );
    let replayed = app
        .update(updated_as("n", update_of_canvas("canvas", at(LATER))))
        .await;
    assert_eq!(replayed.expect("the first answer"), answer_without_id);

    app.clock.advance(TimeDelta::milliseconds(1));
    let other = "2026-03-22T10:00:00Z";
    let renewed = app
        .update(updated_as("u", update(&made, at(other))))
        .await
        .expect("the id is free");
    assert_eq!(
        (
            schedule_of(&renewed).revision,
            time_of(schedule_of(&renewed))
        ),
        (4, other)
    );
    let renewed = app
        .update(updated_as("n", update_of_canvas("canvas", at(other))))
        .await
        .expect("the id is free");
    assert_eq!(schedule_of(&renewed).revision, 5);
    assert_eq!(
        app.update(updated_as("n", update_of_canvas("canvas", at(other))))
            .await
            .expect("the new first answer"),
        renewed
    );
    let second = app
        .create(created_as("c", "canvas", at(LATER)))
        .await
        .expect("the id is free")
        .canvas_schedule;
    assert_ne!(second.expect("a schedule").schedule_id, made.schedule_id);
}

/// The number of concurrent callers.
const CALLERS: usize = 32;

async fn concurrent_callers_create_one_revision(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    for (n, request) in [
        update(&schedule, at(LATER)),
        update_of_canvas("canvas", at(LATER)),
    ]
    .into_iter()
    .enumerate()
    {
        let mut calls = JoinSet::new();
        for _ in 0..CALLERS {
            let (mut client, request) = (
                app.fresh_client(),
                updated_as(&format!("r{n}"), request.clone()),
            );
            calls.spawn(async move {
                client
                    .update_canvas_schedule(request)
                    .await
                    .expect("answered")
                    .into_inner()
            });
        }
        let answers: HashSet<Vec<u8>> = calls
            .join_all()
            .await
            .iter()
            .map(Message::encode_to_vec)
            .collect();
        assert_eq!(
            answers.len(),
            1,
            "every caller must receive the same answer"
        );
        let revision = i64::try_from(n + 2).expect("a revision");
        assert_eq!(
            app.get(&schedule)
                .await
                .canvas_schedule
                .expect("a schedule")
                .revision,
            revision,
            "one revision"
        );
        assert_eq!(app.revisions(&schedule).await.len(), n + 2);
    }
}

async fn concurrent_callers_create_one_schedule(database: &Database) {
    let app = TestApp::start(database).await;
    let mut calls = JoinSet::new();
    for _ in 0..CALLERS {
        let mut client = app.fresh_client();
        calls.spawn(async move {
            let request = created_as("r", "canvas", local("2026-03-20T09:00:00"));
            client
                .create_canvas_schedule(request)
                .await
                .expect("answered")
                .into_inner()
        });
    }
    let answers: HashSet<Vec<u8>> = calls
        .join_all()
        .await
        .iter()
        .map(Message::encode_to_vec)
        .collect();
    assert_eq!(
        answers.len(),
        1,
        "every caller must receive the same answer"
    );
    let answer =
        v1::CreateCanvasScheduleResponse::decode(answers.iter().next().expect("one").as_slice())
            .expect("an answer");
    assert_eq!(
        app.list_ids(Default::default()).await,
        [answer.canvas_schedule.expect("a schedule").schedule_id]
    );
}

async fn a_lost_answer_is_received_by_repeating(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let request = updated_as("r", update(&schedule, at("2026-03-21T09:00:00Z")));
    let lost = through_a_proxy_that_cuts(app.addr(), &app.key, async |mut client| {
        client
            .update_canvas_schedule(request.clone())
            .await
            .map(drop)
    })
    .await;
    assert!(lost.is_err(), "the answer must be lost");
    let after = app
        .get(&schedule)
        .await
        .canvas_schedule
        .expect("a schedule");
    assert_eq!(
        after.revision, 2,
        "the server answered, so the change must be there"
    );
    app.clock.advance(TimeDelta::minutes(1));
    let replayed = app
        .fresh_client()
        .update_canvas_schedule(request)
        .await
        .expect("the first answer")
        .into_inner();
    assert_eq!(schedule_of(&replayed), &after);
    assert_eq!(
        app.revisions(&schedule).await.len(),
        2,
        "exactly one more revision"
    );

    let request = created_as("c", "made", at(LATER));
    let lost = through_a_proxy_that_cuts(app.addr(), &app.key, async |mut client| {
        client
            .create_canvas_schedule(request.clone())
            .await
            .map(drop)
    })
    .await;
    assert!(lost.is_err(), "the answer must be lost");
    let replayed = app
        .fresh_client()
        .create_canvas_schedule(request)
        .await
        .expect("the first answer")
        .into_inner();
    let of_canvas = v1::ListCanvasSchedulesRequest {
        canvas_id: "made".to_owned(),
        ..Default::default()
    };
    assert_eq!(
        app.list_ids(of_canvas).await,
        [replayed.canvas_schedule.expect("a schedule").schedule_id]
    );
}

/// Makes a call through a proxy that forwards the request and cuts the connection when the server
/// starts to answer.
async fn through_a_proxy_that_cuts(
    server: SocketAddr,
    key: &str,
    call: impl AsyncFnOnce(Client) -> Result<(), tonic::Status>,
) -> Result<(), tonic::Status> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let proxy = tokio::spawn(async move {
        let (caller, _) = listener.accept().await.expect("a caller");
        // Close the port before the cut, so that the caller cannot reconnect.
        drop(listener);
        cut_at_the_answer(
            caller,
            TcpStream::connect(server).await.expect("the server"),
        )
        .await;
    });
    let answer = call(client_on(channel_to(addr), key)).await;
    proxy.await.expect("the server answered");
    answer
}

/// Forwards every byte of the caller, and every HTTP/2 frame of the server before its first
/// HEADERS.
async fn cut_at_the_answer(caller: TcpStream, server: TcpStream) {
    const HEADERS: u8 = 1;
    let (mut from_caller, mut to_caller) = caller.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asking =
        tokio::spawn(async move { tokio::io::copy(&mut from_caller, &mut to_server).await });
    loop {
        let mut head = [0; 9];
        from_server.read_exact(&mut head).await.expect("a frame");
        if head[3] == HEADERS {
            break;
        }
        let mut payload =
            vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        from_server.read_exact(&mut payload).await.expect("a frame");
        to_caller
            .write_all(&head)
            .await
            .expect("the caller is connected");
        to_caller
            .write_all(&payload)
            .await
            .expect("the caller is connected");
    }
    asking.abort();
}
