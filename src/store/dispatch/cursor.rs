//! Where a look at the queues begins. PostgreSQL keeps what was removed in an index until it is vacuumed, and a look from the very
//! beginning walks over all of it: milliseconds behind a hundred thousand dispatches. So a look begins where the last one found
//! something. What was added before that is found by a look from the beginning, a few times a second.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

/// So long may what was added far in the past wait to be found.
const FROM_THE_BEGINNING_EVERY: Duration = Duration::from_millis(250);
/// No look begins later than so long ago: what is added is due at that time or later, unless it was accepted late.
const LATEST: TimeDelta = TimeDelta::seconds(2);

/// The key of an entry of the queue.
pub(crate) type Entry = (i64, i32, Uuid);

/// The first key that a look takes into account in each queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Of the entries of schedules.
    pub wake: Entry,
    /// Of the dispatches that are looked at again.
    pub retry_ms: i64,
}

impl Mark {
    /// Before every key.
    pub(crate) const BEGINNING: Self = Self {
        wake: first_at(i64::MIN),
        retry_ms: i64::MIN,
    };
}

const fn first_at(wake_ms: i64) -> Entry {
    (wake_ms, i32::MIN, Uuid::nil())
}

/// What a process knows of the heads of the queues. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Heads(Arc<Mutex<Known>>);

struct Known {
    mark: Mark,
    /// When a look last began at the beginning.
    from_the_beginning: Option<Instant>,
}

impl Default for Heads {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Known {
            mark: Mark::BEGINNING,
            from_the_beginning: None,
        })))
    }
}

impl Heads {
    /// Where what the latest look found begins.
    pub(crate) fn mark(&self) -> Mark {
        self.known().mark
    }

    /// Where a look begins at `now`, of which [`Self::found`] is told: at the mark, or at the beginning when it is time for that.
    pub(crate) fn begin(&self, now: Instant) -> Mark {
        let mut known = self.known();
        let lately = known
            .from_the_beginning
            .is_some_and(|at| now.duration_since(at) < FROM_THE_BEGINNING_EVERY);
        if !lately {
            *known = Known {
                mark: Mark::BEGINNING,
                from_the_beginning: Some(now),
            };
        }
        known.mark
    }

    /// Learns the first key that is there in each queue, if any is.
    pub(crate) fn found(&self, wake: Option<Entry>, retry_ms: Option<i64>, now: DateTime<Utc>) {
        let latest_ms = (now - LATEST).timestamp_millis();
        let wake = wake.map_or(first_at(latest_ms), |first| first.min(first_at(latest_ms)));
        self.known().mark = Mark {
            wake,
            retry_ms: retry_ms.map_or(latest_ms, |first| first.min(latest_ms)),
        };
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Whoever panicked with it left it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_begins_where_the_last_one_found_something_and_now_and_then_at_the_beginning() {
        let (heads, start, now) = (
            Heads::default(),
            Instant::now(),
            DateTime::UNIX_EPOCH + TimeDelta::hours(1),
        );
        let latest_ms = (now - LATEST).timestamp_millis();
        let past = (latest_ms - 5, 1, Uuid::from_u128(7));
        assert_eq!(heads.begin(start), Mark::BEGINNING);
        heads.found(Some(past), Some(latest_ms + 9), now);
        let mark = Mark {
            wake: past,
            retry_ms: latest_ms,
        };
        assert_eq!(
            (
                heads.mark(),
                heads.begin(start + FROM_THE_BEGINNING_EVERY / 2)
            ),
            (mark, mark)
        );
        heads.found(None, None, now);
        assert_eq!(
            heads.mark(),
            Mark {
                wake: first_at(latest_ms),
                retry_ms: latest_ms
            }
        );
        assert_eq!(
            heads.begin(start + FROM_THE_BEGINNING_EVERY),
            Mark::BEGINNING
        );
    }

    #[test]
    fn a_clock_that_was_set_back_takes_the_mark_back() {
        let (heads, now) = (Heads::default(), DateTime::UNIX_EPOCH + TimeDelta::hours(2));
        heads.found(None, None, now);
        let before = heads.mark();
        heads.found(None, None, now - TimeDelta::hours(1));
        assert!(heads.mark().wake < before.wake && heads.mark().retry_ms < before.retry_ms);
    }
}
