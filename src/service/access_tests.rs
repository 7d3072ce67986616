use chrono::TimeDelta;

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::config::DatabaseUrl;
use crate::domain::{NewKey, Permissions, SchedulePolicy};
use crate::service::admin::{Admin, KeyOrder};
use crate::store::{Options, Writer};

async fn in_memory(clock: Arc<ManualClock>) -> (Store, Vec<Writer>) {
    let url = DatabaseUrl::parse("sqlite::memory:").expect("a valid URL");
    let (store, writers) = Store::open(&Options::new(&url), clock, SchedulePolicy::default());
    store.migrate().await.expect("migrated");
    (store, writers)
}

/// An access over a database in memory, what operators do with it, and what must live as long.
async fn access() -> (Access, Admin, Store, Vec<Writer>) {
    let clock = Arc::new(ManualClock::at(
        DateTime::from_timestamp(1_800_000_000, 0).expect("an instant"),
    ));
    let (store, writers) = in_memory(clock.clone()).await;
    (
        Access::new(store.clone(), clock.clone()),
        Admin::new(store.clone(), clock),
        store,
        writers,
    )
}

async fn key(admin: &Admin, name: &str) -> PresentedKey {
    let order = KeyOrder {
        name: name.to_owned(),
        permissions: Permissions::all(),
        expires_at: None,
        allowlist: vec![],
    };
    presented(
        &admin
            .create_key("default", order, |_| Ok(()))
            .await
            .expect("made"),
    )
}

fn presented(new: &NewKey) -> PresentedKey {
    PresentedKey::parse(new.reveal().as_bytes()).expect("well formed")
}

fn made_up(n: u8) -> PresentedKey {
    presented(&NewKey::from_random(&[n; crate::domain::key::RANDOM_BYTES]))
}

async fn admitted(access: &Access, key: &PresentedKey) -> Result<(), Denied> {
    access.admit(key, None, Permission::Read).await.map(drop)
}

const UNKNOWN: Result<(), Denied> = Err(Denied::KeyRefused(KeyRefusal::Unknown));

#[tokio::test]
async fn no_call_is_admitted_before_the_keys_are_loaded() {
    let (access, admin, _store, _writers) = access().await;
    let key = key(&admin, "a").await;
    assert_eq!(admitted(&access, &key).await, Err(Denied::Unavailable));
    access.reload().await.expect("read");
    assert_eq!(admitted(&access, &key).await, Ok(()));
}

#[tokio::test]
async fn a_flood_of_unknown_keys_costs_ten_lookups() {
    let (access, admin, _store, _writers) = access().await;
    access.reload().await.expect("read");
    assert!(access.has_no_key());
    for n in 0..=255 {
        assert_eq!(admitted(&access, &made_up(n)).await, UNKNOWN);
    }
    assert_eq!(access.0.lookups_left.load(Ordering::Relaxed), 0);
    let late = key(&admin, "late").await;
    assert_eq!(
        admitted(&access, &late).await,
        UNKNOWN,
        "no look-up is left for it"
    );
    access.reload().await.expect("read");
    assert_eq!(
        admitted(&access, &late).await,
        Ok(()),
        "the next reading has it"
    );
    assert_eq!(access.0.lookups_left.load(Ordering::Relaxed), MAX_LOOKUPS);
}

#[tokio::test]
async fn many_calls_with_one_new_key_are_one_lookup() {
    let (access, admin, _store, _writers) = access().await;
    access.reload().await.expect("read");
    let key = key(&admin, "new").await;
    let calls: Vec<_> = (0..50).map(|_| (access.clone(), key)).collect();
    let calls = calls
        .into_iter()
        .map(|(access, key)| tokio::spawn(async move { admitted(&access, &key).await }));
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.expect("no panic"), Ok(()));
    }
    assert_eq!(
        access.0.lookups_left.load(Ordering::Relaxed),
        MAX_LOOKUPS - 1
    );
}

#[test]
fn a_slow_reload_refuses_no_caller() {
    assert!(
        RELOAD_TIMEOUT + RELOAD_INTERVAL + RELOAD_TIMEOUT < STALE_AFTER
            && RECORD_TIMEOUT < RELOAD_INTERVAL
    );
}

#[tokio::test]
async fn without_the_database_the_keys_known_are_good_for_ten_seconds() {
    let (access, admin, _store, _writers) = access().await;
    let key = key(&admin, "a").await;
    access.reload().await.expect("read");
    tokio::time::pause();
    tokio::time::advance(STALE_AFTER - Duration::from_secs(1)).await;
    assert_eq!(admitted(&access, &key).await, Ok(()));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(admitted(&access, &key).await, Err(Denied::Unavailable));
}

#[tokio::test]
async fn a_revoked_or_expired_key_is_reported_as_such_for_a_week() {
    let clock = Arc::new(ManualClock::at(
        DateTime::from_timestamp(1_800_000_000, 0).expect("an instant"),
    ));
    let (store, _writers) = in_memory(clock.clone()).await;
    let (access, admin) = (
        Access::new(store.clone(), clock.clone()),
        Admin::new(store, clock.clone()),
    );
    let revoked = key(&admin, "revoked").await;
    admin.revoke_key(revoked.id).await.expect("revoked");
    let expires_at = Some(clock.now() + TimeDelta::hours(1));
    let order = KeyOrder {
        name: "expires".to_owned(),
        permissions: Permissions::all(),
        expires_at,
        allowlist: vec![],
    };
    let expires = presented(
        &admin
            .create_key("default", order, |_| Ok(()))
            .await
            .expect("made"),
    );
    access.reload().await.expect("read");
    assert_eq!(
        admitted(&access, &revoked).await,
        Err(Denied::KeyRefused(KeyRefusal::Revoked))
    );
    assert_eq!(admitted(&access, &expires).await, Ok(()));
    clock.advance(TimeDelta::hours(1));
    assert_eq!(
        admitted(&access, &expires).await,
        Err(Denied::KeyRefused(KeyRefusal::Expired)),
        "at its instant, without a reading"
    );
    clock.advance(TimeDelta::days(7));
    access.reload().await.expect("read");
    assert!(access.has_no_key());
    assert_eq!(
        admitted(&access, &revoked).await,
        UNKNOWN,
        "also when it is looked up"
    );
}
