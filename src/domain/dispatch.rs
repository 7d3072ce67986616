//! A dispatch: one wave of one schedule, from its claim to its end.
//!
//! ```text
//!   claim ──▶ in flight ──▶ delivered                        the consumer has it
//!              │  ▲  │
//!              │  │  ├────▶ reopened (no dispatch any more)  not taken at the first attempt
//!        unknown  │  └────▶ dead                             rejected
//!              ▼  │ retry
//!            unknown ─────▶ dead                             no attempt left
//!                    └────▶ abandoned                        its schedule was cancelled
//! ```
//!
//! The rules are those of docs/api.md, "Sending", and of docs/adr/0005.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;

use super::canvas_schedule::{CanvasSchedule, rfc3339};
use super::dispatch_message::DeliveryOutcome;
use super::id::{DispatchId, PropertiesId, ScheduleId};
use super::wave::Wave;
use super::zone::ZoneSet;
use crate::config::{defaults, values};
use crate::error::Error;

/// The state of a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DispatchState {
    /// Leased to the worker that delivers it.
    InFlight,
    /// The consumer may or may not have it; it is retried.
    Unknown,
    /// The consumer has it.
    Delivered,
    /// A dead letter: the consumer rejected it, or no attempt is left.
    Dead,
    /// Its schedule was cancelled while it was unknown: perhaps sent, and not retried.
    Abandoned,
}

/// How dispatches are delivered.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Sending")]
pub struct DeliveryPolicy {
    /// Lease of a dispatch; when it expires, another worker retries. A delivery may take up to
    /// three quarters of it
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_LEASE",
        default_value = "60s",
        value_parser = values::time_delta
    )]
    pub lease: TimeDelta,
    /// Attempts with an unknown outcome after which a dispatch becomes a dead letter (1 to 1000)
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
    pub max_backoff: TimeDelta,
}

impl Default for DeliveryPolicy {
    fn default() -> Self {
        defaults()
    }
}

impl DeliveryPolicy {
    /// The pause after attempt number `attempt`. `jitter` is between 0 and 1.
    pub fn pause(&self, attempt: u32, jitter: f64) -> TimeDelta {
        let doubled = 2_i32
            .checked_pow(attempt.saturating_sub(1))
            .and_then(|times| self.backoff.checked_mul(times));
        let pause = doubled.unwrap_or(self.max_backoff).min(self.max_backoff);
        with_jitter(pause, jitter)
    }

    /// The pause after an attempt that was not taken: what the consumer requested, up to the
    /// maximum.
    fn not_taken_pause(&self, requested: Option<Duration>, jitter: f64) -> TimeDelta {
        let requested = requested.map(|wait| {
            TimeDelta::from_std(wait)
                .unwrap_or(TimeDelta::MAX)
                .min(self.max_backoff)
        });
        requested.unwrap_or_else(|| with_jitter(self.backoff, jitter))
    }
}

/// `max`, shortened by up to a half: by none for a jitter of 1.
pub(super) fn with_jitter(max: TimeDelta, jitter: f64) -> TimeDelta {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "milliseconds of a few hours are exact in a double"
    )]
    let millis = (max.num_milliseconds() as f64 * (0.5 + jitter.clamp(0.0, 1.0) / 2.0)) as i64;
    TimeDelta::milliseconds(millis)
}

/// One dispatch of a schedule. Its content is fixed when it is claimed; later changes of the
/// schedule do not reach it.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// Counted from 1 within the schedule; never reused.
    pub number: u32,
    /// The schedule's revision when the wave was claimed.
    pub revision: i64,
    /// Its instant and zones.
    pub wave: Wave,
    /// The properties that it carries.
    pub properties: Option<PropertiesId>,
    /// Its state.
    pub state: DispatchState,
    /// The number of the latest attempt, counted from 1.
    pub attempt: u32,
    /// After this attempt an unknown outcome makes it a dead letter.
    pub last_attempt: u32,
    /// When a dispatch in flight or of unknown outcome is due for another attempt; for one in
    /// flight this is the end of its lease.
    pub retry_at: Option<DateTime<Utc>>,
    /// When its wave was claimed.
    pub claimed_at: DateTime<Utc>,
    /// When it was delivered, dead-lettered or abandoned.
    pub finished_at: Option<DateTime<Utc>>,
    /// The sink's latest reason; empty when it is delivered.
    pub why: String,
}

