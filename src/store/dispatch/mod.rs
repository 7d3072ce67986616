//! The dispatcher's part of the store: claims due waves, leases their dispatches and settles the
//! outcomes.
//!
//! # Claim, lease and settle
//!
//! The queue of due schedules (`canvas_schedule_wake`) says when to examine which schedule. A claim
//! is one short transaction: it locks due entries and their schedules, lets the domain decide each
//! schedule, and writes the schedules, their new dispatches and the queue together. No transaction
//! is open while a sink delivers.
//!
//! No batch waits for a row that another session has locked, since one lock would hold up all
//! others: claims and retries pass over it, and a settlement leaves its outcome out, to be settled
//! later. An entry whose schedule was removed is removed once nothing else is due.
//!
//! A new dispatch is leased: until `retry_ms` only the worker that claimed it delivers it. The
//! worker then settles it with the sink's answer.
//!
//! # What is authoritative
//!
//! The schedule's row, never the queue entry. An entry may be early or left over; the row's
//! `next_wave_ms` says whether a wave is due. Every write of a row is guarded by its `version` and
//! moves it, so a caller's change and a claim that were decided on the same row cannot both be
//! written: the one that comes second is decided again. Of a dispatch, its own row is
//! authoritative; it is decided under the lock of its schedule's row, so a cancellation either
//! waits or is seen.
//!
//! # The states of a dispatch
//!
//! ```text
//!                claim                          delivered
//! (no dispatch) ───────► in hand ──────────────────────────────────► delivered
//!       ▲                 │ ▲  │                                         ▲
//!       │ not taken,      │ │  │ rejected                                │ delivered,
//!       └─────────────────┘ │  └───────────────► dead letter             │ after all
//!         first attempt     │                       ▲    │               │
//!                     retry │ outcome unknown,      │    │ retried by    │
//!                           │ or the lease expired  │    │ a caller      │
//!                           │                       │    ▼               │
//!                           └────────────────────► unknown ──────────────┘
//!                                no attempt left ──┘    │
//!                                                       │ schedule cancelled
//!                                                       └──────────────► abandoned
//! ```
//!
//! A sink that did not take the first attempt leaves no dispatch behind: the wave's zones are open
//! again, and the schedule is claimed again later.
//!
//! # A commit that failed
//!
//! The connection may have been lost after the database carried the commit out. A dispatch holds the
//! number of the claim or retry that leased it (`claim_id`), so the worker reads back, over another
//! session, which of its dispatches were committed, and delivers those alone. The waves of a commit
//! that was not carried out are still due.
//!
//! # A lease that expired
//!
//! The worker crashed, lost the database, or is slow. The outcome is then unknown: the consumer may
//! have the message. Another worker retries it with the next attempt number, so a consumer may
//! receive a dispatch twice, with the same id. An answer to an earlier attempt is ignored, unless
//! it says that the message was delivered.

pub(super) mod claim;
pub(super) mod cursor;
pub(super) mod dead_letters;
pub(super) mod next_due;
pub(super) mod pause;
pub(super) mod payload;
pub(super) mod retry;
pub(super) mod rows;
pub(super) mod settle;
pub(super) mod transitions;
pub(super) mod unsettled;
pub(super) mod zone_rules;

use crate::error::Error;
use crate::store::session::error::{may_be_committed, public};
use crate::store::session::sessions::{Session, Sessions};
use crate::telemetry::metrics::CommitMetrics;
use cursor::Cursor;
use unsettled::UnsettledClaims;

/// The sessions of the dispatcher, by use: none waits for another.
pub(super) struct DispatchSessions {
    pub claiming: Sessions,
    pub settling: Sessions,
    pub other: Sessions,
}

/// Claims due waves, settles outcomes, and pauses sending.
#[derive(Clone)]
pub struct DispatchStore {
    claiming: Sessions,
    settling: Sessions,
    /// For everything else.
    other: Sessions,
    cursor: Cursor,
    unsettled: UnsettledClaims,
    metrics: CommitMetrics,
}

impl DispatchStore {
    pub(super) fn new(sessions: DispatchSessions, metrics: CommitMetrics) -> Self {
        let DispatchSessions {
            claiming,
            settling,
            other,
        } = sessions;
        Self {
            claiming,
            settling,
            other,
            cursor: Cursor::default(),
            unsettled: UnsettledClaims::default(),
            metrics,
        }
    }

    /// Commits a caller's change. Fails with [`Error::OutcomeUnknown`] when the database may have
    /// carried it out all the same.
    async fn commit(&self, db: Session<'_>) -> Result<(), Error> {
        match self.other.run(async { Ok(db.commit().await) }).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(fault)) if !may_be_committed(&fault) => Err(public(&fault)),
            Ok(Err(_)) | Err(_) => Err(Error::OutcomeUnknown),
        }
    }
}
