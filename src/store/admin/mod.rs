//! Operations for operators and for the process itself: keys, workspaces, quotas, retention, the
//! backlog and backups.

pub(super) mod backlog;
pub(super) mod backup;
pub(super) mod keys;
pub(super) mod quota;
pub(super) mod retention;
pub(super) mod workspaces;

use sea_orm::DbErr;

use crate::clock::SharedClock;
use crate::error::{Error, Violation};
use crate::store::session::error::unique_violation;
use crate::store::session::sessions::Sessions;

/// Keys, workspaces, quotas, retention, backlog and backups.
#[derive(Clone)]
pub struct AdminStore {
    pub(super) sessions: Sessions,
    pub(super) clock: SharedClock,
}

/// Whether a row was inserted; false if its name is taken.
fn unless_taken<T>(inserted: Result<T, DbErr>) -> Result<bool, DbErr> {
    match inserted {
        Ok(_) => Ok(true),
        Err(fault) if unique_violation(&fault) => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// The error for an invalid value of one field.
fn invalid(field: &str, message: String) -> Error {
    Error::Invalid(vec![Violation::new(field, message)])
}
