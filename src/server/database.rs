//! Opens the database.

use super::Serve;
use crate::clock::SharedClock;
use crate::error::{Error, Violation};
use crate::store::{Durability, Options, Store, Writer};
use crate::telemetry::metrics::Metrics;

/// The store over an open database, its writers, which no thread runs yet, and the metrics of both.
pub(super) struct OpenDatabase {
    pub store: Store,
    pub writers: Vec<Writer>,
    pub metrics: Metrics,
}

impl OpenDatabase {
    pub(super) async fn open(settings: &Serve, clock: SharedClock) -> Result<Self, Error> {
        let metrics = Metrics::new().map_err(Error::internal)?;
        let options = Options {
            settings: settings.store,
            metrics: metrics.commit.clone(),
            ..Options::new(settings.database_url.text())
        };
        let (store, writers) = Store::open(&options, clock, settings.policy).await?;
        Ok(Self {
            store,
            writers,
            metrics,
        })
    }

    /// Refuses a database that loses acknowledged changes in a crash, and warns of one that may
    /// lose them in a failover.
    pub(super) async fn check_durability(&self) -> Result<(), Error> {
        match self.store.durability().await? {
            Durability::Durable => Ok(()),
            Durability::Weakened { setting } => {
                tracing::warn!(
                    setting,
                    "the database may lose acknowledged changes in a failover; see \
                     docs/operations.md"
                );
                Ok(())
            }
            Durability::Lost { setting } => {
                let message = format!(
                    "the database has {setting} and loses acknowledged changes in a crash; set \
                     fsync=on"
                );
                Err(Error::Invalid(vec![Violation::new(
                    "database-url",
                    message,
                )]))
            }
        }
    }
}
