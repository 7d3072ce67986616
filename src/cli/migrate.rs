//! `migrate`: applies pending migrations and exits.

use super::{block_on, open_store};
use crate::config::DatabaseUrl;
use crate::error::Error;

pub(super) fn run(database_url: &DatabaseUrl) -> Result<(), Error> {
    block_on(async {
        let applied = open_store(database_url).await?.migrate().await?;
        tracing::info!(
            applied = applied.len(),
            steps = applied.join(", "),
            "the schema is up to date"
        );
        Ok(())
    })
}
