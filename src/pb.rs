//! The types generated from `proto/`, their codec, and conversions of domain values.

pub mod codec;
mod messages;
pub mod values;

/// The package `canvas.schedule.v1`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    reason = "generated; the comments stand in the protos"
)]
pub mod v1 {
    tonic::include_proto!("canvas.schedule.v1");
}

/// The descriptors of the protos and their imports, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
