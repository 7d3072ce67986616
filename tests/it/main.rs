//! The service as its callers use it: a server in this process with its own database and a clock
//! that stands still until a test moves it. Tests that depend on the store run on SQLite and on
//! PostgreSQL, as two tests with one name.

#![allow(clippy::expect_used, reason = "a test says what it expected")]

mod access;
mod backlog;
mod bad_input;
mod claim;
mod delivery;
mod dispatches;
mod idempotency;
mod lifecycle;
mod lists;
mod model;
mod operations;
mod pause;
mod quotas;
mod rest;
mod rest_examples;
mod rest_keys;
mod round_trips;
mod sinks;
mod store;
mod support;
mod tenants;
mod traces;
mod update;
mod zone_rules;
