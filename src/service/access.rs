//! The API keys in memory. They are reloaded every few seconds, so that a call costs no round trip
//! to the database.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::budget::{Budget, SharedQuota};
use crate::clock::SharedClock;
use crate::domain::{
    ApiKey, KeyId, KeyRefusal, Limits, Permission, PresentedKey, Workspace, WorkspaceId,
};
use crate::error::{Error, StoreOutage};
use crate::store::{RETRY_AFTER, Store};
use crate::telemetry::outage::OutageLog;

/// The time between two reloads of the keys, in which the use of keys is recorded.
const RELOAD_INTERVAL: Duration = Duration::from_secs(3);
/// The time that a reload, or a lookup of one key, may take.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(3);
/// The time that recording the use of keys, or the heartbeat of this replica, may take.
const RECORD_TIMEOUT: Duration = Duration::from_millis(1500);
/// The time between a failed reload and the next one.
const RELOAD_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Calls are refused once the last successful reload began longer ago than this, because a key may
/// have been revoked since. It is longer than two reloads and the pause between them. Without the
/// database no call could be served anyway.
const STALE_AFTER: Duration = Duration::from_secs(10);
/// The number of unknown keys that may be looked up between two reloads: a new key works
/// immediately, and a flood of wrong keys does not burden the database.
const MAX_LOOKUPS: u32 = 10;
/// The time between two records of the use of one key.
const RECORD_INTERVAL: TimeDelta = TimeDelta::seconds(60);
/// Keys in one statement that records their use.
const RECORD_BATCH: usize = 1_000;

/// Why a key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The key does not allow the call.
    KeyRefused(KeyRefusal),
    /// The keys in memory are too old.
    Unavailable,
}

/// The error of calls that need the database while it is unavailable.
pub fn store_unavailable() -> Error {
    Error::StoreUnavailable {
        why: StoreOutage::Unreachable,
        retry_after: RETRY_AFTER,
    }
}

/// A key in memory.
pub struct AuthenticatedKey {
    key: ApiKey,
    /// The name of the key, as the history shows it.
    actor: Arc<str>,
    /// The budget of its workspace.
    budget: Arc<Budget>,
    /// Whether the key was used since its use was last recorded.
    used: Arc<AtomicBool>,
}

impl AuthenticatedKey {
    fn new(key: ApiKey, budget: Arc<Budget>, used: Arc<AtomicBool>) -> Arc<Self> {
        Arc::new(Self {
            actor: key.name.as_str().into(),
            key,
            budget,
            used,
        })
    }

    /// The budget of its workspace.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// The workspace in which the call acts.
    pub fn workspace(&self) -> WorkspaceId {
        self.key.workspace
    }

    /// The actor that the history names.
    pub fn actor(&self) -> Arc<str> {
        self.actor.clone()
    }

    fn use_is_due(&self, now: DateTime<Utc>) -> bool {
        self.used.load(Ordering::Relaxed)
            && self
                .key
                .last_used_at
                .is_none_or(|at| now - at >= RECORD_INTERVAL)
    }
}

/// The result of one reload.
#[derive(Clone)]
struct KeySnapshot {
    keys: HashMap<KeyId, Arc<AuthenticatedKey>>,
    budgets: HashMap<WorkspaceId, Arc<Budget>>,
    /// When the reload began.
    began: Instant,
}

/// The API keys. Cheap to clone.
#[derive(Clone)]
pub struct Access(Arc<Inner>);

struct Inner {
    /// Absent in tests of the layers, whose keys are fixed.
    store: Option<Store>,
    clock: SharedClock,
    /// Absent before the first reload.
    snapshot: ArcSwapOption<KeySnapshot>,
    /// Why the last reload failed, if it did.
    failure: parking_lot::Mutex<Option<String>>,
    lookups_left: AtomicU32,
    looking_up: Mutex<()>,
    /// One reload at a time, so that none overwrites the result of a later one.
    reloading: Mutex<()>,
    counter: Arc<SharedQuota>,
    /// The id of this process among the replicas.
    replica: Uuid,
}

impl Access {
    /// Refuses every key before the first [`Self::reload`].
    pub fn new(store: Store, clock: SharedClock) -> Self {
        Self::of(Some(store), clock, ArcSwapOption::empty())
    }

