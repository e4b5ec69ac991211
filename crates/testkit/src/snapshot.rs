//! A directory tree, read back completely.
//!
//! Owns what is recorded of an entry, and how numbers that may differ between two equal trees (inode numbers,
//! the time now, file handles) are turned into something that must not: a partition of the names by inode, a
//! class of times, the mere presence of an attribute. [`crate::compare`] compares.

use crate::layer::Namespace;
use anyhow::{Context, Result, bail};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, lgetxattr, llistxattr, open, openat, readlinkat,
    statat,
};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Tells the times that operations of a test have left from those that were there or were set.
///
/// A time at or after the clock's start, and not in the future, is `Recent`: two trees that are treated alike
/// agree on which times are recent, though not on the exact moment.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Duration,
}

impl Clock {
    /// A clock that starts when this returns: what was made before is not recent, what is made after is.
    pub fn start() -> Self {
        // File times are those of the last timer tick, at most 10 ms ago.
        std::thread::sleep(Duration::from_millis(11));
        let start = now();
        std::thread::sleep(Duration::from_millis(11));
        Self { start }
    }

    /// A clock that never starts: all times are exact.
    pub fn never() -> Self {
        Self { start: Duration::MAX }
    }

    /// The class of a time given as seconds and nanoseconds since 1970.
    pub fn stamp(self, sec: i64, nsec: u64) -> Stamp {
        let nanos = u32::try_from(nsec).unwrap_or(u32::MAX);
        let recent = u64::try_from(sec).is_ok_and(|sec| {
            let time = Duration::from_secs(sec).saturating_add(Duration::from_nanos(nanos.into()));
            (self.start..=now()).contains(&time)
        });
        if recent { Stamp::Recent } else { Stamp::Exact(sec, nsec) }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A time, as far as two trees must agree on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stamp {
    /// Left by an operation since the clock was started.
    Recent,
    /// Seconds and nanoseconds since 1970.
    Exact(i64, u64),
}

/// One name of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shot {
    /// File type and mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Link count.
    pub nlink: u64,
    /// Length of a regular file or symbolic link; 0 for others, whose size is the file system's own affair.
    pub size: u64,
    /// The device that a device node names.
    pub rdev: u64,
    /// Access time.
    pub atime: Stamp,
    /// Modification time.
    pub mtime: Stamp,
    /// Change time.
    pub ctime: Stamp,
    /// The real inode number; not compared between trees.
    pub ino: u64,
    /// The first name, in order, that shares this inode.
    pub same_inode_as: Vec<u8>,
    /// Digest of a regular file's data, or the target of a symbolic link.
    pub content: Content,
    /// Extended attributes; see [`View`] for what becomes of an overlay's own.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What the listing of the parent got wrong about this name.
    pub listing: Vec<String>,
}

/// What is inside an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing that is recorded here.
    None,
    /// A digest of the data of a regular file.
    Digest(u64),
    /// The target of a symbolic link.
    Target(Vec<u8>),
    /// The content could not be read.
    Unreadable(rustix::io::Errno),
}

/// From which side a tree is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// As a user of the mount: everything counts.
    Merged,
    /// As it lies on disk in an upper directory: of `origin`, `upper` and `uuid` only the presence counts, of
    /// a whiteout only that it is one (the kernel links them all to one inode; others need not).
    Upper(Namespace),
}

/// A whole tree, by path relative to its root; the root is the empty path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All entries.
    pub entries: BTreeMap<Vec<u8>, Shot>,
    /// Names that are listed, but cannot be found.
    pub ghosts: BTreeSet<Vec<u8>>,
}

impl Snapshot {
    /// Reads the tree at `root`.
    pub fn take(root: &Path, view: View, clock: Clock) -> Result<Self> {
        let mut walk = Walk { root, view, clock, found: BTreeMap::new(), ghosts: BTreeSet::new() };
        let stat =
            statat(CWD, root, AtFlags::SYMLINK_NOFOLLOW).with_context(|| root.display().to_string())?;
        walk.entry(b"", &stat, Vec::new())?;
        let mut entries = walk.found;
        name_inode_classes(&mut entries, view);
        Ok(Self { entries, ghosts: walk.ghosts })
    }
}

/// A digest of data, the same in every run.
pub fn digest(data: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    hasher.finish()
}

