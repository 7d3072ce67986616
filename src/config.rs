//! How settings are read from flags and `CANVAS_SCHEDULER_*` variables.
//!
//! Every module owns the struct of its settings and uses it as it was read: a field is a setting,
//! and its `#[arg]` holds the flag, the variable, the default, the bounds and the help text.
//! [`crate::server::Serve`] flattens those structs into the settings of a server, and
//! [`crate::cli::CommandLine`] puts the subcommands on top. This module lies below all of them and
//! imports only [`crate::error`]: it has the parsers of values, the database URL that every
//! subcommand takes, and [`parse()`], which reports every violation together. To add a setting, add
//! a field to the struct of the module that uses it, and use it there.

mod database;
mod database_url;
mod parse;
mod secret;
pub mod values;

pub use database::DatabaseArgs;
pub use database_url::{DatabaseUrl, Host, PostgresUrl, SqliteUrl, SslMode};
pub use parse::{defaults, parse};
pub use secret::Secret;
