//! Rows of tenants. A query of their tables begins here, with the workspace that it is about;
//! `tests/architecture.rs` holds the other modules of the store to it.

use sea_orm::{ColumnTrait, DeleteMany, EntityTrait, QueryFilter, Select, UpdateMany};

use crate::domain::{ScheduleId, WorkspaceId};
use crate::store::schema::tables::{
    canvas_schedule, dispatch, properties, rate_window, request, revision, target,
};

/// A workspace and the id of a schedule in it: the only way to name a row.
pub type Key = (WorkspaceId, ScheduleId);

/// A table whose rows belong to workspaces.
pub(crate) trait Tenant: EntityTrait {
    const WORKSPACE: Self::Column;

    fn within(workspace: WorkspaceId) -> Select<Self> {
        Self::find().filter(Self::WORKSPACE.eq(workspace.0))
    }

    fn update_within(workspace: WorkspaceId) -> UpdateMany<Self> {
        Self::update_many().filter(Self::WORKSPACE.eq(workspace.0))
    }

    fn delete_within(workspace: WorkspaceId) -> DeleteMany<Self> {
        Self::delete_many().filter(Self::WORKSPACE.eq(workspace.0))
    }
}

macro_rules! tenants {
    ($($table:ident),*) => {$(
        impl Tenant for $table::Entity {
            const WORKSPACE: Self::Column = $table::Column::WorkspaceId;
        }
    )*};
}

tenants!(
    canvas_schedule,
    dispatch,
    revision,
    properties,
    target,
    request,
    rate_window
);
