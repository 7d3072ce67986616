//! Standard output, which may be closed, full, or a pipe without a reader: an error, not a panic.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use crate::error::Error;

/// Prints text and flushes it.
pub(super) fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    let printed = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    printed.map_err(unusable)
}

/// Refuses an output that discards what only it would get. Rust opens `/dev/null` where the output
/// is closed.
pub(super) fn check_kept() -> Result<(), Error> {
    let discards = || {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        let stdout = std::fs::File::from(stdout).metadata()?;
        let null = std::fs::metadata("/dev/null")?;
        Ok(stdout.rdev() == null.rdev() && stdout.file_type() == null.file_type())
    };
    if discards().map_err(unusable)? {
        return Err(Error::internal(
            "standard output is closed or /dev/null, but the key is printed there and nowhere else",
        ));
    }
    Ok(())
}

fn unusable(why: io::Error) -> Error {
    Error::internal(format!("standard output cannot be written to: {why}"))
}
