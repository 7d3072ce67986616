//! The statements of the group commit, in each database's own words (`sql/`). Their texts are constant, so that they stay
//! prepared; a batch travels as arrays (PostgreSQL) or as rows of values (SQLite).

mod postgres;
mod sqlite;

use std::collections::HashSet;

use sea_orm::{ConnectionTrait, DbBackend, DbErr};
use uuid::Uuid;

use crate::store::schema::tables::{canvas_schedule, properties, request, revision};

/// A first answer, to be written only if its schedule's row is.
pub(crate) struct RequestWrite {
    /// The schedule whose change it answers.
    pub schedule_id: Uuid,
    /// The answer.
    pub row: request::Model,
}

/// All that one batch of changes writes.
#[derive(Default)]
pub(crate) struct Writes {
    /// Each row once as it is to be, but for its `version`, which is the one that was read. In the order of their ids, so that
    /// batches of several replicas never wait for each other in a ring.
    pub rows: Vec<canvas_schedule::Model>,
    /// Every revision, of one row in their order.
    pub revisions: Vec<revision::Model>,
    /// New property sets.
    pub properties: Vec<properties::Model>,
    /// First answers.
    pub requests: Vec<RequestWrite>,
}

/// Writes a batch and answers the ids of the rows that still had the version that was read; of the others nothing is written.
///
/// # Errors
/// What the database says.
pub(crate) async fn write<C: ConnectionTrait>(
    db: &C,
    writes: Writes,
) -> Result<HashSet<Uuid>, DbErr> {
    match db.get_database_backend() {
        DbBackend::Postgres => postgres::write(db, writes).await,
        _ => sqlite::write(db, writes).await,
    }
}
