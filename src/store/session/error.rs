//! Classifies database errors.

use std::borrow::Cow;
use std::time::Duration;

use sea_orm::{DbErr, RuntimeErr, SqlErr, SqlxError};

use crate::error::Error;

/// When to try again while the database is away.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Whether the connection was lost or not established, so that the statement may or may not have
/// been carried out.
pub(crate) fn connection_lost(fault: &DbErr) -> bool {
    if matches!(fault, DbErr::ConnectionAcquire(_) | DbErr::Conn(_)) {
        return true;
    }
    match driver_error(fault) {
        Some(
            SqlxError::Io(_)
            | SqlxError::Protocol(_)
            | SqlxError::PoolClosed
            | SqlxError::PoolTimedOut
            | SqlxError::WorkerCrashed,
        ) => true,
        // 57P01 to 57P05: the server shuts down, crashed, or refuses connections. 08xxx: connection
        // exceptions.
        _ => code(fault).is_some_and(|code| code.starts_with("57P") || code.starts_with("08")),
    }
}

/// Whether the database cannot be written to for now: it is unreachable, full, busy, or read-only.
/// A statement that found it full, busy or read-only was not carried out.
pub(crate) fn away(fault: &DbErr) -> bool {
    connection_lost(fault) || code(fault).is_some_and(|code| cannot_write_now(&code))
}

fn cannot_write_now(code: &str) -> bool {
    match code.parse::<u32>() {
        // SQLite, whose codes are numbers with a refinement above the lowest byte. 5: another
        // process holds the write lock; 13: the disk is full.
        Ok(number) if code.len() < 5 => [5, 13].contains(&(number & 0xff)),
        // PostgreSQL. 25006: the server is read-only, as after a demotion; 53xxx: out of disk,
        // memory or connections.
        _ => code == "25006" || code.starts_with("53"),
    }
}

/// Whether the transaction was rolled back because of others, so that it can be retried.
pub(crate) fn deadlock(fault: &DbErr) -> bool {
    // 40P01: deadlock; 40001: serialization failure; 55P03: lock timeout.
    code(fault).is_some_and(|code| ["40P01", "40001", "55P03"].contains(&code.as_ref()))
}

/// Whether another session held a lock for longer than `lock_timeout`.
pub(crate) fn lock_timed_out(fault: &DbErr) -> bool {
    code(fault).is_some_and(|code| code == "55P03")
}

fn driver_error(fault: &DbErr) -> Option<&SqlxError> {
    match fault {
        DbErr::Exec(RuntimeErr::SqlxError(why))
        | DbErr::Query(RuntimeErr::SqlxError(why))
        | DbErr::Conn(RuntimeErr::SqlxError(why)) => Some(why),
        _ => None,
    }
}

/// The code of an error that the database reports.
fn code(fault: &DbErr) -> Option<Cow<'_, str>> {
    match driver_error(fault) {
        Some(SqlxError::Database(reported)) => reported.code(),
        _ => None,
    }
}

/// Whether a row with the same unique key exists.
pub(crate) fn unique_violation(fault: &DbErr) -> bool {
    matches!(fault.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}

/// The error that a caller gets.
pub(crate) fn public(fault: DbErr) -> Error {
    let error = background(&fault);
    if !matches!(error, Error::Internal(_)) {
        tracing::warn!(error = %fault, "the database is not available");
    }
    error
}

/// The error that work in the background gets, which retries many times a second and logs an outage
/// once.
pub(crate) fn background(fault: &DbErr) -> Error {
    // Work that waited in vain for a lock was not carried out, and nothing is wrong with it.
    if away(fault) || deadlock(fault) {
        tracing::debug!(error = %fault, "the database is not available");
        return unavailable();
    }
    Error::internal(fault)
}

pub(crate) fn unavailable() -> Error {
    Error::StoreUnavailable {
        retry_after: RETRY_AFTER,
    }
}
