//! Keys and workspaces. These are asked for by operators and by the process itself, not in the name of a caller; and not over the
//! connections that callers read by, so that a flood of reads locks nobody out.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, Condition, ConnectionTrait, DbErr,
    EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
};

use crate::domain::key::{SecretHash, networks};
use crate::domain::{
    ApiKey, Counted, KeyId, Limits, Permissions, Quota, Window, Workspace, WorkspaceId, Zone,
};
use crate::error::{Error, Violation};
use crate::store::admin::AdminStore;
use crate::store::schema::codec::{self, instant};
use crate::store::schema::tables::{api_key, workspace, workspace_limit};
use crate::store::session::error::{public, unique_violation};
use crate::store::session::pool::begin;

/// Keys that a process holds in memory: those that work, and those that stopped within [`STOPPED_KEPT`]. No more can be made.
pub(crate) const KEYS_MOST: u64 = 10_000;
/// Workspaces that there may be.
pub(crate) const WORKSPACES_MOST: u64 = 10_000;
/// How long a caller is told that its key was revoked or has expired, before it is unknown.
const STOPPED_KEPT: TimeDelta = TimeDelta::days(7);

/// What an operator may change of a workspace; what is none stays.
#[derive(Debug, Clone, Default)]
pub struct WorkspaceChange {
    /// For new schedules.
    pub default_zone: Option<Zone>,
    /// Quotas by kind.
    pub quotas: Vec<(Counted, Quota)>,
}

