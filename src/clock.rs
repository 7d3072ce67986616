//! The one source of instants. A trait, so that a manual clock drives the tests.

mod steady;

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

pub use steady::SteadyClock;

/// A look at the clock that all replicas share: it showed `time` at some moment between `asked` and `told`.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// What it showed.
    pub time: DateTime<Utc>,
    /// When it was asked, by our monotonic time.
    pub asked: Instant,
    /// When the answer was there.
    pub told: Instant,
}

/// Tells the time and waits for it.
pub trait Clock: Send + Sync + 'static {
    /// Now, to the millisecond, which is what the store keeps.
    fn now(&self) -> DateTime<Utc>;
    /// Returns once [`Self::now`] is at or past `instant`.
    fn sleep_until(&self, instant: DateTime<Utc>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// Why nothing may be fired by it at the moment, if so.
    fn unsteady(&self) -> Option<&'static str> {
        None
    }
    /// Learns what the shared clock shows; of no use to a clock that is one by itself.
    fn learn(&self, _sample: Sample) {}
}

/// A number from 0 to 1, by which replicas that wait for the same thing do not all come at once.
pub fn jitter() -> f64 {
    // A fresh RandomState is seeded at random once for each thread and counted on from there.
    f64::from(u32::try_from(RandomState::new().hash_one(()) >> 32).unwrap_or_default())
        / f64::from(u32::MAX)
}

/// A clock that many parts share.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place that asks the machine"
    )]
    fn now(&self) -> DateTime<Utc> {
        let now = Utc::now();
        now.duration_trunc(TimeDelta::milliseconds(1))
            .unwrap_or(now)
    }

    fn sleep_until(&self, instant: DateTime<Utc>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(sleep_by(self, instant))
    }
}

/// Sleeps until `clock` shows `instant`, for `most` at most: one that is set back meanwhile must not hold anybody up for as much.
pub async fn sleep_until(clock: &SharedClock, instant: DateTime<Utc>, most: Duration) {
    // Which of the two it was makes no difference: whoever slept looks anew.
    let _reached = tokio::time::timeout(most, clock.sleep_until(instant)).await;
}

/// Sleeps until `clock` shows `instant`. It may be set meanwhile, so look again.
async fn sleep_by(clock: &impl Clock, instant: DateTime<Utc>) {
    while let Ok(left) = (instant - clock.now()).to_std() {
        if left.is_zero() {
            break;
        }
        tokio::time::sleep(left.min(Duration::from_secs(1))).await;
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock {
    now: tokio::sync::watch::Sender<DateTime<Utc>>,
    unsteady: AtomicBool,
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn at(now: DateTime<Utc>) -> Self {
        Self {
            now: tokio::sync::watch::Sender::new(now),
            unsteady: AtomicBool::new(false),
        }
    }

    /// Sets whether it may be fired by.
    pub fn set_unsteady(&self, unsteady: bool) {
        self.unsteady.store(unsteady, Ordering::Relaxed);
    }

    /// Moves it by `step`, backwards when negative, and wakes who waited for the new instant.
    pub fn advance(&self, step: TimeDelta) {
        self.now.send_modify(|now| *now += step);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        *self.now.borrow()
    }

    fn sleep_until(&self, instant: DateTime<Utc>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let mut moves = self.now.subscribe();
        Box::pin(async move {
            // The sender lives as long as `self`, so this ends by the clock alone.
            let _reached = moves.wait_for(|now| *now >= instant).await;
        })
    }

    fn unsteady(&self) -> Option<&'static str> {
        self.unsteady
            .load(Ordering::Relaxed)
            .then_some("a test says so")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleeper_is_not_held_up_by_a_clock_that_is_set_back() {
        let clock = Arc::new(ManualClock::at(DateTime::UNIX_EPOCH + TimeDelta::hours(1)));
        let until = clock.now() + TimeDelta::milliseconds(1);
        clock.advance(TimeDelta::hours(-1));
        let clock: SharedClock = clock;
        sleep_until(&clock, until, Duration::from_millis(1)).await;
        assert!(clock.now() < until);
    }

    #[tokio::test]
    async fn a_sleeper_wakes_when_the_clock_is_moved_and_not_before() {
        let start = DateTime::from_timestamp_millis(0).expect("an instant");
        let clock = Arc::new(ManualClock::at(start));
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move {
                clock.sleep_until(start + TimeDelta::seconds(2)).await;
                clock.now()
            }
        });
        clock.advance(TimeDelta::seconds(1));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(TimeDelta::seconds(1));
        assert_eq!(
            sleeper.await.expect("no panic"),
            start + TimeDelta::seconds(2)
        );
    }
}
