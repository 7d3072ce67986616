//! Writes what a batch decided, in each database's own words. The texts are constant, so that they stay prepared; a batch
//! travels as arrays (PostgreSQL) or as rows of values (SQLite).

mod postgres;
mod sqlite;

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr};
use uuid::Uuid;

use crate::store::commit::insert::{self, NewRows};
use crate::store::dispatch::rows;
use crate::store::dispatch::zone_rules;
use crate::store::schema::load::ScheduleKey;
use crate::store::schema::tables::{canvas_schedule, properties, request, revision};

/// A first answer, to be written only if its schedule's row is.
pub(crate) struct RequestWrite {
    /// The schedule whose change it answers.
    pub schedule_id: Uuid,
    /// The answer.
    pub row: request::Model,
}

/// All that one batch writes.
pub(crate) struct Writes {
    /// The rows of new schedules.
    pub created: NewRows,
    /// Each changed row once as it is to be, except for its `version`, which is the one that was read. In the order of their ids,
    /// so that batches of several replicas never wait for each other in a ring.
    pub rows: Vec<canvas_schedule::Model>,
    /// The revisions of those rows, in their order; of one row in the order of the changes.
    pub revisions: Vec<revision::Model>,
    /// New property sets.
    pub properties: Vec<properties::Model>,
    /// First answers.
    pub requests: Vec<RequestWrite>,
    /// Schedules with dispatches that are cancelled now: their unknown dispatches are not retried.
    pub abandoned: Vec<ScheduleKey>,
    /// Schedules whose next wave is now computed with this build's zone data.
    pub restamped: Vec<ScheduleKey>,
    /// The instant of every change.
    pub now: DateTime<Utc>,
}

impl Writes {
    /// Nothing yet, at this instant.
    pub(crate) fn new(now: DateTime<Utc>) -> Self {
        Self {
            created: NewRows::default(),
            rows: vec![],
            revisions: vec![],
            properties: vec![],
            requests: vec![],
            abandoned: vec![],
            restamped: vec![],
            now,
        }
    }

    /// Whether one statement writes all of it, which needs no transaction.
    pub(crate) fn is_one_statement(&self) -> bool {
        self.created.schedules.is_empty() && self.abandoned.is_empty() && self.restamped.is_empty()
    }
}

/// Writes a batch. Returns the schedules that were written: the new ones, and those whose rows still had the version that was
/// read. Of the others nothing is written.
pub(crate) async fn write<C: ConnectionTrait>(
    db: &C,
    writes: &Writes,
) -> Result<HashSet<Uuid>, DbErr> {
    insert::schedules(db, &writes.created).await?;
    let mut written = HashSet::new();
    if !writes.rows.is_empty() {
        written = match db.get_database_backend() {
            DbBackend::Postgres => postgres::write(db, writes).await?,
            _ => sqlite::write(db, writes).await?,
        };
        let of_written = |keys: &[ScheduleKey]| -> Vec<ScheduleKey> {
            let written = keys.iter().filter(|key| written.contains(&key.id));
            written.copied().collect()
        };
        rows::abandon(db, &of_written(&writes.abandoned), writes.now).await?;
        zone_rules::stamp(db, &of_written(&writes.restamped)).await?;
    }
    written.extend(writes.created.schedules.iter().map(|row| row.id));
    Ok(written)
}
