//! The settings of the store.

use std::num::{NonZeroU32, NonZeroUsize};

use clap::Args;

use crate::config::{defaults, values};

/// How the store uses its database.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Tuning")]
pub struct StoreSettings {
    /// Writers of the group commit on PostgreSQL, each with a connection (1 to 64); SQLite has one.
    /// More make smaller batches
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_WRITERS",
        default_value = "2",
        value_parser = values::number::<NonZeroUsize>(1..=64)
    )]
    pub writers: NonZeroUsize,
    /// Maximum changes in one commit (1 to 1000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_COMMIT_MAX",
        default_value = "256",
        value_parser = values::number::<NonZeroUsize>(1..=1000)
    )]
    pub commit_max: NonZeroUsize,
    /// Maximum changes that wait for one writer (1 to 1000000); further ones are refused with
    /// UNAVAILABLE
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_QUEUE_MAX",
        default_value = "4096",
        value_parser = values::number::<NonZeroUsize>(1..=1_000_000)
    )]
    pub queue_max: NonZeroUsize,
    /// Maximum database connections for reading (1 to 1000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_READ_CONNECTIONS",
        default_value = "8",
        value_parser = values::number::<NonZeroU32>(1..=1000)
    )]
    pub read_connections: NonZeroU32,
    /// Number of newest revisions kept for each schedule (1 to 1000000000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_REVISIONS_KEPT",
        default_value = "100",
        help_heading = "Rules",
        value_parser = values::number::<NonZeroU32>(1..=1_000_000_000)
    )]
    pub revisions_kept: NonZeroU32,
}

impl Default for StoreSettings {
    fn default() -> Self {
        defaults()
    }
}
