//! Sessions with the database: connecting, kept connections, transactions, and what the database's
//! errors mean.

pub(super) mod connect;
pub(super) mod durability;
pub(super) mod error;
pub(super) mod options;
pub(super) mod pool;
pub(super) mod sessions;
