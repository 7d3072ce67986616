//! canvas-scheduler owns the schedules of API-triggered Canvases. `ARCHITECTURE.md` says how the house is built.

pub mod clock;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod layers;
pub mod pb;
pub mod service;
pub mod store;
