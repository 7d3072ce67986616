//! One file for each subcommand.

pub mod api_key;
pub mod dev;
pub mod healthcheck;
pub mod migrate;
pub mod serve;
pub mod workspace;

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;

use crate::clock::SystemClock;
use crate::config::{DatabaseArgs, Secret};
use crate::domain::Policy;
use crate::error::Error;
use crate::service::admin::Admin;
use crate::store::{Options, Store};

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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
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
        Error::Invalid(all) => all
            .into_iter()
            .map(|one| format!("--{}: {}", one.field, one.message))
            .collect(),
        other => vec![other.to_string()],
    }
}

/// What a command line states, read part by part, so that the faults of all parts are told at once.
struct Reading<T>(Result<T, Faults>);

impl Reading<Secret<String>> {
    /// The URL of the database.
    fn of(database: &DatabaseArgs) -> Self {
        Self(database.read())
    }
}

impl<T> Reading<T> {
    fn with<U>(self, part: Result<U, Faults>) -> Reading<(T, U)> {
        Reading(match (self.0, part) {
            (Ok(before), Ok(part)) => Ok((before, part)),
            (Err(faults), Ok(_)) | (Ok(_), Err(faults)) => Err(faults),
            (Err(before), Err(more)) => Err([before, more].concat()),
        })
    }

    fn finish(self) -> Result<T, Faults> {
        self.0
    }
}

/// Does what an operator asks, over a database whose schema is there.
async fn with_admin<T>(
    url: &Secret<String>,
    work: impl AsyncFnOnce(Admin) -> Result<T, Faults>,
) -> Result<T, Faults> {
    let clock = Arc::new(SystemClock);
    let (store, _writers) = Store::open(
        &Options::of_command(&url.0),
        clock.clone(),
        Policy::default(),
    )
    .await
    .map_err(fault)?;
    if !store.pending_migrations().await.map_err(fault)?.is_empty() {
        return Err(vec![
            "migrations are pending; run `canvas-scheduler migrate` first".to_owned(),
        ]);
    }
    work(Admin::new(store, clock)).await
}