/// A claimed wave.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedWave {
    /// The new dispatch, in flight.
    pub dispatch: Dispatch,
    /// The schedule without the wave's zones.
    pub after: CanvasSchedule,
}

/// How an outcome changes a dispatch.
#[derive(Debug, Clone, PartialEq)]
pub enum Settled {
    /// The dispatch has a new state.
    Updated(Box<Dispatch>),
    /// The dispatch is removed and its zones are open again, as if the wave had never been claimed.
    Reopened {
        /// The earliest instant at which the wave is claimed again.
        retry_at: DateTime<Utc>,
    },
}

/// Why a dispatch may not be attempted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hold {
    /// Its schedule was cancelled.
    pub cancelled: bool,
    /// Sending is paused, for its workspace or for all.
    pub paused: bool,
}

/// The time after which a dispatch is due again, if sending was paused when it was due.
const PAUSED_RETRY_INTERVAL: TimeDelta = TimeDelta::seconds(5);

impl CanvasSchedule {
    /// The schedule with the zones and counts of its dispatches.
    #[must_use]
    pub fn with_dispatches(self, dispatches: &[Dispatch]) -> Self {
        let claimed = dispatches.iter().fold(ZoneSet::empty(), |zones, dispatch| {
            zones.union(&dispatch.wave.zones)
        });
        let last_claimed_at = dispatches.iter().map(|dispatch| dispatch.claimed_at).max();
        let unknown = dispatches
            .iter()
            .filter(|dispatch| dispatch.state == DispatchState::Unknown)
            .count();
        Self {
            claimed,
            last_claimed_at,
            unknown,
            ..self
        }
    }

    /// Claims the earliest wave of the open zones, if it is due. Further waves that are due need
    /// further claims.
    pub fn claim(&self, now: DateTime<Utc>, delivery: &DeliveryPolicy) -> Option<ClaimedWave> {
        let wave = self
            .plan()
            .waves
            .into_iter()
            .next()
            .filter(|wave| wave.time <= now)?;
        let number = self.last_number.checked_add(1)?;
        let after = Self {
            claimed: self.claimed.union(&wave.zones),
            last_claimed_at: Some(now),
            last_number: number,
            ..self.clone()
        };
        let dispatch = Dispatch {
            number,
            revision: self.revision,
            wave,
            properties: self.properties,
            state: DispatchState::InFlight,
            attempt: 1,
            last_attempt: delivery.attempts,
            retry_at: Some(now + delivery.lease),
            claimed_at: now,
            finished_at: None,
            why: String::new(),
        };
        Some(ClaimedWave {
            dispatch,
            after: after.replanned(),
        })
    }

    /// When the schedule finished; none while a wave is pending or a dispatch may still be
    /// attempted.
    pub fn finished_since(&self, dispatches: &[Dispatch]) -> Option<DateTime<Utc>> {
        let unfinished = dispatches
            .iter()
            .any(|dispatch| dispatch.finished_at.is_none());
        if self.next_wave.is_some() || unfinished {
            return None;
        }
        dispatches
            .iter()
            .filter_map(|dispatch| dispatch.finished_at)
            .chain([self.updated_at])
            .max()
    }

    /// The schedule with its next wave by the zone rules of this build.
    #[must_use]
    pub fn replanned(self) -> Self {
        Self {
            next_wave: self.plan().waves.first().map(|wave| wave.time),
            ..self
        }
    }
}

