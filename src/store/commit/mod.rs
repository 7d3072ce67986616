//! The group commit: many changes of callers in one transaction.

pub(super) mod batch;
pub(super) mod insert;
pub(super) mod job;
pub(super) mod queue;
pub(super) mod snapshot;
pub(super) mod statements;
pub(super) mod writer;
