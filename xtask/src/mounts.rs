//! What the commands that mount plyfs beside the kernel's overlay have in common: the binary, and the needs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use plyfs_testkit::need::Need;

use crate::workspace;

/// An error that names what is missing to mount both.
pub fn need_root_and_fuse() -> Result<()> {
    need(&[Need::Root, Need::Fuse, Need::Filesystem("overlay")])
}

/// An error that names which of `needs` is missing.
pub fn need(needs: &[Need<'_>]) -> Result<()> {
    let missing: Vec<String> = needs.iter().filter_map(Need::missing).collect();
    if missing.is_empty() { Ok(()) } else { bail!("cannot run here: {}", missing.join("; ")) }
}

/// The binary that was given, or the one of this workspace, built now.
pub fn plyfs(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return path.canonicalize().with_context(|| path.display().to_string());
    }
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(workspace::root()?).args(["build", "--package", "plyfs"]);
    let status = build.status().context("cargo build")?;
    if !status.success() {
        bail!("cargo build --package plyfs: {status}");
    }
    let own = std::env::current_exe().context("the path of this program")?;
    Ok(own.with_file_name("plyfs"))
}
