//! How much of its quotas a workspace may still use. The database counts what all replicas took of
//! a window. A replica takes its share in chunks, in advance, so that a call costs no round trip.
//! What is left of a chunk is never carried over to the next window.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::clock::SharedClock;
use crate::domain::{Charge, Limits, Quota, QuotaKind, QuotaRequest, QuotaStatus, WorkspaceId};
use crate::error::Error;
use crate::store::Store;

/// How long a chunk should last at the current rate: long enough to be taken in advance, short
/// enough that a replica holds little that it does not use.
const CHUNK_LASTS: Duration = Duration::from_millis(250);
/// The first chunk of a window, when the rate is not known yet, is this part of the quota.
const FIRST_PART: u64 = 2_000;
/// How often one call takes a chunk again because other calls used the last one.
const MAX_TRIES: usize = 100;

/// Why a call was not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChargeError {
    /// The quota of this window is used up.
    Quota(QuotaKind, QuotaStatus),
    /// The count could not be read.
    Store(Error),
}

/// What every budget of the process shares.
pub struct SharedQuota {
    /// None in tests of the layers, whose budgets are unlimited.
    store: Option<Store>,
    clock: SharedClock,
    /// The number of live replicas, this one included.
    replicas: AtomicU32,
}

impl SharedQuota {
    /// Counts in this store.
    pub fn new(store: Option<Store>, clock: SharedClock) -> Arc<Self> {
        Arc::new(Self {
            store,
            clock,
            replicas: AtomicU32::new(1),
        })
    }

    /// Sets the number of replicas that share the quotas.
    pub fn set_replicas(&self, replicas: u32) {
        self.replicas.store(replicas.max(1), Ordering::Relaxed);
    }

    fn now_ms(&self) -> i64 {
        self.clock.now().timestamp_millis()
    }
}

/// What one workspace may still use on this replica.
pub struct Budget {
    workspace: WorkspaceId,
    counter: Arc<SharedQuota>,
    limits: Mutex<Limits>,
    requests: Bucket,
    broadcasts: Bucket,
}

impl Budget {
    /// An unused budget.
    pub fn new(workspace: WorkspaceId, limits: Limits, counter: Arc<SharedQuota>) -> Arc<Self> {
        let bucket = Bucket::default;
        Arc::new(Self {
            workspace,
            counter,
            limits: Mutex::new(limits),
            requests: bucket(),
            broadcasts: bucket(),
        })
    }

    /// Applies new limits.
    pub fn set_limits(&self, limits: Limits) {
        let mut own = self.limits.lock();
        if *own != limits {
            *own = limits;
            // What was taken under the old limits is counted already.
            self.requests.window.store(None);
            self.broadcasts.window.store(None);
        }
    }

    fn quota(&self, counted: QuotaKind) -> Quota {
        self.limits.lock().of(counted)
    }

    /// Counts a call, or reports why it is refused; then nothing was counted.
    pub async fn charge(self: &Arc<Self>, charge: &Charge) -> Result<QuotaStatus, ChargeError> {
        match charge {
            Charge::Requests(n) => self.take(QuotaKind::Requests, *n).await,
            Charge::Broadcast => self.take(QuotaKind::Broadcasts, 1).await,
            Charge::Audience(digest) => {
                let status = self.take(QuotaKind::Broadcasts, 1).await?;
                if let Err(over) = self.take_of_audience(digest).await {
                    self.broadcasts.give_back(1, status.resets_ms);
                    return Err(over);
                }
                Ok(status)
            }
        }
    }

    /// As [`Self::charge`] for requests, when the answer needs no wait, as for nearly every call.
    pub fn charge_without_wait(
        self: &Arc<Self>,
        requests: u64,
    ) -> Option<Result<QuotaStatus, ChargeError>> {
        self.take_without_wait(QuotaKind::Requests, requests)
    }

    fn take_without_wait(
        self: &Arc<Self>,
        counted: QuotaKind,
        n: u64,
    ) -> Option<Result<QuotaStatus, ChargeError>> {
        match self.bucket(counted).try_take(n, self.counter.now_ms()) {
            TakeResult::Taken(status, low) => {
                self.refill_ahead(counted, low);
                Some(Ok(status))
            }
            TakeResult::UsedUp(status) => Some(Err(ChargeError::Quota(counted, status))),
            TakeResult::Empty => None,
        }
    }

    fn bucket(&self, counted: QuotaKind) -> &Bucket {
        if counted == QuotaKind::Requests {
            &self.requests
        } else {
            &self.broadcasts
        }
    }

