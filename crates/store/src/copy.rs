//! The backend without a mount: the merged view as a plain tree, sharing data by reflink where the file
//! system can; and its way back into the upper.
//!
//! Owns the comparison of the tree with the image: a file with the same attributes, size and time of change
//! is the same file, as rsync judges.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use plyfs_format::whiteout::WHITEOUT_PREFIX;
use rustix::fs::{CWD, OFlags, RenameFlags};

use crate::apply::Layer;
use crate::beneath::{self, Root, join};
use crate::durable;
use crate::error::{Context, Result};
use crate::owner::{Ids, Ownership};
use crate::progress::Task;
use crate::stack::{Node, Stack};
use crate::tar::{Entry, Kind, Time};
use crate::tree::{self, Source};

/// Copies the merged view into the new directory `into`.
pub fn tree(stack: &Stack, into: &Path, task: &dyn Task) -> Result<()> {
    durable::new_dir(into, 0o700)?;
    let mut w = Copy { out: Layer::open(into, Ownership::detect())?, seen: HashMap::new(), task };
    if let Some(root) = stack.root_node(0)? {
        w.node(stack, b"", &root)?;
    }
    w.out.finish().map(drop)
}

struct Copy<'a> {
    out: Layer,
    seen: HashMap<(u64, u64), Vec<u8>>,
    task: &'a dyn Task,
}

impl Copy<'_> {
    fn node(&mut self, stack: &Stack, path: &[u8], node: &Node) -> Result<()> {
        let top = node.top()?;
        let root = stack.root(top.layer)?;
        let data = match &node.data {
            Some(d) => (stack.root(d.layer)?, &d.path[..]),
            None => (root, &top.path[..]),
        };
        if let Some(e) = tree::entry(path, &stack.source(node)?)? {
            self.task.add(e.size);
            put(&mut self.out, &mut self.seen, e, &node.stat, data)?;
        }
        if node.is_dir() {
            for (name, child) in stack.list(node)? {
                self.node(stack, &join(path, &name), &child)?;
            }
        }
        Ok(())
    }
}

/// Writes one file, the second name of an inode as a link to the first.
fn put(
    out: &mut Layer,
    seen: &mut HashMap<(u64, u64), Vec<u8>>,
    mut e: Entry,
    st: &rustix::fs::Stat,
    data: (&Root, &[u8]),
) -> Result<()> {
    if st.st_nlink > 1 && e.kind != Kind::Dir {
        let first = seen.entry((st.st_dev, st.st_ino)).or_insert_with(|| e.path.clone());
        if *first != e.path {
            e.kind = Kind::Hardlink(first.clone());
        }
    }
    out.entry(&e, &mut |f, show| clone_data(data, f, show))
}

/// Shares the data where the file system can, else copies it in the kernel.
fn clone_data(from: (&Root, &[u8]), to: &mut File, show: &Path) -> Result<u64> {
    let (root, rel) = from;
    let mut f = File::from(root.open_at(rel, OFlags::RDONLY).at("open", root.show(rel))?);
    let size = f.metadata().at("stat", root.show(rel))?.len();
    if rustix::fs::ioctl_ficlone(&to, &f).is_ok() {
        return Ok(size);
    }
    match tree::holes(&f, size).at("seek", root.show(rel))? {
        None => std::io::copy(&mut f, to).at("copy", show),
        Some(map) => {
            to.set_len(size).at("truncate", show)?;
            for (start, len) in map {
                copy_part(&mut f, to, start, len).at("copy", show)?;
            }
            Ok(size)
        }
    }
}

fn copy_part(from: &mut File, to: &mut File, start: u64, len: u64) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    from.seek(SeekFrom::Start(start))?;
    to.seek(SeekFrom::Start(start))?;
    std::io::copy(&mut from.by_ref().take(len), to).map(drop)
}

