//! The messages and the service of containerd's snapshot API, generated from `proto/` by build.rs.

#![allow(missing_docs, clippy::all, clippy::large_stack_arrays, reason = "generated code")]

tonic::include_proto!("api");

pub use containerd::services::snapshots::v1 as snapshots;
pub use containerd::types;
