//! Reads a command line so that all violations are reported together.

use std::error::Error as _;
use std::ffi::OsString;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{Args, Command, Parser};

use crate::error::Violations;

/// Parses a command line and the environment. A setting whose value is rejected adds a violation
/// and keeps its default, so that the rest can be checked as well.
///
/// # Errors
/// An answer of clap itself: the help, the version, an unknown flag. The violations found so far
/// are lost then.
pub fn parse<C: Parser>(mut args: Vec<OsString>) -> Result<(C, Violations), Error> {
    let (mut command, mut rejected) = (C::command(), Violations::default());
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
        let value = if hides_value(&command, &flag) {
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
