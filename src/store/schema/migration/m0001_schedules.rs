//! Schedules, their history, properties and targets, answered requests, and the workspace
//! `default`.

use sea_orm::{ConnectionTrait, DbBackend, DbErr};
use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, boolean, integer, small_integer, string, text, uuid, uuid_null,
};

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m0001_schedules"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        for mut narrow in [canvas_schedule(), wake(), revision()] {
            if db.get_database_backend() == DbBackend::Sqlite {
                // The tree of the primary key then holds the rows, without a second tree.
                narrow.extra("WITHOUT ROWID");
            }
            manager.create_table(narrow).await?;
        }
        for table in [workspace(), properties(), target(), request()] {
            manager.create_table(table).await?;
        }
        for index in INDEXES {
            db.execute_unprepared(index).await?;
        }
        if db.get_database_backend() == DbBackend::Postgres {
            for setting in POSTGRES_SETTINGS {
                db.execute_unprepared(setting).await?;
            }
        }
        db.execute_unprepared(
            "INSERT INTO workspace (id, name, default_time_zone) VALUES (1, 'default', 'UTC')",
        )
        .await?;
        Ok(())
    }
}

// The indexes of the hot table contain no column that an update changes.
const INDEXES: [&str; 4] = [
    // Lists the schedules of one Canvas.
    "CREATE INDEX canvas_schedule_canvas ON canvas_schedule (workspace_id, canvas_id, id)",
    // Finds the one schedule of a Canvas that can still change, however many have finished.
    "CREATE INDEX canvas_schedule_open ON canvas_schedule (workspace_id, canvas_id, id) \
     WHERE state <= 1",
    // Lists the schedules in one state.
    "CREATE INDEX canvas_schedule_state ON canvas_schedule (workspace_id, state, id)",
    // Finds stored answers that are too old.
    "CREATE INDEX answered_request_created ON answered_request (created_ms)",
];

const POSTGRES_SETTINGS: [&str; 1] = [
    // Leaves room on each page for the next version of its rows, so that an update that touches no
    // index stays on the page.
    "ALTER TABLE canvas_schedule SET (fillfactor = 75)",
];

fn workspace() -> TableCreateStatement {
    Table::create()
        .table("workspace")
        .col(integer("id").primary_key())
        .col(string("name").unique_key())
        .col(string("default_time_zone"))
        .take()
}

fn canvas_schedule() -> TableCreateStatement {
    Table::create()
        .table("canvas_schedule")
        .col(integer("workspace_id"))
        .col(uuid("id"))
        .col(big_integer("revision"))
        .col(big_integer("version"))
        .col(big_integer("time_ms"))
        .col(big_integer_null("next_wave_ms"))
        .col(big_integer_null("wake_ms"))
        .col(big_integer("missed_before_ms"))
        .col(big_integer("created_ms"))
        .col(big_integer("updated_ms"))
        .col(big_integer_null("cancelled_ms"))
        .col(small_integer("state"))
        .col(boolean("in_local_time"))
        .col(boolean("at_optimal_time"))
        .col(uuid_null("properties_id"))
        .col(string("default_zone"))
        .col(string("canvas_id"))
        .col(ColumnDef::new("stated_zones").text())
        .primary_key(Index::create().col("workspace_id").col("id"))
        .take()
}

fn wake() -> TableCreateStatement {
    Table::create()
        .table("canvas_schedule_wake")
        .col(big_integer("wake_ms"))
        .col(integer("workspace_id"))
        .col(uuid("id"))
        .primary_key(Index::create().col("wake_ms").col("workspace_id").col("id"))
        .take()
}

fn revision() -> TableCreateStatement {
    Table::create()
        .table("canvas_schedule_revision")
        .col(uuid("schedule_id"))
        .col(big_integer("revision"))
        .col(big_integer("created_ms"))
        .col(big_integer("previous_ms"))
        .col(big_integer("time_ms"))
        .col(big_integer("commit_id"))
        .col(integer("workspace_id"))
        .col(small_integer("kind"))
        .col(boolean("in_local_time"))
        .col(boolean("at_optimal_time"))
        .col(uuid_null("properties_id"))
        .col(string("actor"))
        .primary_key(
            Index::create()
                .col("created_ms")
                .col("schedule_id")
                .col("revision"),
        )
        .take()
}

fn properties() -> TableCreateStatement {
    Table::create()
        .table("canvas_schedule_properties")
        .col(uuid("id").primary_key())
        .col(integer("workspace_id"))
        .col(uuid("schedule_id"))
        .col(text("body"))
        .take()
}

fn target() -> TableCreateStatement {
    Table::create()
        .table("canvas_schedule_target")
        .col(uuid("schedule_id").primary_key())
        .col(integer("workspace_id"))
        .col(text("body"))
        .take()
}

fn request() -> TableCreateStatement {
    Table::create()
        .table("answered_request")
        .col(integer("workspace_id"))
        .col(string("request_id"))
        .col(string("digest"))
        .col(text("outcome"))
        .col(big_integer("created_ms"))
        .primary_key(Index::create().col("workspace_id").col("request_id"))
        .take()
}