/// One entry as a directory listing gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: Vec<u8>,
    /// The inode number of the listing.
    pub ino: u64,
    /// The type of the listing.
    pub kind: FileType,
    /// The position after this entry, for `seekdir`.
    pub next: u64,
}

/// Lists an open directory from its current position to its end, including `.` and `..`.
pub fn list<Fd: AsFd>(dir: Fd) -> rustix::io::Result<Vec<Listed>> {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); 32 * 1024];
    let mut raw = RawDir::new(dir, &mut buffer);
    let mut entries = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes().to_vec();
        let (ino, kind, next) = (entry.ino(), entry.file_type(), entry.next_entry_cookie());
        entries.push(Listed { name, ino, kind, next });
    }
    Ok(entries)
}

struct Walk<'a> {
    root: &'a Path,
    view: View,
    clock: Clock,
    found: BTreeMap<Vec<u8>, Shot>,
    ghosts: BTreeSet<Vec<u8>>,
}

impl Walk<'_> {
    fn path(&self, relative: &[u8]) -> PathBuf {
        if relative.is_empty() { self.root.to_owned() } else { self.root.join(OsStr::from_bytes(relative)) }
    }

    fn entry(&mut self, relative: &[u8], stat: &Stat, listing: Vec<String>) -> Result<()> {
        let path = self.path(relative);
        let shot = self.shot(&path, stat, listing).with_context(|| format!("reading {}", path.display()))?;
        self.found.insert(relative.to_vec(), shot);
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            self.children(relative).with_context(|| format!("listing {}", path.display()))?;
        }
        Ok(())
    }

    fn children(&mut self, relative: &[u8]) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = open(self.path(relative), flags, Mode::empty())?;
        let mut seen = BTreeSet::new();
        for listed in list(&dir)? {
            if listed.name == b"." || listed.name == b".." {
                continue;
            }
            let shown = String::from_utf8_lossy(&listed.name).into_owned();
            if !seen.insert(listed.name.clone()) {
                bail!("{shown} is listed twice");
            }
            let child = if relative.is_empty() {
                listed.name.clone()
            } else {
                [relative, b"/", listed.name.as_slice()].concat()
            };
            let stat = match statat(&dir, OsStr::from_bytes(&listed.name), AtFlags::SYMLINK_NOFOLLOW) {
                Err(rustix::io::Errno::NOENT) => {
                    self.ghosts.insert(child);
                    continue;
                }
                stat => stat.with_context(|| shown.clone())?,
            };
            self.entry(&child, &stat, listing_faults(&listed, &stat))?;
        }
        Ok(())
    }

    fn shot(&self, path: &Path, stat: &Stat, listing: Vec<String>) -> Result<Shot> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let whiteout = matches!(self.view, View::Upper(_)) && kind.is_char_device() && stat.st_rdev == 0;
        if whiteout {
            return Ok(Shot::whiteout(stat.st_ino));
        }
        let device = kind.is_char_device() || kind.is_block_device();
        Ok(Shot {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            nlink: link_count(stat),
            size: if kind.is_file() || kind.is_symlink() { u64::try_from(stat.st_size)? } else { 0 },
            rdev: if device { stat.st_rdev } else { 0 },
            atime: self.clock.stamp(stat.st_atime, stat.st_atime_nsec),
            mtime: self.clock.stamp(stat.st_mtime, stat.st_mtime_nsec),
            ctime: self.clock.stamp(stat.st_ctime, stat.st_ctime_nsec),
            ino: stat.st_ino,
            same_inode_as: Vec::new(),
            content: content(path, kind)?,
            xattrs: self.xattrs(path)?,
            listing: if self.view == View::Merged { listing } else { Vec::new() },
        })
    }

    fn xattrs(&self, path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut found = BTreeMap::new();
        for name in xattr_names(path)? {
            let shown = OsStr::from_bytes(&name);
            let mut value = vec![0; 65536];
            let length = lgetxattr(path, shown, &mut value)
                .with_context(|| format!("attribute {} is listed, but cannot be read", shown.display()))?;
            value.truncate(length);
            if let View::Upper(namespace) = self.view
                && ["origin", "upper", "uuid"]
                    .iter()
                    .any(|private| namespace.attribute(private).as_bytes() == name)
            {
                value = b"(present)".to_vec();
            }
            found.insert(name, value);
        }
        Ok(found)
    }
}

