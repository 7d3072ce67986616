//! One clock for all replicas: the database's, as far as it can be known. Between two looks at it the machine's monotonic time
//! counts, so that no step of the machine's clock fires a wave early, late or twice.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use super::{Clock, Sample, SystemClock, sleep_by};

/// Looks that are further apart than this do not agree.
const AGREE: TimeDelta = TimeDelta::seconds(1);
/// So many looks in a row must agree.
const ENOUGH: usize = 3;
/// A look counts for so long.
const COUNTS_FOR: Duration = Duration::from_secs(60);
/// Looks that are kept: more than a minute's.
const KEPT: usize = 100;

/// The clock of the database, or of the machine where the database is a file.
#[derive(Debug)]
pub struct SteadyClock {
    /// Where monotonic time is counted from.
    origin: Instant,
    looks: Mutex<Looks>,
}

impl SteadyClock {
    /// A clock that has not looked yet: it shows the machine's time, and is not to be fired by.
    pub fn new() -> Self {
        let origin = Instant::now();
        Self {
            origin,
            looks: Mutex::new(Looks::new(SystemClock.now())),
        }
    }

    fn looks(&self) -> std::sync::MutexGuard<'_, Looks> {
        // Whoever panicked with it left it whole.
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for SteadyClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> DateTime<Utc> {
        self.looks().now(self.origin.elapsed())
    }

    fn sleep_until(&self, instant: DateTime<Utc>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(sleep_by(self, instant))
    }

    fn unsteady(&self) -> Option<&'static str> {
        self.looks().unsteady(self.origin.elapsed())
    }

    fn learn(&self, sample: Sample) {
        let (asked, told) = (
            sample.asked.saturating_duration_since(self.origin),
            sample.told.saturating_duration_since(self.origin),
        );
        self.looks().learn(sample.time, asked, told);
    }
}

/// One look at the other clock.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// What the other clock showed when ours was at its origin.
    base: DateTime<Utc>,
    /// How long the answer took: the other clock was read at some moment within it.
    took: Duration,
    /// When the answer came.
    told: Duration,
}

/// The latest looks, each of which agrees with the one before it. Moments are counted from the origin.
#[derive(Debug)]
struct Looks {
    /// What is reckoned with.
    base: DateTime<Utc>,
    in_a_row: VecDeque<Look>,
}

impl Looks {
    fn new(base: DateTime<Utc>) -> Self {
        Self {
            base,
            in_a_row: VecDeque::new(),
        }
    }

    fn now(&self, elapsed: Duration) -> DateTime<Utc> {
        let now = self.base + TimeDelta::from_std(elapsed).unwrap_or(TimeDelta::MAX);
        // To the millisecond, which is what the store keeps.
        DateTime::from_timestamp_millis(now.timestamp_millis()).unwrap_or(now)
    }

    /// Takes in a look: the other clock showed `time` at some moment from `asked` to `told`.
    fn learn(&mut self, time: DateTime<Utc>, asked: Duration, told: Duration) {
        let took = told.saturating_sub(asked);
        let read = asked + took / 2;
        let look = Look {
            base: time - TimeDelta::from_std(read).unwrap_or(TimeDelta::zero()),
            took,
            told,
        };
        if self
            .in_a_row
            .back()
            .is_some_and(|last| (last.base - look.base).abs() > AGREE)
        {
            self.in_a_row.clear();
        }
        self.in_a_row
            .retain(|one| told.saturating_sub(one.told) <= COUNTS_FOR);
        if self.in_a_row.len() == KEPT {
            self.in_a_row.pop_front();
        }
        self.in_a_row.push_back(look);
        if self.in_a_row.len() >= ENOUGH {
            // The quickest was read closest to when it is taken to have been read.
            self.base = self
                .in_a_row
                .iter()
                .min_by_key(|one| one.took)
                .map_or(self.base, |quickest| quickest.base);
        }
    }

