//! Dispatches, the columns of a schedule that concern them, and the pause of sending.

use sea_orm::{ConnectionTrait, DbBackend, DbErr};
use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, boolean, integer, small_integer, string, text, text_null, uuid,
    uuid_null,
};

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m0002_dispatches"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [dispatch(), parked(), sending(), zone_rules()] {
            manager.create_table(table).await?;
        }
        let db = manager.get_connection();
        for step in COLUMNS.iter().chain(&INDEXES) {
            db.execute_unprepared(step).await?;
        }
        if db.get_database_backend() == DbBackend::Postgres {
            // Leaves room on each page for the final version of a dispatch.
            db.execute_unprepared("ALTER TABLE dispatch SET (fillfactor = 85)")
                .await?;
        }
        db.execute_unprepared("INSERT INTO sending (id, paused) VALUES (1, false)")
            .await?;
        Ok(())
    }
}

/// With defaults, so that an older replica, which does not know the columns, can still insert.
const COLUMNS: [&str; 4] = [
    "ALTER TABLE canvas_schedule ADD COLUMN fired integer NOT NULL DEFAULT 0",
    "ALTER TABLE canvas_schedule ADD COLUMN zone_rules integer NOT NULL DEFAULT 0",
    "ALTER TABLE canvas_schedule ADD COLUMN finished_ms bigint NULL",
    "ALTER TABLE workspace ADD COLUMN sending_paused boolean NOT NULL DEFAULT false",
];

// The indexes of the hot table contain no column that an update changes.
const INDEXES: [&str; 6] = [
    // Finds dispatches that are due for a retry.
    "CREATE INDEX dispatch_retry ON dispatch (retry_ms) WHERE retry_ms IS NOT NULL",
    // Lists unknown, dead and abandoned dispatches. Nearly all dispatches are in other states and
    // not in this index.
    "CREATE INDEX dispatch_odd ON dispatch (workspace_id, state, schedule_id, n) \
     WHERE state IN (1, 3, 4)",
    // Finds open local schedules by the time zone data that their next wave was computed with.
    "CREATE INDEX canvas_schedule_zone_rules ON canvas_schedule (zone_rules, workspace_id, id) \
     WHERE state <= 1 AND (in_local_time OR at_optimal_time)",
    // Finds all properties of a schedule, to remove them.
    "CREATE INDEX canvas_schedule_properties_schedule \
     ON canvas_schedule_properties (workspace_id, schedule_id)",
    // Find schedules that may be removed, by age.
    "CREATE INDEX canvas_schedule_finished ON canvas_schedule (finished_ms) \
     WHERE finished_ms IS NOT NULL",
    "CREATE INDEX canvas_schedule_cancelled ON canvas_schedule (cancelled_ms) \
     WHERE cancelled_ms IS NOT NULL",
];

fn dispatch() -> TableCreateStatement {
    Table::create()
        .table("dispatch")
        .col(integer("workspace_id"))
        .col(uuid("schedule_id"))
        .col(integer("n"))
        .col(big_integer("revision"))
        .col(big_integer("wave_ms"))
        .col(big_integer_null("retry_ms"))
        .col(big_integer("fired_ms"))
        .col(big_integer_null("finished_ms"))
        .col(integer("attempt"))
        .col(integer("last_attempt"))
        .col(small_integer("state"))
        .col(boolean("optimal_time"))
        .col(boolean("includes_unlisted"))
        .col(uuid_null("properties_id"))
        .col(text_null("zones"))
        .col(text("why"))
        .col(big_integer("claim_id").default(0))
        .primary_key(
            Index::create()
                .col("workspace_id")
                .col("schedule_id")
                .col("n"),
        )
        .take()
}

fn parked() -> TableCreateStatement {
    Table::create()
        .table("canvas_schedule_parked")
        .col(integer("workspace_id"))
        .col(big_integer("wake_ms"))
        .col(uuid("id"))
        .primary_key(Index::create().col("workspace_id").col("wake_ms").col("id"))
        .take()
}

fn sending() -> TableCreateStatement {
    Table::create()
        .table("sending")
        .col(integer("id").primary_key())
        .col(boolean("paused"))
        .take()
}

fn zone_rules() -> TableCreateStatement {
    Table::create()
        .table("zone_rules")
        .col(integer("number").primary_key())
        .col(string("version"))
        .col(big_integer("seen_ms"))
        .take()
}