impl Shot {
    fn whiteout(ino: u64) -> Self {
        let never = Stamp::Exact(0, 0);
        Shot {
            mode: FileType::CharacterDevice.as_raw_mode(),
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 0,
            rdev: 0,
            atime: never,
            mtime: never,
            ctime: never,
            ino,
            same_inode_as: Vec::new(),
            content: Content::None,
            xattrs: BTreeMap::new(),
            listing: Vec::new(),
        }
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        FileType::from_raw_mode(self.mode).is_file()
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        FileType::from_raw_mode(self.mode).is_dir()
    }

    /// Whether it has an overlay's own attribute of this name, in either namespace.
    pub fn has_private(&self, name: &str) -> bool {
        [Namespace::Trusted, Namespace::User]
            .iter()
            .any(|namespace| self.xattrs.contains_key(namespace.attribute(name).as_bytes()))
    }

    /// True for a character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        FileType::from_raw_mode(self.mode).is_char_device() && self.rdev == 0
    }
}

/// The link count, which is not a `u64` on every architecture.
#[allow(clippy::unnecessary_cast, reason = "necessary elsewhere")]
pub fn link_count(stat: &Stat) -> u64 {
    stat.st_nlink as u64
}

/// The names of all extended attributes, in the order given.
pub fn xattr_names(path: &Path) -> Result<Vec<Vec<u8>>> {
    let mut buffer = vec![0; 65536];
    let length = match llistxattr(path, &mut buffer) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        result => result.context("listxattr")?,
    };
    buffer.truncate(length);
    Ok(buffer.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

fn content(path: &Path, kind: FileType) -> Result<Content> {
    if kind.is_symlink() {
        return Ok(match readlinkat(CWD, path, Vec::new()) {
            Ok(target) => Content::Target(target.into_bytes()),
            Err(cause) => Content::Unreadable(cause),
        });
    }
    if !kind.is_file() {
        return Ok(Content::None);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(cause) => return Ok(Content::Unreadable(cause)),
    };
    let mut data = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut data)?;
    Ok(Content::Digest(digest(&data)))
}

fn listing_faults(listed: &Listed, stat: &Stat) -> Vec<String> {
    let mut faults = Vec::new();
    if listed.ino != stat.st_ino {
        faults.push("d_ino is not st_ino".to_owned());
    }
    let kind = FileType::from_raw_mode(stat.st_mode);
    if listed.kind != kind && listed.kind != FileType::Unknown {
        faults.push(format!("d_type is {:?}, but the entry is {kind:?}", listed.kind));
    }
    faults
}

fn name_inode_classes(entries: &mut BTreeMap<Vec<u8>, Shot>, view: View) {
    let mut first: HashMap<u64, Vec<u8>> = HashMap::new();
    for (path, shot) in entries.iter_mut() {
        let lone = matches!(view, View::Upper(_)) && shot.is_whiteout();
        let name = if lone { path } else { first.entry(shot.ino).or_insert_with(|| path.clone()) };
        shot.same_inode_as = name.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::TreeSpec;

    #[test]
    fn names_of_one_inode_are_in_one_class() {
        let dir = tempfile::tempdir().unwrap();
        TreeSpec::new().file("b", "x").hard_link("a", "b").file("c", "x").build(dir.path()).unwrap();
        let snapshot = Snapshot::take(dir.path(), View::Merged, Clock::start()).unwrap();
        let class = |name: &str| snapshot.entries.get(name.as_bytes()).unwrap().same_inode_as.clone();
        assert_eq!(class("b"), b"a");
        assert_eq!(class("c"), b"c");
    }

    #[test]
    fn a_time_that_was_set_is_exact_and_a_time_that_happened_is_recent() {
        let clock = Clock::start();
        let dir = tempfile::tempdir().unwrap();
        TreeSpec::new().file("old", "").time(-1, 999_999_999).file("new", "").build(dir.path()).unwrap();
        let snapshot = Snapshot::take(dir.path(), View::Merged, clock).unwrap();
        let mtime = |name: &str| snapshot.entries.get(name.as_bytes()).unwrap().mtime;
        assert_eq!(mtime("old"), Stamp::Exact(-1, 999_999_999));
        assert_eq!(mtime("new"), Stamp::Recent);
    }
}
