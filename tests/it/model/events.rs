//! What may happen, and what is answered.

use super::zones::{DAY, HOUR, Time, Zones};

/// What the flags of a schedule make of its time.
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

/// A schedule for so many hours from now, as a caller wishes it.
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

/// Which etag a change carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Etag {
    None,
    Current,
    Stale,
}

/// What a change asks for beside itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Terms {
    pub etag: Etag,
    pub require_all: bool,
}

/// What a sink says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Says {
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
    /// To the end of a lease that begins now.
    Lease,
    /// To whatever is due next.
    Next,
    Day,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Event {
    Create(Wish),
    Update(Wish, Terms),
    Cancel(Terms),
    /// The request that was accepted last arrives once more, under its `request_id`.
    Again,
    Clock(Move),
    /// Workers are free for what is due for the first time.
    Fire,
    /// Workers are free for what is due once more.
    Retry,
    /// The sink answers what was handed over last, or so many before; or its first answer to that arrives once more.
    DeliveryOutcome(usize, Says),
    /// An operator has the dispatch of this number tried again.
    RetryDispatch(u32),
    Brake {
        /// For all workspaces, else for the schedule's.
        all: bool,
        on: bool,
    },
    /// The zone rules of the other release come into force.
    Rules,
    /// A release whose rules have the next wave an hour later, or earlier, has left the schedule to this one.
    OtherRelease {
        later: bool,
    },
    /// The process is killed; another opens the same database.
    Restart,
}

/// How far an accepted change reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Applied {
    All,
    Some,
}

/// What whoever brought the event about is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Told {
    /// Nobody asked.
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
    Revived,
}

/// A wave that reaches the consumer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct HandedOver {
    pub n: u32,
    pub attempt: u32,
    pub revision: i64,
    pub wave: Wave,
    pub lateness: Time,
    /// The zones of the recipients that are in it; each zone has one.
    pub recipients: Zones,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Wave {
    pub time: Time,
    pub zones: Zones,
    pub unlisted: bool,
    pub optimal: bool,
}

/// The settings that the rules depend on.
pub(super) const LATENESS: Time = HOUR;
pub(super) const HORIZON: Time = 366 * DAY;
pub(super) const LEASE: Time = 600;
pub(super) const ATTEMPTS: u32 = 2;
/// Between two attempts, and after a wave that was not taken.
pub(super) const PAUSE: Time = 1;
/// Before a paused dispatch is looked at again.
pub(super) const PAUSED_REST: Time = 5;
/// How long a `request_id` stands for its first answer.
pub(super) const REMEMBERED: Time = DAY;
