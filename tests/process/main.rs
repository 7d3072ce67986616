//! The binary in its own process: under load, killed, cut off from its database, stopped, and at
//! the command line.
//!
//! Tests that need PostgreSQL start their own server. Where it is not installed they report
//! themselves as skipped and pass, unless `REQUIRE_POSTGRES=1` is set. Every process that a test
//! starts ends with the test, also if it fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(
    clippy::print_stdout,
    reason = "tests print figures, and name themselves when skipped"
)]

#[path = "../support/postgres.rs"]
mod postgres;

#[path = "../support/bearer.rs"]
mod bearer;
#[path = "../support/pgbouncer.rs"]
mod pgbouncer;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/trace_search.rs"]
mod trace_search;

mod consumer;
mod database;
mod history;
#[path = "../support/http.rs"]
mod http;
mod injector;
mod load;
mod lock_holder;
mod recorded_load;
mod recorder;
mod server;

mod abuse;
mod backup;
mod broken_output;
mod chart;
mod clean_stop;
mod clock;
mod command_line;
mod connecting;
mod crash;
mod cuts;
mod database_urls;
mod delivery;
mod dev;
mod faults;
mod full_tablespace;
mod gateway;
mod keys;
mod lock_waits;
mod lost_commits;
mod metrics;
mod ordering;
mod poolers;
mod quotas;
mod readiness;
mod replicas;
mod secrets;
mod shutdown;
mod silent_connections;
mod snapshots;
mod sqlite_faults;
mod sqlite_full_disk;
mod standby;
mod terminated_sessions;
mod tls;
mod updates;
