//! How fast due waves reach the consumer, and how late: all together and steadily, with and without
//! concurrent updates. `docs/performance.md` says how to run it and how to read it.

#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a program for developers: its settings are BENCH_* variables, its output is lines, and a broken assumption ends it"
)]

#[path = "dispatch/consumer.rs"]
mod consumer;
#[path = "update/database.rs"]
mod database;
#[path = "update/grpc.rs"]
mod grpc;
#[path = "update/http1.rs"]
mod http1;
#[path = "update/load.rs"]
mod load;
#[path = "update/machine.rs"]
mod machine;
#[path = "dispatch/measurements.rs"]
mod measurements;
#[path = "dispatch/open_loop.rs"]
mod open_loop;
#[path = "dispatch/plan.rs"]
mod plan;
#[path = "update/report.rs"]
mod report;
#[path = "update/rows.rs"]
mod rows;
#[path = "update/server.rs"]
mod server;
#[path = "update/settings.rs"]
mod settings;
#[path = "../tests/support/postgres.rs"]
mod support_postgres;

/// Code shared by tests and benches.
mod support {
    pub(crate) use super::support_postgres::{Postgres, Problem, children_of, process};
}

use std::process::ExitCode;

use plan::Plan;
use report::Verdict;

/// The consumer uses the same allocator as the service.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A result whose error ends the run.
type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// The argument that starts this program as the load generator; its order follows.
const LOAD: &str = "--load";

fn main() -> ExitCode {
    let mut arguments = std::env::args()
        .skip_while(|argument| argument != LOAD)
        .skip(1);
    let outcome = match arguments.next() {
        Some(order) => load::main(&order).map(|()| true),
        None => measure(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    }
}

/// Measures what the settings select. Returns whether every check passed.
fn measure() -> Fallible<bool> {
    let plan = Plan::read()?;
    let mut verdict = Verdict::default();
    println!("settings {plan:?}");
    let before = machine::sync_line("at the start")?;
    measurements::measure(&plan, &mut verdict)?;
    println!("{before}");
    println!("{}", machine::sync_line("at the end")?);
    println!("{}", machine::description()?);
    Ok(verdict.is_clean())
}
