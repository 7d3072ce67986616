//! `workspace`: makes, lists and sets tenants, over the database itself.

use super::{Faults, Reading, block_on, fault, with_admin};
use crate::config::access::{WorkspaceArgs, WorkspaceCommand};
use crate::domain::{Counted, Quota, Workspace, Zone, workspace};
use crate::service::admin::WorkspaceChange;

/// Runs the subcommand.
///
/// # Errors
/// What is wrong, a line each.
pub fn run(command: &WorkspaceCommand) -> Result<(), Faults> {
    match command {
        WorkspaceCommand::Create(args) => {
            let named = workspace::check_name(&args.name).map_err(|why| vec![format!("name: {why}")]);
            let ((url, change), ()) = Reading::of(&args.database).with(read_change(args)).with(named).finish()?;
            block_on(with_admin(&url, async |admin| admin.create_workspace(&args.name, &change).await.map_err(fault)))?;
            tracing::info!(name = args.name, "a workspace was made");
        }
        WorkspaceCommand::Set(args) => {
            let (url, change) = Reading::of(&args.database).with(read_change(args).and_then(something)).finish()?;
            block_on(with_admin(&url, async |admin| admin.set_workspace(&args.name, &change).await.map_err(fault)))?;
            tracing::info!(name = args.name, "set: replicas heed it within 10 seconds");
        }
        WorkspaceCommand::List(database) => {
            print_list(&block_on(with_admin(&database.read()?, async |admin| admin.workspaces().await.map_err(fault)))?);
        }
    }
    Ok(())
}

/// Everything that is wrong with the settings, at once.
fn read_change(args: &WorkspaceArgs) -> Result<WorkspaceChange, Faults> {
    let (mut change, mut faults) = (WorkspaceChange::default(), Vec::new());
    match args.default_time_zone.as_deref().map(Zone::parse).transpose() {
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
    if faults.is_empty() { Ok(change) } else { Err(faults) }
}

/// A change that changes something.
fn something(change: WorkspaceChange) -> Result<WorkspaceChange, Faults> {
    if change.default_zone.is_none() && change.quotas.is_empty() {
        return Err(vec!["nothing is to be set; `workspace set --help` lists the settings".to_owned()]);
    }
    Ok(change)
}

#[allow(clippy::print_stdout, reason = "the list is what was asked for")]
fn print_list(workspaces: &[Workspace]) {
    println!("NAME\tDEFAULT TIME ZONE\tREQUESTS\tBROADCASTS\tSAME AUDIENCE");
    for one in workspaces {
        let [requests, broadcasts, same_audience] = Counted::ALL.map(|counted| one.limits.of(counted).to_string());
        println!("{}\t{}\t{requests}\t{broadcasts}\t{same_audience}", one.name, one.default_zone.name());
    }
}
