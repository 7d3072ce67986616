//! The tables. An instant is milliseconds since 1970 (UTC), so that both databases hold the same.

use crate::store::schema::row::table;

table! {
    /// The hot row: narrow, since every update rewrites it. Properties and targets have their own
    /// tables.
    canvas_schedule = "canvas_schedule" {
        key {
            /// The tenant; leads the key, so that no row is reached without it.
            workspace_id: i32,
            id: Uuid,
        }
        canvas_id: String,
        /// 1 at creation, +1 for each accepted change.
        revision: i64,
        /// Moved by every write of the row; guards a write against another one since the read.
        version: i64,
        /// UTC when the schedule is an instant, else the wall clock's digits.
        time_ms: i64,
        /// The wall-clock time in each zone.
        in_local_time: bool,
        /// Only the date counts.
        at_optimal_time: bool,
        /// 0 pending, 1 dispatching, 2 dispatched, 3 cancelled: computed by the domain, stored for
        /// the filter of List.
        state: i16,
        next_wave_ms: Option<i64>,
        /// The earliest entry that the schedule has in `canvas_schedule_wake`, never after
        /// `next_wave_ms`. In no index, so that an update touches none.
        wake_ms: Option<i64>,
        /// A zone whose last valid instant is before this was missed.
        missed_before_ms: i64,
        created_ms: i64,
        updated_ms: i64,
        cancelled_ms: Option<i64>,
        /// IANA name.
        default_zone: String,
        /// The zones that its recipients state, as a JSON array of names; null means all.
        stated_zones: Option<String>,
        properties_id: Option<Uuid>,
        /// The highest number of a dispatch of it; 0 when it has none, so that they need not be
        /// read.
        fired: i32,
        /// The zone data that `next_wave_ms` was computed with, as a number.
        zone_rules: i32,
        /// Since when it has no wave to come, as the dispatcher saw it: then it may be removed some
        /// day.
        finished_ms: Option<i64>,
    }
}

table! {
    /// When to examine which schedule: the queue of due schedules. A schedule that has a wave to
    /// come has an entry at it or before it; a wave that moves earlier adds one, and a wave that
    /// moves later leaves the old one. The hot row decides whether it is due.
    wake = "canvas_schedule_wake" {
        key {
            /// When to look.
            wake_ms: i64,
            workspace_id: i32,
            id: Uuid,
        }
    }
}

table! {
    /// The history: one row for each accepted change, never changed. The key leads with the time:
    /// rows are added at its end, and the table can be partitioned by it. The history of one
    /// schedule is found from its hot row (`history.rs`).
    revision = "canvas_schedule_revision" {
        key {
            created_ms: i64,
            schedule_id: Uuid,
            /// 1 at creation, +1 for each accepted change.
            revision: i64,
        }
        /// When the revision before it was accepted; 0 for the first.
        previous_ms: i64,
        workspace_id: i32,
        /// 0 create, 1 update, 2 cancel.
        kind: i16,
        /// As in the hot row.
        time_ms: i64,
        /// As in the hot row.
        in_local_time: bool,
        /// As in the hot row.
        at_optimal_time: bool,
        /// The properties after it.
        properties_id: Option<Uuid>,
        /// The caller who changed the schedule.
        actor: String,
        /// The commit that wrote it: a random number by which a writer that lost its connection at
        /// commit knows its own.
        commit_id: i64,
    }
}

table! {
    /// Immutable property sets, named by their content.
    properties = "canvas_schedule_properties" {
        key {
            /// Hash of schedule and content.
            id: Uuid,
        }
        workspace_id: i32,
        schedule_id: Uuid,
        /// Canonical JSON.
        body: String,
    }
}

table! {
    /// The recipients, audience or broadcast of a schedule; written at creation, never changed.
    target = "canvas_schedule_target" {
        key {
            schedule_id: Uuid,
        }
        workspace_id: i32,
        /// JSON.
        body: String,
    }
}

table! {
    /// The first answers to requests with a request id, for 24 hours.
    request = "answered_request" {
        key {
            workspace_id: i32,
            /// The id, which the caller chose.
            request_id: String,
        }
        /// SHA-256 of the request in its canonical form, in hex: the same id with another request
        /// is an error.
        digest: String,
        /// The answer, as JSON.
        outcome: String,
        created_ms: i64,
    }
}

table! {
    workspace = "workspace" {
        key {
            /// Its number.
            id: i32,
        }
        #[sea_orm(unique)]
        name: String,
        /// IANA name; copied into each schedule at creation.
        default_time_zone: String,
        sending_paused: bool,
    }
}

table! {
    /// The waves that were claimed. Their content is fixed at the claim; their state changes.
    dispatch = "dispatch" {
        key {
            workspace_id: i32,
            schedule_id: Uuid,
            /// Its number, from 1.
            n: i32,
        }
        revision: i64,
        wave_ms: i64,
        /// When the lease of one in hand ends, or when an unknown one is tried again; null when it
        /// is finished.
        retry_ms: Option<i64>,
        fired_ms: i64,
        /// When it was delivered, died or was abandoned.
        finished_ms: Option<i64>,
        /// The latest attempt, from 1.
        attempt: i32,
        /// The last attempt before it is a dead letter.
        last_attempt: i32,
        /// 0 in hand, 1 unknown, 2 delivered, 3 dead, 4 abandoned.
        state: i16,
        /// Whether the consumer chooses the time for each user.
        optimal_time: bool,
        /// Whether it serves users with no zone, too.
        includes_unlisted: bool,
        properties_id: Option<Uuid>,
        /// The wave's zones, as a JSON array of names; null means every zone of the schedule.
        zones: Option<String>,
        /// The reason in the consumer's last answer.
        why: String,
        /// The claim or retry that leased it last: a random number by which a dispatcher that lost
        /// its connection at commit knows its own.
        claim_id: i64,
    }
}

table! {
    api_key = "api_key" {
        key {
            /// How the key begins; no secret.
            id: String,
        }
        workspace_id: i32,
        /// Unique within the tenant; the history names it.
        name: String,
        /// SHA-256 of its secret, in hex.
        secret_sha256: String,
        /// Names separated by commas.
        permissions: String,
        /// Networks separated by commas; empty means anywhere.
        allowlist: String,
        created_ms: i64,
        expires_ms: Option<i64>,
        revoked_ms: Option<i64>,
        /// When it was last used, to about a minute.
        last_used_ms: Option<i64>,
    }
}

table! {
    /// The quotas of tenants that differ from the usual ones.
    workspace_limit = "workspace_limit" {
        key {
            workspace_id: i32,
            /// The kind of calls that it limits.
            counted: String,
        }
        /// How many in each window.
        most: i64,
        window_ms: i64,
    }
}

table! {
    /// How much of the quotas is used.
    rate_window = "rate_window" {
        key {
            workspace_id: i32,
            /// The kind of calls, and their audience.
            counted: String,
            /// The turn of the clock that it began at.
            began_ms: i64,
        }
        /// When it ends; it is removed some time later.
        ends_ms: i64,
        /// By all replicas.
        taken: i64,
    }
}

table! {
    /// The replicas, which share the quotas.
    replica = "replica" {
        key {
            /// Chosen at its start.
            id: Uuid,
        }
        /// When it last announced that it is alive.
        seen_ms: i64,
    }
}
