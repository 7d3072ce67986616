//! Logging: one line for each event, to standard error; readable on a terminal, JSON elsewhere.
//! Beside it, metrics and traces.

pub mod metrics;
pub mod outage;
pub mod traces;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogArgs;

/// Starts logging for the rest of the process.
///
/// # Errors
/// What is wrong with the settings, a line each.
pub fn start(args: &LogArgs) -> Result<(), Vec<String>> {
    let mut faults = Vec::new();
    let filter = EnvFilter::builder().parse(&args.log_level);
    if let Err(why) = &filter {
        faults.push(format!(
            "--log-level: {:?} is not a level or a list of directives ({why})",
            args.log_level
        ));
    }
    let json = match args.log_format.as_str() {
        "json" => true,
        "text" => false,
        "auto" => !std::io::stderr().is_terminal(),
        other => {
            faults.push(format!(
                "--log-format: {other:?} is not one of text, json or auto"
            ));
            false
        }
    };
    let (Ok(filter), true) = (filter, faults.is_empty()) else {
        return Err(faults);
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
    // Only a second start in one process fails; the first one goes on.
    started.map_err(|why| vec![format!("logging cannot be started: {why}")])
}
