//! Walking trees that containers wrote: measuring and deleting them.
//!
//! Owns two walks that follow no symbolic link, need no recursion, and take directories nested to any depth. Decides
//! nothing about what is measured or deleted.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::rc::Rc;

use plyfs_format::name::{Name, NameBuf, RelPath};
use plyfs_sys::{Dir, DirMut, Errno, RenameFlags};

use crate::info::Usage;

/// A path longer than this is continued from a descriptor, so that no path reaches the kernel's limit of 4096 bytes.
const LONG_PATH: usize = 1024;
/// Entries read before they are deleted, to bound memory in huge directories.
const BATCH: usize = 4096;
/// Bytes in a unit of `st_blocks`.
const BLOCK: u64 = 512;

/// The names in a directory, at most `limit`, without what is no valid name.
pub fn names(dir: &DirMut, limit: usize) -> plyfs_sys::Result<Vec<NameBuf>> {
    list(dir, limit)
}

/// What the tree at `root` takes: allocated bytes, and inodes, hard links counted once. What vanishes meanwhile is not
/// counted.
pub fn usage(root: Dir) -> plyfs_sys::Result<Usage> {
    let mut counter = Counter::default();
    let mut pending = vec![(Rc::new(root), RelPath::root())];
    while let Some((base, path)) = pending.pop() {
        let dir = match base.open_dir(&path) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !path.is_root() => continue,
            Err(e) => return Err(e),
        };
        counter.add(&dir.stat()?);
        let entries = list(&dir, usize::MAX)?;
        let (base, path) = if path.as_bytes().len() > LONG_PATH {
            (Rc::new(dir.try_clone()?), RelPath::root())
        } else {
            (base, path)
        };
        for name in entries {
            match dir.stat_at(name.as_name()) {
                Ok(stat) if stat.is_dir() => pending.push((Rc::clone(&base), path.join(name.as_name()))),
                Ok(stat) => counter.add(&stat),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(counter.usage)
}

/// Deletes the directory `name` of `trash` with all that is in it. Directories within are moved up to `trash` first, so
/// that none is deeper than one level when its turn comes. On an error what is left stays in `trash`.
pub fn delete(trash: &DirMut, name: Name<'_>) -> plyfs_sys::Result<()> {
    let mut pending = vec![name.to_owned()];
    let mut moved = 0;
    while let Some(name) = pending.last().cloned() {
        let before = pending.len();
        match trash.child_mut(name.as_name()) {
            Ok(dir) => empty(trash, &dir, &mut pending, &mut moved)?,
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => trash.unlink(name.as_name())?,
            Err(e) => return Err(e),
        }
        match trash.rmdir(name.as_name()) {
            Ok(()) | Err(Errno::NOENT) => {
                pending.remove(before - 1);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Deletes the entries of `dir`; its subdirectories that are not empty are moved to `trash` and added to `pending`.
fn empty(trash: &DirMut, dir: &DirMut, pending: &mut Vec<NameBuf>, moved: &mut u64) -> plyfs_sys::Result<()> {
    loop {
        let entries = list(dir, BATCH)?;
        if entries.is_empty() {
            return Ok(());
        }
        for name in entries {
            match dir.unlink(name.as_name()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(e) => return Err(e),
            }
            match dir.rmdir(name.as_name()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    pending.push(move_up(trash, dir, name.as_name(), moved)?);
                }
                // An entry that is no directory and cannot be unlinked, for example an immutable file.
                Err(Errno::NOTDIR) => return Err(Errno::PERM),
                Err(e) => return Err(e),
            }
        }
    }
}

fn move_up(trash: &DirMut, dir: &DirMut, name: Name<'_>, moved: &mut u64) -> plyfs_sys::Result<NameBuf> {
    loop {
        *moved += 1;
        let target = NameBuf::new(format!("sub-{moved}").into_bytes()).map_err(|_| Errno::INVAL)?;
        match dir.rename(name, trash, target.as_name(), RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(target),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
}

fn list(dir: &Dir, limit: usize) -> plyfs_sys::Result<Vec<NameBuf>> {
    let mut found = Vec::new();
    dir.list()?.for_each(|entry| {
        if let Ok(name) = NameBuf::new(entry.name) {
            found.push(name);
        }
        if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(found)
}

#[derive(Default)]
struct Counter {
    usage: Usage,
    linked: HashSet<(u64, u64)>,
}

impl Counter {
    fn add(&mut self, stat: &plyfs_sys::Stat) {
        if !stat.is_dir() && stat.nlink > 1 && !self.linked.insert((stat.dev(), stat.ino)) {
            return;
        }
        self.usage.size += stat.blocks * BLOCK;
        self.usage.inodes += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn measure(path: &Path) -> Usage {
        usage(Dir::open_root(path).unwrap()).unwrap()
    }

    /// A chain of `depth` directories with names of 200 bytes, longer than any path may be, and a file at its end.
    fn deep(root: &Path, depth: usize) {
        let mut dir = DirMut::open_root(root).unwrap();
        let long = "d".repeat(200);
        let name = Name::new(long.as_bytes()).unwrap();
        for _ in 0..depth {
            dir.create_dir(name, 0o700).unwrap();
            dir = dir.child_mut(name).unwrap();
        }
        dir.create_file(Name::new(b"end").unwrap(), plyfs_sys::OFlags::RDWR, 0o600).unwrap();
    }

    #[test]
    fn hard_links_count_once_and_sparse_files_by_what_they_take() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("t");
        fs::create_dir(&root).unwrap();
        let empty = measure(&root);
        assert_eq!(empty.inodes, 1);
        fs::write(root.join("a"), vec![1; 100_000]).unwrap();
        fs::hard_link(root.join("a"), root.join("b")).unwrap();
        fs::File::create(root.join("sparse")).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink("/", root.join("link")).unwrap();
        let full = measure(&root);
        assert_eq!(full.inodes, 4);
        assert!((100_000..200_000).contains(&(full.size - empty.size)), "{full:?}");
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_measured_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("t");
        fs::create_dir(&root).unwrap();
        deep(&root, 1500);
        deep(&dir.path().join("t"), 0);
        fs::create_dir_all(root.join("x/y/z")).unwrap();
        fs::write(root.join("x/y/f"), "1").unwrap();
        std::os::unix::fs::symlink(dir.path(), root.join("x/up")).unwrap();
        assert_eq!(measure(&root).inodes, 1 + 1500 + 1 + 1 + 3 + 1 + 1);
        fs::write(dir.path().join("bystander"), "").unwrap();
        let trash = DirMut::open_root(dir.path()).unwrap();
        delete(&trash, Name::new(b"t").unwrap()).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["bystander"]);
    }
}
