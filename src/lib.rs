//! canvas-scheduler owns the schedules of API-triggered Canvases. `ARCHITECTURE.md` says how the house is built.

pub mod clock;
pub mod domain;
pub mod error;
pub mod pb;
