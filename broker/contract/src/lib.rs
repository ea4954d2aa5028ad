//! Interface between the operator and the broker: names, ports, the broker's configuration file, the access document
//! and the gRPC services. It depends neither on a Kubernetes client nor on the broker.

pub mod access;
pub mod config;
pub mod names;

/// Generated gRPC types and stubs, package `covey.v1`.
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
    tonic::include_proto!("covey.v1");
}
