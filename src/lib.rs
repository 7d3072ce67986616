//! canvas-scheduler owns the schedules of API-triggered Canvases. `ARCHITECTURE.md` says how the house is built.

pub mod cli;
pub mod clock;
pub mod config;
pub mod dispatcher;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod layers;
pub mod pb;
pub mod rest;
pub mod server;
pub mod service;
pub mod sink;
pub mod store;
pub mod telemetry;
