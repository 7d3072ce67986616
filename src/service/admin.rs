//! What operators do: workspaces and keys. The callers are command-line users with the rights of
//! the database account.

use chrono::{DateTime, Utc};
use ipnet::IpNet;

use crate::clock::SharedClock;
use crate::domain::key::RANDOM_BYTES;
use crate::domain::{ApiKey, KeyId, NewKey, Permissions, Workspace, WorkspaceId};
use crate::error::{Error, Violation, quote};
use crate::store::Store;
pub use crate::store::WorkspaceChange;

/// The maximum number of keys in a list.
const MAX_LISTED: u64 = 100_000;

/// The properties of a new key.
#[derive(Debug, Clone)]
pub struct KeyOrder {
    /// Its name, which the history shows.
    pub name: String,
    /// Its permissions.
    pub permissions: Permissions,
    /// When it expires, if ever.
    pub expires_at: Option<DateTime<Utc>>,
    /// Where it may be used from; empty means anywhere.
    pub allowlist: Vec<IpNet>,
}

/// The operators' use cases.
#[derive(Clone)]
pub struct Admin {
    store: Store,
    clock: SharedClock,
}

impl Admin {
    /// Over this store.
    pub fn new(store: Store, clock: SharedClock) -> Self {
        Self { store, clock }
    }

    /// Makes a key in the workspace of this name. Its text is in the answer and nowhere else. `show`
    /// gets it before the key is stored: wherever the process ends, a key that was not shown is
    /// never active.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown workspace or a name that is taken, those of `show`, and
    /// the store's.
    pub async fn create_key(
        &self,
        workspace: &str,
        order: KeyOrder,
        show: impl FnOnce(&NewKey) -> Result<(), Error>,
    ) -> Result<NewKey, Error> {
        let workspace = self.store.admin.workspace_named(workspace).await?;
        let mut random = [0; RANDOM_BYTES];
        getrandom::fill(&mut random).map_err(Error::internal)?;
        let new = NewKey::from_random(&random);
        let key = ApiKey {
            id: new.id,
            workspace,
            name: order.name,
            hash: new.hash,
            permissions: order.permissions,
            expires_at: order.expires_at,
            allowlist: order.allowlist,
            created_at: self.clock.now(),
            revoked_at: None,
            last_used_at: None,
        };
        self.store.admin.check_new_key(workspace, &key.name).await?;
        show(&new)?;
        self.store.admin.create_key(&key).await.inspect_err(|_| {
            tracing::error!(
                id = %key.id,
                "the key was shown but perhaps not stored; `api-key list` shows whether it is"
            );
        })?;
        Ok(new)
    }

    /// As [`Self::create_key`] in the workspace `default`. Replaces the key of this name, if any.
    pub async fn replace_key(
        &self,
        order: KeyOrder,
        show: impl FnOnce(&NewKey) -> Result<(), Error>,
    ) -> Result<NewKey, Error> {
        self.store
            .admin
            .remove_key(WorkspaceId::DEFAULT, &order.name)
            .await?;
        self.create_key("default", order, show).await
    }

    /// Every key, by workspace and age.
    pub async fn keys(&self) -> Result<Vec<ApiKey>, Error> {
        self.store.admin.all_keys(MAX_LISTED).await
    }

    /// Revokes a key: every replica refuses it within 10 seconds.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown key, and the store's.
    pub async fn revoke_key(&self, id: KeyId) -> Result<(), Error> {
        self.store.admin.revoke_key(id).await
    }

    /// Creates a workspace.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name is taken, and the store's.
    pub async fn create_workspace(
        &self,
        name: &str,
        change: &WorkspaceChange,
    ) -> Result<(), Error> {
        self.store.admin.create_workspace(name, change).await
    }

    /// Changes a workspace.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown workspace, and the store's.
    pub async fn set_workspace(&self, name: &str, change: &WorkspaceChange) -> Result<(), Error> {
        self.store.admin.set_workspace(name, change).await
    }

    /// Pauses or resumes sending, for one workspace or for all.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown workspace, and the store's.
    pub async fn set_sending(&self, name: Option<&str>, paused: bool) -> Result<(), Error> {
        if self.store.dispatch.set_sending(name, paused).await? {
            return Ok(());
        }
        let message = format!(
            "workspace {} does not exist",
            quote(name.unwrap_or_default())
        );
        Err(Error::Invalid(vec![Violation::new("name", message)]))
    }

    /// Every workspace, by name.
    pub async fn workspaces(&self) -> Result<Vec<Workspace>, Error> {
        self.store.admin.workspaces().await
    }
}
