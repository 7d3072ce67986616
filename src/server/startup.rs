//! Holds calls and dispatches back until the database is there and its schema migrated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::database::is_usable;
use super::readiness::{Readiness, Schema};
use crate::error::Error;
use crate::service::access::Access;
use crate::store::Store;
use crate::telemetry::outage::OutageLog;

/// The time between checks of the schema until calls are served.
const SCHEMA_INTERVAL: Duration = Duration::from_secs(1);

/// Whether calls are served and waves dispatched. Cheap to clone.
#[derive(Clone)]
pub(super) struct Startup {
    readiness: Readiness,
    access: Access,
    /// Read by every call.
    pub ready: Arc<AtomicBool>,
    /// The same, for the dispatcher to wait for.
    opened: watch::Sender<bool>,
}

impl Startup {
    pub(super) fn new(readiness: Readiness, access: Access) -> Self {
        Self {
            readiness,
            access,
            ready: Arc::new(AtomicBool::new(false)),
            opened: watch::Sender::new(false),
        }
    }

    /// Becomes true once calls are served and waves dispatched.
    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.opened.subscribe()
    }

    /// Opens now, if the database is there and its schema migrated.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the database must not be used.
    pub(super) async fn try_open(&self, store: &Store) -> Result<bool, Error> {
        if !is_usable(store).await? {
            let fault = store.sessions.fault();
            let cause = fault.as_ref().map(|fault| fault.message.as_str());
            tracing::warn!(cause, "not ready: waiting for the database");
            self.readiness.database(fault);
            return Ok(false);
        }
        match self.schema(store).await {
            Ok(Schema::Migrated) => self.open().await,
            Ok(schema) => {
                tracing::warn!("not ready: migrations are pending; run `canvas-scheduler migrate`");
                self.readiness.schema(schema).await;
                return Ok(false);
            }
            Err(error) => {
                tracing::warn!(%error, "not ready: the schema cannot be checked yet");
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn schema(&self, store: &Store) -> Result<Schema, Error> {
        let pending = store.pending_migrations().await?;
        Ok(match pending.len() {
            0 => Schema::Migrated,
            n => Schema::Pending(n),
        })
    }

    /// Serves calls and dispatches waves from here on.
    async fn open(&self) {
        match self.access.reload().await {
            Ok(()) if self.access.has_no_key() => {
                tracing::warn!(
                    "no API key exists yet; create one with: canvas-scheduler api-key create \
                     --name NAME --permissions all"
                );
            }
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "the API keys cannot be read yet"),
        }
        self.ready.store(true, Ordering::Relaxed);
        self.opened.send_replace(true);
        self.readiness.keys(self.access.why_stale());
        self.readiness.schema(Schema::Migrated).await;
    }

    /// Opens once the database is there and no migration is pending, and keeps the keys fresh from
    /// then on.
    pub(super) async fn open_when_possible(self, store: Store) {
        let mut outages = OutageLog::new(
            "not ready: the database must not be used as it is, or its schema cannot be read; \
             retrying",
            "the schema can be read",
        );
        loop {
            tokio::time::sleep(SCHEMA_INTERVAL).await;
            let checked = async {
                if is_usable(&store).await? {
                    self.schema(&store).await
                } else {
                    Ok(Schema::Unknown)
                }
            };
            let schema = checked.await;
            outages.record(&schema);
            match schema {
                Ok(Schema::Migrated) => break,
                Ok(schema) => self.readiness.schema(schema).await,
                Err(_) => self.readiness.schema(Schema::Unknown).await,
            }
        }
        drop(store);
        self.open().await;
        tracing::info!("ready: the schema is up to date");
        self.access.keep_fresh().await;
    }
}
