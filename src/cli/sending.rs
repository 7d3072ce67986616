//! `workspace set --sending`: the brake.

use std::sync::Arc;

use super::{Faults, block_on, fault};
use crate::clock::SystemClock;
use crate::config::Sending;
use crate::domain::Policy;
use crate::store::{Options, Store};

/// Runs the subcommand.
///
/// # Errors
/// What is wrong, a line each.
pub fn run(asked: &Sending) -> Result<(), Faults> {
    block_on(async {
        let options = Options::new(&asked.database_url);
        let (store, _writers) = Store::open(&options, Arc::new(SystemClock), Policy::default()).await.map_err(fault)?;
        let workspace = asked.workspace.as_deref();
        if !store.set_sending(workspace, asked.paused).await.map_err(fault)? {
            return Err(vec![format!("workspace {:?} does not exist", workspace.unwrap_or_default())]);
        }
        let (workspace, sending) = (workspace.unwrap_or("all"), if asked.paused { "paused" } else { "on" });
        tracing::info!(workspace, sending, "set; every replica heeds it within 10 seconds");
        Ok(())
    })
}
