//! Claims in the store: what a claim returns, and what runs concurrently with it.

use std::collections::{BTreeMap, BTreeSet};

use canvas_scheduler::clock::Clock;
use canvas_scheduler::domain::{
    Applied, DeliveryOutcome, DeliveryPolicy, DispatchState, ScheduleId, SchedulePolicy,
    ScheduleState, WorkspaceId, Zone, ZoneSet, zone,
};
use canvas_scheduler::error::Error;
use canvas_scheduler::store::{AttemptResult, Leased, Store};
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::DatabaseTransaction;
use tokio::task::JoinSet;

use crate::support::stores::*;
use crate::support::*;

on_both![
    no_more_is_claimed_than_requested,
    a_wave_is_claimed_once_with_its_payload,
    a_wave_that_was_not_taken_is_reopened_and_claimed_again,
    a_dispatch_with_an_unknown_outcome_is_retried_under_its_id,
    an_expired_lease_is_taken_over_and_a_late_answer_counts_once,
    a_change_concurrent_with_a_claim_covers_the_open_zones,
    a_cancellation_ends_further_attempts,
    a_postponed_schedule_is_neither_early_nor_late,
];

on_both![
    file: concurrent_claims_share_what_is_due,
    concurrent_changes_and_claims_claim_no_zone_twice,
    entries_without_a_schedule_are_removed,
    a_wave_that_cannot_be_stored_is_postponed_alone,
    a_retry_that_cannot_be_stored_is_postponed_alone,
    a_claim_whose_commit_fails_leases_nothing,
];

const DUE: &str = "2026-03-20T08:00:00Z";

async fn no_more_is_claimed_than_requested(database: &Database) {
    let test = TestStore::open(database).await;
    for n in 0..40 {
        test.create(&format!("2026-03-20T07:00:{n:02}Z"), false)
            .await;
    }
    assert_eq!(test.claim(10).await.len(), 0, "nothing is due");
    test.at(DUE);
    let mut fired = Vec::new();
    for limit in [1, 7, 32, 7, 100] {
        let leased = test.claim(limit).await;
        assert!(leased.len() <= limit, "{} of {limit}", leased.len());
        fired.push(leased.len());
    }
    assert_eq!(fired, [1, 7, 32, 0, 0]);
}

async fn a_wave_is_claimed_once_with_its_payload(database: &Database) {
    let test = TestStore::open(database).await;
    let id = test.create(DUE, false).await;
    test.at("2026-03-20T08:00:02Z");
    let [leased] = test.claim(5).await.try_into().expect("one dispatch");
    let dispatch = &leased.dispatch;
    assert_eq!(
        (
            dispatch.schedule_id,
            dispatch.number,
            dispatch.attempt,
            dispatch.revision
        ),
        (id, 1, 1, 1)
    );
    assert_eq!(
        (dispatch.workspace.as_str(), dispatch.canvas_id.as_str()),
        ("default", "canvas")
    );
    assert_eq!(
        (dispatch.wave.time, dispatch.lateness),
        (instant(DUE), TimeDelta::seconds(2))
    );
    assert!(
        dispatch.wave.zones == ZoneSet::all()
            && dispatch.wave.includes_unlisted_zones
            && dispatch.target.broadcast
    );
    assert_eq!(
        leased.until,
        test.clock.now() + DeliveryPolicy::default().lease
    );
    assert!(test.claim(5).await.is_empty());
    let refused = test.update(id, "2026-03-21T08:00:00Z", false).await;
    let since = "2026-03-20T08:00:02.000Z".to_owned();
    assert_eq!(
        refused,
        Err(Error::NothingLeft {
            schedule_id: id.to_string(),
            since
        }),
        "claimed zones are not open"
    );
    test.settle(&[leased], &DeliveryOutcome::Delivered).await;
    assert_eq!(states(&test, id).await, [(1, 1, DispatchState::Delivered)]);
    test.at("2026-03-21T08:00:00Z");
    assert!(
        test.claim(5).await.is_empty() && test.retry(5).await.is_empty(),
        "nothing may be due"
    );
}

