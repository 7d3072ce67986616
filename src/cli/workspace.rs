//! `workspace`: creates, lists and changes workspaces in the database.

use clap::{Args, Subcommand};

use super::{block_on, output, with_admin};
use crate::config::{DatabaseArgs, DatabaseUrl};
use crate::domain::{Quota, QuotaKind, Workspace, Zone, workspace};
use crate::error::{Error, Violations};
use crate::service::admin::{Admin, WorkspaceChange};

/// The subcommands of `workspace`.
#[derive(Debug, Subcommand)]
pub(super) enum WorkspaceCommand {
    /// Create a workspace
    Create(WorkspaceArgs),
    /// List all workspaces with their settings
    List(DatabaseArgs),
    /// Change the settings of a workspace, or pause or resume sending; replicas apply it within 10
    /// seconds
    Set(SetArgs),
}

/// The workspace to change, and its new settings.
#[derive(Debug, Args)]
pub(super) struct SetArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The name of the workspace
    name: Option<String>,
    /// All workspaces, without changing the setting of each; only with --sending
    #[arg(long)]
    all: bool,
    /// paused: nothing is dispatched or retried, updates continue; on: everything due is sent,
    /// however late
    #[arg(long)]
    sending: Option<String>,
    /// The settings.
    #[command(flatten)]
    settings: SettingsArgs,
}

/// A workspace and its settings.
#[derive(Debug, Args)]
pub(super) struct WorkspaceArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The name of the workspace
    name: String,
    /// The settings.
    #[command(flatten)]
    settings: SettingsArgs,
}

/// The settings of a workspace.
#[derive(Debug, Args)]
pub(super) struct SettingsArgs {
    /// Time zone of users without one, for new schedules: an IANA name [default of a new workspace:
    /// UTC]
    #[arg(long, value_name = "ZONE")]
    default_time_zone: Option<String>,
    /// Quota of requests, such as 250000/hour or 6000/minute [default of a new workspace:
    /// 250000/hour]
    #[arg(long, value_name = "QUOTA")]
    requests: Option<String>,
    /// Quota of creations with broadcast or audience [default of a new workspace: 250/minute]
    #[arg(long, value_name = "QUOTA")]
    broadcasts: Option<String>,
    /// Quota of creations with the same audience [default of a new workspace: 10/minute]
    #[arg(long, value_name = "QUOTA")]
    same_audience: Option<String>,
}

/// A validated command.
pub(super) enum WorkspaceTask {
    Create {
        name: String,
        change: WorkspaceChange,
    },
    List,
    Set {
        /// None means all workspaces.
        name: Option<String>,
        change: WorkspaceChange,
        /// Whether to pause sending; None leaves it unchanged.
        paused: Option<bool>,
    },
}

impl WorkspaceCommand {
    /// The task, over the database at this URL.
    pub(super) fn read(self, violations: &mut Violations) -> (DatabaseUrl, WorkspaceTask) {
        match self {
            Self::Create(args) => {
                let url = args.database.read(violations);
                let change = args.settings.read(violations);
                if let Err(why) = workspace::check_name(&args.name) {
                    violations.add("<NAME>", why);
                }
                let name = args.name;
                (url, WorkspaceTask::Create { name, change })
            }
            Self::List(database) => (database.read(violations), WorkspaceTask::List),
            Self::Set(args) => {
                let url = args.database.read(violations);
                if let Some(Err(why)) = args.name.as_deref().map(workspace::check_name) {
                    violations.add("<NAME>", why);
                }
                (url, args.read(violations))
            }
        }
    }
}

impl SettingsArgs {
    fn read(&self, violations: &mut Violations) -> WorkspaceChange {
        let mut change = WorkspaceChange::default();
        match self
            .default_time_zone
            .as_deref()
            .map(Zone::parse)
            .transpose()
        {
            Ok(zone) => change.default_zone = zone,
            Err(why) => violations.add("default-time-zone", why),
        }
        for counted in QuotaKind::ALL {
            let quota = match counted {
                QuotaKind::Requests => &self.requests,
                QuotaKind::Broadcasts => &self.broadcasts,
                QuotaKind::SameAudience => &self.same_audience,
            };
            match quota.as_deref().map(Quota::parse).transpose() {
                Ok(quota) => change.quotas.extend(quota.map(|quota| (counted, quota))),
                Err(why) => violations.add(counted.name(), why),
            }
        }
        change
    }
}

impl SetArgs {
    fn read(self, violations: &mut Violations) -> WorkspaceTask {
        let change = self.settings.read(violations);
        let paused = match self.sending.as_deref() {
            None => None,
            Some("paused") => Some(true),
            Some("on") => Some(false),
            Some(other) => {
                let why = format!("{other:?} is not paused or on");
                violations.add("sending", why);
                None
            }
        };
        if self.name.is_some() == self.all {
            violations.add(
                "<NAME>",
                "either the name of a workspace or --all is required",
            );
        }
        if self.all && changes_settings(&change) {
            violations.add(
                "all",
                "can only be combined with --sending; other settings belong to one workspace",
            );
        }
        if violations.is_empty() && !changes_settings(&change) && paused.is_none() {
            violations.add(
                "<SETTINGS>",
                "nothing to set; `workspace set --help` lists the settings",
            );
        }
        WorkspaceTask::Set {
            name: self.name,
            change,
            paused,
        }
    }
}

fn changes_settings(change: &WorkspaceChange) -> bool {
    change.default_zone.is_some() || !change.quotas.is_empty()
}

impl WorkspaceTask {
    pub(super) fn run(&self, url: &DatabaseUrl) -> Result<(), Error> {
        match self {
            Self::Create { name, change } => {
                block_on(with_admin(url, async |admin| {
                    admin.create_workspace(name, change).await
                }))?;
                tracing::info!(name, "created the workspace");
            }
            Self::List => {
                let list = with_admin(url, async |admin| admin.workspaces().await);
                output::print(&list_of(&block_on(list)?))?;
            }
            Self::Set {
                name,
                change,
                paused,
            } => {
                let name = name.as_deref();
                block_on(with_admin(url, async |admin| {
                    set(&admin, name, change, *paused).await
                }))?;
                let name = name.unwrap_or("all");
                tracing::info!(
                    name,
                    "changed the settings; replicas apply them within 10 seconds"
                );
            }
        }
        Ok(())
    }
}

async fn set(
    admin: &Admin,
    name: Option<&str>,
    change: &WorkspaceChange,
    paused: Option<bool>,
) -> Result<(), Error> {
    if let Some(name) = name
        && changes_settings(change)
    {
        admin.set_workspace(name, change).await?;
    }
    match paused {
        Some(paused) => admin.set_sending(name, paused).await,
        None => Ok(()),
    }
}

/// A line for each workspace, with a heading.
fn list_of(workspaces: &[Workspace]) -> String {
    let heading = "NAME\tDEFAULT TIME ZONE\tREQUESTS\tBROADCASTS\tSAME AUDIENCE\tSENDING\n";
    let line = |one: &Workspace| {
        let [requests, broadcasts, same_audience] =
            QuotaKind::ALL.map(|counted| one.limits.of(counted).to_string());
        let sending = if one.sending_paused { "paused" } else { "on" };
        format!(
            "{}\t{}\t{requests}\t{broadcasts}\t{same_audience}\t{sending}\n",
            one.name,
            one.default_zone.name()
        )
    };
    std::iter::once(heading.to_owned())
        .chain(workspaces.iter().map(line))
        .collect()
}
