//! The position from which a search of the queues starts. PostgreSQL keeps removed entries in an
//! index until it is vacuumed, and a search from the very beginning walks over all of them:
//! milliseconds behind a hundred thousand dispatches. So a search starts where the last one found
//! something. A search from the beginning, a few times a second, finds what was added before that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use uuid::Uuid;

/// How long an entry that was added far in the past may stay unnoticed.
const FULL_SEARCH_INTERVAL: Duration = Duration::from_millis(250);
/// Every search starts at least this far back. An entry is added at the present or later, unless
/// its change was accepted late.
const MIN_LOOKBACK: TimeDelta = TimeDelta::seconds(2);

/// The key of an entry of the queue of due schedules.
pub(crate) type WakeKey = (i64, i32, Uuid);

/// The first key that a search considers in each queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// Of the due schedules.
    pub wake: WakeKey,
    /// Of the dispatches that are due for a retry.
    pub retry_ms: i64,
}

impl Position {
    pub(crate) const BEGINNING: Self = Self {
        wake: first_at(i64::MIN),
        retry_ms: i64::MIN,
    };
}

const fn first_at(wake_ms: i64) -> WakeKey {
    (wake_ms, i32::MIN, Uuid::nil())
}

/// The position of this process's searches. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cursor(Arc<Mutex<CursorState>>);

struct CursorState {
    position: Position,
    /// When a search last started at the beginning.
    full_search: Option<Instant>,
}

impl Default for Cursor {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(CursorState {
            position: Position::BEGINNING,
            full_search: None,
        })))
    }
}

impl Cursor {
    /// The first key that the latest search found.
    pub(crate) fn position(&self) -> Position {
        self.0.lock().position
    }

    /// Starts a search at `now`, whose result goes to [`Self::found`]: at the position, or from
    /// time to time at the beginning.
    pub(crate) fn start(&self, now: Instant) -> Position {
        let mut state = self.0.lock();
        let full_search_due = state
            .full_search
            .is_none_or(|at| now.duration_since(at) >= FULL_SEARCH_INTERVAL);
        if full_search_due {
            *state = CursorState {
                position: Position::BEGINNING,
                full_search: Some(now),
            };
        }
        state.position
    }

    /// Sets the position to the first key in each queue, if there is any.
    pub(crate) fn found(&self, wake: Option<WakeKey>, retry_ms: Option<i64>, now: DateTime<Utc>) {
        let latest_ms = (now - MIN_LOOKBACK).timestamp_millis();
        let latest = first_at(latest_ms);
        self.0.lock().position = Position {
            wake: wake.map_or(latest, |first| first.min(latest)),
            retry_ms: retry_ms.map_or(latest_ms, |first| first.min(latest_ms)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_starts_where_the_last_one_found_something_and_from_time_to_time_at_the_beginning() {
        let (cursor, start, now) = (
            Cursor::default(),
            Instant::now(),
            DateTime::UNIX_EPOCH + TimeDelta::hours(1),
        );
        let latest_ms = (now - MIN_LOOKBACK).timestamp_millis();
        let past = (latest_ms - 5, 1, Uuid::from_u128(7));
        assert_eq!(cursor.start(start), Position::BEGINNING);
        cursor.found(Some(past), Some(latest_ms + 9), now);
        let position = Position {
            wake: past,
            retry_ms: latest_ms,
        };
        assert_eq!(
            (
                cursor.position(),
                cursor.start(start + FULL_SEARCH_INTERVAL / 2)
            ),
            (position, position)
        );
        cursor.found(None, None, now);
        assert_eq!(
            cursor.position(),
            Position {
                wake: first_at(latest_ms),
                retry_ms: latest_ms
            }
        );
        assert_eq!(
            cursor.start(start + FULL_SEARCH_INTERVAL),
            Position::BEGINNING
        );
    }

    #[test]
    fn a_clock_that_is_set_back_moves_the_position_back() {
        let (cursor, now) = (
            Cursor::default(),
            DateTime::UNIX_EPOCH + TimeDelta::hours(2),
        );
        cursor.found(None, None, now);
        let before = cursor.position();
        cursor.found(None, None, now - TimeDelta::hours(1));
        assert!(
            cursor.position().wake < before.wake && cursor.position().retry_ms < before.retry_ms
        );
    }
}
