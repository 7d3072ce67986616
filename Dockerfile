# One static binary in an empty image: docker build -t canvas-scheduler .
# Any image works that has a C compiler and a toolchain of at least Cargo.toml's rust-version.
ARG RUST_IMAGE=rust:1.95-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /build
# The binary is static. An explicit --target keeps build scripts and proc macros, which run during the build, dynamic.
ENV RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=/target

# Build the dependencies in a separate layer, from empty sources. Only a change of Cargo.toml or Cargo.lock rebuilds it.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches \
 && sed -n '/^\[\[bench\]\]/{n;s/name = "\(.*\)"/benches\/\1.rs/p}' Cargo.toml | xargs touch src/lib.rs \
 && echo 'fn main() {}' | tee src/main.rs >build.rs \
 && cargo build --locked --release --target "$(rustc -vV | sed -n 's/^host: //p')"

COPY build.rs ./
COPY proto proto
COPY src src
# cargo compares modification times, and those of a checkout may be older than the empty sources'.
RUN touch build.rs src/lib.rs src/main.rs \
 && cargo build --locked --release --target "$(rustc -vV | sed -n 's/^host: //p')" \
 && mkdir -p /image/etc/ssl/certs \
 && cp /target/*/release/canvas-scheduler /image/canvas-scheduler \
 && strip /image/canvas-scheduler \
 && cp -L /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="canvas-scheduler" \
      org.opencontainers.image.description="A self-hosted gRPC service that owns the schedules of API-triggered Canvases" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The binary, and the certificate authorities for sinks over https and tls.
COPY --from=build /image /
USER 65532:65532
# The gRPC port, the gateway and the admin port.
EXPOSE 50051 8080 9090
ENTRYPOINT ["/canvas-scheduler"]
CMD ["serve"]
