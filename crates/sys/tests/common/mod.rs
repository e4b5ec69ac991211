//! What the tests of this crate share.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::path::Path;

use plyfs_format::{Name, RelPath};
use plyfs_sys::DirMut;
use tempfile::TempDir;

pub fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).expect("a valid name")
}

pub fn rel(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).expect("a valid path")
}

/// A temporary directory and the capability to change it.
pub fn scratch() -> (TempDir, DirMut) {
    let temp = tempfile::tempdir().expect("tempdir");
    let dir = DirMut::open_root(temp.path()).expect("open");
    (temp, dir)
}

/// Permission bits by path, following nothing.
pub fn mode_of(path: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    path.symlink_metadata().expect("stat").mode() & 0o7777
}

/// Whether the test runs as root; says that it is skipped otherwise.
pub fn root_or_skip(why: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root to {why}");
    }
    root
}
