//! Classifies database errors.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use sea_orm::{DbErr, RuntimeErr, SqlErr, SqlxError};

use crate::error::{Error, StoreOutage};

/// When to try again while the database is away.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a connection could not be opened, for operators.
#[derive(Debug, Clone)]
pub(crate) struct ConnectFault {
    /// The class of the fault.
    pub why: StoreOutage,
    /// The server and the cause, without credentials.
    pub message: String,
    /// Who can remove the cause.
    pub remedy: Remedy,
}

/// What makes a connection possible that could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Remedy {
    /// Time: the server is restarting, its connections are all in use.
    Wait,
    /// A change at the server: a role, a database, a certificate. A server waits for it, and a
    /// command gives up.
    Server,
    /// Another database or another way to it: nothing waits.
    Url,
}

impl fmt::Display for ConnectFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConnectFault {}

impl From<ConnectFault> for DbErr {
    fn from(fault: ConnectFault) -> Self {
        let fault = SqlxError::Configuration(Box::new(fault));
        DbErr::Conn(RuntimeErr::SqlxError(fault.into()))
    }
}

/// The fault of a connection that could not be opened.
pub(crate) fn connect_fault(fault: &DbErr) -> Option<&ConnectFault> {
    match driver_error(fault) {
        Some(SqlxError::Configuration(why)) => why.downcast_ref(),
        _ => None,
    }
}

/// A fault as text, for operators. Names no credentials.
pub(crate) fn describe(fault: &DbErr) -> String {
    match connect_fault(fault) {
        Some(fault) => fault.message.clone(),
        None => fault.to_string(),
    }
}

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
        // 57P01 to 57P05: the server shuts down, crashed, or refuses connections. 25P03: the
        // transaction was idle for too long. 08xxx: connection exceptions.
        _ => code(fault).is_some_and(|code| {
            code.starts_with("57P") || code.starts_with("08") || code == "25P03"
        }),
    }
}

/// Whether a commit, or a statement that commits, may have been carried out although it failed.
pub(crate) fn may_be_committed(fault: &DbErr) -> bool {
    match sqlite_code(fault) {
        // BUSY, READONLY, FULL, CONSTRAINT: SQLite wrote nothing, or no complete commit. After any
        // other error the commit may be in the file, and a restart may find it there.
        Some(code) => ![5, 8, 13, 19].contains(&code),
        None => connection_lost(fault),
    }
}

/// Why the database cannot be used, if the fault says so. A statement that found it full, locked or
/// read-only was not carried out.
pub(crate) fn outage(fault: &DbErr) -> Option<StoreOutage> {
    if let Some(fault) = connect_fault(fault) {
        return Some(fault.why);
    }
    if let Some(code) = sqlite_code(fault) {
        return match code {
            // BUSY, LOCKED, PROTOCOL.
            5 | 6 | 15 => Some(StoreOutage::Locked),
            7 => Some(StoreOutage::OutOfMemory),
            8 => Some(StoreOutage::ReadOnly),
            13 => Some(StoreOutage::DiskFull),
            // IOERR, CORRUPT, CANTOPEN, NOTADB.
            10 | 11 | 14 | 26 => Some(StoreOutage::Faulty),
            _ => None,
        };
    }
    match code(fault).as_deref() {
        Some("25006") => Some(StoreOutage::ReadOnly),
        Some("53100") => Some(StoreOutage::DiskFull),
        Some("53200") => Some(StoreOutage::OutOfMemory),
        Some("53300") => Some(StoreOutage::TooManyConnections),
        Some("58030") => Some(StoreOutage::Faulty),
        _ if connection_lost(fault) => Some(StoreOutage::Unreachable),
        _ => None,
    }
}

/// Whether the database cannot be used for now.
pub(crate) fn away(fault: &DbErr) -> bool {
    outage(fault).is_some()
}

/// Whether the connection must not be used any more: it is lost, its database is away, or its
/// prepared statements do not fit a schema that has changed since.
pub(crate) fn connection_is_spent(fault: &DbErr) -> bool {
    away(fault) || statements_are_stale(fault)
}

/// 0A000: the result of a prepared statement has changed; 26000: a prepared statement is missing.
fn statements_are_stale(fault: &DbErr) -> bool {
    code(fault).is_some_and(|code| ["0A000", "26000"].contains(&code.as_ref()))
}

/// Whether the statement failed because of other sessions or of an operator, and was not carried
/// out, so that it can be retried.
pub(crate) fn retryable(fault: &DbErr) -> bool {
    // 40P01: deadlock; 40001: serialization failure; 55P03: lock timeout; 57014: cancelled, or
    // timed out.
    let others = |code: Cow<'_, str>| ["40P01", "40001", "55P03", "57014"].contains(&code.as_ref());
    code(fault).is_some_and(others) || statements_are_stale(fault)
}

/// Whether another session held a lock for longer than `lock_timeout`, or made the statement take
/// longer than `statement_timeout`.
pub(crate) fn lock_timed_out(fault: &DbErr) -> bool {
    code(fault).is_some_and(|code| ["55P03", "57014"].contains(&code.as_ref()))
}

pub(crate) fn driver_error(fault: &DbErr) -> Option<&SqlxError> {
    match fault {
        DbErr::Exec(RuntimeErr::SqlxError(why))
        | DbErr::Query(RuntimeErr::SqlxError(why))
        | DbErr::Conn(RuntimeErr::SqlxError(why)) => Some(why),
        _ => None,
    }
}

/// The code of an error that the database reports.
pub(crate) fn code(fault: &DbErr) -> Option<Cow<'_, str>> {
    match driver_error(fault) {
        Some(SqlxError::Database(reported)) => reported.code(),
        _ => None,
    }
}

/// The primary code of an error that SQLite reports. The driver's codes have a refinement above the
/// lowest byte; PostgreSQL's have five characters.
pub(crate) fn sqlite_code(fault: &DbErr) -> Option<u32> {
    let code = code(fault)?;
    let number: Option<u32> = code.parse().ok();
    number
        .filter(|_| code.len() < 5)
        .map(|number| number & 0xff)
}

/// Whether a row with the same unique key exists.
pub(crate) fn unique_violation(fault: &DbErr) -> bool {
    matches!(fault.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}

/// The error that a caller gets, and work in the background, which logs an outage once.
pub(crate) fn public(fault: &DbErr) -> Error {
    let why = outage(fault);
    // Work that waited in vain for a lock was not carried out, and nothing is wrong with it.
    match why.or_else(|| retryable(fault).then_some(StoreOutage::Locked)) {
        Some(why) => {
            tracing::debug!(error = describe(fault), "the database is not available");
            unavailable(why)
        }
        None => Error::internal(fault),
    }
}

pub(crate) fn unavailable(why: StoreOutage) -> Error {
    Error::StoreUnavailable {
        why,
        retry_after: RETRY_AFTER,
    }
}
