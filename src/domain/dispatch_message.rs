//! The message that a sink delivers to the consumer, and the outcome (docs/sinks.md).

use std::time::Duration;

use chrono::TimeDelta;

use super::id::{CanvasId, DispatchId, ScheduleId};
use super::payload::{Properties, Target};
use super::wave::Wave;

/// One wave of a schedule as a sink delivers it. Every attempt carries the same [`DispatchId`], by
/// which the consumer detects duplicates.
#[derive(Debug, Clone, PartialEq)]
pub struct DispatchMessage {
    /// The consumer's key for deduplication.
    pub id: DispatchId,
    /// The name of the workspace.
    pub workspace: String,
    /// The Canvas.
    pub canvas_id: CanvasId,
    /// The schedule.
    pub schedule_id: ScheduleId,
    /// The schedule's revision when the wave was claimed.
    pub revision: i64,
    /// The number of the dispatch, counted from 1 within the schedule; never used twice.
    pub number: u32,
    /// Its instant and zones.
    pub wave: Wave,
    /// The recipients in this wave's zones, the audience or the broadcast. The schedule's
    /// properties are merged into those of each recipient, which take precedence key by key.
    pub target: Target,
    /// The properties of the schedule, for an audience or a broadcast.
    pub properties: Properties,
    /// The time from the wave's instant to the start of this attempt.
    pub lateness: TimeDelta,
    /// The number of this attempt, counted from 1.
    pub attempt: u32,
    /// The `traceparent` header of this attempt, if it is traced.
    pub traceparent: Option<String>,
}

/// The outcome of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// The consumer has it.
    Delivered,
    /// The consumer certainly does not have it, and may take it later.
    NotTaken {
        /// The reason, for logs and the API; without secrets and recipients.
        why: String,
        /// The wait that the consumer requests, if any.
        retry_after: Option<Duration>,
    },
    /// The consumer will never take it.
    Rejected {
        /// The reason.
        why: String,
    },
    /// The consumer may or may not have it.
    Unknown {
        /// The reason.
        why: String,
    },
}
