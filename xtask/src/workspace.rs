//! Where the workspace lies, and what cargo and its source files say about it. Changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::{Metadata, MetadataCommand};

/// The root directory of the workspace.
pub fn root() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .context("xtask lies outside of a workspace")
}

/// What `cargo metadata` says, with the lock file as it is: a stale one is an error.
pub fn metadata() -> Result<Metadata> {
    MetadataCommand::new()
        .current_dir(root()?)
        .other_options(["--locked".to_owned()])
        .exec()
        .context("cargo metadata --locked")
}

/// All Rust source files below `directory`, sorted; none if there is no such directory.
pub fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_path_buf()];
    while let Some(directory) = pending.pop().filter(|directory| directory.is_dir()) {
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let entry = entry.with_context(|| directory.display().to_string())?;
            let path = entry.path();
            if entry.file_type().with_context(|| path.display().to_string())?.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The directories in `crates/`, sorted by name.
pub fn crates() -> Result<Vec<PathBuf>> {
    let directory = root()?.join("crates");
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = entry.with_context(|| directory.display().to_string())?.path();
        if path.join("Cargo.toml").is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// `path` as seen from the root of the workspace, for messages.
pub fn relative(path: &Path) -> String {
    let root = root().unwrap_or_default();
    path.strip_prefix(&root).unwrap_or(path).display().to_string()
}
