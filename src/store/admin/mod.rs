//! Operations for operators and for the process itself: keys, workspaces, quotas, retention and the
//! backlog.

pub(super) mod backlog;
pub(super) mod keys;
pub(super) mod quota;
pub(super) mod retention;
pub(super) mod workspaces;

use sea_orm::DatabaseConnection;

use crate::clock::SharedClock;
use crate::error::{Error, Violation};
use crate::store::session::pool::Pool;

/// Keys, workspaces, quotas, retention and backlog.
#[derive(Clone)]
pub struct AdminStore {
    pub(super) reads: DatabaseConnection,
    pub(super) pool: Pool,
    pub(super) clock: SharedClock,
}

/// The error for an invalid value of one field.
fn invalid(field: &str, message: String) -> Error {
    Error::Invalid(vec![Violation::new(field, message)])
}
