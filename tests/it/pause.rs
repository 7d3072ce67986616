//! Pausing of workspaces, and the retention of finished schedules.

use canvas_scheduler::domain::DeliveryOutcome;
use canvas_scheduler::domain::WorkspaceId;
use canvas_scheduler::error::Error;
use chrono::TimeDelta;

use crate::support::dispatcher::DispatchingApp;
use crate::support::stores::*;
use crate::support::*;

on_both![
    a_paused_workspace_sends_everything_with_its_lateness_when_resumed,
    sending_is_paused_for_every_workspace,
    a_retry_waits_while_sending_is_paused,
    finished_schedules_are_removed_after_their_retention_and_others_are_not,
];

on_postgres![
    a_locked_schedule_keeps_no_other_from_being_removed,
    a_locked_answer_keeps_no_other_from_being_removed,
    a_locked_entry_keeps_no_other_from_being_unparked,
];
on_both![file: a_dispatcher_continues_when_sending_is_resumed, a_removed_schedule_leaves_no_rows];

const DUE: &str = "2026-03-20T08:00:00Z";

async fn set(test: &TestStore, workspace: Option<&str>, paused: bool) {
    assert!(
        test.store
            .dispatch
            .set_sending(workspace, paused)
            .await
            .expect("set")
    );
}

async fn a_paused_workspace_sends_everything_with_its_lateness_when_resumed(database: &Database) {
    let test = TestStore::open(database).await;
    assert!(
        !test
            .store
            .dispatch
            .set_sending(Some("missing"), true)
            .await
            .expect("answered"),
        "no such workspace"
    );
    set(&test, Some("default"), true).await;
    let mut ids = vec![];
    for _ in 0..7 {
        ids.push(test.create(DUE, false).await);
    }
    test.at(DUE);
    for _ in 0..3 {
        assert!(test.claim(5).await.is_empty());
    }
    // Updates to earlier and later times are accepted, and a cancellation.
    test.update(ids[0], "2026-03-20T07:30:00Z", false)
        .await
        .expect("updated");
    test.update(ids[1], "2026-03-20T12:00:00Z", false)
        .await
        .expect("updated");
    test.cancel(ids[2]).await.expect("cancelled");
    test.at("2026-03-20T08:10:00Z");
    assert!(test.claim(5).await.is_empty());
    assert_eq!(
        test.store.dispatch.unpark(100).await.expect("nothing"),
        0,
        "not while the workspace is paused"
    );
    set(&test, Some("default"), false).await;
    while test.store.dispatch.unpark(2).await.expect("unparked") > 0 {}
    let mut fired = test.claim(3).await;
    fired.extend(test.claim(50).await);
    let mut lateness: Vec<_> = fired
        .iter()
        .map(|one| {
            (
                one.dispatch.schedule_id,
                one.dispatch.lateness.num_minutes(),
            )
        })
        .collect();
    lateness.sort_unstable();
    assert_eq!(
        lateness,
        [
            (ids[0], 40),
            (ids[3], 10),
            (ids[4], 10),
            (ids[5], 10),
            (ids[6], 10)
        ]
    );
    test.at("2026-03-20T12:00:00Z");
    assert_eq!(test.claim(50).await.len(), 1);
}

async fn sending_is_paused_for_every_workspace(database: &Database) {
    let test = TestStore::open(database).await;
    test.create(DUE, false).await;
    set(&test, None, true).await;
    test.at(DUE);
    assert!(test.claim(5).await.is_empty());
    set(&test, None, false).await;
    assert_eq!(test.claim(5).await.len(), 1);
}

async fn a_retry_waits_while_sending_is_paused(database: &Database) {
    let test = TestStore::open(database).await;
    test.create(DUE, false).await;
    test.at(DUE);
    let leased = test.claim(5).await;
    test.settle(&leased, &unknown()).await;
    for paused in [None, Some("default")] {
        set(&test, paused, true).await;
        test.clock.advance(TimeDelta::minutes(5));
        assert!(test.retry(5).await.is_empty(), "{paused:?}");
        set(&test, paused, false).await;
    }
    assert!(
        test.retry(5).await.is_empty(),
        "checked again within seconds"
    );
    test.clock.advance(TimeDelta::seconds(10));
    let again = test.retry(5).await;
    assert_eq!(
        (again.len(), again[0].dispatch.attempt),
        (1, 2),
        "the pause must not count as an attempt"
    );
}

