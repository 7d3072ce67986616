//! `api-key`: creates, lists and revokes API keys in the database.

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};

use super::{block_on, output, with_admin};
use crate::clock::{Clock, SystemClock};
use crate::config::{DatabaseArgs, DatabaseUrl};
use crate::domain::key::{check_name, networks};
use crate::domain::{ApiKey, KeyId, NewKey, Permissions, WorkspaceId};
use crate::error::{Error, Violations};
use crate::service::admin::KeyOrder;

/// The subcommands of `api-key`.
#[derive(Debug, Subcommand)]
pub(super) enum ApiKeyCommand {
    /// Create a key and print it once; it cannot be shown again
    Create(ApiKeyCreateArgs),
    /// List all keys, without their secrets
    List(DatabaseArgs),
    /// Revoke a key; every replica refuses it within 10 seconds
    Revoke(ApiKeyRevokeArgs),
}

/// The new key.
#[derive(Debug, Args)]
pub(super) struct ApiKeyCreateArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The workspace of the key
    #[arg(long, default_value = "default")]
    workspace: String,
    /// The name of the key, which the history shows; unique in its workspace
    #[arg(long, default_value = "")]
    name: String,
    /// Permissions: any of create, update, delete and read, separated by commas, or all
    #[arg(long, default_value = "")]
    permissions: String,
    /// When the key expires, such as 2027-01-31T00:00:00Z [default: never]
    #[arg(long, value_name = "INSTANT")]
    expires: Option<String>,
    /// Networks from which the key may be used, such as 10.0.0.0/8,192.0.2.7 [default: anywhere]
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "NETWORKS"
    )]
    allow: String,
}

/// The key to revoke.
#[derive(Debug, Args)]
pub(super) struct ApiKeyRevokeArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The id of the key: cs_ and 16 hex digits, as `api-key list` shows it
    id: String,
}

/// A validated command.
pub(super) enum ApiKeyTask {
    Create { workspace: String, order: KeyOrder },
    List,
    Revoke(KeyId),
}

impl ApiKeyCommand {
    /// The task, over the database at this URL. None also when a violation was found.
    pub(super) fn read(self, violations: &mut Violations) -> (DatabaseUrl, Option<ApiKeyTask>) {
        match self {
            Self::Create(args) => {
                let url = args.database.read(violations);
                let order = args.order(violations);
                let workspace = args.workspace;
                (
                    url,
                    order.map(|order| ApiKeyTask::Create { workspace, order }),
                )
            }
            Self::List(database) => (database.read(violations), Some(ApiKeyTask::List)),
            Self::Revoke(args) => {
                let id = violations.check("<ID>", KeyId::parse(&args.id));
                (args.database.read(violations), id.map(ApiKeyTask::Revoke))
            }
        }
    }
}

impl ApiKeyTask {
    pub(super) fn run(self, url: &DatabaseUrl) -> Result<(), Error> {
        match self {
            Self::Create { workspace, order } => {
                output::check_kept()?;
                // The key alone on standard output, so that a script can take it.
                let show = |new: &NewKey| output::print(&format!("{}\n", new.reveal()));
                let create = with_admin(url, async |admin| {
                    admin.create_key(&workspace, order, show).await
                });
                let id = block_on(create)?.id;
                tracing::info!(%id, "created an API key; it cannot be shown again");
            }
            Self::List => {
                let list = with_admin(url, async |admin| {
                    let workspaces = admin.workspaces().await?;
                    let names = workspaces
                        .into_iter()
                        .map(|workspace| (workspace.id, workspace.name))
                        .collect();
                    Ok((names, admin.keys().await?))
                });
                let (names, keys) = block_on(list)?;
                output::print(&list_of(&names, &keys, SystemClock.now()))?;
            }
            Self::Revoke(id) => {
                block_on(with_admin(url, async |admin| admin.revoke_key(id).await))?;
                tracing::info!(%id, "revoked the key; every replica refuses it within 10 seconds");
            }
        }
        Ok(())
    }
}

impl ApiKeyCreateArgs {
    fn order(&self, violations: &mut Violations) -> Option<KeyOrder> {
        let name = violations.check("name", check_name(&self.name));
        let permissions = violations.check("permissions", Permissions::parse(&self.permissions));
        let expires_at = self.expires.as_deref().map(future).transpose();
        let expires_at = violations.check("expires", expires_at);
        let allowlist = violations.check("allow", networks(&self.allow));
        name?;
        Some(KeyOrder {
            name: self.name.clone(),
            permissions: permissions?,
            expires_at: expires_at?,
            allowlist: allowlist?,
        })
    }
}

fn future(text: &str) -> Result<DateTime<Utc>, String> {
    let instant = DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|at| at.to_utc())
        .filter(|at| *at > SystemClock.now());
    instant.ok_or_else(|| format!("{text:?} is not a future instant such as 2027-01-31T00:00:00Z"))
}

/// A line for each key, with a heading.
fn list_of(names: &HashMap<WorkspaceId, String>, keys: &[ApiKey], now: DateTime<Utc>) -> String {
    let at = |instant: Option<DateTime<Utc>>| {
        instant.map_or_else(
            || "-".to_owned(),
            |at| at.to_rfc3339_opts(SecondsFormat::Secs, true),
        )
    };
    let heading =
        "ID\tWORKSPACE\tNAME\tSTATE\tPERMISSIONS\tNETWORKS\tCREATED\tEXPIRES\tLAST USED\n";
    let line = |key: &ApiKey| {
        let state = match (key.revoked_at, key.expires_at) {
            (Some(_), _) => "revoked",
            (None, Some(at)) if at <= now => "expired",
            (None, _) => "good",
        };
        let networks: Vec<String> = key.allowlist.iter().map(ToString::to_string).collect();
        format!(
            "{}\t{}\t{}\t{state}\t{}\t{}\t{}\t{}\t{}\n",
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
        )
    };
    std::iter::once(heading.to_owned())
        .chain(keys.iter().map(line))
        .collect()
}
