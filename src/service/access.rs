//! Who may call: every key in memory, read anew every few seconds, so that a look-up costs no round trip.

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
use crate::error::Error;
use crate::store::Store;

/// Between two readings, in which it is noted which keys were used.
const READ_EVERY: Duration = Duration::from_secs(3);
/// How long a reading may take; then it has failed.
const READ_MOST: Duration = Duration::from_secs(3);
/// How long each other word to the database may take: which keys were used, and that this replica lives.
const NOTE_MOST: Duration = Duration::from_millis(1500);
/// After a reading that failed.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// So long after the beginning of the last reading that went well no call is let in any more: a key may have been revoked since.
/// Longer than a reading, a pause and another reading take. Without the database no call could be served anyway.
const STALE_AFTER: Duration = Duration::from_secs(10);
/// How many keys that are not known may be looked up between two readings, so that a new key works at once and a flood of
/// wrong ones costs the database nothing.
const LOOK_UPS: u32 = 10;
/// The use of a key is noted no more often.
const NOTE_EVERY: TimeDelta = TimeDelta::seconds(60);

/// Why a call is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Its key does not allow it.
    KeyRefused(KeyRefusal),
    /// The keys could not be read for too long.
    Unavailable,
}

/// A key in memory.
pub struct AuthenticatedKey {
    /// The key.
    key: ApiKey,
    /// Its name, as the history gets it.
    actor: Arc<str>,
    /// Its workspace's.
    budget: Arc<Budget>,
    /// Whether it was used since its use was last noted.
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

    /// How much its workspace may still ask.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Where the call acts.
    pub fn workspace(&self) -> WorkspaceId {
        self.key.workspace
    }

    /// Whom the history names.
    pub fn actor(&self) -> Arc<str> {
        self.actor.clone()
    }

    fn use_is_to_be_noted(&self, now: DateTime<Utc>) -> bool {
        self.used.load(Ordering::Relaxed)
            && self
                .key
                .last_used_at
                .is_none_or(|at| now - at >= NOTE_EVERY)
    }
}

/// What one reading brought.
#[derive(Clone)]
struct KeySnapshot {
    keys: HashMap<KeyId, Arc<AuthenticatedKey>>,
    budgets: HashMap<WorkspaceId, Arc<Budget>>,
    /// When the reading began.
    read_at: Instant,
}

/// The door: who may call. Cheap to clone.
#[derive(Clone)]
pub struct Access(Arc<Inner>);

struct Inner {
    /// None in tests of the layers, whose keys stay as they are.
    store: Option<Store>,
    clock: SharedClock,
    /// None before the first reading.
    known: ArcSwapOption<KeySnapshot>,
    look_ups_left: AtomicU32,
    looking_up: Mutex<()>,
    /// One reading after the other, so that none puts back what a later one has replaced.
    reading: Mutex<()>,
    counter: Arc<SharedQuota>,
    /// Names this process among the replicas.
    replica: Uuid,
}

impl Access {
    /// Lets nobody in before the first [`Self::read`].
    pub fn new(store: Store, clock: SharedClock) -> Self {
        Self::of(Some(store), clock, ArcSwapOption::empty())
    }

