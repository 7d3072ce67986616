//! Where the database is, and the limits of its use.

use std::time::Duration;

use crate::store::settings::StoreSettings;
use crate::telemetry::metrics::CommitMetrics;

/// How long a caller waits for a connection before it is asked to try again.
const SERVING_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The same for a command: a release's migration does not fail because the database is slow or just
/// starting.
const COMMAND_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the database is, and the limits of its use.
#[derive(Clone)]
pub struct Options {
    /// `postgres://…` or `sqlite://…`. May hold a password: never logged.
    pub url: String,
    /// How it is used.
    pub settings: StoreSettings,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// Metrics of the commits and of dead letters.
    pub metrics: CommitMetrics,
}

impl Options {
    /// The default settings.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            settings: StoreSettings::default(),
            connect_timeout: SERVING_CONNECT_TIMEOUT,
            metrics: CommitMetrics::default(),
        }
    }

    /// The settings of a command that ends when its work is done. No caller waits behind it, so it
    /// may wait longer.
    pub fn of_command(url: impl Into<String>) -> Self {
        Self {
            connect_timeout: COMMAND_CONNECT_TIMEOUT,
            ..Self::new(url)
        }
    }

    pub(super) fn is_sqlite(&self) -> bool {
        self.url.starts_with("sqlite:")
    }

    /// Whether the database exists only in its one connection.
    pub(super) fn is_in_memory(&self) -> bool {
        self.is_sqlite() && (self.url.contains(":memory:") || self.url.contains("mode=memory"))
    }
}
