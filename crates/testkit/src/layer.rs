//! Layers, declared as a list of entries and made as a directory.
//!
//! Owns how each kind of entry comes into being on a real file system, with every attribute set exactly
//! (modes without umask, times in nanoseconds). Knows nothing of mounts.

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, linkat,
    lsetxattr, makedev, mknodat, symlinkat, utimensat,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Which prefix an overlay's private attributes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// `trusted.overlay.`: the mounter is root in the initial user namespace.
    Trusted,
    /// `user.overlay.`: mounted with `userxattr`.
    User,
}

impl Namespace {
    /// The full name of the private attribute `name`.
    pub fn attribute(self, name: &str) -> String {
        match self {
            Namespace::Trusted => format!("trusted.overlay.{name}"),
            Namespace::User => format!("user.overlay.{name}"),
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file made of `(offset, bytes)` extents, with holes between, and of `size` bytes.
    File {
        /// The data that is not a hole.
        extents: Vec<(u64, Vec<u8>)>,
        /// The length of the file.
        size: u64,
    },
    /// A symbolic link to the given target.
    Symlink(Vec<u8>),
    /// Another name of an earlier entry.
    HardLink(Vec<u8>),
    /// A FIFO.
    Fifo,
    /// A socket, bound to nothing.
    Socket,
    /// A character device. `(0, 0)` is a whiteout.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
}

/// An entry of a layer. Attributes left out are those of a new file of mode 0644 or directory of 0755.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the layer's root; empty for the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with set-id and sticky.
    pub mode: Option<u32>,
    /// Owner and group.
    pub owner: Option<(u32, u32)>,
    /// Access and modification time, as seconds and nanoseconds.
    pub times: Option<[(i64, i64); 2]>,
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// A layer as a list of entries; parents that are not listed are made as plain directories.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeSpec {
    /// The entries, in the order of creation.
    pub entries: Vec<Entry>,
}

impl TreeSpec {
    /// An empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry of any kind.
    #[must_use]
    pub fn entry(mut self, path: impl AsRef<[u8]>, kind: Kind) -> Self {
        let path = path.as_ref().to_vec();
        self.entries.push(Entry { path, kind, mode: None, owner: None, times: None, xattrs: Vec::new() });
        self
    }

    /// Adds a directory; with an empty path, names the root, to set its attributes.
    #[must_use]
    pub fn dir(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(path, Kind::Dir)
    }

    /// Adds a regular file.
    #[must_use]
    pub fn file(self, path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        let data = data.as_ref().to_vec();
        let size = data.len() as u64;
        self.entry(path, Kind::File { extents: vec![(0, data)], size })
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(path, Kind::Symlink(target.as_ref().to_vec()))
    }

    /// Adds another name of the entry `of`.
    #[must_use]
    pub fn hard_link(self, path: impl AsRef<[u8]>, of: impl AsRef<[u8]>) -> Self {
        self.entry(path, Kind::HardLink(of.as_ref().to_vec()))
    }

    /// Adds a whiteout: a character device 0:0.
    #[must_use]
    pub fn whiteout(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(path, Kind::Char(0, 0))
    }

    /// Makes the directory added last opaque.
    #[must_use]
    pub fn opaque(self, namespace: Namespace) -> Self {
        let name = namespace.attribute("opaque");
        self.xattr(name, b"y")
    }

    /// Sets the mode of the entry added last.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        self.last(|entry| entry.mode = Some(mode))
    }

