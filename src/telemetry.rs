//! Logs, metrics and traces. Logs go to standard error, one line for each event: as text on a
//! terminal, otherwise as JSON.

pub mod metrics;
pub mod outage;
pub mod traces;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogArgs;

/// Starts logging for the rest of the process.
///
/// # Errors
/// One line for each invalid setting.
pub fn start(args: &LogArgs) -> Result<(), Vec<String>> {
    let mut errors = Vec::new();
    let filter = EnvFilter::builder().parse(&args.log_level);
    if let Err(error) = &filter {
        errors.push(format!(
            "--log-level: {:?} is not a level or a list of directives ({error})",
            args.log_level
        ));
    }
    let json = match args.log_format.as_str() {
        "json" => true,
        "text" => false,
        "auto" => !std::io::stderr().is_terminal(),
        other => {
            errors.push(format!(
                "--log-format: {other:?} is not one of text, json or auto"
            ));
            false
        }
    };
    let (Ok(filter), true) = (filter, errors.is_empty()) else {
        return Err(errors);
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = if json {
        log.json()
            .flatten_event(true)
            .with_current_span(false)
            .try_init()
    } else {
        log.with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init()
    };
    // Fails only when logging is already started in this process.
    started.map_err(|error| vec![format!("failed to start logging: {error}")])
}
