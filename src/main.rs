//! The command line: reads it, starts telemetry, calls one function.

use std::process::ExitCode;

use canvas_scheduler::cli;
use canvas_scheduler::config::{Command, CommandLine};
use canvas_scheduler::telemetry;
use clap::Parser;

/// Its gain is measured in docs/performance.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let line = CommandLine::parse();
    let logging = telemetry::start(&line.log);
    let outcome = match line.command {
        Command::Dev(args) => both(logging, args.read()).and_then(|serve| cli::dev::run(&serve)),
        Command::Serve(args) => {
            both(logging, args.read()).and_then(|serve| cli::serve::run(&serve))
        }
        Command::Migrate(args) => {
            both(logging, args.read()).and_then(|url| cli::migrate::run(&url))
        }
        Command::ApiKey(command) => {
            both(logging, Ok(command)).and_then(|command| cli::api_key::run(&command))
        }
        Command::Workspace(command) => {
            both(logging, Ok(command)).and_then(|command| cli::workspace::run(&command))
        }
        Command::Healthcheck(args) => {
            both(logging, args.read()).and_then(|asked| cli::healthcheck::run(&asked))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(faults) => cli::complain(&faults),
    }
}

/// The settings, or the faults of both, so that all are told in one go.
fn both<T>(
    logging: Result<(), Vec<String>>,
    settings: Result<T, Vec<String>>,
) -> Result<T, Vec<String>> {
    match (logging, settings) {
        (Ok(()), settings) => settings,
        (Err(faults), Ok(_)) => Err(faults),
        (Err(mut faults), Err(more)) => {
            faults.extend(more);
            Err(faults)
        }
    }
}
