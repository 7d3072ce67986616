//! `workspace set`: the brake on sending.

use clap::{Args, Subcommand};

use super::{DatabaseArgs, Reader};

/// What to do with workspaces.
#[derive(Debug, Subcommand)]
pub enum WorkspaceCommand {
    /// Pause sending for a workspace or for all, or let it go on; every replica heeds it within 10 s
    Set(SendingArgs),
}

/// Whose sending is set to what.
#[derive(Debug, Args)]
pub struct SendingArgs {
    /// The name of the workspace
    pub name: Option<String>,
    /// All workspaces at once, beside what is set for each
    #[arg(long)]
    pub all: bool,
    /// paused: nothing is fired and nothing tried again, updates go on; on: what is due is sent, however late
    #[arg(long)]
    pub sending: String,
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseArgs,
}

/// What `workspace set` is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sending {
    /// May hold a password: never logged.
    pub database_url: String,
    /// The workspace; none means all at once.
    pub workspace: Option<String>,
    /// Whether sending pauses.
    pub paused: bool,
}

impl SendingArgs {
    /// # Errors
    /// Every fault, a line each.
    pub fn read(&self) -> Result<Sending, Vec<String>> {
        let mut reader = Reader::default();
        let database_url = reader.database(&self.database);
        let paused = match self.sending.as_str() {
            "paused" => Some(true),
            "on" => Some(false),
            other => reader.fault("sending", other, "paused or on"),
        };
        if self.name.is_some() == self.all {
            reader.faults.push("either the name of a workspace or --all is needed".to_owned());
        }
        let read = database_url.zip(paused);
        let read = read.map(|(database_url, paused)| Sending { database_url, workspace: self.name.clone(), paused });
        reader.finish(read)
    }
}