    /// Sets the owner and group of the entry added last.
    #[must_use]
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.last(|entry| entry.owner = Some((uid, gid)))
    }

    /// Sets both times of the entry added last.
    #[must_use]
    pub fn time(self, sec: i64, nsec: i64) -> Self {
        self.last(|entry| entry.times = Some([(sec, nsec), (sec, nsec)]))
    }

    /// Adds an extended attribute to the entry added last.
    #[must_use]
    pub fn xattr(self, name: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
        self.last(|entry| entry.xattrs.push((name.into(), value.as_ref().to_vec())))
    }

    fn last(mut self, change: impl FnOnce(&mut Entry)) -> Self {
        if let Some(entry) = self.entries.last_mut() {
            change(entry);
        }
        self
    }

    /// Makes the layer in `root`, which is created if missing.
    pub fn build(&self, root: &Path) -> Result<()> {
        std::fs::create_dir_all(root).with_context(|| root.display().to_string())?;
        for entry in &self.entries {
            let path = entry.path_in(root);
            entry.create(root, &path).with_context(|| format!("making {}", path.display()))?;
            entry.set_attributes(&path).with_context(|| format!("attributes of {}", path.display()))?;
        }
        // Creating inside a directory changes its time, so directories come last, and deepest first.
        for entry in self.entries.iter().rev().filter(|entry| entry.kind == Kind::Dir) {
            entry.set_times(&entry.path_in(root)).with_context(|| format!("times of {:?}", entry.path))?;
        }
        Ok(())
    }
}

impl Entry {
    fn path_in(&self, root: &Path) -> PathBuf {
        if self.path.is_empty() { root.to_owned() } else { root.join(OsStr::from_bytes(&self.path)) }
    }

    fn create(&self, root: &Path, path: &Path) -> Result<()> {
        if let Some(parent) = path.parent().filter(|_| !self.path.is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        match &self.kind {
            Kind::Dir => std::fs::create_dir_all(path)?,
            Kind::File { extents, size } => {
                let file = std::fs::File::create(path)?;
                file.set_len(*size)?;
                for (offset, data) in extents {
                    file.write_all_at(data, *offset)?;
                }
            }
            Kind::Symlink(target) => symlinkat(OsStr::from_bytes(target), CWD, path)?,
            Kind::HardLink(of) => {
                linkat(CWD, root.join(OsStr::from_bytes(of)), CWD, path, AtFlags::empty())?;
            }
            Kind::Fifo => special(path, FileType::Fifo, 0)?,
            Kind::Socket => special(path, FileType::Socket, 0)?,
            Kind::Char(major, minor) => special(path, FileType::CharacterDevice, makedev(*major, *minor))?,
            Kind::Block(major, minor) => special(path, FileType::BlockDevice, makedev(*major, *minor))?,
        }
        Ok(())
    }

    /// Owner before mode, because a change of owner clears set-id bits; attributes after both, because an
    /// ACL carries mode bits and a capability is dropped by a change of owner.
    fn set_attributes(&self, path: &Path) -> Result<()> {
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let default = match self.kind {
            Kind::Symlink(_) | Kind::HardLink(_) => None,
            Kind::Dir => Some(0o755),
            _ => Some(0o644),
        };
        if let Some(mode) = self.mode.or(default).filter(|_| default.is_some()) {
            chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        for (name, value) in &self.xattrs {
            lsetxattr(path, name.as_str(), value, XattrFlags::empty()).with_context(|| name.clone())?;
        }
        self.set_times(path)
    }

    fn set_times(&self, path: &Path) -> Result<()> {
        if let Some([atime, mtime]) = self.times {
            let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
            utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }
}

fn special(path: &Path, kind: FileType, device: u64) -> Result<()> {
    Ok(mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device)?)
}

fn timespec((tv_sec, tv_nsec): (i64, i64)) -> Timespec {
    Timespec { tv_sec, tv_nsec }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_declared_tree_is_made_with_its_modes_times_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let spec = TreeSpec::new()
            .dir("d")
            .mode(0o1777)
            .time(-5, 7)
            .file("d/f", "data")
            .mode(0o640)
            .time(4_000_000_000, 123_456_789)
            .hard_link("d/g", "d/f")
            .symlink("d/s", "f")
            .entry("d/p", Kind::Fifo);
        spec.build(dir.path()).unwrap();
        let file = std::fs::symlink_metadata(dir.path().join("d/f")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.nlink()), (0o640, 2));
        assert_eq!((file.mtime(), file.mtime_nsec()), (4_000_000_000, 123_456_789));
        let parent = std::fs::symlink_metadata(dir.path().join("d")).unwrap();
        assert_eq!((parent.mode() & 0o7777, parent.mtime(), parent.mtime_nsec()), (0o1777, -5, 7));
        assert_eq!(std::fs::read_link(dir.path().join("d/s")).unwrap(), Path::new("f"));
    }
}
