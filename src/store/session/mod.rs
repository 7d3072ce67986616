//! Connections to the database: how they are made, kept, given transactions, and what their errors mean.

pub(super) mod connect;
pub(super) mod connection;
pub(super) mod error;
pub(super) mod pool;
pub(super) mod sessions;
