# The image holds one binary and runs as nobody: no shell is used, nothing is written outside mounted volumes.
#
#   docker build -t covey .                            builds the binary too
#   docker build --target prebuilt --build-arg BINARY=path/in/context -t covey .
#                                                      takes a binary that was built before (glibc of BASE or older)
ARG BUILDER=docker.io/library/rust:1.95-bookworm
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS runtime
LABEL org.opencontainers.image.title="covey" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/covey"]

FROM runtime AS prebuilt
ARG BINARY=covey
COPY --chmod=0755 ${BINARY} /usr/local/bin/covey

FROM ${BUILDER} AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked --package covey

FROM runtime
COPY --from=build --chmod=0755 /source/target/release/covey /usr/local/bin/covey
