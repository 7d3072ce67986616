//! Firing is taking: a wave that is due leaves the open zones and becomes a dispatch in somebody's hand. What an answer, a
//! lease that ran out, or an operator makes of it.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;

use super::canvas_schedule::{CanvasSchedule, rfc3339};
use super::dispatch_message::Answer;
use super::id::{DispatchId, PropertiesId, ScheduleId};
use super::wave::Wave;
use super::zone::ZoneSet;
use crate::config::{defaults, values};
use crate::error::Error;

/// Where a dispatch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DispatchState {
    /// Leased to the worker that delivers it.
    InHand,
    /// The consumer may or may not have it; it is tried again.
    Unknown,
    /// The consumer has it.
    Delivered,
    /// A dead letter: refused by the consumer, or tried too often.
    Dead,
    /// Its schedule was cancelled while it was unknown: perhaps sent, and not tried again.
    Abandoned,
}

/// How dispatches are delivered.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Sending")]
pub struct DeliveryPolicy {
    /// Lease of a dispatch; when it expires, another worker retries. A delivery may take three quarters of it
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_LEASE",
        default_value = "60s",
        value_parser = values::time_delta
    )]
    pub lease: TimeDelta,
    /// Attempts with an unknown outcome after which a dispatch is a dead letter (1 to 1000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_ATTEMPTS",
        default_value = "10",
        value_parser = values::number::<u32>(1..=1000)
    )]
    pub attempts: u32,
    /// Pause before the second attempt; doubled before each further one.
    #[arg(skip = TimeDelta::seconds(1))]
    pub backoff: TimeDelta,
    /// The longest pause between two attempts.
    #[arg(skip = TimeDelta::minutes(5))]
    pub backoff_most: TimeDelta,
}

impl Default for DeliveryPolicy {
    fn default() -> Self {
        defaults()
    }
}

impl DeliveryPolicy {
    /// The pause after attempt `attempt`; `jitter`, from 0 to 1, spreads it over its upper half.
    pub fn pause(&self, attempt: u32, jitter: f64) -> TimeDelta {
        let doubled = 2_i32
            .checked_pow(attempt.saturating_sub(1))
            .and_then(|times| self.backoff.checked_mul(times));
        spread(
            doubled.unwrap_or(self.backoff_most).min(self.backoff_most),
            jitter,
        )
    }

    /// When to try again what was not taken: when the consumer asks for it, within bounds.
    fn not_taken_pause(&self, asked: Option<Duration>, jitter: f64) -> TimeDelta {
        let asked = asked.map(|asked| {
            TimeDelta::from_std(asked)
                .unwrap_or(TimeDelta::MAX)
                .min(self.backoff_most)
        });
        asked.unwrap_or_else(|| spread(self.backoff, jitter))
    }
}

/// `most`, less up to its half.
pub(super) fn spread(most: TimeDelta, jitter: f64) -> TimeDelta {
    // Pauses are minutes at most: exact as a double.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "a span of milliseconds up to hours"
    )]
    let millis = (most.num_milliseconds() as f64 * (0.5 + jitter.clamp(0.0, 1.0) / 2.0)) as i64;
    TimeDelta::milliseconds(millis)
}

/// What is kept of one firing.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// Counted from 1; never used again for its schedule.
    pub n: u32,
    /// The revision that was in force.
    pub revision: i64,
    /// When, and for which zones.
    pub wave: Wave,
    /// The properties that it carries.
    pub properties: Option<PropertiesId>,
    /// Where it stands.
    pub state: DispatchState,
    /// The number of its latest attempt, counted from 1.
    pub attempt: u32,
    /// The last attempt before it is a dead letter.
    pub last_attempt: u32,
    /// When it must be looked at again: the lease of one in hand ends, or an unknown one is tried again.
    pub again_at: Option<DateTime<Utc>>,
    /// When it was fired.
    pub fired_at: DateTime<Utc>,
    /// When it was delivered, died or was abandoned.
    pub finished_at: Option<DateTime<Utc>>,
    /// What the consumer said last; empty when it has it.
    pub why: String,
}

