//! `migrate`: applies pending migrations and ends.

use std::sync::Arc;

use super::{Faults, block_on, fault};
use crate::clock::SystemClock;
use crate::config::Secret;
use crate::domain::Policy;
use crate::store::{Options, Store};

/// Runs the subcommand.
///
/// # Errors
/// What is wrong, a line each.
pub fn run(database_url: &Secret<String>) -> Result<(), Faults> {
    block_on(async {
        let (store, _writers) = Store::open(
            &Options::of_command(&database_url.0),
            Arc::new(SystemClock),
            Policy::default(),
        )
        .await
        .map_err(fault)?;
        let applied = store.migrate().await.map_err(fault)?;
        tracing::info!(
            applied = applied.len(),
            steps = applied.join(", "),
            "the schema is up to date"
        );
        Ok(())
    })
}
