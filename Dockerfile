# The image holds one binary and runs as nobody: no shell is used, nothing is written outside mounted volumes.
#
#   docker build -t covey .                            builds the binary too
#   docker build --target symbols --output symbols .   writes its symbols to symbols/covey.debug, from the same build
#   docker build --target prebuilt --build-arg BINARY=path/in/context -t covey .
#                                                      takes a binary that was built before (glibc of BASE or older)
#
# BASE needs glibc, libgcc, the certificates of public authorities and the time zones, and no more.
ARG BUILDER=docker.io/library/rust:1.95-bookworm
ARG BASE=gcr.io/distroless/cc-debian12

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
# Downloaded crates and compiled ones are kept from build to build. Caches are not part of a layer, so the binary is copied
# out of them in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --release --locked --package covey --features jemalloc \
    && mkdir /out \
    && objcopy --only-keep-debug --compress-debug-sections target/release/covey /out/covey.debug \
    && objcopy --strip-all --add-gnu-debuglink=/out/covey.debug target/release/covey /out/covey

FROM scratch AS symbols
COPY --from=build /out/covey.debug /

FROM runtime
COPY --from=build --chmod=0755 /out/covey /usr/local/bin/covey
