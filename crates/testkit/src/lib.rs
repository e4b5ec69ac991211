//! What the tests of plyfs share: layers to build, trees to compare, the kernel as the oracle.
//!
//! The crate never looks inside plyfs. It drives *mounted* trees through plain system calls, so that the
//! kernel's overlayfs, plyfs and any other union file system are treated alike; what differs between two of
//! them is a finding, unless [`known`] explains it.
//!
//! - [`layer`] turns a declared tree into a directory (whiteouts, opaque directories, devices, ACLs, …).
//! - [`snapshot`] reads a tree back, and [`compare`] tells how two of them differ.
//! - [`mount`] mounts a union with the kernel or with a command; [`backing`] provides file systems beneath.
//! - [`features`] names the optional features, in all combinations.
//! - [`fixture`] puts these together: a union on layers of its own.
//! - [`sandbox`] runs a test in mount, process and user namespaces of its own.
//! - [`differential`] applies the same random operations to two mounts in lock-step.
//! - [`stress`] lets many threads change one mount while another walks it and large files are copied up.
//! - [`need`] lets a test state what it needs, and skip with a reason (or fail, under `PLYFS_TESTS_STRICT=1`).

pub mod acl;
pub mod backing;
pub mod compare;
pub mod differential;
pub mod features;
pub mod fixture;
pub mod identity;
pub mod known;
pub mod layer;
pub mod mount;
pub mod need;
pub mod sandbox;
pub mod snapshot;
pub mod stress;