    async fn take(
        self: &Arc<Self>,
        counted: QuotaKind,
        n: u64,
    ) -> Result<QuotaStatus, ChargeError> {
        for _ in 0..MAX_TRIES {
            if let Some(answer) = self.take_without_wait(counted, n) {
                return answer;
            }
            self.refill(counted, n).await.map_err(ChargeError::Store)?;
        }
        Err(ChargeError::Store(Error::Busy {
            retry_after: CHUNK_LASTS,
        }))
    }

    /// Takes a chunk in the background when the last one runs low.
    fn refill_ahead(self: &Arc<Self>, counted: QuotaKind, low: bool) {
        let bucket = self.bucket(counted);
        if !low || bucket.refilling.swap(true, Ordering::Relaxed) {
            return;
        }
        let own = self.clone();
        tokio::spawn(async move {
            if let Err(error) = own.refill(counted, 0).await {
                // A call that needs a chunk and gets none gets the error.
                tracing::debug!(?error, "the budget cannot be refilled in advance");
            }
            own.bucket(counted)
                .refilling
                .store(false, Ordering::Relaxed);
        });
    }

    /// Takes a chunk for `needed` calls that found the bucket empty, or in advance for 0; one at a
    /// time.
    async fn refill(&self, counted: QuotaKind, needed: u64) -> Result<(), Error> {
        let Some(store) = &self.counter.store else {
            return Ok(());
        };
        let bucket = self.bucket(counted);
        let _turn = bucket.turn.lock().await;
        let now_ms = self.counter.now_ms();
        let open = bucket.open(now_ms);
        if open
            .as_ref()
            .is_some_and(|window| !window.wants_more(needed))
        {
            // The refill before this one took enough.
            return Ok(());
        }
        let quota = open
            .as_ref()
            .map_or_else(|| self.quota(counted), |window| window.quota);
        let wanted = open
            .as_ref()
            .map_or((quota.limit / FIRST_PART).max(1), |window| window.wanted());
        let needed = needed.saturating_sub(
            open.as_ref()
                .map_or(0, |window| window.left.load(Ordering::Relaxed)),
        );
        let began_ms = quota.window.start(now_ms);
        let replicas = self.counter.replicas.load(Ordering::Relaxed);
        let ask = QuotaRequest { needed, wanted };
        let taken = store
            .admin
            .take_quota(
                self.workspace,
                counted.name(),
                began_ms,
                quota,
                ask,
                replicas,
            )
            .await?;
        // Held until the chunk is stored, so that no limit is set in between.
        let limits = self.limits.lock();
        if quota == limits.of(counted) {
            let window = open.unwrap_or_else(|| Arc::new(BudgetWindow::new(quota, began_ms)));
            window.add(taken.got, taken.in_all);
            bucket.window.store(Some(window));
        }
        // Else the limit has changed in the meantime, and the next try applies it.
        drop(limits);
        Ok(())
    }

    /// Counts one creation for an audience, in the database itself: these are few.
    async fn take_of_audience(&self, digest: &str) -> Result<(), ChargeError> {
        let Some(store) = &self.counter.store else {
            return Ok(());
        };
        let quota = self.quota(QuotaKind::SameAudience);
        let began_ms = quota.window.start(self.counter.now_ms());
        let ask = QuotaRequest {
            needed: 1,
            wanted: 1,
        };
        let name = format!("{}:{digest}", QuotaKind::SameAudience.name());
        let taken = store
            .admin
            .take_quota(self.workspace, &name, began_ms, quota, ask, 1)
            .await
            .map_err(ChargeError::Store)?;
        if taken.got == 1 {
            return Ok(());
        }
        Err(ChargeError::Quota(
            QuotaKind::SameAudience,
            QuotaStatus {
                limit: quota.limit,
                remaining: 0,
                resets_ms: began_ms + quota.window.millis(),
            },
        ))
    }
}

/// A replica's share of one quota.
#[derive(Default)]
struct Bucket {
    window: ArcSwapOption<BudgetWindow>,
    /// Held by the task that takes a chunk.
    turn: AsyncMutex<()>,
    refilling: AtomicBool,
}

enum TakeResult {
    /// With whether a chunk should be taken in advance.
    Taken(QuotaStatus, bool),
    UsedUp(QuotaStatus),
    Empty,
}

impl Bucket {
    fn open(&self, now_ms: i64) -> Option<Arc<BudgetWindow>> {
        self.window
            .load_full()
            .filter(|window| window.is_open(now_ms))
    }

