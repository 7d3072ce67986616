//! Workspaces, for operators and for the process itself.

use std::collections::HashMap;

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, ConnectionTrait, DbErr, EntityTrait,
    IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
};

use crate::domain::{Limits, Quota, QuotaKind, QuotaWindow, Workspace, WorkspaceId, Zone};
use crate::error::Error;
use crate::store::admin::{AdminStore, invalid, unless_taken};
use crate::store::schema::codec;
use crate::store::schema::tables::{workspace, workspace_limit};

/// Limits the number of workspaces.
const MAX_WORKSPACES: u64 = 10_000;

/// A change of a workspace. A value that is `None` or absent stays as it is.
#[derive(Debug, Clone, Default)]
pub struct WorkspaceChange {
    /// The zone of new schedules.
    pub default_zone: Option<Zone>,
    /// Quotas by kind.
    pub quotas: Vec<(QuotaKind, Quota)>,
}

/// What became of a new workspace.
enum Created {
    Done,
    TooMany,
    NameTaken,
}

impl AdminStore {
    /// Creates a workspace. Fails with [`Error::Invalid`] when the name is taken or there are too
    /// many workspaces.
    pub async fn create_workspace(
        &self,
        name: &str,
        change: &WorkspaceChange,
    ) -> Result<(), Error> {
        let create = async {
            let transaction = self.sessions.begin().await?;
            if workspace::Entity::find().count(&transaction).await? >= MAX_WORKSPACES {
                transaction.rollback().await?;
                return Ok(Created::TooMany);
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
            let insert = workspace::Entity::insert(row.into_active_model());
            if !unless_taken(insert.exec_without_returning(&transaction).await)? {
                transaction.rollback().await?;
                return Ok(Created::NameTaken);
            }
            set_quotas(&transaction, id, &change.quotas).await?;
            transaction.commit().await.map(|()| Created::Done)
        };
        match self.sessions.run(create).await? {
            Created::Done => Ok(()),
            Created::TooMany => Err(invalid(
                "name",
                format!("the limit of {MAX_WORKSPACES} workspaces is reached"),
            )),
            Created::NameTaken => Err(invalid(
                "name",
                format!("a workspace named {name} already exists"),
            )),
        }
    }

    /// Changes a workspace. Fails with [`Error::Invalid`] when no workspace has this name.
    pub async fn set_workspace(&self, name: &str, change: &WorkspaceChange) -> Result<(), Error> {
        let WorkspaceId(id) = self.workspace_named(name).await?;
        let set = async {
            let transaction = self.sessions.begin().await?;
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
        self.sessions.run(set).await
    }

    /// Every workspace, by name.
    pub async fn workspaces(&self) -> Result<Vec<Workspace>, Error> {
        let read = async {
            let db = self.sessions.acquire().await?;
            let mut limits: HashMap<i32, Limits> = HashMap::new();
            for limit in workspace_limit::Entity::find().all(&db).await? {
                let own = limits.entry(limit.workspace_id).or_default();
                *own = with_stored(*own, &limit);
            }
            let rows = workspace::Entity::find()
                .order_by_asc(workspace::Column::Name)
                .limit(MAX_WORKSPACES)
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
        self.sessions.run(read).await
    }

    /// The workspace of this name. Fails with [`Error::Invalid`] when no workspace has this name.
    pub async fn workspace_named(&self, name: &str) -> Result<WorkspaceId, Error> {
        let find = async {
            let db = self.sessions.acquire().await?;
            let named = workspace::Entity::find().filter(workspace::Column::Name.eq(name));
            named.one(&db).await
        };
        let row = self.sessions.run(find).await?;
        row.map(|row| WorkspaceId(row.id)).ok_or_else(|| {
            invalid(
                "workspace",
                format!("no workspace is named {name}; list them with `workspace list`"),
            )
        })
    }
}

async fn set_quotas<C: ConnectionTrait>(
    db: &C,
    workspace_id: i32,
    quotas: &[(QuotaKind, Quota)],
) -> Result<(), DbErr> {
    for (counted, quota) in quotas {
        let most = i64::try_from(quota.limit).map_err(codec::broken)?;
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

/// `limits` with a stored quota. A quota that only a newer release knows is ignored.
fn with_stored(limits: Limits, row: &workspace_limit::Model) -> Limits {
    let counted = QuotaKind::ALL
        .into_iter()
        .find(|counted| counted.name() == row.counted);
    let quota = QuotaWindow::from_millis(row.window_ms)
        .zip(u64::try_from(row.most).ok())
        .map(|(window, limit)| Quota { limit, window });
    counted
        .zip(quota)
        .map_or(limits, |(counted, quota)| limits.with(counted, quota))
}
