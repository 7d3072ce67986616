//! With `TRACED_INTO=FOLDER` servers in the test's process log at trace level, and each line is
//! searched for keys and dropped. With `TRACED_PROCESSES=1` as well, child processes do so too,
//! which makes them several times slower. Lines with a key go to `FOLDER/found`; every 1,000
//! searched lines add a line to `FOLDER/searched`. `.ci/secrets` evaluates both.

#![allow(dead_code, reason = "shared: each test binary uses a part of it")]

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

#[allow(clippy::disallowed_methods, reason = "not a setting of the service")]
static FOLDER: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| std::env::var_os("TRACED_INTO").map(PathBuf::from));
static SEARCHED: AtomicU64 = AtomicU64::new(0);
const REPORT_INTERVAL: u64 = 1_000;

/// Whether servers in this process log at trace level.
pub(super) fn is_wanted() -> bool {
    FOLDER.is_some()
}

/// Whether servers in child processes log at trace level too.
#[allow(clippy::disallowed_methods, reason = "not a setting of the service")]
pub(super) fn is_wanted_of_processes() -> bool {
    is_wanted() && std::env::var("TRACED_PROCESSES").is_ok_and(|value| value == "1")
}

/// Searches a line of a log.
pub(super) fn search(line: &str) {
    let Some(folder) = FOLDER.as_deref() else {
        return;
    };
    if holds_key(line) {
        append(&folder.join("found"), line.trim_end());
    }
    if SEARCHED.fetch_add(1, Ordering::Relaxed) % REPORT_INTERVAL == REPORT_INTERVAL - 1 {
        append(&folder.join("searched"), "1000");
    }
}

/// Whether a line contains the secret of a key: a run of exactly 48 hex digits, or the first bytes
/// of an authorization header.
fn holds_key(line: &str) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let secret = line
        .as_bytes()
        .split(|byte| !is_digit(byte))
        .any(|run| run.len() == 48);
    // `Bearer cs_` as a list of bytes, which is how the debug format shows a buffer.
    secret
        || line.contains("Bearer cs_")
        || line.contains("66, 101, 97, 114, 101, 114, 32, 99, 115, 95")
}

fn append(path: &Path, line: &str) {
    let file = File::options().create(true).append(true).open(path);
    file.and_then(|mut file| writeln!(file, "{line}"))
        .expect("the folder of TRACED_INTO can be written to");
}

/// A log writer that searches each event.
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
fn every_form_of_a_key_is_found() {
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
