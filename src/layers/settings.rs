//! The limits of calls.

use std::time::Duration;

use clap::Args;

use crate::config::{defaults, values};

/// The limits of calls, over all connections.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Bounds")]
pub struct CallSettings {
    /// Maximum calls in flight, over all connections (1 to 1000000); further ones are refused with
    /// UNAVAILABLE, except health checks
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_MAX_IN_FLIGHT",
        default_value = "4096",
        value_parser = values::number::<usize>(1..=1_000_000)
    )]
    pub max_in_flight: usize,
    /// Maximum megabytes of requests in flight, beyond the first 4 KB of each (4 to 1000000);
    /// further ones are refused with UNAVAILABLE
    #[arg(
        long = "max-in-flight-megabytes",
        env = "CANVAS_SCHEDULER_MAX_IN_FLIGHT_MEGABYTES",
        default_value = "32",
        value_name = "MAX_IN_FLIGHT_MEGABYTES",
        value_parser = values::megabytes(4..=1_000_000)
    )]
    pub max_in_flight_bytes: usize,
    /// Maximum time of a call, even if its deadline is later
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_MAX_CALL_TIME",
        default_value = "60s",
        value_parser = values::duration
    )]
    pub max_call_time: Duration,
}

impl Default for CallSettings {
    fn default() -> Self {
        defaults()
    }
}
