//! The binary as a process of its own: under load, killed, cut off from its database, stopped, and at the command line.
//!
//! What needs PostgreSQL starts its own server; where none is installed it says so by name and passes, unless
//! `REQUIRE_POSTGRES=1` is set. Every process that is started here ends with the test, also when that fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(
    clippy::print_stdout,
    reason = "figures and skipped tests are told there"
)]

#[path = "../support/postgres.rs"]
mod postgres;

#[path = "../support/bearer.rs"]
mod bearer;
#[path = "../support/trace_search.rs"]
mod trace_search;

mod consumer;
mod database;
mod history;
#[path = "../support/http.rs"]
mod http;
mod load;
mod lock_holder;
mod server;

mod abuse;
mod backup;
mod chart;
mod clock;
mod command_line;
mod crash;
mod delivery;
mod dev;
mod gateway;
mod keys;
mod lock_waits;
mod metrics;
mod ordering;
mod quotas;
mod readiness;
mod replicas;
mod secrets;
mod shutdown;
mod terminated_sessions;
mod tls;
mod updates;