/// The number, attempt and state of every dispatch of a schedule.
async fn states(
    test: &TestStore,
    id: canvas_scheduler::domain::ScheduleId,
) -> Vec<(u32, u32, DispatchState)> {
    let (_, dispatches) = test
        .store
        .read
        .schedule_with_dispatches((WorkspaceId::DEFAULT, id))
        .await
        .expect("it is there");
    dispatches
        .iter()
        .map(|dispatch| (dispatch.number, dispatch.attempt, dispatch.state))
        .collect()
}

async fn a_wave_that_was_not_taken_is_reopened_and_claimed_again(database: &Database) {
    let test = TestStore::open(database).await;
    let id = test.create(DUE, false).await;
    test.at(DUE);
    let leased = test.claim(5).await;
    test.settle(&leased, &not_taken()).await;
    assert_eq!(states(&test, id).await, []);
    let (schedule, _) = test
        .store
        .read
        .schedule_with_dispatches((WorkspaceId::DEFAULT, id))
        .await
        .expect("it is there");
    assert_eq!(
        (schedule.state(), schedule.last_number, schedule.next_wave),
        (ScheduleState::Pending, 1, Some(instant(DUE)))
    );
    assert!(test.claim(5).await.is_empty(), "only after a pause");
    let moved = test
        .update(id, "2026-03-20T09:00:00Z", false)
        .await
        .expect("every zone is open");
    assert_eq!(moved.applied, Applied::All);
    test.at("2026-03-20T08:59:59Z");
    assert!(
        test.claim(5).await.is_empty(),
        "the update decides when it is due"
    );
    test.at("2026-03-20T09:00:00Z");
    let [second] = test.claim(5).await.try_into().expect("one dispatch");
    assert_eq!((second.dispatch.number, second.dispatch.revision), (2, 2));
    assert_ne!(
        second.dispatch.id, leased[0].dispatch.id,
        "no two dispatches may share an id"
    );
    // Without an update it is due after a pause.
    test.settle(&[second], &not_taken()).await;
    test.at("2026-03-20T09:00:01Z");
    let [third] = test.claim(5).await.try_into().expect("one dispatch");
    assert_eq!(
        (third.dispatch.number, third.dispatch.wave.time),
        (3, instant("2026-03-20T09:00:00Z"))
    );
}

async fn a_dispatch_with_an_unknown_outcome_is_retried_under_its_id(database: &Database) {
    let test = TestStore::open(database).await;
    let id = test.create(DUE, false).await;
    test.at(DUE);
    let first = test.claim(5).await;
    test.settle(&first, &unknown()).await;
    assert_eq!(states(&test, id).await, [(1, 1, DispatchState::Unknown)]);
    assert!(test.retry(5).await.is_empty(), "after a pause");
    test.at("2026-03-20T08:00:01Z");
    let second = test.retry(5).await;
    assert_eq!(
        (
            second.len(),
            second[0].dispatch.attempt,
            second[0].dispatch.id
        ),
        (1, 2, first[0].dispatch.id)
    );
    assert!(test.retry(5).await.is_empty() && test.claim(5).await.is_empty());
    test.settle(&second, &not_taken()).await;
    assert_eq!(
        states(&test, id).await,
        [(1, 2, DispatchState::Unknown)],
        "the first attempt may have arrived, so its zones must stay claimed"
    );
    test.at("2026-03-20T08:00:09Z");
    let third = test.retry(5).await;
    test.settle(&third, &rejected()).await;
    assert_eq!(states(&test, id).await, [(1, 3, DispatchState::Dead)]);
    test.at("2026-03-22T08:00:09Z");
    assert!(
        test.retry(5).await.is_empty(),
        "a dead letter is not retried"
    );
}

async fn an_expired_lease_is_taken_over_and_a_late_answer_counts_once(database: &Database) {
    let test = TestStore::open(database).await;
    let id = test.create(DUE, false).await;
    test.at(DUE);
    let first = test.claim(5).await;
    test.move_to(first[0].until - TimeDelta::milliseconds(1));
    assert!(test.retry(5).await.is_empty(), "the lease holds");
    test.move_to(first[0].until);
    let second = test.retry(5).await;
    assert_eq!(
        (second[0].dispatch.attempt, second[0].dispatch.id),
        (2, first[0].dispatch.id)
    );
    test.settle(&first, &not_taken()).await;
    assert_eq!(
        states(&test, id).await,
        [(1, 2, DispatchState::InFlight)],
        "a late failure of the first worker must change nothing"
    );
    test.settle(&first, &DeliveryOutcome::Delivered).await;
    assert_eq!(
        states(&test, id).await,
        [(1, 2, DispatchState::Delivered)],
        "a late delivery must count"
    );
    test.settle(&second, &not_taken()).await;
    test.settle(&second, &unknown()).await;
    assert_eq!(states(&test, id).await, [(1, 2, DispatchState::Delivered)]);
}

