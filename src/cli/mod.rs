//! The command line: one file for each subcommand.

mod api_key;
mod backup;
mod dev;
mod healthcheck;
mod migrate;
mod output;
mod serve;
mod workspace;

use std::future::Future;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};

use crate::clock::SystemClock;
use crate::config::{self, DatabaseArgs, DatabaseUrl};
use crate::domain::SchedulePolicy;
use crate::error::{Error, Violation, Violations};
use crate::server::ServeArgs;
use crate::service::admin::Admin;
use crate::store::{Options, Store};
use crate::telemetry::notices::ServerWarnings;
use crate::telemetry::{self, LogSettings};

/// A self-hosted gRPC service that owns the schedules of API-triggered Canvases.
#[derive(Debug, Parser)]
#[command(name = "canvas-scheduler", version, max_term_width = 110)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Subcommands,
    #[command(flatten)]
    log: LogSettings,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Try it: a SQLite file, two sample schedules, and commands to paste
    Dev(ServeArgs),
    /// Serve callers and send due waves; not ready while migrations are pending
    Serve(ServeArgs),
    /// Apply pending migrations and exit
    Migrate(DatabaseArgs),
    /// Copy a SQLite database into a file, also while the service runs
    Backup(backup::BackupArgs),
    /// Create, list and revoke API keys
    #[command(subcommand)]
    ApiKey(api_key::ApiKeyCommand),
    /// Create, list and change workspaces, the tenants
    #[command(subcommand)]
    Workspace(workspace::WorkspaceCommand),
    /// Ask a running server whether it is serving; exits with 0 if so, else with 1
    Healthcheck(healthcheck::HealthcheckArgs),
}

/// Runs the process's command line. Prints errors to standard error.
pub fn run() -> ExitCode {
    let (line, violations) = match config::parse::<CommandLine>(std::env::args_os().collect()) {
        Ok(read) => read,
        Err(answer) => return print_answer(&answer),
    };
    match line.run(violations) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

impl CommandLine {
    /// `violations` are those of single values; the subcommand adds those of settings that do not
    /// fit together.
    fn run(self, mut violations: Violations) -> Result<(), Error> {
        let log = &self.log;
        match self.command {
            Subcommands::Dev(args) => {
                let mut settings = args.read(&mut violations);
                settings.warnings = start_log(log, violations)?;
                dev::run(settings)
            }
            Subcommands::Serve(args) => {
                let mut settings = args.read(&mut violations);
                settings.warnings = start_log(log, violations)?;
                serve::run(&settings)
            }
            Subcommands::Migrate(args) => {
                let url = args.read(&mut violations);
                start_log(log, violations)?;
                migrate::run(&url)
            }
            Subcommands::Backup(args) => {
                let backup = args.read(&mut violations);
                start_log(log, violations)?;
                backup.map_or(Ok(()), |backup| backup.run())
            }
            Subcommands::ApiKey(command) => {
                let (url, task) = command.read(&mut violations);
                start_log(log, violations)?;
                task.map_or(Ok(()), |task| task.run(&url))
            }
            Subcommands::Workspace(command) => {
                let (url, task) = command.read(&mut violations);
                start_log(log, violations)?;
                task.run(&url)
            }
            Subcommands::Healthcheck(args) => {
                let identity = args.tls_identity(&mut violations);
                start_log(log, violations)?;
                healthcheck::run(&args, identity)
            }
        }
    }
}

/// Starts the log, unless there are violations.
fn start_log(settings: &LogSettings, violations: Violations) -> Result<ServerWarnings, Error> {
    if violations.is_empty() {
        telemetry::start(settings)
    } else {
        Err(violations.into())
    }
}

/// Prints the help, the version or an error of clap.
fn print_answer(answer: &clap::Error) -> ExitCode {
    match (answer.print(), answer.exit_code()) {
        (Ok(()), 0) => ExitCode::SUCCESS,
        (Ok(()), _) => ExitCode::from(2),
        (Err(_), _) => ExitCode::FAILURE,
    }
}

/// Prints an error, with a line for each violation. The operator may read internal causes.
fn print_error(error: &Error) {
    let text = match error {
        Error::Invalid(violations) => violations.iter().map(line).collect(),
        Error::Internal(cause) => format!("canvas-scheduler: {cause}\n"),
        other => format!("canvas-scheduler: {other}\n"),
    };
    // Nothing is left to report to where standard error is closed or full.
    let _printed = std::io::stderr().write_all(text.as_bytes());
}

fn line(Violation { field, message }: &Violation) -> String {
    // A positional argument is named as in the usage: <NAME>.
    let dashes = if field.starts_with('<') { "" } else { "--" };
    format!("canvas-scheduler: {dashes}{field}: {message}\n")
}

/// Runs a future on this thread until it ends.
fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|why| Error::internal(format!("the runtime cannot be started: {why}")))?;
    let output = runtime.block_on(work);
    // Does not wait for tasks that still run.
    runtime.shutdown_background();
    output
}

/// Does work over the database, without running its writers.
async fn with_store<T>(
    url: &DatabaseUrl,
    work: impl AsyncFnOnce(&Store) -> Result<T, Error>,
) -> Result<T, Error> {
    let (clock, policy) = (Arc::new(SystemClock), SchedulePolicy::default());
    let (store, _writers) = Store::open(&Options::new(url), clock, policy);
    store.sessions.wait_until_usable().await?;
    let done = work(&store).await;
    store.sessions.close().await;
    done
}

/// Does the work of an operator, over a migrated database.
async fn with_admin<T>(
    url: &DatabaseUrl,
    work: impl AsyncFnOnce(Admin) -> Result<T, Error>,
) -> Result<T, Error> {
    with_store(url, async |store| {
        if !store.pending_migrations().await?.is_empty() {
            return Err(Error::internal(
                "migrations are pending; run `canvas-scheduler migrate` first",
            ));
        }
        work(Admin::new(store.clone(), Arc::new(SystemClock))).await
    })
    .await
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        CommandLine::command().debug_assert();
    }
}
