//! The circuit breaker of a sink, which limits the dispatches that the sink gets.
//!
//! Closed, it lets through as many as there are workers. A sink that takes nothing opens it:
//! nothing goes to the sink during a pause, and due waves stay due. After the pause it is
//! half-open: one dispatch goes out as a probe. Each dispatch that is taken adds one to the window,
//! until it is closed again (docs/sinks.md).

use chrono::{DateTime, TimeDelta, Utc};

use super::dispatch::with_jitter;
use super::dispatch_message::DeliveryOutcome;

/// After this many unknown outcomes in a row, the sink counts as taking nothing: it hangs, or fails
/// each time.
const MAX_UNKNOWN_IN_A_ROW: u32 = 8;
/// The first pause; each further one is twice as long.
const FIRST_PAUSE: TimeDelta = TimeDelta::milliseconds(100);
/// The longest pause.
const MAX_PAUSE: TimeDelta = TimeDelta::seconds(5);
/// The longest pause that the sink may ask for. One answer pauses the whole sink, and may be meant
/// for one Canvas alone.
const MAX_REQUESTED_PAUSE: TimeDelta = TimeDelta::minutes(1);

/// The circuit breaker of one sink.
#[derive(Debug, Clone)]
pub struct Breaker {
    workers: usize,
    /// The most dispatches in flight.
    window: usize,
    /// Pauses since the sink last took a dispatch.
    pauses: u32,
    /// Unknown outcomes in a row.
    unknown: u32,
    paused_until: Option<DateTime<Utc>>,
}

