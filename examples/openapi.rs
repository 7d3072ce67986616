//! Prints the description of the gateway: `cargo run --example openapi > docs/openapi.json`.

#![allow(clippy::print_stdout, reason = "that is what it is for")]

fn main() {
    print!("{}", canvas_scheduler::rest::openapi::text());
}
