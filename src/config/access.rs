//! The command lines of `api-key` and `workspace`. Their values are read by the domain, once all are there.

use clap::{Args, Subcommand};

use super::DatabaseArgs;

/// Keys for callers.
#[derive(Debug, Subcommand)]
pub enum ApiKeyCommand {
    /// Make a key and print it: it is shown this once
    Create(ApiKeyCreateArgs),
    /// List all keys, without their secrets
    List(DatabaseArgs),
    /// Make a key stop working, on every replica within 10 seconds
    Revoke(ApiKeyRevokeArgs),
}

/// A new key.
#[derive(Debug, Args)]
pub struct ApiKeyCreateArgs {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The workspace that it acts in
    #[arg(long, default_value = "default")]
    pub workspace: String,
    /// What the history calls it; unique in its workspace
    #[arg(long, default_value = "")]
    pub name: String,
    /// Some of create, update, delete, read, separated by commas; or all
    #[arg(long, default_value = "")]
    pub permissions: String,
    /// When it stops working by itself, such as 2027-01-31T00:00:00Z [default: never]
    #[arg(long, value_name = "INSTANT")]
    pub expires: Option<String>,
    /// Networks that it may be used from, such as 10.0.0.0/8,192.0.2.7 [default: anywhere]
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "NETWORKS"
    )]
    pub allow: String,
}

/// Which key.
#[derive(Debug, Args)]
pub struct ApiKeyRevokeArgs {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// How the key begins: cs_ and 16 digits, as the list shows it
    pub id: String,
}

/// Tenants.
#[derive(Debug, Subcommand)]
pub enum WorkspaceCommand {
    /// Make a workspace
    Create(WorkspaceArgs),
    /// List all workspaces with their settings
    List(DatabaseArgs),
    /// Change what is stated of a workspace, or stop and start the sending of all; replicas heed it within 10 seconds
    Set(SetArgs),
}

/// What is to change, and of which workspace.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The name of the workspace
    pub name: Option<String>,
    /// All workspaces at once, beside what is set for each; for --sending alone
    #[arg(long)]
    pub all: bool,
    /// paused: nothing is fired and nothing tried again, updates go on; on: what is due is sent, however late
    #[arg(long)]
    pub sending: Option<String>,
    /// What may be set.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// A workspace and its settings.
#[derive(Debug, Args)]
pub struct WorkspaceArgs {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Its name
    pub name: String,
    /// What may be set.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// The settings of a workspace.
#[derive(Debug, Args)]
pub struct SettingsArgs {
    /// What new schedules take for users with no zone of their own, an IANA name [default of a new one: UTC]
    #[arg(long, value_name = "ZONE")]
    pub default_time_zone: Option<String>,
    /// How many requests it may make, such as 250000/hour or 6000/minute [default of a new one: 250000/hour]
    #[arg(long, value_name = "QUOTA")]
    pub requests: Option<String>,
    /// How many creations with broadcast or audience [default of a new one: 250/minute]
    #[arg(long, value_name = "QUOTA")]
    pub broadcasts: Option<String>,
    /// How many creations with the same audience [default of a new one: 10/minute]
    #[arg(long, value_name = "QUOTA")]
    pub same_audience: Option<String>,
}
