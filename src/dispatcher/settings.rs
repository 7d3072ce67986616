//! The settings of the dispatcher.

use std::num::NonZeroUsize;

use clap::Args;

use crate::config::{defaults, values};

/// The limits of the dispatcher.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Sending")]
pub struct DispatcherSettings {
    /// Maximum dispatches in flight (1 to 10000)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_WORKERS",
        default_value = "1024",
        value_parser = values::number::<NonZeroUsize>(1..=10_000)
    )]
    pub workers: NonZeroUsize,
}

impl Default for DispatcherSettings {
    fn default() -> Self {
        defaults()
    }
}