impl AdminStore {
    /// Makes a workspace.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name is taken or there are too many.
    pub async fn create_workspace(
        &self,
        name: &str,
        change: &WorkspaceChange,
    ) -> Result<(), Error> {
        let make = async {
            let transaction = begin(&self.reads).await?;
            if workspace::Entity::find().count(&transaction).await? >= WORKSPACES_MOST {
                return Ok(false);
            }
            let newest = workspace::Entity::find()
                .order_by_desc(workspace::Column::Id)
                .one(&transaction)
                .await?;
            let id = newest.map_or(0, |newest| newest.id) + 1;
            let default_time_zone = change.default_zone.unwrap_or(Zone::utc()).name().to_owned();
            let row = workspace::Model {
                id,
                name: name.to_owned(),
                default_time_zone,
                sending_paused: false,
            };
            workspace::Entity::insert(row.into_active_model())
                .exec_without_returning(&transaction)
                .await?;
            set_quotas(&transaction, id, &change.quotas).await?;
            transaction.commit().await.map(|()| true)
        };
        match make.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(invalid(
                "name",
                format!("there are {WORKSPACES_MOST} workspaces; no more can be made"),
            )),
            Err(fault) if unique_violation(&fault) => Err(invalid(
                "name",
                format!("there is a workspace {name} already"),
            )),
            Err(fault) => Err(public(&fault)),
        }
    }

    /// Changes a workspace.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is none of this name.
    pub async fn set_workspace(&self, name: &str, change: &WorkspaceChange) -> Result<(), Error> {
        let WorkspaceId(id) = self.workspace_named(name).await?;
        let set = async {
            let transaction = begin(&self.reads).await?;
            if let Some(zone) = change.default_zone {
                let row = workspace::ActiveModel {
                    id: Set(id),
                    default_time_zone: Set(zone.name().to_owned()),
                    ..Default::default()
                };
                row.update(&transaction).await?;
            }
            set_quotas(&transaction, id, &change.quotas).await?;
            transaction.commit().await
        };
        set.await.map_err(|fault: DbErr| public(&fault))
    }

    /// Every workspace, by name.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn workspaces(&self) -> Result<Vec<Workspace>, Error> {
        let read = async {
            let db = self.pool.db();
            let mut limits: HashMap<i32, Limits> = HashMap::new();
            for limit in workspace_limit::Entity::find().all(&db).await? {
                let own = limits.entry(limit.workspace_id).or_default();
                *own = with_stored(*own, &limit);
            }
            let rows = workspace::Entity::find()
                .order_by_asc(workspace::Column::Name)
                .limit(WORKSPACES_MOST)
                .all(&db)
                .await?;
            let workspace = |row: workspace::Model| {
                Ok(Workspace {
                    id: WorkspaceId(row.id),
                    limits: limits.get(&row.id).copied().unwrap_or_default(),
                    default_zone: Zone::parse(&row.default_time_zone).map_err(codec::broken)?,
                    name: row.name,
                    sending_paused: row.sending_paused,
                })
            };
            rows.into_iter()
                .map(workspace)
                .collect::<Result<Vec<_>, DbErr>>()
        };
        self.pool.run(read).await
    }

    /// The workspace of this name.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is none.
    pub async fn workspace_named(&self, name: &str) -> Result<WorkspaceId, Error> {
        let found = workspace::Entity::find()
            .filter(workspace::Column::Name.eq(name))
            .one(&self.reads)
            .await;
        let found = found.map_err(|fault| public(&fault))?;
        found.map(|row| WorkspaceId(row.id)).ok_or_else(|| {
            invalid(
                "workspace",
                format!("there is no workspace {name}; `workspace list` shows them"),
            )
        })
    }

    /// Writes a new key.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name is taken or there are too many keys.
    pub async fn create_key(&self, key: &ApiKey) -> Result<(), Error> {
        let held = api_key::Entity::find()
            .filter(still_told(self.clock.now()))
            .count(&self.reads)
            .await;
        if held.map_err(|fault| public(&fault))? >= KEYS_MOST {
            return Err(invalid(
                "name",
                format!(
                    "there are {KEYS_MOST} keys; no more can be made until some are revoked and a week has passed"
                ),
            ));
        }
        match api_key::Entity::insert(key_row(key).into_active_model())
            .exec_without_returning(&self.reads)
            .await
        {
            Ok(_) => Ok(()),
            Err(fault) if unique_violation(&fault) => Err(invalid(
                "name",
                format!(
                    "the workspace has a key {:?} already; the history tells keys apart by their names",
                    key.name
                ),
            )),
            Err(fault) => Err(public(&fault)),
        }
    }

    /// Removes the key of this name, if there is one. For keys that belong to a process; others are revoked.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn remove_key(&self, workspace: WorkspaceId, name: &str) -> Result<(), Error> {
        let named = api_key::Entity::delete_many()
            .filter(api_key::Column::WorkspaceId.eq(workspace.0))
            .filter(api_key::Column::Name.eq(name));
        named
            .exec(&self.reads)
            .await
            .map(|_| ())
            .map_err(|fault| public(&fault))
    }

    /// Revokes a key; one that was revoked before stays so since then.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no such key.
    pub async fn revoke_key(&self, id: KeyId) -> Result<(), Error> {
        let now = self.clock.now().timestamp_millis();
        let revoke = api_key::Entity::update_many()
            .col_expr(
                api_key::Column::RevokedMs,
                Expr::col(api_key::Column::RevokedMs).if_null(now),
            )
            .filter(api_key::Column::Id.eq(id.to_string()));
        match revoke.exec(&self.reads).await {
            Ok(done) if done.rows_affected > 0 => Ok(()),
            Ok(_) => Err(invalid(
                "id",
                format!("there is no key {id}; `api-key list` shows them"),
            )),
            Err(fault) => Err(public(&fault)),
        }
    }

    /// Every key, those that work and those that do not, in the order of their workspaces and creation, at most `most`.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn all_keys(&self, most: u64) -> Result<Vec<ApiKey>, Error> {
        let rows = api_key::Entity::find()
            .order_by_asc(api_key::Column::WorkspaceId)
            .order_by_asc(api_key::Column::CreatedMs);
        self.keys_of(rows.limit(most)).await
    }

    /// The keys that callers are told something about: those that work, and those that stopped not long ago.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn recognized_keys(&self) -> Result<Vec<ApiKey>, Error> {
        // By the id, so that it is the same ones if a race has let in too many.
        let rows = api_key::Entity::find()
            .filter(still_told(self.clock.now()))
            .order_by_asc(api_key::Column::Id);
        self.keys_of(rows.limit(KEYS_MOST)).await
    }

    /// One key, if callers are told something about it.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn key(&self, id: KeyId) -> Result<Option<ApiKey>, Error> {
        Ok(self
            .keys_of(
                api_key::Entity::find_by_id(id.to_string()).filter(still_told(self.clock.now())),
            )
            .await?
            .pop())
    }

    async fn keys_of(&self, rows: sea_orm::Select<api_key::Entity>) -> Result<Vec<ApiKey>, Error> {
        let rows = self.pool.run(rows.all(&self.pool.db())).await?;
        let readable = |row: api_key::Model| {
            let id = row.id.clone();
            // It locks out its own holder, and nobody else.
            key(row)
                .inspect_err(|fault| tracing::error!(id, %fault, "a key is left out"))
                .ok()
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// Notes that these keys were used now.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn note_use(&self, ids: &[KeyId]) -> Result<(), Error> {
        let now = self.clock.now().timestamp_millis();
        let note = api_key::Entity::update_many()
            .col_expr(api_key::Column::LastUsedMs, Expr::value(now))
            .filter(api_key::Column::Id.is_in(ids.iter().map(KeyId::to_string)))
            // Another replica's later word stands.
            .filter(
                Condition::any()
                    .add(api_key::Column::LastUsedMs.is_null())
                    .add(api_key::Column::LastUsedMs.lt(now)),
            );
        self.pool.run(note.exec(&self.pool.db())).await.map(drop)
    }
}

