//! Inserts of new rows, the same for both databases.

use sea_orm::sea_query::OnConflict;
use sea_orm::{ConnectionTrait, DbErr, EntityTrait, IntoActiveModel};

use crate::store::schema::tables;

/// All that new schedules write.
#[derive(Default)]
pub(crate) struct NewRows {
    /// The hot rows.
    pub schedules: Vec<tables::canvas_schedule::Model>,
    /// When to examine them first.
    pub wakes: Vec<tables::wake::Model>,
    /// Their first revisions.
    pub revisions: Vec<tables::revision::Model>,
    /// Whom they are for.
    pub targets: Vec<tables::target::Model>,
    /// What they carry.
    pub properties: Vec<tables::properties::Model>,
    /// First answers.
    pub requests: Vec<tables::request::Model>,
}

/// Inserts new schedules; to be called within a transaction.
///
/// # Errors
/// What the database says; a request id that was answered meanwhile is a unique violation.
pub(crate) async fn schedules<C: ConnectionTrait>(db: &C, new: &NewRows) -> Result<(), DbErr> {
    if new.schedules.is_empty() {
        return Ok(());
    }
    tables::canvas_schedule::Entity::insert_many(active(&new.schedules))
        .exec_without_returning(db)
        .await?;
    tables::wake::Entity::insert_many(active(&new.wakes))
        .exec_without_returning(db)
        .await?;
    tables::revision::Entity::insert_many(active(&new.revisions))
        .exec_without_returning(db)
        .await?;
    tables::target::Entity::insert_many(active(&new.targets))
        .exec_without_returning(db)
        .await?;
    properties(db, &new.properties).await?;
    requests(db, &new.requests).await
}

/// Inserts property sets; one that is there already is the same one.
pub(crate) async fn properties<C: ConnectionTrait>(
    db: &C,
    rows: &[tables::properties::Model],
) -> Result<(), DbErr> {
    if rows.is_empty() {
        return Ok(());
    }
    let there_already = OnConflict::column(tables::properties::Column::Id)
        .do_nothing()
        .to_owned();
    tables::properties::Entity::insert_many(active(rows))
        .on_conflict(there_already)
        .exec_without_returning(db)
        .await?;
    Ok(())
}

/// Inserts first answers.
///
/// # Errors
/// What the database says; a request id that was answered meanwhile is a unique violation.
pub(crate) async fn requests<C: ConnectionTrait>(
    db: &C,
    rows: &[tables::request::Model],
) -> Result<(), DbErr> {
    if rows.is_empty() {
        return Ok(());
    }
    tables::request::Entity::insert_many(active(rows))
        .exec_without_returning(db)
        .await?;
    Ok(())
}

fn active<'a, M, A>(rows: &'a [M]) -> impl Iterator<Item = A> + use<'a, M, A>
where
    M: IntoActiveModel<A> + Clone,
    A: sea_orm::ActiveModelTrait,
{
    rows.iter().cloned().map(IntoActiveModel::into_active_model)
}
