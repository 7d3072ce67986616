//! The source of instants: a trait, so that tests can move the time by hand.

mod steady;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

pub use steady::SteadyClock;

/// A sample of the clock that all replicas share: it showed `time` between `asked` and `answered`,
/// which are of our monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// The time that it showed.
    pub time: DateTime<Utc>,
    /// When the query began.
    pub asked: Instant,
    /// When the answer arrived.
    pub answered: Instant,
}

/// A clock to read and to wait for.
pub trait Clock: Send + Sync + 'static {
    /// Now, truncated to milliseconds, the precision of the store.
    fn now(&self) -> DateTime<Utc>;
    /// Returns once [`Self::now`] is at or past `instant`.
    fn sleep_until(&self, instant: DateTime<Utc>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// Why the clock is not trusted now, if so; nothing is dispatched then.
    fn unsteady(&self) -> Option<&'static str> {
        None
    }
    /// Takes a sample of the shared clock. The default is for clocks that need none.
    fn learn(&self, _sample: Sample) {}
}

/// A random number from 0 to 1, which spreads out replicas that wait for the same thing.
pub fn jitter() -> f64 {
    f64::from(fastrand::u32(..)) / f64::from(u32::MAX)
}

/// A clock that many parts share.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(
        clippy::disallowed_methods,
        reason = "only this place reads the machine's clock"
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

/// Sleeps until `clock` shows `instant`, but no longer than `max`, since the clock may be set back
/// meanwhile.
pub async fn sleep_until(clock: &SharedClock, instant: DateTime<Utc>, max: Duration) {
    // Callers check again either way.
    let _reached = tokio::time::timeout(max, clock.sleep_until(instant)).await;
}

/// Sleeps until `clock` shows `instant`, with a check every second, since the clock may be set
/// meanwhile.
async fn sleep_by(clock: &impl Clock, instant: DateTime<Utc>) {
    while let Ok(left) = (instant - clock.now()).to_std() {
        if left.is_zero() {
            break;
        }
        tokio::time::sleep(left.min(Duration::from_secs(1))).await;
    }
}

/// A clock that stands still until a test moves it.
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

    /// Sets whether the clock cannot be trusted.
    pub fn set_unsteady(&self, unsteady: bool) {
        self.unsteady.store(unsteady, Ordering::Relaxed);
    }

    /// Moves the clock by `step`, backwards if negative, and wakes sleepers whose instant has come.
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
            // `self` owns the sender, so this ends only when the clock is moved.
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
    async fn a_sleeper_wakes_although_the_clock_was_set_back() {
        let clock = Arc::new(ManualClock::at(DateTime::UNIX_EPOCH + TimeDelta::hours(1)));
        let until = clock.now() + TimeDelta::milliseconds(1);
        clock.advance(TimeDelta::hours(-1));
        let clock: SharedClock = clock;
        sleep_until(&clock, until, Duration::from_millis(1)).await;
        assert!(clock.now() < until);
    }

    #[tokio::test]
    async fn a_sleeper_wakes_only_when_the_clock_is_moved() {
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
