//! Where the database is: URLs as libpq reads them, and those of SQLite.
//!
//! Errors, debug output and [`Display`](fmt::Display) contain no part of a URL except hosts, ports
//! and the database. Errors contain none at all: in a URL that cannot be parsed, the place of a host
//! or a port may hold a piece of the password.

mod postgres;
mod sqlite;

use std::fmt;

pub(super) use postgres::VARIABLES;
pub use postgres::{Host, PostgresUrl, SslMode};
pub use sqlite::SqliteUrl;

/// Where the database is.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// `postgres://…` or `postgresql://…`.
    Postgres(PostgresUrl),
    /// `sqlite:…`.
    Sqlite(SqliteUrl),
}

impl Default for DatabaseUrl {
    /// `sqlite://canvas-scheduler.db?mode=rwc`.
    fn default() -> Self {
        Self::Sqlite(SqliteUrl::default())
    }
}

impl DatabaseUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// A sentence without its subject: "has a port that is not …".
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_with(text, |_| None)
    }

    /// Parses a URL. `variable` gives the values of [`VARIABLES`], which complete a PostgreSQL URL.
    ///
    /// # Errors
    /// A sentence without its subject: "has a port that is not …".
    pub(super) fn parse_with(
        text: &str,
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Self, String> {
        let text = text.trim();
        let mut problems = Problems::default();
        let url = if let Some(rest) = after_postgres_scheme(text) {
            let url = postgres::parse(rest, variable, &mut problems);
            url.map(Self::Postgres)
        } else if let Some(rest) = text.strip_prefix("sqlite:") {
            let url = sqlite::parse(rest, &mut problems);
            url.map(Self::Sqlite)
        } else {
            problems.add(wrong_scheme(text));
            None
        };
        match url {
            Some(url) if problems.0.is_empty() => Ok(url),
            _ => Err(problems.0.join("; it ")),
        }
    }
}

fn after_postgres_scheme(text: &str) -> Option<&str> {
    text.strip_prefix("postgres://")
        .or_else(|| text.strip_prefix("postgresql://"))
}

fn wrong_scheme(text: &str) -> &'static str {
    if text.starts_with("postgres:") || text.starts_with("postgresql:") {
        "has no // after postgres:; write postgres://user:password@host:port/database"
    } else if text.starts_with("jdbc:") {
        "does not begin with postgres:// or sqlite:; remove jdbc: and write \
         postgres://user:password@host:port/database"
    } else if !text.contains("://") && text.contains('=') {
        "does not begin with postgres:// or sqlite:; instead of libpq's keyword=value pairs, write \
         postgres://user:password@host:port/database"
    } else {
        "does not begin with postgres:// or sqlite:"
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(url) => url.fmt(f),
            Self::Sqlite(url) => url.fmt(f),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is wrong with a URL, each once and without a part of it.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: impl Into<String>) {
        let problem = problem.into();
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    /// The value of a percent-encoded part, without control characters.
    fn decode(&mut self, part: &str) -> Option<String> {
        let decoded = percent_decode(part);
        match decoded.map(String::from_utf8) {
            None => self.add("has a % without two hex digits after it; write %25 for a %"),
            Some(Err(_)) => self.add("has percent-encoded bytes that are not UTF-8"),
            Some(Ok(text)) if text.contains(char::is_control) => {
                self.add("contains a control character, such as a line break");
            }
            Some(Ok(text)) => return Some(text),
        }
        None
    }

    /// The parameters after the `?`, each decoded.
    fn parameters(&mut self, query: &str) -> Vec<(String, String)> {
        let mut parameters = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=') else {
                self.add("has a parameter without a value; write ?name=value&name=value");
                continue;
            };
            if let (Some(name), Some(value)) = (self.decode(name), self.decode(value)) {
                parameters.push((name, value));
            }
        }
        parameters
    }
}

/// None if a `%` is not followed by two hex digits.
fn percent_decode(part: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    let digit = |byte: Option<u8>| Some(char::from(byte?).to_digit(16)? as u8);
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => digit(bytes.next())? << 4 | digit(bytes.next())?,
            _ => byte,
        });
    }
    Some(decoded)
}

#[cfg(test)]
#[path = "database_url_tests.rs"]
mod tests;
