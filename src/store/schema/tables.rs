//! The tables, as sea-orm entities. Instants are milliseconds since 1970 (UTC), so that both databases hold the same.

mod access;

pub(crate) use access::{api_key, rate_window, replica, workspace_limit};

/// The hot row: narrow, since every update rewrites it. What it carries lives in tables of its own.
pub(crate) mod canvas_schedule {
    use sea_orm::entity::prelude::*;

    /// One canvas schedule.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "canvas_schedule")]
    pub(crate) struct Model {
        /// The tenant; leads the key, so that no row is reached without it.
        #[sea_orm(primary_key, auto_increment = false)]
        pub workspace_id: i32,
        /// The schedule id.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        /// The Canvas.
        pub canvas_id: String,
        /// 1 at creation, +1 for each accepted change.
        pub revision: i64,
        /// Moved by every write of the row; guards a write against another one since the read.
        pub version: i64,
        /// UTC when the schedule is an instant, else the wall clock's digits.
        pub time_ms: i64,
        /// The wall-clock time in each zone.
        pub in_local_time: bool,
        /// Only the date counts.
        pub at_optimal_time: bool,
        /// 0 pending, 1 dispatching, 2 dispatched, 3 cancelled: computed by the domain, kept for the filter of List.
        pub state: i16,
        /// When the next wave is due.
        pub next_wave_ms: Option<i64>,
        /// The earliest entry that the schedule has in `canvas_schedule_wake`, never after `next_wave_ms`. In no index, so that
        /// an update touches none.
        pub wake_ms: Option<i64>,
        /// A zone whose last good moment is before this was missed.
        pub missed_before_ms: i64,
        /// When it was created.
        pub created_ms: i64,
        /// When it was last changed.
        pub updated_ms: i64,
        /// When it was cancelled.
        pub cancelled_ms: Option<i64>,
        /// IANA name.
        pub default_zone: String,
        /// The zones that its recipients state, as a JSON array of names; null means all.
        pub stated_zones: Option<String>,
        /// The properties that it carries.
        pub properties_id: Option<Uuid>,
        /// The highest number that a dispatch of it has had; 0 when it has none, so that they need not be read.
        pub fired: i32,
        /// The zone data that `next_wave_ms` was computed with, as a number.
        pub zone_rules: i32,
        /// Since when it has no wave to come, as the dispatcher saw it: then it may be removed some day.
        pub finished_ms: Option<i64>,
    }

    /// None: rows are found by key.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// When to look at which schedule: the queue of the due. A schedule that has a wave to come has an entry at it or before it;
/// a wave that moves earlier adds one, a wave that moves later leaves the old one, and whoever takes an entry asks the hot row.
pub(crate) mod wake {
    use sea_orm::entity::prelude::*;

    /// One entry.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "canvas_schedule_wake")]
    pub(crate) struct Model {
        /// When to look.
        #[sea_orm(primary_key, auto_increment = false)]
        pub wake_ms: i64,
        /// The tenant.
        #[sea_orm(primary_key, auto_increment = false)]
        pub workspace_id: i32,
        /// The schedule id.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
    }

    /// None: rows are found by key.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The history: one row for each accepted change, never changed. The key leads with the time: rows are added at its end, and
/// the table can be partitioned by it. Who looks for the history of one schedule goes from its hot row back (`history.rs`).
pub(crate) mod revision {
    use sea_orm::entity::prelude::*;

    /// One accepted change and the value after it.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "canvas_schedule_revision")]
    pub(crate) struct Model {
        /// When it was made.
        #[sea_orm(primary_key, auto_increment = false)]
        pub created_ms: i64,
        /// The schedule.
        #[sea_orm(primary_key, auto_increment = false)]
        pub schedule_id: Uuid,
        /// 1 at creation, +1 for each accepted change.
        #[sea_orm(primary_key, auto_increment = false)]
        pub revision: i64,
        /// When the revision before it was made; of the first, 0.
        pub previous_ms: i64,
        /// The tenant.
        pub workspace_id: i32,
        /// 0 create, 1 update, 2 cancel.
        pub kind: i16,
        /// As in the hot row.
        pub time_ms: i64,
        /// As in the hot row.
        pub in_local_time: bool,
        /// As in the hot row.
        pub at_optimal_time: bool,
        /// The properties after it.
        pub properties_id: Option<Uuid>,
        /// Who made it.
        pub actor: String,
        /// The commit that wrote it: a random number by which a writer that lost its connection at commit knows its own.
        pub commit_id: i64,
    }

