//! The group commit: many callers' changes in one transaction. The database's limit is per
//! transaction, not per row (docs/adr/0002), so a writer commits together what arrives together.
//!
//! # What is authoritative
//!
//! The hot row (`canvas_schedule`) decides. Every write moves its `version`: a round writes a row
//! only if the row still has the version that the round has read. Within a process a schedule has
//! one writer, chosen by a hash of its id, so its changes keep their order and the process never
//! conflicts with itself; another replica may still write the row first. A change is acknowledged
//! only after the commit that carries it.
//!
//! # A round
//!
//! ```text
//! caller ── enqueue ──> queue of the writer (bounded; full: Busy)
//!                            │ takes what waits, never waits for more
//!                            v
//!              ┌────────── read ──────────┐  the rows of the batch, in one statement
//!              │            │             │
//!              │            v             │  the domain decides change after change
//!              │         decide ──────────┼──> answered: refusals, repeated requests, lost commits
//!              │            │             │
//!              │            v             │  rows, revisions and answers, guarded by the versions
//!              │          write           │
//!              │            │ commit      │
//!              │            v             │
//!              │          reply ──────────┼──> answered: every change whose row was written
//!              └────────────┼─────────────┘
//!                           v
//!            changes whose row has moved: first in the next round
//! ```
//!
//! On PostgreSQL, a round that only changes existing schedules is two statements without `BEGIN`
//! and `COMMIT`. New schedules, cancellations of schedules with dispatches, rows that lost two
//! rounds, and everything on SQLite take a transaction.
//!
//! # Failures
//!
//! - A row's version has moved: the next round decides its changes again; after two lost rounds,
//!   under a row lock.
//! - Another session holds a row's lock for a second: the next round skips the row, so that the
//!   changes of other rows are not delayed.
//! - Deadlock or serialization failure: the round is repeated, at most ten times.
//! - A statement fails for another reason: the batch is halved until the faulty change stands
//!   alone; only its caller sees the error.
//! - A request id was answered meanwhile: the next round finds that answer and replays it.
//! - The database is unavailable, full or read-only: changes are retried for five seconds; then
//!   StoreUnavailable.
//! - The commit failed, and may have been carried out: the next round looks for the revision that
//!   carries the `commit_id`; only if there is none is the change decided again.
//! - An answer was read back, of such a commit or of a repeated request: it is sent after a commit
//!   that follows the read. What a server shows after a restart may be on no standby.
//! - The server sent a warning with the commit: another commit follows before the answers, since
//!   the warning may say that the wait for a standby was cancelled.
//! - No answer within ten seconds: the session is closed, and its callers get OutcomeUnknown.

pub(super) mod batch;
pub(super) mod insert;
pub(super) mod job;
pub(super) mod queue;
pub(super) mod snapshot;
pub(super) mod statements;
pub(super) mod writer;