/// A wave that was fired.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedWave {
    /// The dispatch, in the hand of whoever fired it.
    pub firing: Dispatch,
    /// The schedule without the wave's zones.
    pub after: CanvasSchedule,
}

/// What an answer makes of a firing.
#[derive(Debug, Clone, PartialEq)]
pub enum Settled {
    /// It stands otherwise.
    Kept(Box<Dispatch>),
    /// It was not taken: as if it had never been fired. Its zones are open again.
    TakenBack {
        /// When the schedule is looked at again.
        again_at: DateTime<Utc>,
    },
}

/// What keeps a dispatch from being tried, or does not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hold {
    /// Its schedule was cancelled.
    pub cancelled: bool,
    /// Sending is paused for its workspace, or for all.
    pub paused: bool,
}

/// How long a paused dispatch rests before it is looked at again.
const PAUSED_REST: TimeDelta = TimeDelta::seconds(5);

impl CanvasSchedule {
    /// The schedule as these firings of it have left it.
    #[must_use]
    pub fn with_firings(self, firings: &[Dispatch]) -> Self {
        let taken = firings.iter().fold(ZoneSet::empty(), |taken, firing| {
            taken.union(&firing.wave.zones)
        });
        let last_taken = firings.iter().map(|firing| firing.fired_at).max();
        let unknown = firings
            .iter()
            .filter(|firing| firing.state == DispatchState::Unknown)
            .count();
        Self {
            taken,
            last_taken,
            unknown,
            ..self
        }
    }

    /// Fires the earliest wave of the open zones, if it is due. One firing takes one wave: what else is due follows.
    pub fn claim(&self, now: DateTime<Utc>, delivery: &DeliveryPolicy) -> Option<ClaimedWave> {
        let wave = self
            .plan()
            .waves
            .into_iter()
            .next()
            .filter(|wave| wave.time <= now)?;
        let n = self.fired.checked_add(1)?;
        let taken = Self {
            taken: self.taken.union(&wave.zones),
            last_taken: Some(now),
            fired: n,
            ..self.clone()
        };
        let firing = Dispatch {
            n,
            revision: self.revision,
            wave,
            properties: self.properties,
            state: DispatchState::InHand,
            attempt: 1,
            last_attempt: delivery.attempts,
            again_at: Some(now + delivery.lease),
            fired_at: now,
            finished_at: None,
            why: String::new(),
        };
        Some(ClaimedWave {
            firing,
            after: taken.replanned(),
        })
    }

    /// Since when nothing more will come of it by itself; none while a wave is to come or a dispatch may still be tried.
    pub fn finished_since(&self, firings: &[Dispatch]) -> Option<DateTime<Utc>> {
        let waits = firings.iter().any(|firing| firing.finished_at.is_none());
        if self.next_wave.is_some() || waits {
            return None;
        }
        firings
            .iter()
            .filter_map(|firing| firing.finished_at)
            .chain([self.updated_at])
            .max()
    }

    /// The same with its next wave by the zone rules of this build.
    #[must_use]
    pub fn replanned(self) -> Self {
        Self {
            next_wave: self.plan().waves.first().map(|wave| wave.time),
            ..self
        }
    }
}