    fn try_take(&self, n: u64, now_ms: i64) -> TakeResult {
        let window = self.window.load();
        let Some(window) = window.as_ref().filter(|window| window.is_open(now_ms)) else {
            return TakeResult::Empty;
        };
        match window
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(n)
            }) {
            Ok(before) => {
                let left = before - n;
                let low = left < window.low.load(Ordering::Relaxed) && !window.is_used_up();
                TakeResult::Taken(window.status(left), low)
            }
            // What all replicas have taken only grows, so no refill can help.
            Err(left) if window.status(left).remaining < n => {
                TakeResult::UsedUp(window.status(left))
            }
            Err(_) => TakeResult::Empty,
        }
    }

    /// Gives back what was taken of the window that ends at `ends_ms`, if it is not over.
    fn give_back(&self, n: u64, ends_ms: i64) {
        if let Some(window) = self
            .window
            .load()
            .as_ref()
            .filter(|window| window.ends_ms() == ends_ms)
        {
            window.left.fetch_add(n, Ordering::Relaxed);
        }
    }
}

/// A replica's share of one window of one quota.
struct BudgetWindow {
    quota: Quota,
    began_ms: i64,
    /// How much may be used before the next chunk.
    left: AtomicU64,
    /// Below this a chunk is taken in advance.
    low: AtomicU64,
    /// What all replicas had taken of the quota when this one took its last chunk.
    taken: AtomicU64,
    pace: Mutex<Pace>,
}

/// How quickly chunks are used.
struct Pace {
    /// The sum of all chunks.
    had: u64,
    /// What of them was used when the last one was taken.
    used: u64,
    at: Instant,
}

impl BudgetWindow {
    fn new(quota: Quota, began_ms: i64) -> Self {
        let pace = Mutex::new(Pace {
            had: 0,
            used: 0,
            at: Instant::now(),
        });
        Self {
            quota,
            began_ms,
            left: AtomicU64::new(0),
            low: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            pace,
        }
    }

    fn is_open(&self, now_ms: i64) -> bool {
        // The window is over for a clock that was set back, too.
        (self.began_ms..self.ends_ms()).contains(&now_ms)
    }

    fn ends_ms(&self) -> i64 {
        self.began_ms + self.quota.window.millis()
    }

    /// Whether there is nothing more to take.
    fn is_used_up(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= self.quota.limit
    }

    fn wants_more(&self, needed: u64) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        !self.is_used_up() && (left < needed || left < self.low.load(Ordering::Relaxed))
    }

    /// As much as was used per [`CHUNK_LASTS`] since the last chunk was taken.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an estimate"
    )]
    fn wanted(&self) -> u64 {
        let pace = self.pace.lock();
        let used = pace
            .had
            .saturating_sub(self.left.load(Ordering::Relaxed))
            .saturating_sub(pace.used);
        // A few simultaneous calls, as after a stall, are not a rate: a chunk is at most eight
        // times what was used of the last.
        let elapsed = pace.at.elapsed().max(CHUNK_LASTS / 8);
        let per_chunk = used as f64 * CHUNK_LASTS.as_secs_f64() / elapsed.as_secs_f64();
        (per_chunk as u64).max(1)
    }

    fn add(&self, got: u64, in_all: u64) {
        self.taken.store(in_all, Ordering::Relaxed);
        if got == 0 {
            return;
        }
        let mut pace = self.pace.lock();
        let used = pace.had.saturating_sub(self.left.load(Ordering::Relaxed));
        *pace = Pace {
            had: pace.had + got,
            used,
            at: Instant::now(),
        };
        let left = self.left.fetch_add(got, Ordering::Relaxed) + got;
        self.low.store(left.min(got) / 2, Ordering::Relaxed);
    }

    fn status(&self, left: u64) -> QuotaStatus {
        let untaken = self
            .quota
            .limit
            .saturating_sub(self.taken.load(Ordering::Relaxed));
        QuotaStatus {
            limit: self.quota.limit,
            remaining: (untaken + left).min(self.quota.limit),
            resets_ms: self.ends_ms(),
        }
    }
}

#[cfg(test)]
impl Budget {
    /// One that never ends.
    pub fn endless(workspace: WorkspaceId, clock: SharedClock) -> Arc<Self> {
        let budget = Self::new(workspace, Limits::default(), SharedQuota::new(None, clock));
        let quota = budget.quota(QuotaKind::Requests);
        let window = BudgetWindow::new(quota, quota.window.start(budget.counter.now_ms()));
        window.add(u64::MAX / 2, 0);
        budget.requests.window.store(Some(Arc::new(window)));
        budget
    }
}
