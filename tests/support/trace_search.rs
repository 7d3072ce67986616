//! With `TRACED_INTO=FOLDER` everything is logged at trace level, and searched for keys as it comes: it is too much to be kept.
//! Lines with a key go to `FOLDER/found`; each 1,000 lines that were searched are a line of `FOLDER/searched`. `.ci/secrets` judges.

#![allow(
    dead_code,
    reason = "shared: not every one of its users needs all of it"
)]

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

#[allow(clippy::disallowed_methods, reason = "no setting of the service")]
static FOLDER: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| std::env::var_os("TRACED_INTO").map(PathBuf::from));
static SEARCHED: AtomicU64 = AtomicU64::new(0);
const TOLD_EVERY: u64 = 1_000;

/// Whether everything is to be logged and searched.
pub(super) fn is_wanted() -> bool {
    FOLDER.is_some()
}

/// Searches a line of a log.
pub(super) fn search(line: &str) {
    let Some(folder) = FOLDER.as_deref() else {
        return;
    };
    if holds_key(line) {
        append(&folder.join("found"), line.trim_end());
    }
    if SEARCHED.fetch_add(1, Ordering::Relaxed) % TOLD_EVERY == TOLD_EVERY - 1 {
        append(&folder.join("searched"), "1000");
    }
}

/// Whether there is the secret of a key in it: 48 hex digits and no more, after `_` or anything else; or the first of its bytes.
fn holds_key(line: &str) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let secret = line
        .as_bytes()
        .split(|byte| !is_digit(byte))
        .any(|run| run.len() == 48);
    // `Bearer cs_` as a list of bytes, which is how a buffer is shown.
    secret
        || line.contains("Bearer cs_")
        || line.contains("66, 101, 97, 114, 101, 114, 32, 99, 115, 95")
}

fn append(path: &Path, line: &str) {
    let file = File::options().create(true).append(true).open(path);
    file.and_then(|mut file| writeln!(file, "{line}"))
        .expect("the folder of TRACED_INTO can be written to");
}

/// What a log is written to in order to be searched. Each event comes whole.
pub(super) struct Searched;

impl Write for Searched {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        search(&String::from_utf8_lossy(event));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_key_is_found_in_each_form() {
    let secret = "0123456789abcdef".repeat(3);
    for line in [
        &format!("key=cs_0123456789abcdef_{secret}"),
        &secret,
        "Bearer cs_",
        "[66, 101, 97, 114, 101, 114, 32, 99, 115, 95, 48]",
    ] {
        assert!(holds_key(line), "{line}");
    }
    for line in [
        "cs_0123456789abcdef",
        &secret[1..],
        &format!("{secret}0123456789abcdef"),
        "authorization: Bearer KEY",
    ] {
        assert!(!holds_key(line), "{line}");
    }
}