impl Dispatch {
    /// Settles the outcome of attempt number `attempt`; none when that changes nothing. Only the
    /// latest attempt counts, except that any attempt may show that the consumer has the dispatch.
    pub fn settle(
        &self,
        attempt: u32,
        outcome: &DeliveryOutcome,
        hold: Hold,
        now: DateTime<Utc>,
        jitter: f64,
        delivery: &DeliveryPolicy,
    ) -> Option<Settled> {
        if *outcome == DeliveryOutcome::Delivered {
            let delivered = self.finished(DispatchState::Delivered, "", now);
            return (self.state != DispatchState::Delivered).then(|| Settled::updated(delivered));
        }
        if self.state != DispatchState::InFlight || self.attempt != attempt {
            return None;
        }
        match outcome {
            DeliveryOutcome::NotTaken { retry_after, .. } if attempt == 1 => {
                let retry_at = now + delivery.not_taken_pause(*retry_after, jitter);
                Some(Settled::Reopened { retry_at })
            }
            DeliveryOutcome::NotTaken { why, retry_after } => {
                // An earlier attempt may have reached the consumer, so the zones stay claimed. This
                // attempt did not reach it, and so does not count against the maximum. It keeps its
                // number, which distinguishes its outcome from the next one's.
                let pause = delivery.not_taken_pause(*retry_after, jitter);
                let uncounted = Self {
                    last_attempt: self.last_attempt.saturating_add(1),
                    ..self.clone()
                };
                Some(Settled::updated(uncounted.unknown(why, hold, now, pause)))
            }
            DeliveryOutcome::Rejected { why } => Some(Settled::updated(self.finished(
                DispatchState::Dead,
                why,
                now,
            ))),
            DeliveryOutcome::Unknown { why } => {
                let pause = delivery.pause(attempt, jitter);
                Some(Settled::updated(self.unknown(why, hold, now, pause)))
            }
            DeliveryOutcome::Delivered => None,
        }
    }

    /// Retries a dispatch whose `retry_at` has come: it is in flight for another attempt, postponed
    /// because sending is paused, or finished. The outcome of a worker whose lease has expired is
    /// unknown.
    #[must_use]
    pub fn retry(&self, hold: Hold, now: DateTime<Utc>, delivery: &DeliveryPolicy) -> Self {
        let attempted = if self.state == DispatchState::InFlight {
            self.unknown("the lease expired", hold, now, TimeDelta::zero())
        } else {
            self.clone()
        };
        if attempted.state != DispatchState::Unknown {
            return attempted;
        }
        if hold.cancelled {
            return attempted.finished(DispatchState::Abandoned, &attempted.why, now);
        }
        if hold.paused {
            return Self {
                retry_at: Some(now + PAUSED_RETRY_INTERVAL),
                ..attempted
            };
        }
        Self {
            state: DispatchState::InFlight,
            attempt: attempted.attempt + 1,
            retry_at: Some(now + delivery.lease),
            ..attempted
        }
    }

    /// Gives a dead letter of `schedule` as many attempts as a new dispatch has.
    ///
    /// # Errors
    /// [`Error::Cancelled`] and [`Error::NotDead`].
    pub fn retry_dead_letter(
        &self,
        schedule: &CanvasSchedule,
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
    ) -> Result<Self, Error> {
        let schedule_id = schedule.id.to_string();
        if let Some(since) = schedule.cancelled_at {
            return Err(Error::Cancelled {
                schedule_id,
                since: rfc3339(since),
            });
        }
        if self.state != DispatchState::Dead {
            return Err(Error::NotDead {
                dispatch_id: self.id(schedule.id).to_string(),
            });
        }
        let last_attempt = self.attempt.saturating_add(delivery.attempts);
        Ok(Self {
            state: DispatchState::Unknown,
            last_attempt,
            retry_at: Some(now),
            finished_at: None,
            ..self.clone()
        })
    }

    /// The id of this dispatch of `schedule`.
    pub fn id(&self, schedule: ScheduleId) -> DispatchId {
        DispatchId::of(schedule, self.number)
    }

    /// The dispatch after an attempt of unknown outcome: retried after `pause`, unless its schedule
    /// was cancelled or no attempt is left.
    fn unknown(&self, why: &str, hold: Hold, now: DateTime<Utc>, pause: TimeDelta) -> Self {
        if hold.cancelled {
            return self.finished(DispatchState::Abandoned, why, now);
        }
        if self.attempt >= self.last_attempt {
            return self.finished(DispatchState::Dead, why, now);
        }
        Self {
            state: DispatchState::Unknown,
            retry_at: Some(now + pause),
            why: why.to_owned(),
            ..self.clone()
        }
    }

    fn finished(&self, state: DispatchState, why: &str, now: DateTime<Utc>) -> Self {
        Self {
            state,
            retry_at: None,
            finished_at: Some(now),
            why: why.to_owned(),
            ..self.clone()
        }
    }
}

impl Settled {
    fn updated(dispatch: Dispatch) -> Self {
        Self::Updated(Box::new(dispatch))
    }
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
