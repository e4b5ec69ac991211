//! The snapshotter under containerd: a test of its own crate, which is too long for every run of the tests.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{Scene, Verdict};
use crate::{child, workspace};

/// Compiling the test included.
const LIMIT: Duration = Duration::from_secs(45 * 60);

/// Runs `containerd_e2e` of crates/snapshotter, strictly: what cannot be tested is a failure.
pub fn snapshotter(scene: &Scene) -> Result<Verdict> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["test", "--locked", "--package", "plyfs-snapshotter", "--test", "containerd_e2e"])
        .current_dir(workspace::root()?)
        .env("PLYFS_E2E", "1")
        .env("PLYFS_TESTS_STRICT", "1")
        .env("PLYFS_BIN", &scene.plyfs)
        .env("TMPDIR", scene.path("tmp"));
    if !child::run_silent(&mut cargo, LIMIT)?.success() {
        bail!("cargo test --package plyfs-snapshotter --test containerd_e2e failed");
    }
    Ok(Verdict::Passed)
}
