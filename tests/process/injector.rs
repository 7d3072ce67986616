//! Fails the calls by which the SQLite in a server uses its files and memory, through
//! tests/support/faults.c.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::database::{Folder, required, test_name};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/faults.c");

/// Calls that are counted and can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Write,
    Read,
    Sync,
    Truncate,
    Lock,
    Map,
    Open,
    Allocate,
}

/// What a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Main,
    Wal,
    Shm,
    Memory,
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// With this errno.
    Errno(u64),
    /// It writes half of the bytes, and the writes that follow find the disk full.
    ShortWrite,
    /// It reads a page whose first byte is invalid.
    Corrupt,
}

pub(crate) const EIO: u64 = 5;
pub(crate) const EAGAIN: u64 = 11;
pub(crate) const ENOMEM: u64 = 12;
pub(crate) const EACCES: u64 = 13;
pub(crate) const EMFILE: u64 = 24;
pub(crate) const ENOSPC: u64 = 28;
pub(crate) const EROFS: u64 = 30;

/// Fails calls of one kind, from the `nth` on, `times` times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    pub operation: Operation,
    pub target: Target,
    pub effect: Effect,
    pub nth: u64,
    pub times: u64,
}

/// The number of rules that can be armed together.
const RULES: usize = 2;
const WORD: u64 = 8;
const NO_MAP: u64 = 1;
const COUNTS: u64 = 2;
const TARGETS: u64 = 4;
const FIRST_RULE: u64 = COUNTS + 8 * TARGETS;
const WORDS_OF_RULE: u64 = 9;
const FAILED: u64 = 7;
const OFFSET: u64 = 8;
const WORDS: u64 = FIRST_RULE + RULES as u64 * WORDS_OF_RULE;

/// The compiled library.
pub(crate) struct Library {
    path: PathBuf,
    _folder: Folder,
}

impl Library {
    /// Compiles it. Returns `None`, and reports the test as skipped, where there is no C compiler.
    pub(crate) fn compile() -> Option<Self> {
        let folder = Folder::new();
        let path = folder.path().join("faults.so");
        let options = [
            "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o",
        ];
        let compiler = Command::new("cc")
            .args(options)
            .args([&path, Path::new(SOURCE)])
            .arg("-ldl")
            .status();
        if compiler.is_err() && !required() {
            println!("skipped: {} needs a C compiler", test_name());
            return None;
        }
        assert!(compiler.unwrap().success(), "{SOURCE} does not compile");
        Some(Self {
            path,
            _folder: folder,
        })
    }
}

/// Controls the library in a process.
pub(crate) struct Injector {
    control: File,
    environment: [(&'static str, String); 3],
}

impl Injector {
    /// For a process that uses the database `file`.
    pub(crate) fn new(library: &Library, folder: &Path, file: &Path) -> Self {
        let path = folder.join("faults");
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        control.set_len(WORDS * WORD).unwrap();
        let environment = [
            ("LD_PRELOAD", library.path.display().to_string()),
            ("FAULTS_PREFIX", file.display().to_string()),
            ("FAULTS_CONTROL", path.display().to_string()),
        ];
        Self {
            control,
            environment,
        }
    }

    /// The variables of the process.
    pub(crate) fn environment(&self) -> &[(&'static str, String)] {
        &self.environment
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; WORD as usize];
        self.control.read_exact_at(&mut bytes, at * WORD).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn set(&self, at: u64, word: u64) {
        self.control
            .write_all_at(&word.to_ne_bytes(), at * WORD)
            .unwrap();
    }

    /// Whether the process has loaded the library, with the layout that this module expects.
    pub(crate) fn is_loaded(&self) -> bool {
        let loaded = self.word(0);
        assert!(
            [0, WORDS * WORD].contains(&loaded),
            "{SOURCE} has another layout"
        );
        loaded > 0
    }

    /// Makes SQLite read the database by calls. Before the process starts.
    pub(crate) fn refuse_to_map(&self) {
        self.set(NO_MAP, 1);
    }

    /// The number of calls of this kind since the process started.
    pub(crate) fn count(&self, operation: Operation, target: Target) -> u64 {
        self.word(COUNTS + operation as u64 * TARGETS + target as u64)
    }

    /// Arms these rules, and counts calls from now on.
    pub(crate) fn arm(&self, rules: &[Rule]) {
        assert!(rules.len() <= RULES, "too many rules");
        for (n, rule) in rules.iter().enumerate() {
            let effect = match rule.effect {
                Effect::Errno(errno) => errno,
                Effect::ShortWrite => 10_001,
                Effect::Corrupt => 10_002,
            };
            let words = [
                rule.operation as u64,
                rule.target as u64,
                effect,
                rule.nth,
                rule.times,
                0,
                0,
                0,
            ];
            let at = FIRST_RULE + n as u64 * WORDS_OF_RULE;
            for (word, place) in words.into_iter().zip(at + 1..) {
                self.set(place, word);
            }
        }
        for n in 0..rules.len() as u64 {
            self.set(FIRST_RULE + n * WORDS_OF_RULE, 1);
        }
    }

    /// Ends every fault.
    pub(crate) fn disarm(&self) {
        for n in 0..RULES as u64 {
            self.set(FIRST_RULE + n * WORDS_OF_RULE, 0);
        }
    }

    /// How many calls the rule has failed since it was armed.
    pub(crate) fn failed(&self, rule: usize) -> u64 {
        self.word(FIRST_RULE + rule as u64 * WORDS_OF_RULE + FAILED)
    }

    /// The offset in the file of the last call that the rule failed.
    pub(crate) fn offset(&self, rule: usize) -> u64 {
        self.word(FIRST_RULE + rule as u64 * WORDS_OF_RULE + OFFSET)
    }
}
