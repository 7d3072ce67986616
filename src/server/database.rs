//! Opens the database, and watches whether it can be used.

use std::time::Duration;

use super::Serve;
use super::readiness::Readiness;
use crate::clock::SharedClock;
use crate::error::{Error, Violation};
use crate::service::access::Access;
use crate::store::{Durability, Options, Store, Writer};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::outage::OutageLog;

/// The time between two checks of the database.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// The same while it cannot be used.
const OUTAGE_PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// The store over a database, its writers, which no thread runs yet, and the metrics of both.
pub(super) struct OpenDatabase {
    pub store: Store,
    pub writers: Vec<Writer>,
    pub metrics: Metrics,
}

impl OpenDatabase {
    pub(super) fn open(settings: &Serve, clock: SharedClock) -> Result<Self, Error> {
        let metrics = Metrics::new().map_err(Error::internal)?;
        let mut options = Options::new(&settings.database_url);
        options.settings = settings.store;
        options.metrics = metrics.commit.clone();
        options.warnings = settings.warnings.clone();
        let (store, writers) = Store::open(&options, clock, settings.policy);
        Ok(Self {
            store,
            writers,
            metrics,
        })
    }
}

/// Whether the database can be used now; false when it is away.
///
/// # Errors
/// [`Error::Invalid`] when it must not be used: it loses acknowledged changes in a crash, or an
/// operator must change something first.
pub(super) async fn is_usable(store: &Store) -> Result<bool, Error> {
    match store.sessions.check().await {
        Ok(durability) => judge(durability).map(|()| true),
        Err(Error::StoreUnavailable { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Refuses a database that loses acknowledged changes in a crash, and warns of one that may lose
/// them in a failover.
pub(super) fn judge(durability: Durability) -> Result<(), Error> {
    match durability {
        Durability::Durable => Ok(()),
        Durability::Weakened { setting } => {
            tracing::warn!(
                setting,
                "the database may lose acknowledged changes in a failover; see docs/operations.md"
            );
            Ok(())
        }
        Durability::Lost { setting } => {
            let message = format!(
                "the database has {setting} and loses acknowledged changes in a crash; set fsync=on"
            );
            Err(Error::Invalid(vec![Violation::new(
                "database-url",
                message,
            )]))
        }
    }
}

/// Keeps readiness up to date with the database and with the keys. Never returns.
pub(super) async fn watch(store: Store, access: Access, readiness: Readiness) {
    let mut log = OutageLog::new(
        "not ready: the database cannot be used; retrying",
        "the database can be used again",
    );
    loop {
        store.sessions.probe(&mut log).await;
        let fault = store.sessions.fault();
        let pause = match fault {
            Some(_) => OUTAGE_PROBE_INTERVAL,
            None => PROBE_INTERVAL,
        };
        readiness.database(fault);
        readiness.keys(access.why_stale());
        tokio::time::sleep(pause).await;
    }
}
