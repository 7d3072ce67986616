//! Compiles the protos with protox, so that no protoc is needed, and keeps their descriptors for reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const ROOT: &str = "proto";
const FILES: [&str; 3] = [
    "canvas/schedule/v1/canvas_schedule.proto",
    "canvas/schedule/v1/canvas_schedule_service.proto",
    "canvas/schedule/v1/canvas_trigger_service.proto",
];

#[allow(
    clippy::disallowed_methods,
    reason = "cargo speaks to a build script by variables"
)]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={ROOT}");
    let mut compiler = protox::Compiler::new([ROOT])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(FILES)?;
    // The encoded set keeps options that the decoded ones would drop.
    let encoded = compiler.encode_file_descriptor_set();
    fs::write(
        PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin"),
        &encoded,
    )?;
    let set = prost_types::FileDescriptorSet::decode(encoded.as_slice())?;
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .codec_path("crate::pb::codec::Codec")
        .compile_fds_with_config(set, config)?;
    Ok(())
}
