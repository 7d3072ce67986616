//! Reads a command line so that all violations are reported together.

use std::error::Error as _;
use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{Args, Command, Parser};

use crate::error::Violations;

/// Parses a command line and the environment, where an empty variable counts as unset. A setting
/// whose value is rejected adds a violation and keeps its default, so that the rest can be checked
/// as well.
///
/// # Errors
/// An answer of clap itself: the help, the version, an unknown flag. The violations found so far
/// are lost then. It contains no value, which may be a piece of a database URL.
pub fn parse<C: Parser>(args: Vec<OsString>) -> Result<(C, Violations), Error> {
    if let Some(position) = args.windows(2).position(is_misplaced_url) {
        let text = format!(
            "argument {} contains a database URL, which only --database-url accepts",
            position + 1
        );
        return Err(C::command().error(ErrorKind::InvalidValue, text));
    }
    parse_settings(args).map_err(without_values)
}

fn parse_settings<C: Parser>(mut args: Vec<OsString>) -> Result<(C, Violations), Error> {
    let (mut command, mut rejected) =
        (without_empty_variables(C::command()), Violations::default());
    loop {
        let error = match command.clone().try_get_matches_from(&args) {
            Ok(matches) => return Ok((C::from_arg_matches(&matches)?, rejected)),
            Err(error) => error,
        };
        let Some((flag, value, why)) = rejected_value(&error) else {
            return Err(error);
        };
        if rejected.iter().any(|earlier| earlier.field == flag) {
            // Its default is rejected too.
            return Err(error);
        }
        let value = if hides_value(&command, &flag) || looks_like_a_url(&value) {
            "the value".to_owned()
        } else {
            format!("{value:?}")
        };
        rejected.add(&flag, format!("{value} {why}"));
        args = without(args, &flag);
        command = without_variable(command, &flag);
    }
}

/// Settings with all their defaults; variables of the environment are ignored.
pub fn defaults<A: Args>() -> A {
    let command = A::augment_args(Command::new("defaults"));
    let matches = command
        .mut_args(|arg| arg.env(Resettable::Reset))
        .get_matches_from([""]);
    A::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The flag, the value and the reason, when `error` is about the value of a flag.
fn rejected_value(error: &Error) -> Option<(String, String, String)> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    };
    if error.kind() != ErrorKind::ValueValidation {
        return None;
    }
    let flag = context(ContextKind::InvalidArg)?.strip_prefix("--")?;
    let flag = flag.split(' ').next().unwrap_or(flag);
    let value = context(ContextKind::InvalidValue)?;
    Some((flag.to_owned(), value.clone(), error.source()?.to_string()))
}

/// Whether the value of the flag may be a secret.
fn hides_value(command: &Command, flag: &str) -> bool {
    let mut commands = std::iter::once(command).chain(command.get_subcommands());
    commands.any(|command| {
        command
            .get_arguments()
            .any(|arg| arg.get_long() == Some(flag) && arg.is_hide_env_values_set())
    })
}

/// Whether the second argument contains the URL of a database, but the first does not ask for one.
fn is_misplaced_url(pair: &[OsString]) -> bool {
    let [flag, value] = pair else { return false };
    let (flag, value) = (
        flag.to_string_lossy(),
        value.to_string_lossy().to_lowercase(),
    );
    let has = |text| value.contains(text);
    let is_url = has("postgres:") || has("postgresql:");
    let is_pairs = has("password=") && (has("host=") || has("user=") || has("dbname="));
    (is_url || is_pairs) && flag != "--database-url" && !value.starts_with("--database-url=")
}

/// Any URL may contain a password.
fn looks_like_a_url(value: &str) -> bool {
    value.contains("://") || value.contains('@')
}

/// The error with what was given only where it has the form of a flag or of a subcommand: a
/// mistyped command line may have a piece of a password anywhere.
fn without_values(mut error: Error) -> Error {
    let is_name =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let mut hidden = false;
    for kind in [
        ContextKind::InvalidArg,
        ContextKind::InvalidSubcommand,
        ContextKind::InvalidValue,
    ] {
        let Some(ContextValue::String(given)) = error.get(kind) else {
            continue;
        };
        let shown = match kind {
            ContextKind::InvalidArg if error.kind() == ErrorKind::UnknownArgument => {
                given.strip_prefix("--").is_some_and(is_name)
            }
            ContextKind::InvalidArg => true,
            ContextKind::InvalidSubcommand => is_name(given),
            _ => given.is_empty(),
        };
        if !shown {
            error.insert(kind, ContextValue::String("(not shown)".to_owned()));
            hidden = true;
        }
    }
    if hidden {
        // Repeats what was given.
        error.remove(ContextKind::Suggested);
    }
    error
}

#[allow(
    clippy::disallowed_methods,
    reason = "only whether a variable that --help lists is empty"
)]
fn without_empty_variables(command: Command) -> Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| match arg.get_env() {
            Some(name) if is_empty(name) => arg.env(Resettable::Reset),
            _ => arg,
        })
        .mut_subcommands(without_empty_variables)
}

fn without(args: Vec<OsString>, flag: &str) -> Vec<OsString> {
    let (alone, with_value) = (format!("--{flag}"), format!("--{flag}="));
    let mut value_follows = false;
    let mut keeps = |arg: &OsString| {
        let dropped = value_follows || arg.to_string_lossy().starts_with(&with_value);
        let names_it = !value_follows && *arg == *alone;
        value_follows = names_it;
        !dropped && !names_it
    };
    args.into_iter().filter(|arg| keeps(arg)).collect()
}

fn without_variable(command: Command, flag: &str) -> Command {
    command
        .mut_args(|arg| match arg.get_long() {
            Some(long) if long == flag => arg.env(Resettable::Reset),
            _ => arg,
        })
        .mut_subcommands(|command| without_variable(command, flag))
}
