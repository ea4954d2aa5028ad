//! Interface between the operator and the broker: names, ports, the broker's configuration file, the access document
//! and the gRPC services. It depends neither on a Kubernetes client nor on the broker.

pub mod access;
pub mod config;
pub mod names;

/// gRPC types and stubs of package `covey.v1`, generated from `proto/` by
/// `cargo run -p covey-contract --example generate_grpc`; a test fails when they are stale.
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::use_self,
    clippy::allow_attributes,
    reason = "generated code"
)]
pub mod proto {
    include!("generated/covey.v1.rs");
}
