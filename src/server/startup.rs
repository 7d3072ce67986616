//! Whether calls are served and waves fired: not before the schema is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::readiness::{Readiness, Schema};
use crate::service::access::Access;
use crate::store::Store;

/// Between looks at the schema while migrations are pending.
const SCHEMA_POLL: Duration = Duration::from_secs(1);

/// The way in, shut at first.
pub(super) struct Startup {
    readiness: Readiness,
    /// Looked at for each call.
    pub ready: Arc<AtomicBool>,
    /// The same, to be waited for.
    pub opened: watch::Sender<bool>,
    /// Who is let in.
    access: Access,
}

impl Startup {
    /// A way in for those whom `access` knows.
    pub(super) fn shut(readiness: Readiness, access: Access) -> Self {
        Self {
            readiness,
            ready: Arc::new(AtomicBool::new(false)),
            opened: watch::Sender::new(false),
            access,
        }
    }

    /// From here on calls are served and waves fired. Answers who is let in, to be kept fresh.
    pub(super) async fn open(self) -> Access {
        match self.access.read().await {
            Ok(()) if self.access.nobody_may_call() => {
                tracing::warn!(
                    "there is no key yet, so nobody may call; make one: canvas-scheduler api-key create --name NAME --permissions all"
                );
            }
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "the keys cannot be read yet"),
        }
        self.ready.store(true, Ordering::Relaxed);
        self.opened.send_replace(true);
        self.readiness.schema(Schema::There).await;
        self.access
    }

    /// Opens once no migration is pending, and keeps the keys fresh from then on.
    pub(super) async fn open_with_schema(self, store: Store) {
        tracing::warn!("not ready: migrations are pending; run `canvas-scheduler migrate`");
        loop {
            let schema = match store.pending_migrations().await {
                Ok(pending) if pending.is_empty() => break,
                Ok(pending) => Schema::Pending(pending.len()),
                Err(error) => {
                    tracing::warn!(%error, "not ready: the schema cannot be looked at");
                    Schema::Unknown
                }
            };
            self.readiness.schema(schema).await;
            tokio::time::sleep(SCHEMA_POLL).await;
        }
        drop(store);
        let access = self.open().await;
        tracing::info!("ready: the schema is there");
        access.keep_fresh().await;
    }
}
