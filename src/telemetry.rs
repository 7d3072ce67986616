//! Logs, metrics and traces. Logs go to standard error, one line for each event: as text on a
//! terminal, otherwise as JSON.

pub mod metrics;
pub mod notices;
pub mod outage;
mod settings;
pub mod traces;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::error::Error;
use notices::ServerWarnings;
pub use settings::{CollectorSettings, LogFormat, LogSettings, TraceArgs};

/// Starts logging for the rest of the process. Returns the counter of PostgreSQL's warnings, which
/// counts also those that the log leaves out.
pub fn start(settings: &LogSettings) -> Result<ServerWarnings, Error> {
    let wanted = EnvFilter::builder()
        .parse(&settings.log_level)
        .map_err(Error::internal)?;
    let terminal = std::io::stderr().is_terminal();
    let json = match settings.log_format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    // Where standard error is full, reporting that a line is lost there would be a panic.
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let log = if json {
        log.json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed()
    } else {
        log.with_ansi(terminal).with_target(false).boxed()
    };
    let warnings = ServerWarnings::default();
    tracing_subscriber::registry()
        .with(log.with_filter(wanted))
        .with(warnings.clone().with_filter(notices::filter()))
        .try_init()
        .map_err(|error| Error::internal(format!("failed to start logging: {error}")))?;
    Ok(warnings)
}
