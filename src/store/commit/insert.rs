//! Inserts rows, with the same statements on both databases.

use sea_orm::sea_query::OnConflict;
use sea_orm::{ActiveModelTrait, ConnectionTrait, DbErr, EntityTrait, InsertMany, IntoActiveModel};

use crate::store::schema::tables::{canvas_schedule, properties, request, revision, target, wake};

/// The rows of new schedules.
#[derive(Default)]
pub(crate) struct NewRows {
    pub schedules: Vec<canvas_schedule::Model>,
    /// Their first entries in the queue.
    pub wakes: Vec<wake::Model>,
    pub revisions: Vec<revision::Model>,
    pub targets: Vec<target::Model>,
    pub properties: Vec<properties::Model>,
    pub requests: Vec<request::Model>,
}

/// Inserts new schedules within a transaction.
pub(crate) async fn schedules<C: ConnectionTrait>(db: &C, new: &NewRows) -> Result<(), DbErr> {
    if new.schedules.is_empty() {
        return Ok(());
    }
    many(&new.schedules).exec_without_returning(db).await?;
    many(&new.wakes).exec_without_returning(db).await?;
    many(&new.revisions).exec_without_returning(db).await?;
    many(&new.targets).exec_without_returning(db).await?;
    properties(db, &new.properties).await?;
    requests(db, &new.requests).await
}

/// Inserts property sets. One with the id of a stored set equals it and is left out.
pub(crate) async fn properties<C: ConnectionTrait>(
    db: &C,
    rows: &[properties::Model],
) -> Result<(), DbErr> {
    let mut on_conflict = OnConflict::column(properties::Column::Id);
    many(rows)
        .on_conflict(on_conflict.do_nothing().to_owned())
        .exec_without_returning(db)
        .await?;
    Ok(())
}

/// Inserts first answers. A request id that was answered meanwhile is a unique violation.
pub(crate) async fn requests<C: ConnectionTrait>(
    db: &C,
    rows: impl IntoIterator<Item = &request::Model>,
) -> Result<(), DbErr> {
    many(rows).exec_without_returning(db).await?;
    Ok(())
}

fn many<'a, A, M>(rows: impl IntoIterator<Item = &'a M>) -> InsertMany<A>
where
    A: ActiveModelTrait,
    M: IntoActiveModel<A> + Clone + 'a,
{
    A::Entity::insert_many(rows.into_iter().cloned().map(M::into_active_model))
}