async fn a_change_concurrent_with_a_claim_covers_the_open_zones(database: &Database) {
    let test = TestStore::open(database).await;
    let id = test.create("2026-03-02T12:00:00", true).await;
    let mut handed_over = ZoneSet::empty();
    let mut ids = BTreeSet::new();
    let mut fire = async |until: &str| {
        test.at(until);
        loop {
            let leased = test.claim(3).await;
            for one in &leased {
                assert!(
                    handed_over
                        .iter()
                        .all(|zone| !one.dispatch.wave.zones.contains(zone)),
                    "no zone may be claimed twice"
                );
                assert!(ids.insert(one.dispatch.id.to_string()));
                handed_over = handed_over.union(&one.dispatch.wave.zones);
            }
            if leased.is_empty() {
                return handed_over.len();
            }
            test.settle(&leased, &DeliveryOutcome::Delivered).await;
        }
    };
    let half = fire("2026-03-02T09:00:00Z").await;
    assert!(half > 0 && half < ZoneSet::all().len());
    let moved = test
        .update(id, "2026-03-03T10:00:00Z", false)
        .await
        .expect("some zones are open");
    assert_eq!(
        (moved.applied, moved.applied_zones),
        (Applied::Some, ZoneSet::all().len() - half)
    );
    let nothing = fire("2026-03-03T09:59:59Z").await;
    assert_eq!(nothing, half, "the open zones must wait for their new time");
    let back = test
        .update(id, "2026-03-04T12:00:00", true)
        .await
        .expect("some zones are open");
    assert_eq!(back.applied_zones, ZoneSet::all().len() - half);
    let all = fire("2026-03-06T00:00:00Z").await;
    assert_eq!(all, ZoneSet::all().len(), "none forgotten");
    let (schedule, dispatches) = test
        .store
        .read
        .schedule_with_dispatches((WorkspaceId::DEFAULT, id))
        .await
        .expect("it is there");
    assert_eq!(
        (schedule.state(), schedule.revision),
        (ScheduleState::Dispatched, 3)
    );
    assert_eq!(
        dispatches
            .iter()
            .filter(|dispatch| dispatch.wave.includes_unlisted_zones)
            .count(),
        1
    );
}

async fn a_cancellation_ends_further_attempts(database: &Database) {
    let test = TestStore::open(database).await;
    let (waiting, in_hand, not_sent) = (
        test.create(DUE, false).await,
        test.create(DUE, false).await,
        test.create(DUE, false).await,
    );
    test.at(DUE);
    let leased: BTreeMap<_, Leased> = test
        .claim(5)
        .await
        .into_iter()
        .map(|one| (one.dispatch.schedule_id, one))
        .collect();
    test.settle(&[leased[&waiting].clone()], &unknown()).await;
    let cancelled = test
        .cancel(waiting)
        .await
        .expect("a further attempt is stopped");
    assert_eq!(
        (
            cancelled.applied,
            cancelled.applied_zones,
            cancelled.after.unknown
        ),
        (Applied::Some, 0, 1)
    );
    assert_eq!(
        states(&test, waiting).await,
        [(1, 1, DispatchState::Abandoned)]
    );
    let refused = test.cancel(in_hand).await;
    assert!(
        matches!(refused, Err(Error::NothingLeft { .. })),
        "a dispatch in hand cannot be cancelled: {refused:?}"
    );
    // One that was not taken is open, and cancelled for all zones; one whose lease expires later is
    // not retried.
    test.settle(&[leased[&not_sent].clone()], &not_taken())
        .await;
    assert_eq!(
        test.cancel(not_sent).await.expect("open").applied,
        Applied::All
    );
    test.at("2026-03-20T10:00:00Z");
    let again = test.retry(5).await;
    assert_eq!(
        again
            .iter()
            .map(|one| one.dispatch.schedule_id)
            .collect::<Vec<_>>(),
        [in_hand]
    );
    assert!(test.claim(5).await.is_empty());
}

