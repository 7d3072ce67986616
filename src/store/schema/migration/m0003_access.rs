//! API keys, the quotas of workspaces, the calls counted in each window, and the replicas
//! that share them.

use sea_orm::DbErr;
use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer, big_integer_null, integer, string, text, uuid};

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m0003_access"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [api_key(), limit(), window(), replica()] {
            manager.create_table(table).await?;
        }
        Ok(())
    }
}

fn api_key() -> TableCreateStatement {
    Table::create()
        .table("api_key")
        .col(string("id").primary_key())
        .col(integer("workspace_id"))
        .col(string("name"))
        .col(string("secret_sha256"))
        .col(string("permissions"))
        .col(text("allowlist"))
        .col(big_integer("created_ms"))
        .col(big_integer_null("expires_ms"))
        .col(big_integer_null("revoked_ms"))
        .col(big_integer_null("last_used_ms"))
        .index(
            Index::create()
                .name("api_key_name")
                .unique()
                .col("workspace_id")
                .col("name"),
        )
        .take()
}

fn limit() -> TableCreateStatement {
    Table::create()
        .table("workspace_limit")
        .col(integer("workspace_id"))
        .col(string("counted"))
        .col(big_integer("most"))
        .col(big_integer("window_ms"))
        .primary_key(Index::create().col("workspace_id").col("counted"))
        .take()
}

fn window() -> TableCreateStatement {
    Table::create()
        .table("rate_window")
        .col(integer("workspace_id"))
        .col(string("counted"))
        .col(big_integer("began_ms"))
        .col(big_integer("ends_ms"))
        .col(big_integer("taken"))
        .primary_key(
            Index::create()
                .col("workspace_id")
                .col("counted")
                .col("began_ms"),
        )
        .take()
}

fn replica() -> TableCreateStatement {
    Table::create()
        .table("replica")
        .col(uuid("id").primary_key())
        .col(big_integer("seen_ms"))
        .take()
}
