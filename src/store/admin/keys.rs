//! API keys, for operators and for the process itself. The process reads keys over connections that
//! callers do not use, so that a flood of reads does not delay authentication.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ColumnTrait, Condition, DbErr, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter,
    QueryOrder, QuerySelect, Select,
};

use crate::domain::key::{SecretHash, networks};
use crate::domain::{ApiKey, KeyId, Permissions, WorkspaceId};
use crate::error::Error;
use crate::store::admin::{AdminStore, invalid, unless_taken};
use crate::store::schema::codec::{self, instant};
use crate::store::schema::tables::api_key;

/// Limits the keys that a process holds in memory: those in use, and those revoked or expired
/// within [`STOPPED_KEY_RETENTION`]. No more can be created.
const MAX_KEYS: u64 = 10_000;
/// For this long, the response to a call says that its key is revoked or expired; afterwards the
/// key is unknown.
const STOPPED_KEY_RETENTION: TimeDelta = TimeDelta::days(7);

impl AdminStore {
    /// Checks that a key can be created. Fails with [`Error::Invalid`] when the name is taken or
    /// there are too many keys.
    pub async fn check_new_key(&self, workspace: WorkspaceId, name: &str) -> Result<(), Error> {
        let counted = async {
            let db = self.sessions.acquire().await?;
            let recognized = api_key::Entity::find().filter(recognized(self.clock.now()));
            let named = api_key::Entity::find()
                .filter(api_key::Column::WorkspaceId.eq(workspace.0))
                .filter(api_key::Column::Name.eq(name));
            Ok((recognized.count(&db).await?, named.count(&db).await?))
        };
        let (recognized, named) = self.sessions.run(counted).await?;
        if recognized >= MAX_KEYS {
            return Err(invalid(
                "name",
                format!(
                    "the limit of {MAX_KEYS} keys is reached; \
                     a revoked or expired key counts for another week"
                ),
            ));
        }
        if named > 0 {
            return Err(taken(name));
        }
        Ok(())
    }

    /// Creates a key. Fails with [`Error::Invalid`] when the name is taken.
    pub async fn create_key(&self, key: &ApiKey) -> Result<(), Error> {
        let insert = async {
            let db = self.sessions.acquire().await?;
            let insert = api_key::Entity::insert(key_row(key).into_active_model());
            unless_taken(insert.exec_without_returning(&db).await)
        };
        if self.sessions.run(insert).await? {
            return Ok(());
        }
        Err(taken(&key.name))
    }

    /// Deletes the key of this name, if it exists. Use this only for a key that a process created
    /// for itself; revoke others.
    pub async fn remove_key(&self, workspace: WorkspaceId, name: &str) -> Result<(), Error> {
        let named = api_key::Entity::delete_many()
            .filter(api_key::Column::WorkspaceId.eq(workspace.0))
            .filter(api_key::Column::Name.eq(name));
        let remove = async {
            let db = self.sessions.acquire().await?;
            named.exec(&db).await
        };
        self.sessions.run(remove).await.map(drop)
    }

    /// Revokes a key. A key that is already revoked keeps the time of its revocation. Fails with
    /// [`Error::Invalid`] when the key does not exist.
    pub async fn revoke_key(&self, id: KeyId) -> Result<(), Error> {
        let now = self.clock.now().timestamp_millis();
        let revoke = api_key::Entity::update_many()
            .col_expr(
                api_key::Column::RevokedMs,
                Expr::col(api_key::Column::RevokedMs).if_null(now),
            )
            .filter(api_key::Column::Id.eq(id.to_string()));
        let revoke = async {
            let db = self.sessions.acquire().await?;
            revoke.exec(&db).await
        };
        if self.sessions.run(revoke).await?.rows_affected > 0 {
            return Ok(());
        }
        Err(invalid(
            "id",
            format!("no key has the id {id}; list them with `api-key list`"),
        ))
    }

    /// Up to `limit` keys, including revoked and expired ones, by workspace and time of creation.
    pub async fn all_keys(&self, limit: u64) -> Result<Vec<ApiKey>, Error> {
        let rows = api_key::Entity::find()
            .order_by_asc(api_key::Column::WorkspaceId)
            .order_by_asc(api_key::Column::CreatedMs);
        self.keys_of(rows.limit(limit)).await
    }

    /// The keys that the process recognizes: those in use, and those revoked or expired recently.
    pub async fn recognized_keys(&self) -> Result<Vec<ApiKey>, Error> {
        // By id, so that every read returns the same keys if a race created too many.
        let rows = api_key::Entity::find()
            .filter(recognized(self.clock.now()))
            .order_by_asc(api_key::Column::Id);
        self.keys_of(rows.limit(MAX_KEYS)).await
    }

    /// One key, if the process recognizes it.
    pub async fn key(&self, id: KeyId) -> Result<Option<ApiKey>, Error> {
        Ok(self
            .keys_of(
                api_key::Entity::find_by_id(id.to_string()).filter(recognized(self.clock.now())),
            )
            .await?
            .pop())
    }

    async fn keys_of(&self, rows: Select<api_key::Entity>) -> Result<Vec<ApiKey>, Error> {
        let read = async {
            let db = self.sessions.acquire().await?;
            rows.all(&db).await
        };
        let rows = self.sessions.run(read).await?;
        let readable = |row: api_key::Model| {
            let id = row.id.clone();
            // An unreadable key locks out only its holder.
            key(row)
                .inspect_err(|fault| {
                    tracing::error!(id, %fault, "failed to decode a stored API key; it is ignored");
                })
                .ok()
        };
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// Records that these keys were used now.
    pub async fn note_use(&self, ids: &[KeyId]) -> Result<(), Error> {
        let now = self.clock.now().timestamp_millis();
        let note = api_key::Entity::update_many()
            .col_expr(api_key::Column::LastUsedMs, Expr::value(now))
            .filter(api_key::Column::Id.is_in(ids.iter().map(KeyId::to_string)))
            // Keeps a later use that another replica recorded.
            .filter(
                Condition::any()
                    .add(api_key::Column::LastUsedMs.is_null())
                    .add(api_key::Column::LastUsedMs.lt(now)),
            );
        let note = async {
            let db = self.sessions.acquire().await?;
            note.exec(&db).await
        };
        self.sessions.run(note).await.map(drop)
    }
}

fn taken(name: &str) -> Error {
    invalid(
        "name",
        format!(
            "the workspace already has a key named {name:?}; the history identifies keys by their \
             names"
        ),
    )
}

fn recognized(now: DateTime<Utc>) -> Condition {
    let since = (now - STOPPED_KEY_RETENTION).timestamp_millis();
    let or_later =
        |column: api_key::Column| Condition::any().add(column.is_null()).add(column.gt(since));
    Condition::all()
        .add(or_later(api_key::Column::RevokedMs))
        .add(or_later(api_key::Column::ExpiresMs))
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
        hash: SecretHash::from_hex(&row.secret_sha256)
            .ok_or_else(|| codec::broken("the hash of the secret"))?,
        permissions: Permissions::from_stored(&row.permissions),
        allowlist: networks(&row.allowlist).map_err(codec::broken)?,
        created_at: instant(row.created_ms)?,
        expires_at: optional(row.expires_ms)?,
        revoked_at: optional(row.revoked_ms)?,
        last_used_at: optional(row.last_used_ms)?,
    })
}
