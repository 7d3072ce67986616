//! `migrate`: applies pending migrations and exits.

use super::{block_on, with_store};
use crate::config::DatabaseUrl;
use crate::error::Error;

pub(super) fn run(database_url: &DatabaseUrl) -> Result<(), Error> {
    block_on(async {
        let applied = with_store(database_url, async |store| store.migrate().await).await?;
        tracing::info!(
            applied = applied.len(),
            steps = applied.join(", "),
            "the schema is up to date"
        );
        Ok(())
    })
}
