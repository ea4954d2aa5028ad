//! The gRPC code that is checked in is that of the definitions.

#[expect(dead_code, reason = "the example's main function")]
#[path = "../examples/generate_grpc.rs"]
mod generate;

#[test]
fn the_checked_in_grpc_code_is_current() {
    let found = std::fs::read_to_string(generate::checked_in()).unwrap_or_default();
    let stale = "stale: cargo run -p covey-contract --example generate_grpc";
    assert!(found == generate::generated().unwrap(), "{} is {stale}", generate::checked_in().display());
}
