//! One clock for all replicas: an estimate of the database's clock. Between two samples the
//! machine's monotonic clock counts, so a step of the machine's wall clock sends no wave early,
//! late or twice.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

use super::{Clock, Sample, SystemClock, sleep_by};

/// Samples that differ by more than this do not agree.
const MAX_DIFFERENCE: TimeDelta = TimeDelta::seconds(1);
/// So many samples in a row must agree.
const MIN_SAMPLES: usize = 3;
/// Older samples do not count.
const MAX_SAMPLE_AGE: Duration = Duration::from_secs(60);
/// More samples than come in [`MAX_SAMPLE_AGE`].
const MAX_SAMPLES: usize = 100;

/// The clock of the database, or of the machine when the database is a file.
#[derive(Debug)]
pub struct SteadyClock {
    /// The origin of the monotonic clock.
    origin: Instant,
    estimate: Mutex<ClockEstimate>,
}

impl SteadyClock {
    /// A clock without samples: it shows the machine's time and cannot be trusted yet.
    pub fn new() -> Self {
        let origin = Instant::now();
        Self {
            origin,
            estimate: Mutex::new(ClockEstimate::new(SystemClock.now())),
        }
    }
}

impl Default for SteadyClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> DateTime<Utc> {
        self.estimate.lock().now(self.origin.elapsed())
    }

    fn sleep_until(&self, instant: DateTime<Utc>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(sleep_by(self, instant))
    }

    fn unsteady(&self) -> Option<&'static str> {
        self.estimate.lock().unsteady(self.origin.elapsed())
    }

    fn learn(&self, sample: Sample) {
        let since_origin = |instant: Instant| instant.saturating_duration_since(self.origin);
        let (asked, answered) = (since_origin(sample.asked), since_origin(sample.answered));
        self.estimate.lock().learn(sample.time, asked, answered);
    }
}

/// A sample, relative to the origin.
#[derive(Debug, Clone, Copy)]
struct OffsetSample {
    /// The other clock's time at the origin.
    base: DateTime<Utc>,
    /// From the query to the answer: the other clock was read at some instant in between.
    round_trip: Duration,
    /// When the answer arrived.
    answered: Duration,
}

/// The latest samples, each of which agrees with the one before it. Moments are relative to the
/// origin.
#[derive(Debug)]
struct ClockEstimate {
    /// The estimate of the other clock at the origin.
    base: DateTime<Utc>,
    samples: VecDeque<OffsetSample>,
}

impl ClockEstimate {
    fn new(base: DateTime<Utc>) -> Self {
        Self {
            base,
            samples: VecDeque::new(),
        }
    }

    fn now(&self, elapsed: Duration) -> DateTime<Utc> {
        let now = self.base + TimeDelta::from_std(elapsed).unwrap_or(TimeDelta::MAX);
        // Truncated to milliseconds, the precision of the store.
        DateTime::from_timestamp_millis(now.timestamp_millis()).unwrap_or(now)
    }

    /// Adds a sample: the other clock showed `time` at some instant between `asked` and `answered`.
    fn learn(&mut self, time: DateTime<Utc>, asked: Duration, answered: Duration) {
        let round_trip = answered.saturating_sub(asked);
        let read = asked + round_trip / 2;
        let sample = OffsetSample {
            base: time - TimeDelta::from_std(read).unwrap_or(TimeDelta::zero()),
            round_trip,
            answered,
        };
        if self
            .samples
            .back()
            .is_some_and(|last| (last.base - sample.base).abs() > MAX_DIFFERENCE)
        {
            self.samples.clear();
        }
        self.samples
            .retain(|one| answered.saturating_sub(one.answered) <= MAX_SAMPLE_AGE);
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        if self.samples.len() >= MIN_SAMPLES {
            // The shortest round trip leaves the smallest error.
            self.base = self
                .samples
                .iter()
                .min_by_key(|one| one.round_trip)
                .map_or(self.base, |quickest| quickest.base);
        }
    }