impl Breaker {
    /// A closed breaker, with a window of all `workers`.
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            window: workers,
            pauses: 0,
            unknown: 0,
            paused_until: None,
        }
    }

    /// How many more dispatches may go to the sink at `now`, with `in_flight` already there.
    pub fn capacity(&self, now: DateTime<Utc>, in_flight: usize) -> usize {
        if self.paused_until(now).is_some() {
            0
        } else {
            self.free_workers(in_flight)
        }
    }

    /// How many more dispatches fit the window, whether or not the breaker pauses.
    pub fn free_workers(&self, in_flight: usize) -> usize {
        self.window.saturating_sub(in_flight)
    }

    /// When the pause ends, if there is one at `now`. A pause that ends later than any lasts was
    /// set before the clock was set back, and is over.
    pub fn paused_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.paused_until
            .filter(|until| now < *until && *until - now <= MAX_REQUESTED_PAUSE)
    }

    /// Whether the sink has taken nothing since the last pause began.
    pub fn is_probing(&self) -> bool {
        self.paused_until.is_some()
    }

    /// Records the outcome of a delivery. `jitter` is between 0 and 1.
    pub fn record(&mut self, outcome: &DeliveryOutcome, now: DateTime<Utc>, jitter: f64) {
        match outcome {
            DeliveryOutcome::Delivered | DeliveryOutcome::Rejected { .. } => {
                let window = (self.window + 1).min(self.workers);
                *self = Self {
                    window,
                    ..Self::new(self.workers)
                };
            }
            DeliveryOutcome::NotTaken { retry_after, .. } => {
                let requested = retry_after.map(|wait| {
                    TimeDelta::from_std(wait)
                        .unwrap_or(MAX_REQUESTED_PAUSE)
                        .min(MAX_REQUESTED_PAUSE)
                });
                self.open(now, jitter, requested.unwrap_or_default());
            }
            DeliveryOutcome::Unknown { .. } => {
                self.unknown = self.unknown.saturating_add(1);
                if self.unknown >= MAX_UNKNOWN_IN_A_ROW {
                    self.open(now, jitter, TimeDelta::zero());
                }
            }
        }
    }

    /// Pauses, for at least `min`. The failures of what was in flight when the pause began do not
    /// prolong it.
    fn open(&mut self, now: DateTime<Utc>, jitter: f64, min: TimeDelta) {
        self.window = 1;
        if self.paused_until(now).is_some() {
            return;
        }
        let pause = FIRST_PAUSE * 2_i32.pow(self.pauses.min(6));
        self.pauses = self.pauses.saturating_add(1);
        self.paused_until = Some(now + with_jitter(pause.min(MAX_PAUSE), jitter).max(min));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(millis).expect("an instant")
    }

    fn not_taken() -> DeliveryOutcome {
        DeliveryOutcome::NotTaken {
            why: "503".to_owned(),
            retry_after: None,
        }
    }

    #[test]
    fn a_sink_that_takes_nothing_is_probed_after_ever_longer_pauses() {
        let mut breaker = Breaker::new(64);
        assert_eq!(breaker.capacity(at(0), 10), 54);
        let mut now = at(0);
        let mut pauses = vec![];
        for _ in 0..9 {
            // All that were in flight fail together, and count once.
            (0..64).for_each(|_| breaker.record(&not_taken(), now, 1.0));
            assert_eq!(breaker.capacity(now, 0), 0, "nothing goes to a paused sink");
            let until = breaker.paused_until(now).expect("a pause");
            pauses.push((until - now).num_milliseconds());
            now = until;
            assert_eq!(
                (breaker.capacity(now, 0), breaker.capacity(now, 1)),
                (1, 0),
                "one probe at a time"
            );
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
    }

    #[test]
    fn a_sink_that_takes_again_gets_one_more_each_time() {
        let mut breaker = Breaker::new(4);
        breaker.record(&not_taken(), at(0), 0.0);
        let mut capacity = vec![];
        for _ in 0..5 {
            breaker.record(&DeliveryOutcome::Delivered, at(1000), 0.0);
            capacity.push(breaker.capacity(at(1000), 0));
        }
        assert_eq!(
            (capacity, breaker.is_probing()),
            (vec![2, 3, 4, 4, 4], false)
        );
    }

    #[test]
    fn a_pause_that_the_sink_asks_for_is_limited_to_a_minute() {
        for (requested, pause) in [(2, 2), (24 * 3600, 60)] {
            let mut breaker = Breaker::new(4);
            let answer = DeliveryOutcome::NotTaken {
                why: "429".to_owned(),
                retry_after: Some(std::time::Duration::from_secs(requested)),
            };
            breaker.record(&answer, at(0), 0.5);
            assert_eq!(
                breaker.paused_until(at(0)),
                Some(at(0) + TimeDelta::seconds(pause)),
                "{requested}"
            );
        }
    }

    #[test]
    fn setting_the_clock_back_does_not_prolong_a_pause() {
        let mut breaker = Breaker::new(4);
        breaker.record(&not_taken(), at(3_600_000), 1.0);
        assert_eq!(breaker.capacity(at(3_600_000), 0), 0);
        assert_eq!(
            (breaker.capacity(at(0), 0), breaker.capacity(at(0), 1)),
            (1, 0),
            "a probe goes out"
        );
        breaker.record(&not_taken(), at(0), 1.0);
        assert_eq!(
            breaker.paused_until(at(0)),
            Some(at(200)),
            "and sets the next pause"
        );
    }

    #[test]
    fn a_sink_with_only_unknown_outcomes_is_probed() {
        let mut breaker = Breaker::new(64);
        let unknown = DeliveryOutcome::Unknown {
            why: "timeout".to_owned(),
        };
        (1..MAX_UNKNOWN_IN_A_ROW).for_each(|_| breaker.record(&unknown, at(0), 0.5));
        assert_eq!(breaker.capacity(at(0), 0), 64, "any network loses some");
        breaker.record(&unknown, at(0), 0.5);
        assert_eq!(breaker.capacity(at(0), 0), 0);
        (0..MAX_UNKNOWN_IN_A_ROW).for_each(|n| {
            breaker.record(
                if n % 2 == 0 {
                    &unknown
                } else {
                    &DeliveryOutcome::Delivered
                },
                at(9000),
                0.5,
            )
        });
        assert!(!breaker.is_probing(), "a delivery in between ends the row");
    }
}
