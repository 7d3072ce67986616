//! The binary: runs the command line.

use std::process::ExitCode;

/// docs/performance.md shows its gain.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    canvas_scheduler::cli::run()
}
