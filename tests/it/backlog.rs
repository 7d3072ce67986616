//! Backlog metrics: due waves, and unfinished dispatches.

use std::time::Duration;

use canvas_scheduler::domain::DeliveryOutcome;
use canvas_scheduler::telemetry::metrics::{DispatchTotals, DueBacklog};

use crate::support::stores::*;
use crate::support::*;

on_both![
    due_waves_are_counted_until_they_are_claimed,
    unfinished_dispatches_are_counted,
    lag_starts_when_a_wave_is_due
];

const DUE: &str = "2026-03-20T08:00:00Z";

async fn backlog(test: &TestStore) -> (i64, u64) {
    use canvas_scheduler::clock::Clock;
    let DueBacklog { due, oldest } = test
        .store
        .admin
        .backlog(test.clock.now())
        .await
        .expect("counted");
    (due, oldest.as_secs())
}

async fn due_waves_are_counted_until_they_are_claimed(database: &Database) {
    let test = TestStore::open(database).await;
    for minute in 0..5 {
        test.create(&format!("2026-03-20T08:{minute:02}:00Z"), false)
            .await;
    }
    assert_eq!(backlog(&test).await, (0, 0), "nothing is due");
    test.at(DUE);
    assert_eq!(backlog(&test).await, (1, 0));
    test.at("2026-03-20T08:03:30Z");
    assert_eq!(backlog(&test).await, (4, 210));
    assert_eq!(test.claim(3).await.len(), 3);
    assert_eq!(backlog(&test).await, (1, 30));
    test.claim(3).await;
    assert_eq!(backlog(&test).await, (0, 0));
}

async fn unfinished_dispatches_are_counted(database: &Database) {
    let test = TestStore::open(database).await;
    let dispatch_totals = async || test.store.admin.dispatch_totals().await.expect("counted");
    assert_eq!(dispatch_totals().await, DispatchTotals::default());
    for _ in 0..6 {
        test.create(DUE, false).await;
    }
    test.at(DUE);
    let leased = test.claim(6).await;
    test.settle(&leased[..1], &DeliveryOutcome::Delivered).await;
    test.settle(&leased[1..3], &unknown()).await;
    test.settle(
        &leased[3..6],
        &DeliveryOutcome::Rejected {
            why: "400".to_owned(),
        },
    )
    .await;
    assert_eq!(
        dispatch_totals().await,
        DispatchTotals {
            unknown: 2,
            dead: 3,
            ..DispatchTotals::default()
        }
    );
    test.store
        .dispatch
        .set_sending(Some("default"), true)
        .await
        .expect("set");
    test.store
        .dispatch
        .set_sending(None, true)
        .await
        .expect("set");
    assert_eq!(
        dispatch_totals().await,
        DispatchTotals {
            unknown: 2,
            dead: 3,
            all_paused: true,
            workspaces_paused: 1
        }
    );
}

async fn lag_starts_when_a_wave_is_due(database: &Database) {
    let test = TestStore::open(database).await;
    test.create(DUE, false).await;
    test.at("2026-03-20T08:00:02Z");
    let lag = async || {
        test.claim(1).await[0]
            .lag
            .to_std()
            .expect("no negative lag")
    };
    assert_eq!(lag().await, Duration::from_secs(2));
    // A time in the past is due immediately.
    test.at("2026-03-20T08:30:00Z");
    test.create(DUE, false).await;
    test.at("2026-03-20T08:30:01Z");
    assert_eq!(lag().await, Duration::from_secs(1));
}
