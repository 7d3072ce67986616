# Short names for everyday commands. CONTRIBUTING.md explains them.

# List the recipes.
default:
    @just --list

# Run what CI runs.
check:
    .ci/run

# Build the service for debugging.
build:
    cargo build

# Run the tests; extra arguments go to cargo, as in `just test --test it claim`.
test *args:
    cargo test {{args}}

# Run clippy as CI does.
lint:
    cargo clippy --locked --all-targets -- -D warnings

# Format the sources.
fmt:
    cargo fmt

# Build the documentation, private items included.
doc:
    cargo doc --no-deps --document-private-items

# Run a benchmark: `update` or `dispatch`.
bench name:
    cargo bench --bench {{name}}

# Check the Helm chart, its alerts and its dashboard.
chart:
    .ci/chart target/ci-tools

# Check licenses and sources of the dependencies.
deny:
    cargo deny check bans licenses sources

# Run the checks that a release must pass.
release-check:
    .ci/full/run

# Build the image as a release does, tagged canvas-scheduler:VERSION-ARCHITECTURE.
release-image version=`sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1`:
    .ci/release/image canvas-scheduler {{version}}
