//! Logs, metrics and traces. Logs go to standard error, one line for each event: as text on a
//! terminal, otherwise as JSON.

pub mod metrics;
pub mod outage;
mod settings;
pub mod traces;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::error::Error;
pub use settings::{LogFormat, LogSettings, TraceArgs};

/// Starts logging for the rest of the process.
pub fn start(settings: &LogSettings) -> Result<(), Error> {
    let filter = EnvFilter::builder().parse(&settings.log_level);
    let terminal = std::io::stderr().is_terminal();
    let json = match settings.log_format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter.map_err(Error::internal)?)
        .with_writer(std::io::stderr);
    let started = if json {
        log.json()
            .flatten_event(true)
            .with_current_span(false)
            .try_init()
    } else {
        log.with_ansi(terminal).with_target(false).try_init()
    };
    started.map_err(|error| Error::internal(format!("failed to start logging: {error}")))
}
