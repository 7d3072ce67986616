//! `api-key`: makes, lists and revokes keys, over the database itself.

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat, Utc};

use super::{Faults, Reading, block_on, fault, with_admin};
use crate::clock::{Clock, SystemClock};
use crate::config::access::{ApiKeyCommand, ApiKeyCreateArgs};
use crate::domain::key::{check_name, networks};
use crate::domain::{ApiKey, KeyId, NewKey, Permissions, WorkspaceId};
use crate::service::admin::KeyOrder;

/// Runs the subcommand.
///
/// # Errors
/// What is wrong, a line each.
pub fn run(command: &ApiKeyCommand) -> Result<(), Faults> {
    match command {
        ApiKeyCommand::Create(args) => {
            let (url, order) = Reading::of(&args.database)
                .with(read_order(args))
                .finish()?;
            let create = with_admin(&url, async |admin| {
                admin
                    .create_key(&args.workspace, order)
                    .await
                    .map_err(fault)
            });
            print_key(&block_on(create)?);
        }
        ApiKeyCommand::List(database) => {
            let url = database.read()?;
            let list = with_admin(&url, async |admin| {
                let workspaces = admin.workspaces().await.map_err(fault)?;
                let names = workspaces
                    .into_iter()
                    .map(|workspace| (workspace.id, workspace.name))
                    .collect();
                Ok((names, admin.keys().await.map_err(fault)?))
            });
            let (names, keys) = block_on(list)?;
            print_list(&names, &keys, SystemClock.now());
        }
        ApiKeyCommand::Revoke(args) => {
            let id = KeyId::parse(&args.id).map_err(|why| vec![format!("id: {why}")]);
            let (url, id) = Reading::of(&args.database).with(id).finish()?;
            block_on(with_admin(&url, async |admin| {
                admin.revoke_key(id).await.map_err(fault)
            }))?;
            tracing::info!(%id, "revoked: every replica refuses it within 10 seconds");
        }
    }
    Ok(())
}

/// Everything that is wrong with a new key, at once.
fn read_order(args: &ApiKeyCreateArgs) -> Result<KeyOrder, Faults> {
    let flag = |name: &'static str| move |why: String| format!("--{name}: {why}");
    let named = check_name(&args.name).map_err(flag("name"));
    let permissions = Permissions::parse(&args.permissions).map_err(flag("permissions"));
    let expires_at = args
        .expires
        .as_deref()
        .map(future)
        .transpose()
        .map_err(flag("expires"));
    let allowlist = networks(&args.allow).map_err(flag("allow"));
    match (named, permissions, expires_at, allowlist) {
        (Ok(()), Ok(permissions), Ok(expires_at), Ok(allowlist)) => Ok(KeyOrder {
            name: args.name.clone(),
            permissions,
            expires_at,
            allowlist,
        }),
        (named, permissions, expires_at, allowlist) => Err([
            named.err(),
            permissions.err(),
            expires_at.err(),
            allowlist.err(),
        ]
        .into_iter()
        .flatten()
        .collect()),
    }
}

fn future(text: &str) -> Result<DateTime<Utc>, String> {
    let instant = DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|at| at.to_utc())
        .filter(|at| *at > SystemClock.now());
    instant.ok_or_else(|| {
        format!("{text:?} is no instant to come; one is needed such as 2027-01-31T00:00:00Z")
    })
}

/// The key alone on standard output, so that a script can take it.
#[allow(clippy::print_stdout, reason = "the one place where the key is shown")]
fn print_key(new: &NewKey) {
    println!("{}", new.reveal());
    tracing::info!(id = %new.id, "a key was made; it is shown this once");
}

#[allow(clippy::print_stdout, reason = "the list is what was asked for")]
fn print_list(names: &HashMap<WorkspaceId, String>, keys: &[ApiKey], now: DateTime<Utc>) {
    let at = |instant: Option<DateTime<Utc>>| {
        instant.map_or_else(
            || "-".to_owned(),
            |at| at.to_rfc3339_opts(SecondsFormat::Secs, true),
        )
    };
    println!("ID\tWORKSPACE\tNAME\tSTATE\tPERMISSIONS\tNETWORKS\tCREATED\tEXPIRES\tLAST USED");
    for key in keys {
        let state = match (key.revoked_at, key.expires_at) {
            (Some(_), _) => "revoked",
            (None, Some(at)) if at <= now => "expired",
            (None, _) => "good",
        };
        let networks: Vec<String> = key.allowlist.iter().map(ToString::to_string).collect();
        println!(
            "{}\t{}\t{}\t{state}\t{}\t{}\t{}\t{}\t{}",
            key.id,
            names.get(&key.workspace).map_or("-", String::as_str),
            key.name,
            key.permissions,
            if networks.is_empty() {
                "anywhere".to_owned()
            } else {
                networks.join(",")
            },
            at(Some(key.created_at)),
            at(key.expires_at),
            at(key.last_used_at),
        );
    }
}
