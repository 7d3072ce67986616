//! One file for each subcommand.

pub mod dev;
pub mod healthcheck;
pub mod migrate;
pub mod sending;
pub mod serve;

use std::future::Future;
use std::process::ExitCode;

use crate::error::Error;

/// What is wrong, a line each.
pub type Faults = Vec<String>;

/// Prints what is wrong and answers the exit code of it.
#[allow(clippy::print_stderr, reason = "a command line tells its faults there")]
pub fn complain(faults: &[String]) -> ExitCode {
    for fault in faults {
        eprintln!("canvas-scheduler: {fault}");
    }
    ExitCode::FAILURE
}

/// Runs a future on this thread until it ends.
fn block_on<T>(work: impl Future<Output = Result<T, Faults>>) -> Result<T, Faults> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|why| vec![format!("the runtime cannot be started: {why}")])?;
    let ended = runtime.block_on(work);
    // Whatever still runs on it has had its time.
    runtime.shutdown_background();
    ended
}

/// An error as a line of the command line. The operator may read internal causes.
fn fault(error: Error) -> Faults {
    match error {
        Error::Internal(cause) => vec![cause],
        Error::Invalid(all) => all.into_iter().map(|one| format!("--{}: {}", one.field, one.message)).collect(),
        other => vec![other.to_string()],
    }
}