async fn a_postponed_schedule_is_neither_early_nor_late(database: &Database) {
    let test = TestStore::open(database).await;
    let id = test.create(DUE, false).await;
    test.update(id, "2026-03-22T08:00:00Z", false)
        .await
        .expect("postponed");
    test.at(DUE);
    assert!(
        test.claim(5).await.is_empty(),
        "the old entry of the due queue must not claim"
    );
    test.update(id, "2026-03-21T08:00:00Z", false)
        .await
        .expect("earlier again");
    test.at("2026-03-21T07:59:59.999Z");
    assert!(test.claim(5).await.is_empty());
    test.at("2026-03-21T08:00:00Z");
    assert_eq!(test.claim(5).await.len(), 1);
    test.at("2026-03-23T08:00:00Z");
    assert!(test.claim(5).await.is_empty());
}

async fn concurrent_claims_share_what_is_due(database: &Database) {
    let tests = [
        TestStore::open(database).await,
        TestStore::open(database).await,
    ];
    for n in 0..60 {
        tests[0]
            .create(&format!("2026-03-20T07:00:{:02}Z", n % 60), false)
            .await;
    }
    let now = instant(DUE);
    let mut takers = JoinSet::new();
    for n in 0..6 {
        let store = tests[n % 2].store.clone();
        takers.spawn(async move {
            let mut taken = Vec::new();
            loop {
                let fired = store
                    .dispatch
                    .claim(5, now, &DeliveryPolicy::default(), zone::data_number())
                    .await
                    .expect("claimed");
                assert!(fired.leased.len() <= 5);
                let done = fired.leased.is_empty();
                taken.extend(
                    fired
                        .leased
                        .into_iter()
                        .map(|one| one.dispatch.id.to_string()),
                );
                if done {
                    return taken;
                }
            }
        });
    }
    let mut all = takers.join_all().await.concat();
    // A claim that found every row locked may have ended early; claim the rest now.
    let left = tests[0]
        .store
        .dispatch
        .claim(100, now, &DeliveryPolicy::default(), zone::data_number())
        .await
        .expect("claimed")
        .leased;
    all.extend(left.into_iter().map(|one| one.dispatch.id.to_string()));
    let unique: BTreeSet<_> = all.iter().collect();
    assert_eq!((all.len(), unique.len()), (60, 60), "each once");
}

/// Two replicas claim and two update the same few local schedules concurrently; every zone is
/// claimed exactly once.
async fn concurrent_changes_and_claims_claim_no_zone_twice(database: &Database) {
    // No zone is ever missed here, so that only a claim removes it from the reach of an update.
    let policy = SchedulePolicy {
        lateness: TimeDelta::days(3),
        ..SchedulePolicy::default()
    };
    let tests = [
        TestStore::open_with(database, policy).await,
        TestStore::open_with(database, policy).await,
    ];
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(tests[0].create("2026-03-02T12:00:00", true).await);
    }
    tests
        .iter()
        .for_each(|test| test.at("2026-03-02T12:00:00Z"));
    let mut tasks = JoinSet::new();
    for test in &tests {
        tasks.spawn(claim_and_settle(test.store.clone(), test.clock.now()));
    }
    for round in 0..30 {
        for (n, id) in ids.iter().enumerate() {
            let time = format!("2026-03-02T12:{round:02}:00");
            tests[n % 2]
                .update(*id, &time, true)
                .await
                .expect("some zones are open");
        }
    }
    let mut zones = tasks.join_all().await.concat();
    tests[0].at("2026-03-10T00:00:00Z");
    loop {
        let claimed = tests[0].claim(50).await;
        if claimed.is_empty() {
            break;
        }
        tests[0].settle(&claimed, &DeliveryOutcome::Delivered).await;
        zones.extend(zones_of(&claimed));
    }
    let unique: BTreeSet<_> = zones.iter().collect();
    assert_eq!(
        (zones.len(), unique.len()),
        (4 * ZoneSet::all().len(), 4 * ZoneSet::all().len())
    );
}