async fn a_dispatcher_continues_when_sending_is_resumed(database: &Database) {
    let test = DispatchingApp::start(database).await;
    let controller = TestStore::open(database).await;
    set(&controller, Some("default"), true).await;
    for _ in 0..20 {
        test.app
            .created(create("canvas", at("2026-03-01T12:00:30Z")))
            .await;
    }
    // A schedule of another workspace, which the pause must not affect, shows that the time has
    // come.
    let other = test
        .app
        .created(create("other", at("2026-03-01T12:00:40Z")))
        .await;
    let of_other = format!("= '{}'", other.schedule_id);
    let of_other_hex = format!("= unhex('{}')", other.schedule_id.replace('-', ""));
    for (table, id) in [
        ("canvas_schedule", "id"),
        ("canvas_schedule_wake", "id"),
        ("canvas_schedule_target", "schedule_id"),
    ] {
        let moved = |of: &str| format!("UPDATE {table} SET workspace_id = 2 WHERE {id} {of}");
        database.sql(&moved(&of_other), &moved(&of_other_hex)).await;
    }
    let workspace =
        "INSERT INTO workspace (id, name, default_time_zone) VALUES (2, 'other', 'UTC')";
    database.sql(workspace, workspace).await;
    test.move_to("2026-03-01T12:00:40Z");
    assert_eq!(test.sink.at_least(1).await[0].workspace, "other");
    set(&controller, Some("default"), false).await;
    test.sink
        .in_time(&test.clock, TimeDelta::milliseconds(100), |sink| {
            sink.count() == 21
        })
        .await;
    test.app.stop().await;
}

async fn finished_schedules_are_removed_after_their_retention_and_others_are_not(
    database: &Database,
) {
    let test = TestStore::open(database).await;
    let (sent, cancelled, waiting, unknown_outcome) = (
        test.create(DUE, false).await,
        test.create(DUE, false).await,
        test.create("2026-12-01T00:00:00Z", false).await,
        test.create(DUE, false).await,
    );
    test.cancel(cancelled).await.expect("cancelled");
    test.at(DUE);
    let leased = test.claim(5).await;
    let (lost, delivered): (Vec<_>, Vec<_>) = leased
        .into_iter()
        .partition(|one| one.dispatch.schedule_id == unknown_outcome);
    test.settle(&delivered, &DeliveryOutcome::Delivered).await;
    test.settle(&lost, &unknown()).await;
    let there = async |id| match test.store.read.schedule((WorkspaceId::DEFAULT, id)).await {
        Ok(_) => true,
        Err(Error::NotFound { .. }) => false,
        Err(other) => panic!("{other}"),
    };
    let sent_at = instant(DUE);
    test.store
        .admin
        .remove_finished(sent_at - TimeDelta::milliseconds(1), 10)
        .await
        .expect("removed");
    assert_eq!(
        [
            there(sent).await,
            there(cancelled).await,
            there(waiting).await,
            there(unknown_outcome).await
        ],
        [true, false, true, true]
    );
    test.store
        .admin
        .remove_finished(sent_at, 10)
        .await
        .expect("removed");
    assert_eq!(
        [
            there(sent).await,
            there(waiting).await,
            there(unknown_outcome).await
        ],
        [false, true, true]
    );
    // A schedule is finished when its last attempt is.
    test.at("2026-03-21T08:00:00Z");
    let again = test.retry(5).await;
    test.settle(&again, &DeliveryOutcome::Delivered).await;
    test.store
        .admin
        .remove_finished(instant("2026-03-21T07:59:59Z"), 10)
        .await
        .expect("removed");
    assert!(there(unknown_outcome).await);
    test.store
        .admin
        .remove_finished(instant("2026-03-21T08:00:00Z"), 10)
        .await
        .expect("removed");
    assert_eq!(
        [there(waiting).await, there(unknown_outcome).await],
        [true, false]
    );
}

