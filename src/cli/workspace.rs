//! `workspace`: makes, lists and sets tenants, over the database itself.

use super::{Faults, Reading, block_on, fault, with_admin};
use crate::config::access::{SetArgs, SettingsArgs, WorkspaceCommand};
use crate::domain::{Counted, Quota, Workspace, Zone, workspace};
use crate::error::Error;
use crate::service::admin::{Admin, WorkspaceChange};

/// Runs the subcommand.
///
/// # Errors
/// What is wrong, a line each.
pub fn run(command: &WorkspaceCommand) -> Result<(), Faults> {
    match command {
        WorkspaceCommand::Create(args) => {
            let named =
                workspace::check_name(&args.name).map_err(|why| vec![format!("name: {why}")]);
            let ((url, change), ()) = Reading::of(&args.database)
                .with(read_change(&args.settings))
                .with(named)
                .finish()?;
            block_on(with_admin(&url, async |admin| {
                admin
                    .create_workspace(&args.name, &change)
                    .await
                    .map_err(fault)
            }))?;
            tracing::info!(name = args.name, "a workspace was made");
        }
        WorkspaceCommand::Set(args) => {
            let (url, asked) = Reading::of(&args.database).with(read_set(args)).finish()?;
            block_on(with_admin(&url, async |admin| {
                set(&admin, &asked).await.map_err(fault)
            }))?;
            tracing::info!(
                name = asked.name.as_deref().unwrap_or("all"),
                "set: replicas heed it within 10 seconds"
            );
        }
        WorkspaceCommand::List(database) => {
            print_list(&block_on(with_admin(&database.read()?, async |admin| {
                admin.workspaces().await.map_err(fault)
            }))?);
        }
    }
    Ok(())
}

/// Everything that is wrong with the settings, at once.
fn read_change(args: &SettingsArgs) -> Result<WorkspaceChange, Faults> {
    let (mut change, mut faults) = (WorkspaceChange::default(), Vec::new());
    match args
        .default_time_zone
        .as_deref()
        .map(Zone::parse)
        .transpose()
    {
        Ok(zone) => change.default_zone = zone,
        Err(why) => faults.push(format!("--default-time-zone: {why}")),
    }
    for counted in Counted::ALL {
        let stated = match counted {
            Counted::Requests => &args.requests,
            Counted::Broadcasts => &args.broadcasts,
            Counted::SameAudience => &args.same_audience,
        };
        match stated.as_deref().map(Quota::parse).transpose() {
            Ok(quota) => change.quotas.extend(quota.map(|quota| (counted, quota))),
            Err(why) => faults.push(format!("--{}: {why}", counted.name())),
        }
    }
    if faults.is_empty() {
        Ok(change)
    } else {
        Err(faults)
    }
}

/// What `workspace set` is asked for.
struct Set {
    /// None means all at once.
    name: Option<String>,
    change: WorkspaceChange,
    /// Whether sending pauses, if that is to change.
    paused: Option<bool>,
}

/// Everything that is wrong, at once.
fn read_set(args: &SetArgs) -> Result<Set, Faults> {
    let (change, mut faults) = read_change(&args.settings).map_or_else(
        |faults| (WorkspaceChange::default(), faults),
        |change| (change, vec![]),
    );
    let paused = match args.sending.as_deref() {
        None => None,
        Some("paused") => Some(true),
        Some("on") => Some(false),
        Some(other) => {
            faults.push(format!("--sending: {other:?} is not paused or on"));
            None
        }
    };
    if args.name.is_some() == args.all {
        faults.push("either the name of a workspace or --all is needed".to_owned());
    }
    let settings = change.default_zone.is_some() || !change.quotas.is_empty();
    if args.all && settings {
        faults.push(
            "--all goes with --sending alone; other settings are of one workspace".to_owned(),
        );
    }
    if faults.is_empty() && !settings && paused.is_none() {
        faults.push("nothing is to be set; `workspace set --help` lists the settings".to_owned());
    }
    if faults.is_empty() {
        Ok(Set {
            name: args.name.clone(),
            change,
            paused,
        })
    } else {
        Err(faults)
    }
}

async fn set(admin: &Admin, asked: &Set) -> Result<(), Error> {
    if let Some(name) = &asked.name
        && (asked.change.default_zone.is_some() || !asked.change.quotas.is_empty())
    {
        admin.set_workspace(name, &asked.change).await?;
    }
    match asked.paused {
        Some(paused) => admin.set_sending(asked.name.as_deref(), paused).await,
        None => Ok(()),
    }
}

#[allow(clippy::print_stdout, reason = "the list is what was asked for")]
fn print_list(workspaces: &[Workspace]) {
    println!("NAME\tDEFAULT TIME ZONE\tREQUESTS\tBROADCASTS\tSAME AUDIENCE\tSENDING");
    for one in workspaces {
        let [requests, broadcasts, same_audience] =
            Counted::ALL.map(|counted| one.limits.of(counted).to_string());
        let sending = if one.sending_paused { "paused" } else { "on" };
        println!(
            "{}\t{}\t{requests}\t{broadcasts}\t{same_audience}\t{sending}",
            one.name,
            one.default_zone.name()
        );
    }
}
