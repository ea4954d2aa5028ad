//! Writes the gRPC types and stubs in `src/generated/` from `proto/`, without `protoc`.

use std::error::Error;
use std::path::{Path, PathBuf};

/// The definitions, relative to `proto/`.
const DEFINITIONS: [&str; 2] = ["covey/v1/admin.proto", "covey/v1/peer.proto"];
/// The file that the generator writes for package `covey.v1`.
const FILE: &str = "covey.v1.rs";

fn main() -> Result<(), Box<dyn Error>> {
    std::fs::write(checked_in(), generated()?)?;
    Ok(())
}

/// Returns the path of the checked-in code.
pub(crate) fn checked_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated").join(FILE)
}

/// Returns the code that the definitions make today.
pub(crate) fn generated() -> Result<String, Box<dyn Error>> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let folder = tempfile::tempdir()?;
    let descriptors = protox::compile(DEFINITIONS, [proto])?;
    tonic_prost_build::configure().bytes(".").out_dir(folder.path()).compile_fds(descriptors)?;
    Ok(std::fs::read_to_string(folder.path().join(FILE))?)
}
