//! Generates the gRPC code from `proto/` with a protobuf compiler in Rust: no protoc on the user's machine.

use std::error::Error;

const ROOT: &str = "proto";
const SERVICE: &str = "proto/containerd/services/snapshots/v1/snapshots.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let descriptors = protox::compile([SERVICE], [ROOT])?;
    tonic_prost_build::configure().btree_map(".").include_file("api.rs").compile_fds(descriptors)?;
    Ok(())
}