    fn of(store: Option<Store>, clock: SharedClock, known: ArcSwapOption<KeySnapshot>) -> Self {
        let counter = SharedQuota::new(store.clone(), clock.clone());
        let (look_ups_left, looking_up, reading) =
            (AtomicU32::new(0), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner {
            store,
            clock,
            known,
            look_ups_left,
            looking_up,
            reading,
            counter,
            replica: Uuid::now_v7(),
        }))
    }

    /// Keys that stay as they are, with budgets that never end.
    #[cfg(test)]
    pub fn of_keys(keys: Vec<ApiKey>, clock: SharedClock) -> Self {
        let held = |key: ApiKey| {
            (
                key.id,
                AuthenticatedKey::new(
                    key.clone(),
                    Budget::endless(key.workspace, clock.clone()),
                    Arc::default(),
                ),
            )
        };
        let keys = keys.into_iter().map(held).collect();
        let known = ArcSwapOption::from_pointee(KeySnapshot {
            keys,
            budgets: HashMap::new(),
            read_at: Instant::now(),
        });
        Self::of(None, clock.clone(), known)
    }

    /// The key that a call presents, if it lets the call in.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn admit(
        &self,
        presented: &PresentedKey,
        from: Option<IpAddr>,
        needs: Permission,
    ) -> Result<Arc<AuthenticatedKey>, Denied> {
        let held = match self.held(presented.id)? {
            Some(held) => held,
            // Boxed, so that the usual call does not carry it about.
            None => Box::pin(self.look_up(presented.id)).await?,
        };
        held.key
            .admit(presented, from, needs, self.0.clock.now())
            .map_err(Denied::KeyRefused)?;
        if !held.used.load(Ordering::Relaxed) {
            held.used.store(true, Ordering::Relaxed);
        }
        Ok(held)
    }

    fn held(&self, id: KeyId) -> Result<Option<Arc<AuthenticatedKey>>, Denied> {
        let known = self.0.known.load();
        let known = known
            .as_ref()
            .filter(|known| known.read_at.elapsed() < STALE_AFTER)
            .ok_or(Denied::Unavailable)?;
        Ok(known.keys.get(&id).cloned())
    }

    /// A key that was made since the last reading.
    async fn look_up(&self, id: KeyId) -> Result<Arc<AuthenticatedKey>, Denied> {
        let unknown = Denied::KeyRefused(KeyRefusal::Unknown);
        let Some(store) = &self.0.store else {
            return Err(unknown);
        };
        if self.0.look_ups_left.load(Ordering::Relaxed) == 0 {
            // Not even a wait: there may be very many.
            return Err(unknown);
        }
        // One at a time, so that many calls with one new key are one look-up.
        let _turn = self.0.looking_up.lock().await;
        if let Some(held) = self.held(id)? {
            return Ok(held);
        }
        if self
            .0
            .look_ups_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_err()
        {
            return Err(unknown);
        }
        // A fault is in the log already.
        let key = timeout(READ_MOST, store.admin.key(id))
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(Denied::Unavailable)?
            .ok_or(unknown)?;
        let mut found = None;
        self.0.known.rcu(|known| {
            known.as_deref().cloned().map(|mut known| {
                // Limits that were set for a workspace since the last reading hold from the next one.
                let fresh =
                    || Budget::new(key.workspace, Limits::default(), self.0.counter.clone());
                let budget = known
                    .budgets
                    .entry(key.workspace)
                    .or_insert_with(fresh)
                    .clone();
                // What a reading has brought in the meantime stands: it may know that the key was revoked.
                let held = known
                    .keys
                    .entry(id)
                    .or_insert_with(|| AuthenticatedKey::new(key.clone(), budget, Arc::default()));
                found = Some(held.clone());
                Arc::new(known)
            })
        });
        found.ok_or(Denied::Unavailable)
    }

    /// Reads every key and every workspace's limits.
    ///
    /// # Errors
    /// The store's.
    pub async fn read(&self) -> Result<(), Error> {
        timeout(READ_MOST, self.read_all())
            .await
            .map_err(Error::internal)?
    }

    async fn read_all(&self) -> Result<(), Error> {
        let Some(store) = &self.0.store else {
            return Ok(());
        };
        let _turn = self.0.reading.lock().await;
        let read_at = Instant::now();
        let (keys, workspaces) = (
            store.admin.recognized_keys().await?,
            store.admin.workspaces().await?,
        );
        let before = self.0.known.load_full();
        let budget = |workspace: Workspace| {
            let own = before
                .as_ref()
                .and_then(|known| known.budgets.get(&workspace.id).cloned());
            let budget = own.unwrap_or_else(|| {
                Budget::new(workspace.id, workspace.limits, self.0.counter.clone())
            });
            budget.set_limits(workspace.limits);
            (workspace.id, budget)
        };
        let budgets: HashMap<_, _> = workspaces.into_iter().map(budget).collect();
        let held = |key: ApiKey| {
            let used = before
                .as_ref()
                .and_then(|known| known.keys.get(&key.id))
                .map(|held| held.used.clone())
                .unwrap_or_default();
            let budget = budgets.get(&key.workspace)?.clone();
            Some((key.id, AuthenticatedKey::new(key, budget, used)))
        };
        let keys = keys.into_iter().filter_map(held).collect();
        self.0.known.store(Some(Arc::new(KeySnapshot {
            keys,
            budgets,
            read_at,
        })));
        self.0.look_ups_left.store(LOOK_UPS, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the last reading found no key.
    pub fn nobody_may_call(&self) -> bool {
        self.0
            .known
            .load()
            .as_ref()
            .is_some_and(|known| known.keys.is_empty())
    }

    /// Reads the keys again and again, and notes which were used, at most once a minute for each.
    pub async fn keep_fresh(self) {
        let (mut unread, mut unseen, mut unnoted) = (false, false, false);
        loop {
            tell_once(
                &mut unread,
                self.read().await,
                "the keys cannot be read; 10 s after the last reading no call is let in",
            );
            let pause = sleep(if unread { READ_AGAIN } else { READ_EVERY });
            let (seen, noted, ()) = tokio::join!(self.see_replicas(), self.note_use(), pause);
            tell_once(
                &mut unseen,
                seen,
                "which replicas live is not known; their number stays as it was",
            );
            tell_once(&mut unnoted, noted, "which keys were used is not noted");
        }
    }

    async fn see_replicas(&self) -> Result<(), Error> {
        let Some(store) = &self.0.store else {
            return Ok(());
        };
        let seen = timeout(NOTE_MOST, store.admin.see_replica(self.0.replica))
            .await
            .map_err(Error::internal)??;
        self.0.counter.set_replicas(seen);
        Ok(())
    }

    async fn note_use(&self) -> Result<(), Error> {
        let (Some(store), Some(known)) = (&self.0.store, self.0.known.load_full()) else {
            return Ok(());
        };
        let now = self.0.clock.now();
        let used: Vec<_> = known
            .keys
            .values()
            .filter(|held| held.use_is_to_be_noted(now))
            .collect();
        for held in &used {
            // Before it is written: a use in the meantime is another one.
            held.used.store(false, Ordering::Relaxed);
        }
        let ids: Vec<KeyId> = used.iter().map(|held| held.key.id).collect();
        let write = async {
            for some in ids.chunks(NOTED_AT_ONCE) {
                store.admin.note_use(some).await?;
            }
            Ok(())
        };
        let noted = timeout(NOTE_MOST, write)
            .await
            .map_err(Error::internal)
            .flatten();
        if noted.is_err() {
            // The next round writes it.
            used.iter()
                .for_each(|held| held.used.store(true, Ordering::Relaxed));
        }
        noted
    }
}

/// Logs the first of the faults that follow each other.
fn tell_once(failed: &mut bool, done: Result<(), Error>, what: &str) {
    match done {
        Ok(()) => *failed = false,
        Err(error) if !*failed => {
            // With the cause, which only operators may read.
            tracing::warn!(?error, what);
            *failed = true;
        }
        Err(_told_already) => {}
    }
}

/// Keys in one statement.
const NOTED_AT_ONCE: usize = 1_000;

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