/// Each batch has one place, so that a locked row at the front would take it.
async fn a_locked_schedule_keeps_no_other_from_being_removed(database: &Database) {
    let test = TestStore::open(database).await;
    let mut ids = vec![];
    for n in 0..3 {
        ids.push(test.create(&format!("2026-03-20T08:00:0{n}Z"), false).await);
        test.at(&format!("2026-03-20T08:00:0{n}Z"));
        test.settle(&test.claim(1).await, &DeliveryOutcome::Delivered)
            .await;
    }
    let schedule = database.lock(&ids[0].to_string()).await;
    let before = instant("2026-03-21T08:00:00Z");
    let remove = async |limit| {
        let removed = test.store.admin.remove_finished(before, limit).await;
        removed.expect("removed")
    };
    assert_eq!(remove(1).await, 1);
    let left = "SELECT id::text FROM canvas_schedule ORDER BY id";
    let expected = [ids[0].to_string(), ids[2].to_string()];
    assert_eq!(database.rows(left).await, expected);
    schedule.rollback().await.expect("unlocked");
    let first = ids[0];
    let dispatch = format!("SELECT 1 FROM dispatch WHERE schedule_id = '{first}'");
    let dispatch = database.lock_rows(&dispatch).await;
    assert_eq!(remove(5).await, 1);
    assert_eq!(database.rows(left).await, [first.to_string()]);
    dispatch.rollback().await.expect("unlocked");
    assert_eq!(remove(5).await, 1);
}

async fn a_locked_answer_keeps_no_other_from_being_removed(database: &Database) {
    let test = TestStore::open(database).await;
    let insert = "INSERT INTO answered_request VALUES (1, 'first', '', '{}', 1),
      (1, 'second', '', '{}', 2)";
    database.sql(insert, "").await;
    let lock = database
        .lock_rows("SELECT 1 FROM answered_request WHERE request_id = 'first'")
        .await;
    let remove = async || {
        test.store
            .admin
            .remove_old_answers(1)
            .await
            .expect("removed")
    };
    assert_eq!((remove().await, remove().await), (1, 0));
    lock.rollback().await.expect("unlocked");
    assert_eq!(remove().await, 1);
}

async fn a_locked_entry_keeps_no_other_from_being_unparked(database: &Database) {
    let test = TestStore::open(database).await;
    let dispatch = &test.store.dispatch;
    dispatch
        .set_sending(Some("default"), true)
        .await
        .expect("set");
    for n in 0..2 {
        test.create(&format!("2026-03-20T08:00:0{n}Z"), false).await;
    }
    test.at("2026-03-20T08:00:01Z");
    assert_eq!(test.claim(5).await, []);
    dispatch
        .set_sending(Some("default"), false)
        .await
        .expect("set");
    let lock = database
        .lock_rows("SELECT 1 FROM canvas_schedule_parked ORDER BY wake_ms LIMIT 1")
        .await;
    let unpark = async || dispatch.unpark(1).await.expect("unparked");
    assert_eq!((unpark().await, unpark().await), (1, 0));
    lock.rollback().await.expect("unlocked");
    assert_eq!(unpark().await, 1);
    assert_eq!(test.claim(5).await.len(), 2);
}

async fn a_removed_schedule_leaves_no_rows(database: &Database) {
    let test = TestStore::open(database).await;
    let id = test.create("2026-03-02T12:00:00", true).await;
    test.update(id, "2026-03-02T13:00:00", true)
        .await
        .expect("updated");
    test.at("2026-03-04T12:00:00Z");
    loop {
        let leased = test.claim(50).await;
        if leased.is_empty() {
            break;
        }
        test.settle(&leased, &DeliveryOutcome::Delivered).await;
    }
    assert_eq!(
        test.store
            .admin
            .remove_finished(instant("2026-03-04T12:00:00Z"), 10)
            .await
            .expect("removed"),
        1
    );
    for table in [
        "canvas_schedule",
        "canvas_schedule_revision",
        "canvas_schedule_target",
        "canvas_schedule_properties",
        "dispatch",
        "canvas_schedule_wake",
    ] {
        assert_eq!(
            database
                .count(&format!("SELECT count(*) FROM {table}"))
                .await,
            0,
            "{table}"
        );
    }
}
