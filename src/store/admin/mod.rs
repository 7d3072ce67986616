//! What operators and the process itself ask: keys, workspaces, quotas, retention, counts.

pub(super) mod backlog;
pub(super) mod gauges;
pub(super) mod keys;
pub(super) mod quota;
pub(super) mod retention;
