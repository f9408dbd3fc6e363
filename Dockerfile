# syntax=docker/dockerfile:1
# docker build -t northgate .
# docker run --rm -p 8080:8080 -v ./gateway.yaml:/etc/northgate/gateway.yaml:ro northgate
# with a file that listens on 0.0.0.0:8080 and names services the container can reach; the repository's own is for `northgate dev`.

FROM rust:1.95-slim-bookworm AS chef
# aws-lc and mimalloc are C.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo install cargo-chef --version 0.1.78 --locked
WORKDIR /build

# What the dependencies are: changes with Cargo.lock, not with the code.
FROM chef AS planner
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS builder
COPY rust-toolchain.toml .
COPY --from=planner /build/recipe.json .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo chef cook --release --locked --bin northgate --recipe-path recipe.json
COPY . .
ARG COMMIT=unknown
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    NORTHGATE_COMMIT=$COMMIT cargo build --release --locked --bin northgate

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="Northgate" \
      org.opencontainers.image.description="An API gateway: the single north/south entry point in front of microservices" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /build/target/release/northgate /northgate
# Less memory: docs/operating.md, "Memory".
ENV MIMALLOC_ALLOW_THP=0
USER 65532
EXPOSE 8080 8443 9901
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s CMD ["/northgate", "health"]
ENTRYPOINT ["/northgate"]
CMD ["run", "--config", "/etc/northgate/gateway.yaml"]
