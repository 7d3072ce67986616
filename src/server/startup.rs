//! Holds calls and dispatches back until the schema is migrated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::readiness::{Readiness, Schema};
use crate::service::access::Access;
use crate::store::Store;
use crate::telemetry::outage::OutageLog;

/// The time between checks of the schema while migrations are pending.
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

    /// Serves calls and dispatches waves from here on.
    pub(super) async fn open(self) {
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
        self.readiness.schema(Schema::Migrated).await;
    }

    /// Opens once no migration is pending, and keeps the keys fresh from then on.
    pub(super) async fn open_once_migrated(self, store: Store) {
        tracing::warn!("not ready: migrations are pending; run `canvas-scheduler migrate`");
        let mut outages = OutageLog::new(
            "not ready: the schema cannot be checked; retrying",
            "the schema can be checked again",
        );
        loop {
            let pending = store.pending_migrations().await;
            outages.record(&pending);
            let schema = match pending {
                Ok(pending) if pending.is_empty() => break,
                Ok(pending) => Schema::Pending(pending.len()),
                Err(_) => Schema::Unknown,
            };
            self.readiness.schema(schema).await;
            tokio::time::sleep(SCHEMA_INTERVAL).await;
        }
        drop(store);
        let access = self.access.clone();
        self.open().await;
        tracing::info!("ready: the schema is up to date");
        access.keep_fresh().await;
    }
}