    fn unsteady(&self, elapsed: Duration) -> Option<&'static str> {
        let fresh = self
            .samples
            .back()
            .is_some_and(|last| elapsed.saturating_sub(last.answered) <= MAX_SAMPLE_AGE);
        match (fresh, self.samples.len()) {
            (false, _) => Some("the clock of the database is unknown"),
            (true, samples) if samples < MIN_SAMPLES => {
                Some("the clock of the database has jumped, or was sampled too few times")
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

    /// Samples once a second from `from` on a clock that is `ahead` of ours.
    fn sample(estimate: &mut ClockEstimate, from: u64, times: u64, ahead: i64) {
        for second in from..from + times {
            let ours = i64::try_from(second).expect("few");
            estimate.learn(at(ours + ahead), secs(second), secs(second));
        }
    }

    #[test]
    fn it_is_trusted_once_three_samples_agree() {
        let mut estimate = ClockEstimate::new(at(0));
        assert!(estimate.unsteady(secs(0)).is_some());
        sample(&mut estimate, 1, 2, 300);
        assert!(estimate.unsteady(secs(2)).is_some());
        assert_eq!(
            estimate.now(secs(2)),
            at(2),
            "until then the machine's time is shown"
        );
        sample(&mut estimate, 3, 1, 300);
        assert_eq!(
            (estimate.unsteady(secs(3)), estimate.now(secs(3))),
            (None, at(303)),
            "ours is wrong by five minutes"
        );
    }

    #[test]
    fn a_jump_is_followed_once_three_samples_agree_on_it() {
        for jump in [3600, -3600, 2] {
            let mut estimate = ClockEstimate::new(at(0));
            sample(&mut estimate, 0, 10, 0);
            sample(&mut estimate, 10, 1, jump);
            assert!(estimate.unsteady(secs(10)).is_some(), "{jump}");
            assert_eq!(estimate.now(secs(10)), at(10), "{jump}: not followed yet");
            sample(&mut estimate, 11, 1, jump);
            assert!(estimate.unsteady(secs(11)).is_some(), "{jump}");
            sample(&mut estimate, 12, 1, jump);
            assert_eq!(
                (estimate.unsteady(secs(12)), estimate.now(secs(12))),
                (None, at(12 + jump)),
                "{jump}: it stays"
            );
        }
    }

    #[test]
    fn a_jump_and_back_stops_dispatching_for_three_samples_and_moves_nothing() {
        let mut estimate = ClockEstimate::new(at(0));
        sample(&mut estimate, 0, 10, 0);
        sample(&mut estimate, 10, 1, 3600);
        for second in 11..13 {
            sample(&mut estimate, second, 1, 0);
            assert!(estimate.unsteady(secs(second)).is_some(), "{second}");
            assert_eq!(
                estimate.now(secs(second)),
                at(i64::try_from(second).expect("few"))
            );
        }
        sample(&mut estimate, 13, 1, 0);
        assert_eq!(
            (estimate.unsteady(secs(13)), estimate.now(secs(13))),
            (None, at(13))
        );
    }

    #[test]
    fn the_sample_with_the_shortest_round_trip_of_the_last_minute_counts() {
        let mut estimate = ClockEstimate::new(at(0));
        sample(&mut estimate, 0, 3, 0);
        // Asked at 10 and answered at 11 with the time of 10.9, which counts as that of 10.5.
        estimate.learn(at(10) + TimeDelta::milliseconds(900), secs(10), secs(11));
        assert_eq!(
            estimate.now(secs(11)),
            at(11),
            "a slow answer does not count"
        );
        for second in 12..80 {
            estimate.learn(
                at(second) + TimeDelta::milliseconds(400),
                secs(second.unsigned_abs()),
                secs(second.unsigned_abs()),
            );
        }
        assert_eq!(
            estimate.now(secs(80)),
            at(80) + TimeDelta::milliseconds(400),
            "a sample older than a minute is dropped"
        );
        assert!(estimate.samples.len() <= MAX_SAMPLES);
    }

    #[test]
    fn after_a_minute_without_samples_it_is_not_trusted() {
        let mut estimate = ClockEstimate::new(at(0));
        sample(&mut estimate, 0, 10, 7);
        assert_eq!(estimate.unsteady(secs(69)), None);
        assert!(estimate.unsteady(secs(70)).is_some());
        assert_eq!(estimate.now(secs(100)), at(107), "it runs on");
        sample(&mut estimate, 100, 2, 7);
        assert!(estimate.unsteady(secs(101)).is_some());
        sample(&mut estimate, 102, 1, 7);
        assert_eq!(estimate.unsteady(secs(102)), None);
    }

    #[tokio::test]
    async fn it_shows_the_sampled_time_and_wakes_by_it() {
        let clock = SteadyClock::new();
        let ahead = SystemClock.now() + TimeDelta::hours(1);
        for _ in 0..MIN_SAMPLES {
            let asked = Instant::now();
            clock.learn(Sample {
                time: ahead + TimeDelta::from_std(clock.origin.elapsed()).expect("short"),
                asked,
                answered: Instant::now(),
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
