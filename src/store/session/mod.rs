//! Sessions with the database: opening, checking and closing connections, transactions, and what
//! the database's errors mean (docs/adr/0013).

pub(super) mod connect;
pub(super) mod connection;
pub(super) mod database;
pub(super) mod durability;
pub(super) mod error;
pub(super) mod options;
pub(super) mod pooler;
pub(super) mod sessions;
pub(super) mod store_sessions;
