//! Compiles the gRPC definitions without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/covey/v1/admin.proto", "proto/covey/v1/peer.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
