//! How much a sink takes: while it takes nothing only a probe goes to it, and due rows stay due.

use chrono::{DateTime, TimeDelta, Utc};

use super::dispatch::spread;
use super::dispatch_message::Answer;

/// So many answers of unknown outcome in a row mean that the sink takes nothing: a consumer that hangs or fails each time.
const UNKNOWN_MOST: u32 = 8;
/// Before the second probe; doubled before each further one.
const PAUSE: TimeDelta = TimeDelta::milliseconds(100);
/// The longest pause between two probes.
const PAUSE_MOST: TimeDelta = TimeDelta::seconds(5);
/// The longest pause of the sink as a whole that one of its answers may ask for; it may be meant for one Canvas alone.
const ASKED_MOST: TimeDelta = TimeDelta::minutes(1);

/// What one sink is trusted with, by what it answered. Grows by one with each dispatch that is taken, falls to one when none is.
#[derive(Debug, Clone)]
pub struct Breaker {
    workers: usize,
    window: usize,
    failures: u32,
    unknown: u32,
    quiet_until: Option<DateTime<Utc>>,
}

impl Breaker {
    /// A sink of which nothing is known is trusted with all `workers`.
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            window: workers,
            failures: 0,
            unknown: 0,
            quiet_until: None,
        }
    }

    /// How many further dispatches may go to the sink at `now`, with `in_flight` under way.
    pub fn room(&self, now: DateTime<Utc>, in_flight: usize) -> usize {
        if self.quiet_until(now).is_some() {
            0
        } else {
            self.free(in_flight)
        }
    }

    /// The same once it is quiet no more.
    pub fn free(&self, in_flight: usize) -> usize {
        self.window.saturating_sub(in_flight)
    }

    /// Until when nothing goes to the sink, if it rests at `now`. A pause that has longer to go than any lasts was set by a clock that
    /// has been set back since, and counts no more.
    pub fn quiet_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.quiet_until
            .filter(|until| now < *until && *until - now <= ASKED_MOST)
    }

    /// Whether the sink takes nothing as far as is known.
    pub fn is_probing(&self) -> bool {
        self.quiet_until.is_some()
    }

    /// Learns from an answer; `jitter` is from 0 to 1.
    pub fn answered(&mut self, answer: &Answer, now: DateTime<Utc>, jitter: f64) {
        match answer {
            Answer::Delivered | Answer::Rejected { .. } => {
                let window = (self.window + 1).min(self.workers);
                *self = Self {
                    window,
                    ..Self::new(self.workers)
                };
            }
            Answer::NotTaken { retry_after, .. } => {
                let asked = retry_after.map(|asked| {
                    TimeDelta::from_std(asked)
                        .unwrap_or(ASKED_MOST)
                        .min(ASKED_MOST)
                });
                self.failed(now, jitter, asked.unwrap_or_default());
            }
            Answer::Unknown { .. } => {
                self.unknown = self.unknown.saturating_add(1);
                if self.unknown >= UNKNOWN_MOST {
                    self.failed(now, jitter, TimeDelta::zero());
                }
            }
        }
    }

    /// Rests, longer each time. What else was under way when the sink failed tells nothing new.
    fn failed(&mut self, now: DateTime<Utc>, jitter: f64, asked: TimeDelta) {
        self.window = 1;
        if self.quiet_until(now).is_some() {
            return;
        }
        let pause = PAUSE * 2_i32.pow(self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
        self.quiet_until = Some(now + spread(pause.min(PAUSE_MOST), jitter).max(asked));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(millis).expect("an instant")
    }

    fn not_taken() -> Answer {
        Answer::NotTaken {
            why: "503".to_owned(),
            retry_after: None,
        }
    }

    #[test]
    fn a_sink_that_takes_nothing_gets_a_probe_after_ever_longer_pauses() {
        let mut probe = Breaker::new(64);
        assert_eq!(probe.room(at(0), 10), 54);
        let mut now = at(0);
        let mut pauses = vec![];
        for _ in 0..9 {
            // Everything that was under way fails at once, and counts once.
            (0..64).for_each(|_| probe.answered(&not_taken(), now, 1.0));
            assert_eq!(probe.room(now, 0), 0, "nothing goes to it for a while");
            let until = probe.quiet_until(now).expect("it rests");
            pauses.push((until - now).num_milliseconds());
            now = until;
            assert_eq!(
                (probe.room(now, 0), probe.room(now, 1)),
                (1, 0),
                "one probe at a time"
            );
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
    }

    #[test]
    fn a_sink_that_takes_again_is_trusted_with_more_and_more() {
        let mut probe = Breaker::new(4);
        probe.answered(&not_taken(), at(0), 0.0);
        let mut room = vec![];
        for _ in 0..5 {
            probe.answered(&Answer::Delivered, at(1000), 0.0);
            room.push(probe.room(at(1000), 0));
        }
        assert_eq!((room, probe.is_probing()), (vec![2, 3, 4, 4, 4], false));
    }

    #[test]
    fn a_pause_that_the_sink_asks_for_is_heeded_within_bounds() {
        for (asked, kept) in [(2, 2), (24 * 3600, 60)] {
            let mut probe = Breaker::new(4);
            let answer = Answer::NotTaken {
                why: "429".to_owned(),
                retry_after: Some(std::time::Duration::from_secs(asked)),
            };
            probe.answered(&answer, at(0), 0.5);
            assert_eq!(
                probe.quiet_until(at(0)),
                Some(at(0) + TimeDelta::seconds(kept)),
                "{asked}"
            );
        }
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_pause_longer() {
        let mut probe = Breaker::new(4);
        probe.answered(&not_taken(), at(3_600_000), 1.0);
        assert_eq!(probe.room(at(3_600_000), 0), 0);
        assert_eq!(
            (probe.room(at(0), 0), probe.room(at(0), 1)),
            (1, 0),
            "a probe goes out"
        );
        probe.answered(&not_taken(), at(0), 1.0);
        assert_eq!(
            probe.quiet_until(at(0)),
            Some(at(200)),
            "and sets the next pause"
        );
    }

    #[test]
    fn a_sink_of_which_nothing_comes_back_is_probed_too() {
        let mut probe = Breaker::new(64);
        let unknown = Answer::Unknown {
            why: "timeout".to_owned(),
        };
        (1..UNKNOWN_MOST).for_each(|_| probe.answered(&unknown, at(0), 0.5));
        assert_eq!(probe.room(at(0), 0), 64, "some are lost on any network");
        probe.answered(&unknown, at(0), 0.5);
        assert_eq!(probe.room(at(0), 0), 0);
        (0..UNKNOWN_MOST).for_each(|n| {
            probe.answered(
                if n % 2 == 0 {
                    &unknown
                } else {
                    &Answer::Delivered
                },
                at(9000),
                0.5,
            )
        });
        assert!(!probe.is_probing(), "what is taken in between counts");
    }
}
