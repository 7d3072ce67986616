//! Whether an acknowledged change survives a crash of the database.

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};

/// Which crashes a commit of the database survives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Durability {
    /// An acknowledged change survives a crash.
    Durable,
    /// The setting makes an acknowledged change survive a crash of this server, but perhaps not a
    /// failover.
    Weakened {
        /// The setting and its value.
        setting: String,
    },
    /// An acknowledged change may be lost.
    Lost {
        /// The setting and its value.
        setting: String,
    },
}

pub(crate) async fn durability<C: ConnectionTrait>(db: &C) -> Result<Durability, DbErr> {
    if db.get_database_backend() != DbBackend::Postgres {
        return Ok(Durability::Durable);
    }
    let fsync = show(db, "fsync").await?;
    let full_page_writes = show(db, "full_page_writes").await?;
    let synchronous_commit = show(db, "synchronous_commit").await?;
    Ok(
        match (
            fsync.as_str(),
            full_page_writes.as_str(),
            synchronous_commit.as_str(),
        ) {
            ("off", _, _) => Durability::Lost {
                setting: "fsync=off".to_owned(),
            },
            (_, "off", _) => Durability::Weakened {
                setting: "full_page_writes=off".to_owned(),
            },
            (_, _, "off" | "local" | "remote_write") => Durability::Weakened {
                setting: format!("synchronous_commit={synchronous_commit}"),
            },
            _ => Durability::Durable,
        },
    )
}

async fn show<C: ConnectionTrait>(db: &C, setting: &str) -> Result<String, DbErr> {
    let row = db
        .query_one_raw(Statement::from_string(
            DbBackend::Postgres,
            format!("SHOW {setting}"),
        ))
        .await?;
    row.map_or_else(|| Ok(String::new()), |row| row.try_get_by_index(0))
}