/// Claims and settles for 60 rounds, of which every third finds the consumer unavailable. Returns
/// the delivered zones.
async fn claim_and_settle(store: Store, now: DateTime<Utc>) -> Vec<(ScheduleId, Zone)> {
    let mut zones = Vec::new();
    for round in 0..60 {
        let claimed = store
            .dispatch
            .claim(3, now, &DeliveryPolicy::default(), zone::data_number())
            .await
            .expect("claimed")
            .leased;
        let outcome = if round % 3 == 0 {
            not_taken()
        } else {
            DeliveryOutcome::Delivered
        };
        let mut results: Vec<_> = claimed
            .iter()
            .map(|one| AttemptResult::of(one, outcome.clone()))
            .collect();
        // Those whose rows an update has locked are settled later, as by the dispatcher.
        while !results.is_empty() {
            results = store
                .dispatch
                .settle(&results, now, &DeliveryPolicy::default())
                .await
                .expect("settled");
        }
        if outcome == DeliveryOutcome::Delivered {
            zones.extend(zones_of(&claimed));
        }
    }
    zones
}

/// The zones of these dispatches, each with its schedule.
fn zones_of(claimed: &[Leased]) -> Vec<(ScheduleId, Zone)> {
    let zones = claimed.iter().flat_map(|one| {
        let schedule_id = one.dispatch.schedule_id;
        one.dispatch
            .wave
            .zones
            .iter()
            .map(move |zone| (schedule_id, zone))
    });
    zones.collect()
}

on_postgres![
    claims_use_indexes_and_updates_change_none,
    a_row_that_changes_during_its_claim_stays_due,
    a_locked_schedule_does_not_keep_others_from_being_claimed,
    a_locked_dispatch_does_not_keep_others_from_being_retried,
    a_locked_dispatch_does_not_keep_others_from_being_settled,
    a_locked_schedule_does_not_keep_other_outcomes_from_being_settled,
    a_cancellation_does_not_wait_for_a_locked_dispatch,
];

/// The schedules of these dispatches.
fn schedules_of(leased: &[Leased]) -> Vec<ScheduleId> {
    leased.iter().map(|one| one.dispatch.schedule_id).collect()
}

async fn entries_without_a_schedule_are_removed(database: &Database) {
    let test = TestStore::open(database).await;
    let ids = [test.create(DUE, false).await, test.create(DUE, false).await];
    database
        .sql(
            &format!("DELETE FROM canvas_schedule WHERE id = '{}'", ids[0]),
            &format!(
                "DELETE FROM canvas_schedule WHERE id = unhex('{}', '-')",
                ids[0]
            ),
        )
        .await;
    test.at(DUE);
    assert_eq!(schedules_of(&test.claim(1).await), [ids[1]]);
    let entries = "SELECT count(*) FROM canvas_schedule_wake";
    assert_eq!(database.count(entries).await, 1);
    assert_eq!(test.claim(1).await, []);
    assert_eq!(database.count(entries).await, 0, "no pass may find it due");
}

/// Lets a transaction that inserts a dispatch fail at its commit.
const REFUSE_POSTGRES: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''refused''; END';
    CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON dispatch DEFERRABLE INITIALLY DEFERRED
      FOR EACH ROW EXECUTE FUNCTION refuse()";
const REFUSE_SQLITE: &str = "
    CREATE TABLE present (id INTEGER PRIMARY KEY);
    CREATE TABLE refused (id INTEGER REFERENCES present (id) DEFERRABLE INITIALLY DEFERRED);
    CREATE TRIGGER refuse AFTER INSERT ON dispatch BEGIN INSERT INTO refused VALUES (1); END";

async fn a_claim_whose_commit_fails_leases_nothing(database: &Database) {
    let test = TestStore::open(database).await;
    let id = test.create(DUE, false).await;
    test.at(DUE);
    database.sql(REFUSE_POSTGRES, REFUSE_SQLITE).await;
    let (dispatch, policy) = (&test.store.dispatch, DeliveryPolicy::default());
    let claim = dispatch.claim(5, test.clock.now(), &policy, zone::data_number());
    claim.await.expect_err("its commit fails");
    assert_eq!(dispatch.unsettled_claims(), 1);
    let committed = dispatch.settle_claims(test.clock.now()).await;
    assert_eq!(committed, Ok(vec![]));
    assert_eq!(dispatch.unsettled_claims(), 0);
    database
        .sql("DROP TRIGGER refuse ON dispatch", "DROP TRIGGER refuse")
        .await;
    assert_eq!(schedules_of(&test.claim(5).await), [id]);
}

