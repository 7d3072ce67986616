//! The URL of the database, which every subcommand takes.

use clap::Args;

use super::{Secret, values};
use crate::error::Violations;

/// The database.
#[derive(Debug, Clone, Args)]
pub struct DatabaseArgs {
    /// postgres://user:password@host/name or sqlite://file?mode=rwc [default:
    /// sqlite://canvas-scheduler.db?mode=rwc]
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_DATABASE_URL",
        hide_env_values = true,
        value_parser = database_url
    )]
    database_url: Option<Secret<String>>,
    /// A file that contains the database URL, instead of --database-url
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_DATABASE_URL_FILE",
        value_name = "FILE",
        value_parser = database_url_file
    )]
    database_url_file: Option<Secret<String>>,
}

impl DatabaseArgs {
    /// The database that is used when none is set.
    pub const DEFAULT_URL: &str = "sqlite://canvas-scheduler.db?mode=rwc";

    /// The URL of the database.
    pub fn read(&self, violations: &mut Violations) -> Secret<String> {
        if self.database_url.is_some() && self.database_url_file.is_some() {
            violations.add(
                "database-url",
                "cannot be set together with --database-url-file",
            );
        }
        let url = self
            .database_url
            .as_ref()
            .or(self.database_url_file.as_ref());
        url.cloned()
            .unwrap_or_else(|| Secret(Self::DEFAULT_URL.to_owned()))
    }
}

fn database_url(url: &str) -> Result<Secret<String>, String> {
    let known = ["postgres://", "postgresql://", "sqlite:"]
        .iter()
        .any(|scheme| url.starts_with(scheme));
    if known {
        Ok(Secret(url.to_owned()))
    } else {
        Err("does not begin with postgres:// or sqlite:".to_owned())
    }
}

fn database_url_file(file: &str) -> Result<Secret<String>, String> {
    database_url(values::file(file)?.trim()).map_err(|why| format!("contains a URL that {why}"))
}
