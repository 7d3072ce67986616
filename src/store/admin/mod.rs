//! What operators and the process itself ask: keys, workspaces, quotas, retention, counts.

pub(super) mod backlog;
pub(super) mod keys;
pub(super) mod quota;
pub(super) mod retention;

use sea_orm::DatabaseConnection;

use crate::clock::SharedClock;
use crate::store::session::pool::Pool;

/// What operators and the process itself ask.
#[derive(Clone)]
pub struct AdminStore {
    pub(super) reads: DatabaseConnection,
    pub(super) pool: Pool,
    pub(super) clock: SharedClock,
}
