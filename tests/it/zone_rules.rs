//! Pending schedules when two releases with different zone data run side by side.

use canvas_scheduler::clock::Clock;
use canvas_scheduler::domain::{DeliveryPolicy, ScheduleId, WorkspaceId, ZoneSet, zone};
use chrono::TimeDelta;

use crate::support::stores::*;
use crate::support::*;

on_both![file:
    waves_of_older_rules_are_recomputed_in_small_batches,
    older_rules_leave_newer_waves_unchanged_until_newer_releases_are_gone,
    an_update_by_other_rules_is_marked_with_them,
];

on_postgres![a_locked_schedule_keeps_no_other_from_being_recomputed];

const LOCAL: &str = "2026-03-02T12:00:00";

/// Puts a schedule into the state of a release with this zone data: its first wave is an hour later
/// than ours.
async fn computed_by(database: &Database, id: ScheduleId, number: i32) {
    let late = format!(
        "zone_rules = {number}, next_wave_ms = next_wave_ms + 3600000, wake_ms = wake_ms + 3600000"
    );
    let hex = id.0.as_simple();
    let (row, wake) = (
        format!("UPDATE canvas_schedule SET {late} WHERE id ="),
        "UPDATE canvas_schedule_wake SET wake_ms = wake_ms + 3600000 WHERE id =",
    );
    database
        .sql(&format!("{row} '{id}'"), &format!("{row} unhex('{hex}')"))
        .await;
    database
        .sql(&format!("{wake} '{id}'"), &format!("{wake} unhex('{hex}')"))
        .await;
}

async fn first_wave(test: &TestStore, id: ScheduleId) -> chrono::DateTime<chrono::Utc> {
    test.store
        .read
        .schedule((WorkspaceId::DEFAULT, id))
        .await
        .expect("it is there")
        .next_wave
        .expect("a wave")
}

async fn marks(database: &Database) -> i64 {
    database
        .count("SELECT CAST(min(zone_rules) AS bigint) FROM canvas_schedule WHERE in_local_time")
        .await
}

async fn waves_of_older_rules_are_recomputed_in_small_batches(database: &Database) {
    let test = TestStore::open(database).await;
    let mut ids = vec![];
    for _ in 0..5 {
        ids.push(test.create(LOCAL, true).await);
    }
    let wave = first_wave(&test, ids[0]).await;
    let utc = test.create("2026-03-02T12:00:00Z", false).await;
    for id in &ids {
        computed_by(database, *id, 202_401).await;
    }
    let now = test.clock.now();
    assert_eq!(
        test.store
            .dispatch
            .announce_zone_rules(now)
            .await
            .expect("answered"),
        zone::data_number()
    );
    let mut batches = vec![];
    loop {
        let batch = test
            .store
            .dispatch
            .recompute(now, 2)
            .await
            .expect("recomputed");
        batches.push(batch);
        if batch == 0 {
            break;
        }
    }
    assert_eq!(batches, [2, 2, 1, 0]);
    assert_eq!(marks(database).await, i64::from(zone::data_number()));
    test.move_to(wave);
    let claimed = test.claim(10).await;
    assert_eq!(claimed.len(), 5, "at the time by our rules");
    assert!(
        claimed
            .iter()
            .all(|one| one.dispatch.lateness.is_zero() && one.dispatch.schedule_id != utc)
    );
}

async fn older_rules_leave_newer_waves_unchanged_until_newer_releases_are_gone(
    database: &Database,
) {
    let test = TestStore::open(database).await;
    let newer = 209_901;
    let id = test.create(LOCAL, true).await;
    let wave = first_wave(&test, id).await;
    computed_by(database, id, newer).await;
    let now = test.clock.now();
    let seen = format!(
        "INSERT INTO zone_rules (number, version, seen_ms) VALUES ({newer}, '2099a', {})",
        now.timestamp_millis()
    );
    database.sql(&seen, &seen).await;
    let in_force = test
        .store
        .dispatch
        .announce_zone_rules(now)
        .await
        .expect("answered");
    assert_eq!(in_force, newer);
    test.move_to(wave + TimeDelta::hours(2));
    let claimed = test
        .store
        .dispatch
        .claim(10, test.clock.now(), &DeliveryPolicy::default(), in_force)
        .await
        .expect("recomputed");
    assert!(
        claimed.leased.is_empty() && !claimed.more,
        "it must be left to the newer release"
    );
    assert_eq!(
        first_wave(&test, id).await,
        wave + TimeDelta::hours(1),
        "and untouched"
    );
    // The newer release was rolled back: a minute after its last heartbeat our rules apply again.
    let in_force = test
        .store
        .dispatch
        .announce_zone_rules(test.clock.now())
        .await
        .expect("answered");
    assert_eq!(in_force, zone::data_number());
    assert_eq!(
        test.store
            .dispatch
            .recompute(test.clock.now(), 10)
            .await
            .expect("recomputed"),
        1
    );
    let mut zones = 0;
    test.move_to(wave + TimeDelta::days(3));
    loop {
        let claimed = test.claim(10).await;
        if claimed.is_empty() {
            break;
        }
        zones += claimed
            .iter()
            .map(|one| one.dispatch.wave.zones.len())
            .sum::<usize>();
    }
    assert_eq!(zones, ZoneSet::all().len(), "no zone may be stuck");
}

async fn an_update_by_other_rules_is_marked_with_them(database: &Database) {
    let test = TestStore::open(database).await;
    for other in [202_401, 209_901] {
        let id = test.create(LOCAL, true).await;
        computed_by(database, id, other).await;
        test.update(id, "2026-03-03T12:00:00", true)
            .await
            .expect("updated");
        assert_eq!(
            marks(database).await,
            i64::from(zone::data_number()),
            "it must be marked with the rules of its next wave"
        );
    }
}

async fn a_locked_schedule_keeps_no_other_from_being_recomputed(database: &Database) {
    let test = TestStore::open(database).await;
    let mut ids = vec![];
    for _ in 0..2 {
        let id = test.create("2026-03-20T08:00:00", true).await;
        computed_by(database, id, 1).await;
        ids.push(id);
    }
    let lock = database.lock(&ids[0].to_string()).await;
    let recompute = async || {
        let recomputed = test.store.dispatch.recompute(test.clock.now(), 1).await;
        recomputed.expect("recomputed")
    };
    assert_eq!((recompute().await, recompute().await), (1, 0));
    lock.rollback().await.expect("unlocked");
    assert_eq!(recompute().await, 1);
}
