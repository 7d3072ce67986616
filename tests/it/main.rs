//! The service as its callers meet it: a server in this process, its own database, a clock that stands still until a test moves
//! it. What depends on the store runs on SQLite and on PostgreSQL, as two tests of one name.

#![allow(clippy::expect_used, reason = "a test says what it expected")]

mod access;
mod backlog;
mod bad_input;
mod brake;
mod dispatch;
mod dispatches;
mod fire;
mod lifecycle;
mod limits;
mod lists;
mod model;
mod operate;
mod requests;
mod rest;
mod rest_documented;
mod rest_keys;
mod rules;
mod sinks;
mod store;
mod support;
mod tenants;
mod traces;
mod update;