fn invalid(field: &str, message: String) -> Error {
    Error::Invalid(vec![Violation::new(field, message)])
}

fn still_told(now: DateTime<Utc>) -> Condition {
    let since = (now - STOPPED_KEPT).timestamp_millis();
    let or_later =
        |column: api_key::Column| Condition::any().add(column.is_null()).add(column.gt(since));
    Condition::all()
        .add(or_later(api_key::Column::RevokedMs))
        .add(or_later(api_key::Column::ExpiresMs))
}

async fn set_quotas<C: ConnectionTrait>(
    db: &C,
    workspace_id: i32,
    quotas: &[(Counted, Quota)],
) -> Result<(), DbErr> {
    for (counted, quota) in quotas {
        let most = i64::try_from(quota.most).map_err(codec::broken)?;
        let row = workspace_limit::Model {
            workspace_id,
            counted: counted.name().to_owned(),
            most,
            window_ms: quota.window.millis(),
        };
        workspace_limit::Entity::delete_by_id((workspace_id, row.counted.clone()))
            .exec(db)
            .await?;
        workspace_limit::Entity::insert(row.into_active_model())
            .exec_without_returning(db)
            .await?;
    }
    Ok(())
}

/// What a newer release counts besides is none of our business.
fn with_stored(limits: Limits, row: &workspace_limit::Model) -> Limits {
    let counted = Counted::ALL
        .into_iter()
        .find(|counted| counted.name() == row.counted);
    let quota = Window::from_millis(row.window_ms)
        .zip(u64::try_from(row.most).ok())
        .map(|(window, most)| Quota { most, window });
    counted
        .zip(quota)
        .map_or(limits, |(counted, quota)| limits.with(counted, quota))
}

fn key_row(key: &ApiKey) -> api_key::Model {
    let networks: Vec<String> = key.allowlist.iter().map(ToString::to_string).collect();
    api_key::Model {
        id: key.id.to_string(),
        workspace_id: key.workspace.0,
        name: key.name.clone(),
        secret_sha256: key.hash.to_hex(),
        permissions: key.permissions.to_string(),
        allowlist: networks.join(","),
        created_ms: key.created_at.timestamp_millis(),
        expires_ms: key.expires_at.map(|at| at.timestamp_millis()),
        revoked_ms: key.revoked_at.map(|at| at.timestamp_millis()),
        last_used_ms: key.last_used_at.map(|at| at.timestamp_millis()),
    }
}

fn key(row: api_key::Model) -> Result<ApiKey, DbErr> {
    let optional = |millis: Option<i64>| millis.map(instant).transpose();
    Ok(ApiKey {
        id: KeyId::parse(&row.id).map_err(codec::broken)?,
        workspace: WorkspaceId(row.workspace_id),
        name: row.name,
        hash: SecretHash::from_hex(&row.secret_sha256).ok_or_else(|| codec::broken("no hash"))?,
        permissions: Permissions::from_stored(&row.permissions),
        allowlist: networks(&row.allowlist).map_err(codec::broken)?,
        created_at: instant(row.created_ms)?,
        expires_at: optional(row.expires_ms)?,
        revoked_at: optional(row.revoked_ms)?,
        last_used_at: optional(row.last_used_ms)?,
    })
}
