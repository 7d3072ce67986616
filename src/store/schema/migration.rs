//! The migrations of the schema. They only go forward: a release adds what it needs, and a later
//! one removes what is not used any more, so that old and new replicas can run at the same time.

mod m0001_schedules;
mod m0002_dispatches;
mod m0003_access;

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, EntityTrait, Statement};
use sea_orm_migration::{MigrationTrait, MigratorTrait, seaql_migrations};

use crate::store::session::sessions::Sessions;

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
/// A migration, and the wait for another process's, may take as long as they need. The lock belongs
/// to the session, so that no transaction is idle meanwhile, which the server may end.
const UNLIMITED: &str = "SET statement_timeout = 0; SET lock_timeout = 0; \
     SET idle_in_transaction_session_timeout = 0";

/// Applies every pending migration and returns their names. A process waits while another one
/// migrates.
pub(crate) async fn migrate(sessions: &Sessions) -> Result<Vec<String>, DbErr> {
    // Keeps a database in memory.
    drop(sessions.acquire().await?);
    // The migrator runs on the driver's own pool; this one has one connection, which has the lock.
    let db = sessions.database().pool_of_one().await?;
    if sessions.is_postgres() {
        db.execute_unprepared(UNLIMITED).await?;
        let lock = format!("SELECT pg_advisory_lock({LOCK_KEY})");
        db.execute_unprepared(&lock).await?;
    }
    let applied = apply(&db).await;
    // Ends the session and with it the lock.
    db.close().await?;
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
pub(crate) async fn pending<C: ConnectionTrait>(db: &C) -> Result<Vec<String>, DbErr> {
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

async fn has_been_migrated<C: ConnectionTrait>(db: &C) -> Result<bool, DbErr> {
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