/// The highest number of a dispatch that a row can hold.
const MAX_NUMBER: &str = "2147483647";

async fn a_wave_that_cannot_be_stored_is_postponed_alone(database: &Database) {
    let test = TestStore::open(database).await;
    let broken = test.create("2026-03-20T07:00:00Z", false).await;
    let sound = test.create(DUE, false).await;
    database
        .sql(
            &format!("UPDATE canvas_schedule SET fired = {MAX_NUMBER} WHERE id = '{broken}'"),
            &format!(
                "UPDATE canvas_schedule SET fired = {MAX_NUMBER} WHERE id = unhex('{broken}', '-')"
            ),
        )
        .await;
    test.at(DUE);
    assert_eq!(schedules_of(&test.claim(5).await), [sound]);
    assert_eq!(test.claim(5).await, []);
    let postponed = "SELECT wake_ms FROM canvas_schedule_wake";
    let in_a_minute = test.clock.now() + TimeDelta::minutes(1);
    assert_eq!(
        database.count(postponed).await,
        in_a_minute.timestamp_millis()
    );
}

async fn a_retry_that_cannot_be_stored_is_postponed_alone(database: &Database) {
    let test = TestStore::open(database).await;
    let (broken, sound) = (test.create(DUE, false).await, test.create(DUE, false).await);
    test.at(DUE);
    test.settle(&test.claim(5).await, &unknown()).await;
    database
        .sql(
            &format!("UPDATE dispatch SET attempt = {MAX_NUMBER} WHERE schedule_id = '{broken}'"),
            &format!(
                "UPDATE dispatch SET attempt = {MAX_NUMBER} \
                 WHERE schedule_id = unhex('{broken}', '-')"
            ),
        )
        .await;
    test.at("2026-03-20T08:00:01Z");
    assert_eq!(schedules_of(&test.retry(5).await), [sound]);
    assert_eq!(test.retry(5).await, []);
    let postponed = format!("SELECT retry_ms FROM dispatch WHERE attempt = {MAX_NUMBER}");
    let in_a_minute = test.clock.now() + TimeDelta::minutes(1);
    assert_eq!(
        database.count(&postponed).await,
        in_a_minute.timestamp_millis()
    );
}

async fn a_locked_schedule_does_not_keep_others_from_being_claimed(database: &Database) {
    let test = TestStore::open(database).await;
    let mut ids = vec![];
    for n in 0..4 {
        ids.push(test.create(&format!("2026-03-20T07:00:0{n}Z"), false).await);
    }
    test.at(DUE);
    let lock = database.lock(&ids[0].to_string()).await;
    for id in &ids[1..3] {
        assert_eq!(schedules_of(&test.claim(1).await), [*id], "one free worker");
    }
    assert_eq!(schedules_of(&test.claim(5).await), [ids[3]]);
    assert_eq!(test.claim(5).await, []);
    let next = test.store.dispatch.next_due(test.clock.now()).await;
    assert_eq!(
        next.expect("read").wake,
        Some(instant("2026-03-20T07:00:00Z"))
    );
    lock.rollback().await.expect("unlocked");
    assert_eq!(schedules_of(&test.claim(5).await), [ids[0]]);
}

async fn a_locked_dispatch_does_not_keep_others_from_being_retried(database: &Database) {
    let test = TestStore::open(database).await;
    let mut ids = vec![];
    for _ in 0..4 {
        ids.push(test.create(DUE, false).await);
    }
    test.at(DUE);
    test.settle(&test.claim(5).await, &unknown()).await;
    // Their pauses have jitter: these two are due first.
    let [first, second] = [ids[0], ids[1]];
    let due = format!(
        "UPDATE dispatch SET retry_ms = retry_ms - 3000 \
         WHERE schedule_id IN ('{first}', '{second}')"
    );
    database.sql(&due, "").await;
    let schedule = database.lock(&first.to_string()).await;
    let dispatch = lock_dispatch(database, second).await;
    test.at("2026-03-20T09:00:00Z");
    let mut retried = vec![];
    for _ in 0..2 {
        retried.extend(schedules_of(&test.retry(1).await));
    }
    retried.sort_unstable();
    assert_eq!(retried, ids[2..], "one free worker");
    assert_eq!(test.retry(5).await, []);
    schedule.rollback().await.expect("unlocked");
    dispatch.rollback().await.expect("unlocked");
    assert_eq!(test.retry(5).await.len(), 2);
}

