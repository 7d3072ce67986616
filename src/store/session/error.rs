//! What a database fault means to a caller.

use std::time::Duration;

use sea_orm::{DbErr, RuntimeErr, SqlErr, SqlxError};

use crate::error::Error;

/// When to try again while the database is away.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Whether the connection is gone or could not be had, so that the statement may or may not have
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
        // 57P01 to 57P05: the server is shutting down, crashed, or refuses connections. 08xxx:
        // connection exceptions.
        Some(SqlxError::Database(said)) => said
            .code()
            .is_some_and(|code| code.starts_with("57P") || code.starts_with("08")),
        _ => false,
    }
}

/// Whether the database cannot be written to for now: it is gone, or there but full, busy, or
/// read-only. Of the latter nothing was carried out.
pub(crate) fn away(fault: &DbErr) -> bool {
    connection_lost(fault) || cannot_write_now(fault)
}

fn cannot_write_now(fault: &DbErr) -> bool {
    let Some(SqlxError::Database(said)) = driver_error(fault) else {
        return false;
    };
    let Some(code) = said.code() else {
        return false;
    };
    match code.parse::<u32>() {
        // SQLite, whose codes are numbers with a refinement above the lowest byte. 5: another
        // process holds the write lock; 13: the disk is full.
        Ok(number) if code.len() < 5 => [5, 13].contains(&(number & 0xff)),
        // PostgreSQL. 25006: a server that only reads, as one that was demoted; 53xxx: out of disk,
        // memory or connections.
        _ => code == "25006" || code.starts_with("53"),
    }
}

/// Whether transactions waited for each other and this one was chosen to give way; it may simply be
/// tried again.
pub(crate) fn deadlock(fault: &DbErr) -> bool {
    match driver_error(fault) {
        // 40P01: deadlock; 40001: serialization failure; 55P03: a lock was not had in time.
        Some(SqlxError::Database(said)) => said
            .code()
            .is_some_and(|code| ["40P01", "40001", "55P03"].contains(&code.as_ref())),
        _ => false,
    }
}

/// Whether another session held a lock for longer than a writer waits.
pub(crate) fn lock_timed_out(fault: &DbErr) -> bool {
    let Some(SqlxError::Database(error)) = driver_error(fault) else {
        return false;
    };
    error.code().is_some_and(|code| code == "55P03")
}

fn driver_error(fault: &DbErr) -> Option<&SqlxError> {
    match fault {
        DbErr::Exec(RuntimeErr::SqlxError(why))
        | DbErr::Query(RuntimeErr::SqlxError(why))
        | DbErr::Conn(RuntimeErr::SqlxError(why)) => Some(why),
        _ => None,
    }
}

/// Whether a unique key stood in the way.
pub(crate) fn unique_violation(fault: &DbErr) -> bool {
    matches!(fault.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}

/// The error that a caller gets for the fault.
pub(crate) fn public(fault: &DbErr) -> Error {
    let error = background(fault);
    if !matches!(error, Error::Internal(_)) {
        tracing::warn!(error = %fault, "the database is not available");
    }
    error
}

/// As [`public`], for a background task that retries many times a second and logs an outage once.
pub(crate) fn background(fault: &DbErr) -> Error {
    // A statement that lost a deadlock was not carried out, so the caller may repeat it.
    if away(fault) || deadlock(fault) {
        tracing::debug!(error = %fault, "the database is not available");
        return Error::StoreUnavailable {
            retry_after: RETRY_AFTER,
        };
    }
    Error::internal(fault)
}
