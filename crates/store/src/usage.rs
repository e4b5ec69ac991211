//! How much a tree takes on disk. Owns one walk that follows nothing and counts every inode once.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes allocated and inodes of the tree at `path`, hard links counted once.
pub(crate) fn of(path: &Path) -> io::Result<(u64, u64)> {
    let mut seen = HashSet::new();
    let mut total = (0, 0);
    let mut todo: Vec<PathBuf> = vec![path.to_owned()];
    while let Some(p) = todo.pop() {
        let m = p.symlink_metadata()?;
        if m.nlink() > 1 && !m.is_dir() && !seen.insert((m.dev(), m.ino())) {
            continue;
        }
        total = (total.0 + m.blocks() * 512, total.1 + 1);
        if m.is_dir() {
            for e in std::fs::read_dir(&p)? {
                todo.push(e?.path());
            }
        }
    }
    Ok(total)
}
