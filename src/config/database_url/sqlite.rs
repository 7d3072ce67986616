//! URLs of SQLite: `sqlite://file?mode=rwc`, `sqlite:file` and `sqlite::memory:`.

use std::fmt;
use std::path::PathBuf;

use super::Problems;

/// A database of SQLite.
#[derive(Clone, PartialEq, Eq)]
pub struct SqliteUrl {
    /// The file; `None` for a database in memory, which exists only in its one connection.
    pub file: Option<PathBuf>,
    /// Whether to create the file if it is missing.
    pub create: bool,
    /// Whether connections of this process share one cache.
    pub shared_cache: bool,
    /// The name of a VFS to use instead of SQLite's default.
    pub vfs: Option<String>,
}

impl Default for SqliteUrl {
    fn default() -> Self {
        Self {
            file: Some(PathBuf::from("canvas-scheduler.db")),
            create: true,
            shared_cache: false,
            vfs: None,
        }
    }
}

/// Parses what follows `sqlite:`.
pub(super) fn parse(rest: &str, problems: &mut Problems) -> Option<SqliteUrl> {
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let (file, query) = rest.split_once('?').unwrap_or((rest, ""));
    let file = problems.decode(file)?;
    let (mut memory, mut create, mut shared_cache, mut vfs) =
        (file == ":memory:", false, None, None);
    for (name, value) in problems.parameters(query) {
        match (name.as_str(), value.as_str()) {
            ("mode", "rw") => {}
            ("mode", "rwc") => create = true,
            ("mode", "memory") => memory = true,
            ("mode", "ro") => problems.add(
                "has mode=ro, but the service writes to its database; set mode=rwc or mode=rw",
            ),
            ("mode", _) => {
                problems.add("has an unknown mode; set mode=rwc, mode=rw or mode=memory");
            }
            ("cache", "shared") => shared_cache = Some(true),
            ("cache", "private") => shared_cache = Some(false),
            ("cache", _) => problems.add("has an unknown cache; set cache=private or cache=shared"),
            ("immutable", "false" | "0") => {}
            ("immutable", _) => problems.add(
                "has the parameter immutable, but the service writes to its database; remove it",
            ),
            ("vfs", _) => vfs = Some(value),
            _ => problems.add("has an unknown parameter; known are mode, cache and vfs"),
        }
    }
    if file.is_empty() && !memory {
        problems.add("names no file; write sqlite://file?mode=rwc");
    }
    Some(SqliteUrl {
        file: Some(PathBuf::from(file)).filter(|_| !memory),
        create,
        shared_cache: shared_cache.unwrap_or(memory),
        vfs,
    })
}

impl fmt::Display for SqliteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "sqlite://{}", file.display()),
            None => f.write_str("sqlite::memory:"),
        }
    }
}

impl fmt::Debug for SqliteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
