//! Prints the OpenAPI description of the REST gateway: `cargo run --example openapi >
//! docs/openapi.json`.

#![allow(clippy::print_stdout, reason = "the output is its purpose")]

fn main() {
    print!("{}", canvas_scheduler::rest::openapi::text());
}
