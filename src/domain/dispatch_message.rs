//! What is handed to the consumer: one wave of one schedule, whole; and what the consumer says of it.

use std::time::Duration;

use chrono::TimeDelta;

use super::id::{CanvasId, DispatchId, ScheduleId};
use super::payload::{Properties, Target};
use super::wave::Wave;

/// One wave of a schedule as a sink hands it over. Every retry of it carries the same [`DispatchId`], by which the consumer
/// tells that it has seen it before.
#[derive(Debug, Clone, PartialEq)]
pub struct DispatchMessage {
    /// The consumer's key to de-duplicate by.
    pub id: DispatchId,
    /// The name of the tenant.
    pub workspace: String,
    /// The Canvas.
    pub canvas_id: CanvasId,
    /// The schedule.
    pub schedule_id: ScheduleId,
    /// The revision that was in force when the wave was fired.
    pub revision: i64,
    /// The number of the firing, counted from 1; never used again for this schedule.
    pub number: u32,
    /// When, and for which zones.
    pub wave: Wave,
    /// Whom it is for: of recipients only those whom this wave serves, each with the properties of the schedule merged into
    /// its own, which win key by key.
    pub target: Target,
    /// The properties of the schedule, for an audience or a broadcast.
    pub properties: Properties,
    /// How long after the wave's time this attempt begins.
    pub lateness: TimeDelta,
    /// The number of this attempt, counted from 1.
    pub attempt: u32,
    /// The header `traceparent` under which it is handed over, where it is traced.
    pub traceparent: Option<String>,
}

/// What a sink says of one dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// The consumer has it.
    Delivered,
    /// The consumer certainly has not taken it: as if it had never been fired.
    NotTaken {
        /// For the log and for people; never a secret, never a recipient.
        why: String,
        /// When the consumer asks to be tried again, where it says.
        retry_after: Option<Duration>,
    },
    /// The consumer has refused it for good.
    Rejected {
        /// As above.
        why: String,
    },
    /// The consumer may or may not have it.
    Unknown {
        /// As above.
        why: String,
    },
}