    fn of(store: Option<Store>, clock: SharedClock, snapshot: ArcSwapOption<KeySnapshot>) -> Self {
        let counter = SharedQuota::new(store.clone(), clock.clone());
        let (lookups_left, looking_up, reloading) =
            (AtomicU32::new(0), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner {
            store,
            clock,
            snapshot,
            failure: parking_lot::Mutex::default(),
            lookups_left,
            looking_up,
            reloading,
            counter,
            replica: Uuid::now_v7(),
        }))
    }

    /// Fixed keys with unlimited budgets.
    #[cfg(test)]
    pub fn of_keys(keys: Vec<ApiKey>, clock: SharedClock) -> Self {
        let cached = |key: ApiKey| {
            (
                key.id,
                AuthenticatedKey::new(
                    key.clone(),
                    Budget::endless(key.workspace, clock.clone()),
                    Arc::default(),
                ),
            )
        };
        let keys = keys.into_iter().map(cached).collect();
        let snapshot = ArcSwapOption::from_pointee(KeySnapshot {
            keys,
            budgets: HashMap::new(),
            began: Instant::now(),
        });
        Self::of(None, clock.clone(), snapshot)
    }

    /// The key that a call presents, if it has the permission.
    ///
    /// # Errors
    /// Why the key is refused.
    pub async fn admit(
        &self,
        presented: &PresentedKey,
        from: Option<IpAddr>,
        needs: Permission,
    ) -> Result<Arc<AuthenticatedKey>, Denied> {
        let cached = match self.cached(presented.id)? {
            Some(cached) => cached,
            // Boxed, so that a call with a known key does not carry it.
            None => Box::pin(self.look_up(presented.id)).await?,
        };
        cached
            .key
            .admit(presented, from, needs, self.0.clock.now())
            .map_err(Denied::KeyRefused)?;
        if !cached.used.load(Ordering::Relaxed) {
            cached.used.store(true, Ordering::Relaxed);
        }
        Ok(cached)
    }

    /// Why the last successful reload is too old to admit calls, if it is; for operators.
    pub fn why_stale(&self) -> Option<String> {
        let snapshot = self.0.snapshot.load();
        let began = snapshot.as_ref().map(|snapshot| snapshot.began);
        if began.is_some_and(|began| began.elapsed() < STALE_AFTER) {
            return None;
        }
        let failure = self.0.failure.lock().clone();
        Some(failure.unwrap_or_else(|| "they have not been read yet".to_owned()))
    }

    fn cached(&self, id: KeyId) -> Result<Option<Arc<AuthenticatedKey>>, Denied> {
        let snapshot = self.0.snapshot.load();
        let snapshot = snapshot
            .as_ref()
            .filter(|snapshot| snapshot.began.elapsed() < STALE_AFTER)
            .ok_or(Denied::Unavailable)?;
        Ok(snapshot.keys.get(&id).cloned())
    }

    /// Looks up a key that may have been created since the last reload.
    async fn look_up(&self, id: KeyId) -> Result<Arc<AuthenticatedKey>, Denied> {
        let unknown = Denied::KeyRefused(KeyRefusal::Unknown);
        let Some(store) = &self.0.store else {
            return Err(unknown);
        };
        if self.0.lookups_left.load(Ordering::Relaxed) == 0 {
            // Without waiting: there may be very many.
            return Err(unknown);
        }
        // One at a time, so that many calls with one new key cause one look-up.
        let _turn = self.0.looking_up.lock().await;
        if let Some(cached) = self.cached(id)? {
            return Ok(cached);
        }
        if self
            .0
            .lookups_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_err()
        {
            return Err(unknown);
        }
        // The store has logged an error.
        let key = timeout(RELOAD_TIMEOUT, store.admin.key(id))
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(Denied::Unavailable)?
            .ok_or(unknown)?;
        let mut found = None;
        self.0.snapshot.rcu(|snapshot| {
            snapshot.as_deref().cloned().map(|mut snapshot| {
                // Limits changed since the last reload apply from the next one.
                let fresh =
                    || Budget::new(key.workspace, Limits::default(), self.0.counter.clone());
                let budget = snapshot
                    .budgets
                    .entry(key.workspace)
                    .or_insert_with(fresh)
                    .clone();
                // The result of a reload meanwhile is newer: it may know that the key was revoked.
                let cached = snapshot
                    .keys
                    .entry(id)
                    .or_insert_with(|| AuthenticatedKey::new(key.clone(), budget, Arc::default()));
                found = Some(cached.clone());
                Arc::new(snapshot)
            })
        });
        found.ok_or(Denied::Unavailable)
    }

    /// Reloads every key and the limits of every workspace.
    pub async fn reload(&self) -> Result<(), Error> {
        let reloaded = timeout(RELOAD_TIMEOUT, self.reload_all());
        let reloaded = reloaded.await.map_err(Error::internal).flatten();
        *self.0.failure.lock() = reloaded.as_ref().err().map(|error| match error {
            Error::Internal(cause) => cause.clone(),
            other => other.to_string(),
        });
        reloaded
    }

    async fn reload_all(&self) -> Result<(), Error> {
        let Some(store) = &self.0.store else {
            return Ok(());
        };
        let _turn = self.0.reloading.lock().await;
        let began = Instant::now();
        let (keys, workspaces) = (
            store.admin.recognized_keys().await?,
            store.admin.workspaces().await?,
        );
        let before = self.0.snapshot.load_full();
        let budget = |workspace: Workspace| {
            let own = before
                .as_ref()
                .and_then(|snapshot| snapshot.budgets.get(&workspace.id).cloned());
            let budget = own.unwrap_or_else(|| {
                Budget::new(workspace.id, workspace.limits, self.0.counter.clone())
            });
            budget.set_limits(workspace.limits);
            (workspace.id, budget)
        };
        let budgets: HashMap<_, _> = workspaces.into_iter().map(budget).collect();
        let cached = |key: ApiKey| {
            let used = before
                .as_ref()
                .and_then(|snapshot| snapshot.keys.get(&key.id))
                .map(|cached| cached.used.clone())
                .unwrap_or_default();
            let budget = budgets.get(&key.workspace)?.clone();
            Some((key.id, AuthenticatedKey::new(key, budget, used)))
        };
        let keys = keys.into_iter().filter_map(cached).collect();
        self.0.snapshot.store(Some(Arc::new(KeySnapshot {
            keys,
            budgets,
            began,
        })));
        self.0.lookups_left.store(MAX_LOOKUPS, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the last reload found no key.
    pub fn has_no_key(&self) -> bool {
        self.0
            .snapshot
            .load()
            .as_ref()
            .is_some_and(|snapshot| snapshot.keys.is_empty())
    }

    /// Reloads the keys at intervals, and records which were used, at most once a minute for each.
    pub async fn keep_fresh(self) {
        let mut reloads = OutageLog::new(
            "API keys cannot be reloaded; calls are refused 10 s after the last successful reload",
            "API keys are reloaded again",
        );
        let mut heartbeats = OutageLog::new(
            "the heartbeat of this replica cannot be written; the number of replicas that share \
             quotas stays as it was",
            "the heartbeat of this replica is written again",
        );
        let mut uses = OutageLog::new(
            "the use of API keys cannot be recorded",
            "the use of API keys is recorded again",
        );
        loop {
            reloads.record(&self.reload().await);
            let pause = sleep(if reloads.is_failing() {
                RELOAD_RETRY_INTERVAL
            } else {
                RELOAD_INTERVAL
            });
            let (seen, recorded, ()) = tokio::join!(self.see_replicas(), self.record_use(), pause);
            heartbeats.record(&seen);
            uses.record(&recorded);
        }
    }

    async fn see_replicas(&self) -> Result<(), Error> {
        let Some(store) = &self.0.store else {
            return Ok(());
        };
        let seen = timeout(RECORD_TIMEOUT, store.admin.see_replica(self.0.replica))
            .await
            .map_err(Error::internal)??;
        self.0.counter.set_replicas(seen);
        Ok(())
    }

    async fn record_use(&self) -> Result<(), Error> {
        let (Some(store), Some(snapshot)) = (&self.0.store, self.0.snapshot.load_full()) else {
            return Ok(());
        };
        let now = self.0.clock.now();
        let used: Vec<_> = snapshot
            .keys
            .values()
            .filter(|cached| cached.use_is_due(now))
            .collect();
        for cached in &used {
            // Before the write: a use meanwhile is a new one.
            cached.used.store(false, Ordering::Relaxed);
        }
        let ids: Vec<KeyId> = used.iter().map(|cached| cached.key.id).collect();
        let write = async {
            for some in ids.chunks(RECORD_BATCH) {
                store.admin.note_use(some).await?;
            }
            Ok(())
        };
        let recorded = timeout(RECORD_TIMEOUT, write)
            .await
            .map_err(Error::internal)
            .flatten();
        if recorded.is_err() {
            // The next round records it.
            used.iter()
                .for_each(|cached| cached.used.store(true, Ordering::Relaxed));
        }
        recorded
    }
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
