//! The database, which every subcommand takes.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};

use super::{DatabaseUrl, Secret, database_url, values};
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
        value_parser = valid_url
    )]
    database_url: Option<Secret<String>>,
    /// A file that contains the database URL, instead of --database-url
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_DATABASE_URL_FILE",
        hide_env_values = true,
        value_name = "FILE",
        value_parser = valid_url_in_file
    )]
    database_url_file: Option<Secret<String>>,
    #[command(flatten)]
    variables: LibpqVariables,
}

impl DatabaseArgs {
    /// Where the database is.
    pub fn read(&self, violations: &mut Violations) -> DatabaseUrl {
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
        let Some(url) = url else {
            return DatabaseUrl::default();
        };
        // The URL alone is valid: only variables can be wrong.
        DatabaseUrl::parse_with(&url.0, |name| self.variables.get(name)).unwrap_or_else(|why| {
            let names: Vec<&str> = self.variables.0.keys().copied().collect();
            let names = names.join(", ");
            violations.add(
                "database-url",
                format!("the URL, completed by {names}, {why}"),
            );
            DatabaseUrl::default()
        })
    }
}

fn valid_url(url: &str) -> Result<Secret<String>, String> {
    DatabaseUrl::parse(url).map(|_| Secret(url.to_owned()))
}

fn valid_url_in_file(file: &str) -> Result<Secret<String>, String> {
    valid_url(&values::file(file)?).map_err(|why| format!("contains a URL that {why}"))
}

/// The variables of libpq, which complete a PostgreSQL URL. clap reads them like the settings.
#[derive(Debug, Clone)]
struct LibpqVariables(BTreeMap<&'static str, Secret<String>>);

impl LibpqVariables {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|value| value.0.clone())
    }
}

impl FromArgMatches for LibpqVariables {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = database_url::VARIABLES.into_iter().filter_map(|(name, _)| {
            let value = matches.get_one::<String>(name)?;
            Some((name, Secret(value.clone())))
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for LibpqVariables {
    fn augment_args(command: Command) -> Command {
        command.args(database_url::VARIABLES.map(|(name, _)| {
            let flag = Arg::new(name).long(name).env(name);
            flag.hide(true).hide_env_values(true)
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
