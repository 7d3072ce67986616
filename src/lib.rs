//! canvas-scheduler stores the schedules of Canvases, and hands each Canvas to a Canvas engine when
//! it is due.
//!
//! This page is the map of the crate. `ARCHITECTURE.md` has the glossary, the threads and a table
//! of questions with the files that answer them.
//!
//! # Layers
//!
//! A module imports only from lower layers; `tests/architecture.rs` checks it.
//!
//! ```text
//!  6   cli          subcommands and flags
//!       │
//!  5   server       ports, worker threads, start and stop
//!       │
//!  4   grpc    rest    layers    dispatcher
//!       │       │        │          │
//!       └───────┴────┬───┴──────────┘
//!  3         service    methods    use cases, access, quotas; the table of RPCs
//!                    │
//!  2   store    sink    pb         database, consumers, protobuf
//!       │
//!  1   domain   status   telemetry rules; errors as gRPC statuses; logs, metrics, traces
//!       │
//!  0   config    error    clock    client_tls
//! ```
//!
//! # The path of an update
//!
//! 1. [`server::accept`] accepts the connection and hands it to a worker thread.
//! 2. [`rest`] turns JSON into an RPC in process. A gRPC call skips this step.
//! 3. [`layers`] traces the call, bounds it, authenticates it and counts it against the quotas.
//! 4. [`grpc`] decodes the message and reports every violation.
//! 5. [`service::Service::update`] finds the schedule if the request names none.
//! 6. [`store::CommitQueue::enqueue`] enqueues the change for the writer of the schedule.
//! 7. [`store::Writer`] reads the rows of a batch, lets [`domain::Command`] decide each change,
//!    writes all rows, commits, and replies to each caller.
//! 8. [`grpc`] encodes the answer or the error, and the [`layers`] complete it.
//!
//! # The path of a wave
//!
//! 1. [`dispatcher::Dispatcher::run_once`] counts the free workers.
//! 2. [`store::DispatchStore::next_due`] finds when the next wave and the next retry are due.
//! 3. [`store::DispatchStore::retry`] leases dispatches of unknown outcome and those whose lease
//!    has expired.
//! 4. [`store::DispatchStore::claim`] claims due waves in one transaction;
//!    [`domain::CanvasSchedule::claim`] decides each.
//! 5. [`sink::Sink::deliver`] delivers each dispatch; no transaction is open.
//! 6. [`store::DispatchStore::settle`] settles the outcomes: delivered, not taken, rejected (a
//!    dead letter) or unknown.
//!
//! Then the dispatcher sleeps until the next instant that is due; a poll, or a change in this
//! process, wakes it earlier.

pub mod cli;
pub mod client_tls;
pub mod clock;
pub mod config;
pub mod dispatcher;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod layers;
pub mod methods;
pub mod pb;
pub mod rest;
pub mod server;
pub mod service;
pub mod sink;
pub mod status;
pub mod store;
pub mod telemetry;