/// Locks the dispatches of a schedule until a rollback.
async fn lock_dispatch(database: &Database, schedule: ScheduleId) -> DatabaseTransaction {
    let dispatches = format!("SELECT 1 FROM dispatch WHERE schedule_id = '{schedule}'");
    database.lock_rows(&dispatches).await
}

async fn a_locked_dispatch_does_not_keep_others_from_being_settled(database: &Database) {
    for answer in [
        DeliveryOutcome::Delivered,
        unknown(),
        not_taken(),
        rejected(),
    ] {
        let test = TestStore::open(database).await;
        let ids = [test.create(DUE, false).await, test.create(DUE, false).await];
        test.at(DUE);
        let leased = test.claim(5).await;
        let lock = lock_dispatch(database, ids[0]).await;
        let left_out = test.try_settle(&leased, &answer).await;
        assert_eq!(left_out.len(), 1, "{answer:?}");
        assert_eq!(left_out[0].schedule_id, ids[0]);
        let state = async |id| states(&test, id).await.first().map(|(_, _, state)| *state);
        let settled = state(ids[1]).await;
        assert_ne!(settled, Some(DispatchState::InFlight), "{answer:?}");
        let policy = DeliveryPolicy::default();
        let again = async || {
            let dispatch = &test.store.dispatch;
            let left_out = dispatch.settle_left_out(&left_out, test.clock.now(), &policy);
            left_out.await.expect("settled")
        };
        assert_eq!(again().await, left_out, "it is still locked");
        lock.rollback().await.expect("unlocked");
        assert_eq!(again().await, []);
        assert_eq!(state(ids[0]).await, settled, "{answer:?}");
    }
}

async fn a_locked_schedule_does_not_keep_other_outcomes_from_being_settled(database: &Database) {
    for answer in [unknown(), not_taken(), rejected()] {
        let test = TestStore::open(database).await;
        let ids = [test.create(DUE, false).await, test.create(DUE, false).await];
        test.at(DUE);
        let leased = test.claim(5).await;
        let lock = database.lock(&ids[0].to_string()).await;
        let left_out = test.try_settle(&leased, &answer).await;
        assert_eq!(left_out.len(), 1, "{answer:?}");
        assert_eq!(left_out[0].schedule_id, ids[0]);
        lock.rollback().await.expect("unlocked");
        test.settle(&leased, &answer).await;
        assert_eq!(states(&test, ids[0]).await, states(&test, ids[1]).await);
    }
}

async fn a_cancellation_does_not_wait_for_a_locked_dispatch(database: &Database) {
    let test = TestStore::open(database).await;
    let id = test.create(DUE, false).await;
    test.at(DUE);
    test.settle(&test.claim(5).await, &unknown()).await;
    let lock = lock_dispatch(database, id).await;
    test.cancel(id).await.expect("cancelled");
    lock.rollback().await.expect("unlocked");
    test.at("2026-03-20T08:00:01Z");
    assert_eq!(test.retry(5).await, [], "it is cancelled");
    assert_eq!(states(&test, id).await, [(1, 1, DispatchState::Abandoned)]);
}

/// Prevents a row from being written, as the guard of its version does after a concurrent change.
const CHANGED: &str = "
    CREATE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER changed BEFORE UPDATE ON canvas_schedule FOR EACH ROW WHEN (OLD.revision = 2) EXECUTE FUNCTION changed()";

async fn a_row_that_changes_during_its_claim_stays_due(database: &Database) {
    let test = TestStore::open(database).await;
    let (changed, other) = (
        test.create("2026-03-20T09:00:00Z", false).await,
        test.create(DUE, false).await,
    );
    test.update(changed, DUE, false).await.expect("updated");
    test.at(DUE);
    database.sql(CHANGED, "").await;
    let ids = |fired: &[Leased]| {
        fired
            .iter()
            .map(|one| one.dispatch.schedule_id)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ids(&test.claim(5).await),
        [other],
        "without the row, no dispatch may be written"
    );
    assert_eq!(database.count("SELECT count(*) FROM dispatch").await, 1);
    database
        .sql("DROP TRIGGER changed ON canvas_schedule", "")
        .await;
    assert_eq!(
        ids(&test.claim(5).await),
        [changed],
        "it must be claimed again"
    );
}

