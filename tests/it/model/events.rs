//! The events of the model, and their answers.

use super::zones::{DAY, HOUR, Time, Zones};

/// The meaning of a schedule's time, by its flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Utc,
    Local,
    Optimal,
}

/// The value `{time, in_local_time, at_optimal_time}`: an instant, or what wall clocks show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ask {
    pub kind: Kind,
    pub time: Time,
}

/// A schedule at a number of hours from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Wish {
    pub kind: Kind,
    pub hours: i64,
}

impl Wish {
    pub(super) fn at(self, now: Time) -> Ask {
        Ask {
            kind: self.kind,
            time: now + self.hours * HOUR,
        }
    }
}

/// The etag of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Etag {
    None,
    Current,
    Stale,
}

/// The conditions of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Terms {
    pub etag: Etag,
    pub require_all: bool,
}

/// The answer of a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum SinkAnswer {
    Delivered,
    NotTaken,
    Rejected,
    Unknown,
}

/// How far the clock moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Move {
    /// Past every pause between two attempts, within a lease.
    Pause,
    /// To the end of a lease that starts now.
    Lease,
    /// To the next due instant.
    Next,
    Day,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Event {
    Create(Wish),
    Update(Wish, Terms),
    Cancel(Terms),
    /// The last accepted request arrives again, under its `request_id`.
    Again,
    Clock(Move),
    /// Workers claim due waves.
    Claim,
    /// Workers claim due retries.
    Retry,
    /// The sink answers the last delivery, or one before it, by number; or its first answer arrives
    /// again.
    Answer(usize, SinkAnswer),
    /// An operator retries the dispatch with this number.
    RetryDispatch(u32),
    Pause {
        /// For every workspace, else for the schedule's.
        all: bool,
        on: bool,
    },
    /// The zone rules of the other release take effect.
    Rules,
    /// A release whose rules put the next wave an hour later, or earlier, has stopped.
    OtherRelease {
        later: bool,
    },
    /// The process is killed; another opens the same database.
    Restart,
}

/// The zones that an accepted change reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Applied {
    All,
    Some,
}

/// The answer to the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reply {
    /// The event has no caller.
    Nothing,
    Accepted {
        revision: i64,
        applied: Applied,
        zones: usize,
        missed: Zones,
    },
    TimePast,
    BeyondHorizon,
    Cancelled {
        since: Time,
    },
    NothingLeft {
        since: Time,
    },
    NotAll {
        taken: usize,
        missed: usize,
    },
    Stale {
        revision: i64,
    },
    NoSuchDispatch,
    NotDead,
    Retried,
}

/// A wave that reaches the consumer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Delivery {
    pub n: u32,
    pub attempt: u32,
    pub revision: i64,
    pub wave: Wave,
    pub lateness: Time,
    /// The zones of its recipients; each zone has one recipient.
    pub recipients: Zones,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Wave {
    pub time: Time,
    pub zones: Zones,
    pub unlisted: bool,
    pub optimal: bool,
}

/// The settings that the rules depend on, in seconds.
pub(super) const LATENESS: Time = HOUR;
pub(super) const HORIZON: Time = 366 * DAY;
pub(super) const LEASE: Time = 600;
pub(super) const ATTEMPTS: u32 = 2;
/// The pause between two attempts, and after a wave that was not taken.
pub(super) const PAUSE: Time = 1;
/// The time until a paused dispatch is checked again.
pub(super) const PAUSED_INTERVAL: Time = 5;
/// How long a `request_id` returns its first answer.
pub(super) const REPLAY_WINDOW: Time = DAY;