/// Turns the copy `merged` into an upper that, on the image's layers, shows the same; `dirs` are the present
/// upper and the layers below it. The exchange with the present upper is one rename.
pub fn write_back(dirs: &[PathBuf], merged: &Path, ownership: Ownership) -> Result<()> {
    let Some((upper, lowers)) = dirs.split_first() else { return Ok(()) };
    let staged = upper.with_file_name("diff.new");
    durable::remove_tree(&staged)?;
    durable::new_dir(&staged, 0o755)?;
    let ids = ownership.ids();
    let stack = Stack::open(lowers, false, ownership)?;
    let copy = Root::open(merged)?;
    let records = ownership.believes(&copy)?;
    let out = Layer::open(&staged, ownership)?;
    let mut w = Back { out, seen: HashMap::new(), stack, copy, ids, records };
    let base = w.stack.root_node(0)?;
    w.dir(b"", base.as_ref())?;
    w.root()?;
    w.out.finish()?;
    durable::sync_fs(upper)?;
    rustix::fs::renameat_with(CWD, &staged, CWD, upper, RenameFlags::EXCHANGE).at("exchange", upper)?;
    durable::remove_tree(&staged)
}

struct Back {
    out: Layer,
    seen: HashMap<(u64, u64), Vec<u8>>,
    stack: Stack,
    copy: Root,
    ids: Ids,
    records: bool,
}

impl Back {
    /// One directory of the copy; says whether anything in it differs from the image.
    fn dir(&mut self, path: &[u8], base: Option<&Node>) -> Result<bool> {
        let fd = self.copy.dir(path).at("open", self.copy.show(path))?;
        let names = beneath::names(fd.as_fd()).at("read", self.copy.show(path))?;
        let base_dir = base.filter(|b| b.is_dir());
        let mut changed = false;
        for name in &names {
            let below = match base_dir {
                Some(b) => self.stack.lookup(b, name)?,
                None => None,
            };
            changed |= self.entry(&join(path, name), below.as_ref())?;
        }
        if let Some(b) = base_dir {
            for (name, _) in self.stack.list(b)?.iter().filter(|(n, _)| !names.contains(n)) {
                let marker = join(path, &[WHITEOUT_PREFIX, name].concat());
                self.out.entry(&empty(marker), &mut |_, _| Ok(0))?;
                changed = true;
            }
        }
        Ok(changed)
    }

    fn root(&mut self) -> Result<()> {
        let st = rustix::fs::fstat(&self.copy).at("stat", self.copy.path())?;
        let e = tree::entry(b"", &self.source(b"", &st))?;
        e.map_or(Ok(()), |e| self.out.entry(&e, &mut |_, _| Ok(0)))
    }

    fn entry(&mut self, path: &[u8], base: Option<&Node>) -> Result<bool> {
        let Some(st) = self.copy.stat(path)? else { return Ok(false) };
        let Some(e) = tree::entry(path, &self.source(path, &st))? else {
            return Ok(false);
        };
        let same = match base {
            Some(b) => self.same(&e, b)?,
            None => false,
        };
        if e.kind == Kind::Dir {
            let inside = self.dir(path, base)?;
            if inside || !same {
                self.out.entry(&e, &mut |_, _| Ok(0))?;
            }
            return Ok(inside || !same);
        }
        if !same {
            put(&mut self.out, &mut self.seen, e, &st, (&self.copy, path))?;
        }
        Ok(!same)
    }

    fn same(&self, e: &Entry, base: &Node) -> Result<bool> {
        Ok(tree::entry(&e.path, &self.stack.source(base)?)?.is_some_and(|b| b == *e))
    }

    fn source<'a>(&'a self, path: &'a [u8], stat: &'a rustix::fs::Stat) -> Source<'a> {
        Source { at: (&self.copy, path), data: None, stat, ids: self.ids, records: self.records }
    }
}

fn empty(path: Vec<u8>) -> Entry {
    let mtime = Time::default();
    Entry {
        path,
        kind: Kind::File,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime,
        size: 0,
        xattrs: Vec::new(),
        sparse: None,
    }
}