impl Dispatch {
    /// What the answer to its attempt number `attempt` makes of it; none when that changes nothing. Only the latest attempt
    /// has a say, except that a consumer who has it has it, whichever attempt brought it there.
    pub fn settle(
        &self,
        attempt: u32,
        answer: &Answer,
        held: Hold,
        now: DateTime<Utc>,
        jitter: f64,
        delivery: &DeliveryPolicy,
    ) -> Option<Settled> {
        let kept = |firing| Settled::Kept(Box::new(firing));
        if *answer == Answer::Delivered {
            let news = self.state != DispatchState::Delivered;
            return news.then(|| kept(self.finished(DispatchState::Delivered, "", now)));
        }
        if self.state != DispatchState::InHand || self.attempt != attempt {
            return None;
        }
        Some(match answer {
            Answer::NotTaken { retry_after, .. } if attempt == 1 => Settled::TakenBack {
                again_at: now + delivery.not_taken_pause(*retry_after, jitter),
            },
            Answer::NotTaken { why, retry_after } => {
                // An attempt before this one may have reached the consumer. This one did not: it makes room for one more, whose
                // answer is told from its own by their numbers.
                let pause = delivery.not_taken_pause(*retry_after, jitter);
                let one_more = Self {
                    last_attempt: self.last_attempt.saturating_add(1),
                    ..self.clone()
                };
                kept(one_more.unknown(why, held, now, pause))
            }
            Answer::Rejected { why } => kept(self.finished(DispatchState::Dead, why, now)),
            Answer::Unknown { why } => {
                kept(self.unknown(why, held, now, delivery.pause(attempt, jitter)))
            }
            Answer::Delivered => return None,
        })
    }

    /// What becomes of it when its lease has run out or it is time to try it again: in hand again for another attempt, or laid
    /// down.
    #[must_use]
    pub fn again(&self, held: Hold, now: DateTime<Utc>, delivery: &DeliveryPolicy) -> Self {
        let expired = self.state == DispatchState::InHand;
        let tried = if expired {
            self.unknown("the lease ran out", held, now, TimeDelta::zero())
        } else {
            self.clone()
        };
        if tried.state != DispatchState::Unknown {
            return tried;
        }
        if held.cancelled {
            return tried.finished(DispatchState::Abandoned, &tried.why, now);
        }
        if held.paused {
            return Self {
                again_at: Some(now + PAUSED_REST),
                ..tried
            };
        }
        Self {
            state: DispatchState::InHand,
            attempt: tried.attempt + 1,
            again_at: Some(now + delivery.lease),
            ..tried
        }
    }

    /// A dead letter that is tried again, as often as a new one.
    ///
    /// # Errors
    /// [`Error::Cancelled`] and [`Error::NotDead`].
    pub fn revived(
        &self,
        of: &CanvasSchedule,
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
    ) -> Result<Self, Error> {
        let schedule_id = of.id.to_string();
        if let Some(since) = of.cancelled_at {
            return Err(Error::Cancelled {
                schedule_id,
                since: rfc3339(since),
            });
        }
        if self.state != DispatchState::Dead {
            return Err(Error::NotDead {
                dispatch_id: self.id(of.id).to_string(),
            });
        }
        let last_attempt = self.attempt.saturating_add(delivery.attempts);
        Ok(Self {
            state: DispatchState::Unknown,
            last_attempt,
            again_at: Some(now),
            finished_at: None,
            ..self.clone()
        })
    }

    /// The id of its dispatch.
    pub fn id(&self, schedule: ScheduleId) -> DispatchId {
        DispatchId::of(schedule, self.n)
    }

    /// Unknown after its latest attempt, and tried again after `pause`, unless nobody will try it again.
    fn unknown(&self, why: &str, held: Hold, now: DateTime<Utc>, pause: TimeDelta) -> Self {
        if held.cancelled {
            return self.finished(DispatchState::Abandoned, why, now);
        }
        if self.attempt >= self.last_attempt {
            return self.finished(DispatchState::Dead, why, now);
        }
        Self {
            state: DispatchState::Unknown,
            again_at: Some(now + pause),
            why: why.to_owned(),
            ..self.clone()
        }
    }

    fn finished(&self, state: DispatchState, why: &str, now: DateTime<Utc>) -> Self {
        Self {
            state,
            again_at: None,
            finished_at: Some(now),
            why: why.to_owned(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