    fn unsteady(&self, elapsed: Duration) -> Option<&'static str> {
        let fresh = self
            .in_a_row
            .back()
            .is_some_and(|last| elapsed.saturating_sub(last.told) <= COUNTS_FOR);
        match (fresh, self.in_a_row.len()) {
            (false, _) => Some("the clock of the database is not known"),
            (true, looks) if looks < ENOUGH => {
                Some("the clock of the database has jumped, or is not known for long")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_000_000 + seconds, 0).expect("an instant")
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Looks once a second from `from` on, at a clock that is `ahead` of ours.
    fn look(looks: &mut Looks, from: u64, times: u64, ahead: i64) {
        for second in from..from + times {
            let ours = i64::try_from(second).expect("few");
            looks.learn(at(ours + ahead), secs(second), secs(second));
        }
    }

    #[test]
    fn three_looks_that_agree_are_needed() {
        let mut looks = Looks::new(at(0));
        assert!(looks.unsteady(secs(0)).is_some());
        look(&mut looks, 1, 2, 300);
        assert!(looks.unsteady(secs(2)).is_some());
        assert_eq!(
            looks.now(secs(2)),
            at(2),
            "until then the machine's time is shown"
        );
        look(&mut looks, 3, 1, 300);
        assert_eq!(
            (looks.unsteady(secs(3)), looks.now(secs(3))),
            (None, at(303)),
            "ours is wrong by five minutes"
        );
    }

    #[test]
    fn a_clock_that_jumps_is_not_followed_until_it_stays() {
        for jump in [3600, -3600, 2] {
            let mut looks = Looks::new(at(0));
            look(&mut looks, 0, 10, 0);
            look(&mut looks, 10, 1, jump);
            assert!(looks.unsteady(secs(10)).is_some(), "{jump}");
            assert_eq!(looks.now(secs(10)), at(10), "{jump}: not followed yet");
            look(&mut looks, 11, 1, jump);
            assert!(looks.unsteady(secs(11)).is_some(), "{jump}");
            look(&mut looks, 12, 1, jump);
            assert_eq!(
                (looks.unsteady(secs(12)), looks.now(secs(12))),
                (None, at(12 + jump)),
                "{jump}: it stays"
            );
        }
    }

    #[test]
    fn a_jump_and_back_stops_firing_for_three_looks_and_moves_nothing() {
        let mut looks = Looks::new(at(0));
        look(&mut looks, 0, 10, 0);
        look(&mut looks, 10, 1, 3600);
        for second in 11..13 {
            look(&mut looks, second, 1, 0);
            assert!(looks.unsteady(secs(second)).is_some(), "{second}");
            assert_eq!(
                looks.now(secs(second)),
                at(i64::try_from(second).expect("few"))
            );
        }
        look(&mut looks, 13, 1, 0);
        assert_eq!(
            (looks.unsteady(secs(13)), looks.now(secs(13))),
            (None, at(13))
        );
    }

    #[test]
    fn the_quickest_look_of_the_last_minute_counts() {
        let mut looks = Looks::new(at(0));
        look(&mut looks, 0, 3, 0);
        // Asked at 10, told at 11 with what was true at 10.9: read as of 10.5.
        looks.learn(at(10) + TimeDelta::milliseconds(900), secs(10), secs(11));
        assert_eq!(
            looks.now(secs(11)),
            at(11),
            "a slow answer is not reckoned with"
        );
        for second in 12..80 {
            looks.learn(
                at(second) + TimeDelta::milliseconds(400),
                secs(second.unsigned_abs()),
                secs(second.unsigned_abs()),
            );
        }
        assert_eq!(
            looks.now(secs(80)),
            at(80) + TimeDelta::milliseconds(400),
            "what was quick an hour ago is forgotten"
        );
        assert!(looks.in_a_row.len() <= KEPT);
    }

    #[test]
    fn after_a_minute_of_silence_it_is_not_known() {
        let mut looks = Looks::new(at(0));
        look(&mut looks, 0, 10, 7);
        assert_eq!(looks.unsteady(secs(69)), None);
        assert!(looks.unsteady(secs(70)).is_some());
        assert_eq!(looks.now(secs(100)), at(107), "it runs on");
        look(&mut looks, 100, 2, 7);
        assert!(looks.unsteady(secs(101)).is_some());
        look(&mut looks, 102, 1, 7);
        assert_eq!(looks.unsteady(secs(102)), None);
    }

    #[tokio::test]
    async fn it_shows_what_it_has_learned_and_wakes_by_it() {
        let clock = SteadyClock::new();
        let ahead = SystemClock.now() + TimeDelta::hours(1);
        for _ in 0..ENOUGH {
            let asked = Instant::now();
            clock.learn(Sample {
                time: ahead + TimeDelta::from_std(clock.origin.elapsed()).expect("short"),
                asked,
                told: Instant::now(),
            });
        }
        assert_eq!(clock.unsteady(), None);
        assert!(
            (clock.now() - ahead).abs() < TimeDelta::minutes(1),
            "an hour ahead of the machine"
        );
        clock
            .sleep_until(clock.now() + TimeDelta::milliseconds(5))
            .await;
        assert!(clock.now() > ahead);
    }
}
