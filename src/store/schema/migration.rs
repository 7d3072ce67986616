//! The migrations of the schema. They only go forward: a release adds what it needs, and a later
//! one removes what is not used any more, so that old and new replicas can run at the same time.

mod m0001_schedules;
mod m0002_dispatches;
mod m0003_access;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, EntityTrait, Statement, TransactionTrait,
};
use sea_orm_migration::{MigrationTrait, MigratorTrait, seaql_migrations};

/// Every migration, in order.
pub(crate) struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_schedules::Migration),
            Box::new(m0002_dispatches::Migration),
            Box::new(m0003_access::Migration),
        ]
    }
}

/// The key of the advisory lock around migrations: any constant that nothing else in the database
/// uses.
const LOCK_KEY: i64 = 0x6361_6e76_6173;

/// Applies every pending migration and returns their names. A process waits while another one
/// migrates.
pub(crate) async fn migrate(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    if db.get_database_backend() != DbBackend::Postgres {
        return apply(db).await;
    }
    // The lock ends with its transaction, even if this process is killed.
    let lock = db.begin().await?;
    lock.execute_raw(Statement::from_sql_and_values(
        DbBackend::Postgres,
        "SELECT pg_advisory_xact_lock($1)",
        [LOCK_KEY.into()],
    ))
    .await?;
    let applied = apply(db).await;
    lock.rollback().await?;
    applied
}

async fn apply(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let names = pending(db).await?;
    // After a rollback of the release, the schema has migrations that the migrator does not know.
    // It would refuse them, although there is nothing to apply.
    if !names.is_empty() {
        Migrator::up(db, None).await?;
    }
    Ok(names)
}

/// The names of the migrations that are not applied yet. This needs no right to change the schema,
/// and ignores migrations that a newer release applied (the migrator's own function would report
/// them as missing files).
pub(crate) async fn pending(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let applied = if has_been_migrated(db).await? {
        seaql_migrations::Entity::find().all(db).await?
    } else {
        vec![]
    };
    let known = Migrator::migrations()
        .into_iter()
        .map(|migration| migration.name().to_owned());
    Ok(known
        .filter(|name| !applied.iter().any(|row| row.version == *name))
        .collect())
}

async fn has_been_migrated(db: &DatabaseConnection) -> Result<bool, DbErr> {
    let backend = db.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => {
            "SELECT 1 AS found WHERE to_regclass('seaql_migrations') IS NOT NULL"
        }
        _ => "SELECT 1 AS found FROM sqlite_master WHERE name = 'seaql_migrations'",
    };
    Ok(db
        .query_one_raw(Statement::from_string(backend, sql))
        .await?
        .is_some())
}