    /// None: rows are found by key.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Immutable property sets, named by their content.
pub(crate) mod properties {
    use sea_orm::entity::prelude::*;

    /// One set of properties of one schedule.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "canvas_schedule_properties")]
    pub(crate) struct Model {
        /// Hash of schedule and content.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        /// The tenant.
        pub workspace_id: i32,
        /// The schedule.
        pub schedule_id: Uuid,
        /// Canonical JSON.
        pub body: String,
    }

    /// None: rows are found by key.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Whom a schedule is for; written at creation, never changed.
pub(crate) mod target {
    use sea_orm::entity::prelude::*;

    /// The recipients, audience or broadcast of one schedule.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "canvas_schedule_target")]
    pub(crate) struct Model {
        /// The schedule.
        #[sea_orm(primary_key, auto_increment = false)]
        pub schedule_id: Uuid,
        /// The tenant.
        pub workspace_id: i32,
        /// JSON.
        pub body: String,
    }

    /// None: rows are found by key.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The first answers to requests that carried a request id, for 24 hours.
pub(crate) mod request {
    use sea_orm::entity::prelude::*;

    /// One answered request.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "answered_request")]
    pub(crate) struct Model {
        /// The tenant.
        #[sea_orm(primary_key, auto_increment = false)]
        pub workspace_id: i32,
        /// What the caller chose.
        #[sea_orm(primary_key, auto_increment = false)]
        pub request_id: String,
        /// SHA-256 of the request in its canonical form, in hex: the same id with another request is an error.
        pub digest: String,
        /// The answer, as JSON.
        pub outcome: String,
        /// When it was answered.
        pub created_ms: i64,
    }

    /// None: rows are found by key.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The tenants.
pub(crate) mod workspace {
    use sea_orm::entity::prelude::*;

    /// One tenant.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "workspace")]
    pub(crate) struct Model {
        /// Its number.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i32,
        /// Its name.
        #[sea_orm(unique)]
        pub name: String,
        /// IANA name; copied into each schedule at creation.
        pub default_time_zone: String,
        /// Whether nothing is fired and nothing tried again.
        pub sending_paused: bool,
    }

    /// None: rows are found by key.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The waves that were fired. What it is about is fixed at the firing; where it stands changes.
pub(crate) mod dispatch {
    use sea_orm::entity::prelude::*;

    /// One dispatch. Its id is computed from `schedule_id` and `n`.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "dispatch")]
    pub(crate) struct Model {
        /// The tenant.
        #[sea_orm(primary_key, auto_increment = false)]
        pub workspace_id: i32,
        /// The schedule.
        #[sea_orm(primary_key, auto_increment = false)]
        pub schedule_id: Uuid,
        /// The number of the firing, from 1.
        #[sea_orm(primary_key, auto_increment = false)]
        pub n: i32,
        /// The revision that was in force.
        pub revision: i64,
        /// The wave's time.
        pub wave_ms: i64,
        /// When the lease of one in hand ends, or when an unknown one is tried again; null when it is finished.
        pub retry_ms: Option<i64>,
        /// When it was fired.
        pub fired_ms: i64,
        /// When it was delivered, died or was abandoned.
        pub finished_ms: Option<i64>,
        /// The latest attempt, from 1.
        pub attempt: i32,
        /// The last attempt before it is a dead letter.
        pub last_attempt: i32,
        /// 0 in hand, 1 unknown, 2 delivered, 3 dead, 4 abandoned.
        pub state: i16,
        /// Whether the consumer chooses each user's moment.
        pub optimal_time: bool,
        /// Whether it serves users with no zone, too.
        pub includes_unlisted: bool,
        /// The properties that it carries.
        pub properties_id: Option<Uuid>,
        /// The wave's zones, as a JSON array of names; null means every zone of the schedule.
        pub zones: Option<String>,
        /// What the consumer said last.
        pub why: String,
    }

    /// None: rows are found by key.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(crate) enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