/// Adds as many rows as a large table has, none of them due.
const MANY: &str = "
    INSERT INTO canvas_schedule (workspace_id, id, revision, version, time_ms, next_wave_ms, wake_ms, missed_before_ms, created_ms,
      updated_ms, state, in_local_time, at_optimal_time, default_zone, canvas_id)
      SELECT 1, gen_random_uuid(), 1, 1, 0, 4102444800000 + n, 4102444800000 + n, 0, 0, 0, 0, false, false, 'UTC', 'many'
      FROM generate_series(1, 20000) AS n;
    INSERT INTO canvas_schedule_wake SELECT wake_ms, workspace_id, id FROM canvas_schedule;
    INSERT INTO canvas_schedule_target SELECT id, 1, '{}' FROM canvas_schedule;
    INSERT INTO dispatch (workspace_id, schedule_id, n, revision, wave_ms, fired_ms, finished_ms, attempt, last_attempt, state, optimal_time,
      includes_unlisted, why) SELECT 1, id, 1, 1, 0, 0, 0, 1, 10, 2, false, true, '' FROM canvas_schedule;
    ANALYZE";

/// Rows of the growing tables that were read without an index, and rows that were fetched by one.
const READ: &str = "SELECT sum(seq_tup_read)::bigint FROM pg_stat_user_tables WHERE relname LIKE 'canvas_schedule%' OR relname = 'dispatch'";
const FETCHED: &str = "SELECT sum(idx_tup_fetch)::bigint FROM pg_stat_user_tables WHERE relname LIKE 'canvas_schedule%' OR relname = 'dispatch'";

/// Waits until every other session has ended: it reports its counts at its end, which is after its
/// client has disconnected.
async fn wait_for_counts(database: &Database) {
    let others = "SELECT count(*) FROM pg_stat_activity
      WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    soon(async { while database.count(others).await > 0 {} }).await;
}

async fn claims_use_indexes_and_updates_change_none(database: &Database) {
    database.sql(MANY, "").await;
    wait_for_counts(database).await;
    let (read, fetched) = (database.count(READ).await, database.count(FETCHED).await);
    // Few enough that their versions fit on one page, even if dead ones are not pruned.
    let (n, updates) = (60, 10);
    {
        let test = TestStore::open(database).await;
        let mut ids = vec![];
        for _ in 0..n {
            ids.push(test.create(DUE, false).await);
        }
        for (n, id) in ids.iter().take(updates).enumerate() {
            test.update(*id, &format!("2026-03-20T07:00:{n:02}Z"), false)
                .await
                .expect("updated");
        }
        test.at(DUE);
        // Schedules that moved to an earlier time also have an entry for their old time.
        let leased = test.claim(n + updates).await;
        assert_eq!(leased.len(), n);
        let (lost, delivered) = leased.split_at(n / 2);
        test.settle(delivered, &DeliveryOutcome::Delivered).await;
        test.settle(lost, &unknown()).await;
        test.clock.advance(TimeDelta::seconds(2));
        test.settle(&test.retry(n).await, &DeliveryOutcome::Delivered)
            .await;
        assert_eq!(
            test.store
                .dispatch
                .next_due(test.clock.now())
                .await
                .expect("claimed")
                .retry,
            None
        );
    }
    wait_for_counts(database).await;
    assert_eq!(
        database.count(READ).await - read,
        0,
        "no table may be scanned sequentially"
    );
    let fetched = database.count(FETCHED).await - fetched;
    assert!(
        fetched < 3000,
        "{fetched} rows were fetched for {n} schedules"
    );
    let hot = "SELECT n_tup_upd - n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'canvas_schedule'";
    let cold = database.count(hot).await;
    assert_eq!(
        cold,
        i64::try_from(n).expect("few"),
        "only a claim, which changes the state, may change an index"
    );
}
