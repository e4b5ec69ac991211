//! Unpacks a layer's tar into a directory. Owns what each entry becomes on disk: files, whiteouts,
//! opaque directories, attributes. Opens nothing outside the layer (beneath.rs), believes nothing the tar
//! says about the overlay itself.
//!
//! Rules, beyond the image-spec's (layer.md):
//! - a whiteout acts on lower layers only: an entry of the same layer stays, and a directory that replaces a
//!   deleted one becomes opaque, in whichever order the two entries come;
//! - `*.overlay.*` attributes, ownership records and device 0:0 would speak to the overlay: the former are
//!   dropped, the latter is refused;
//! - a directory that the tar implies but does not hold takes its attributes from the layer below
//!   ([`fill_implied`]), as a merged view would show it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use plyfs_format::whiteout::{OPAQUE_MARKER, RESERVED_PREFIX, WHITEOUT_PREFIX};
use plyfs_format::{OverrideKind, OverrideStat, Private};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::beneath::{self, Root, split};
use crate::error::{Context, Error, Result};
use crate::owner::{OVERRIDE, Ownership};
use crate::tar::{Entry, Kind, Reader, Time};

/// What was unpacked.
#[derive(Debug, Default)]
pub struct Applied {
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of file data written.
    pub size: u64,
    /// Directories that no entry described.
    pub implied: BTreeSet<Vec<u8>>,
    /// The newest time of change of any entry.
    pub newest: Option<Time>,
    /// Attributes that this user or file system cannot set.
    pub skipped_xattrs: u64,
}

/// Unpacks `tar` into the empty directory `into`.
pub fn apply<R: Read>(tar: &mut Reader<R>, into: &Path, ownership: Ownership) -> Result<Applied> {
    let mut w = Layer::open(into, ownership)?;
    let mut buf = vec![0; 128 << 10];
    while let Some(e) = tar.next_entry()? {
        w.entry(&e, &mut |f, show| copy_data(&e, f, show, tar, &mut buf))?;
    }
    w.finish()
}

/// Writes a file's data from the archive: all of it, or its segments.
fn copy_data<R: Read>(
    e: &Entry,
    f: &mut File,
    show: &Path,
    tar: &mut Reader<R>,
    buf: &mut [u8],
) -> Result<u64> {
    let whole = [(0, e.size)];
    if e.sparse.is_some() {
        f.set_len(e.size).at("truncate", show)?;
    }
    let mut done = 0;
    for (offset, len) in e.sparse.as_deref().unwrap_or(&whole) {
        if e.sparse.is_some() {
            f.seek(SeekFrom::Start(*offset)).at("seek", show)?;
        }
        let mut left = *len;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            let n = tar.read_data(buf.get_mut(..want).unwrap_or_default())?;
            f.write_all(buf.get(..n).unwrap_or_default()).at("write", show)?;
            left -= n as u64;
            done += n as u64;
        }
    }
    Ok(done)
}

/// Fills a new file and says how many bytes it wrote; the path is for messages.
pub type Fill<'a> = &'a mut dyn FnMut(&mut File, &Path) -> Result<u64>;

/// Gives implied directories the attributes that the layers below show, topmost first.
pub fn fill_implied(dir: &Path, implied: &BTreeSet<Vec<u8>>, lowers: &[PathBuf]) -> Result<()> {
    if implied.is_empty() || lowers.is_empty() {
        return Ok(());
    }
    let root = Root::open(dir)?;
    for rel in implied {
        for lower in lowers {
            if fill_from(&root, &Root::open(lower)?, rel)? {
                break;
            }
        }
    }
    Ok(())
}

fn fill_from(root: &Root, lower: &Root, rel: &[u8]) -> Result<bool> {
    let from = match lower.dir(rel) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        Err(e) => return Err(e).at("open", lower.show(rel)),
    };
    let to = root.dir(rel).at("open", root.show(rel))?;
    let st = rustix::fs::fstat(&from).at("stat", lower.show(rel))?;
    let (uid, gid) = (Uid::from_raw(st.st_uid), Gid::from_raw(st.st_gid));
    match rustix::fs::fchown(&to, Some(uid), Some(gid)) {
        Ok(()) | Err(Errno::PERM) => {}
        Err(e) => return Err(e).at("chown", root.show(rel)),
    }
    for (k, v) in beneath::xattrs(from.as_fd(), b"").at("list attributes of", lower.show(rel))? {
        if !contains(&k, b".overlay.") {
            rustix::fs::fsetxattr(&to, &k[..], &v, rustix::fs::XattrFlags::empty())
                .at("set attribute of", root.show(rel))?;
        }
    }
    rustix::fs::fchmod(&to, Mode::from_raw_mode(st.st_mode & 0o7777)).at("chmod", root.show(rel))?;
    let t = Time { secs: st.st_mtime, nanos: u32::try_from(st.st_mtime_nsec).unwrap_or(0) };
    rustix::fs::futimens(&to, &times(t)).at("set times of", root.show(rel))?;
    Ok(true)
}

/// A layer being written.
pub struct Layer {
    root: Root,
    ownership: Ownership,
    /// The directory used last: entries of one directory follow each other.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Times of directories, set last, since every entry made in one changes them.
    dir_times: BTreeMap<Vec<u8>, Time>,
    done: Applied,
}

impl Layer {
    /// Writes into the directory `into`.
    pub fn open(into: &Path, ownership: Ownership) -> Result<Layer> {
        // The root is there without an entry; without one it is as the layer below shows it.
        let done = Applied { implied: BTreeSet::from([Vec::new()]), ..Applied::default() };
        Ok(Layer {
            root: Root::open(into)?,
            ownership,
            last: None,
            dir_times: BTreeMap::from([(Vec::new(), Time::default())]),
            done,
        })
    }

    /// Writes one entry.
    pub fn entry(&mut self, e: &Entry, fill: Fill<'_>) -> Result<()> {
        self.done.newest = self.done.newest.max(Some(e.mtime));
        self.done.entries += 1;
        let (parent, name) = split(&e.path);
        refuse_whiteout_dirs(parent)?;
        if let Kind::Hardlink(target) = &e.kind {
            refuse_whiteout_dirs(target)?;
        }
        if name.starts_with(WHITEOUT_PREFIX) {
            return self.marker(e, parent, name);
        }
        match &e.kind {
            Kind::Dir if e.path.is_empty() => self.root_dir(e),
            Kind::Dir => self.dir(e, parent, name),
            Kind::File => self.file(e, parent, name, fill),
            Kind::Hardlink(target) => self.hardlink(e, parent, name, target),
            Kind::Symlink(text) => {
                self.special(e, parent, name, |d| rustix::fs::symlinkat(&text[..], d, name))
            }
            Kind::Fifo => {
                let mode = Mode::from_raw_mode(0o600);
                self.special(e, parent, name, |d| rustix::fs::mknodat(d, name, FileType::Fifo, mode, 0))
            }
            Kind::Char(0, 0) => Err(self.bad(e, "device 0:0 is the overlay's whiteout")),
            Kind::Char(a, b) => self.device(e, parent, name, FileType::CharacterDevice, (*a, *b)),
            Kind::Block(a, b) => self.device(e, parent, name, FileType::BlockDevice, (*a, *b)),
        }
    }

    /// `.wh.NAME` and `.wh..wh..opq`.
    fn marker(&mut self, e: &Entry, parent: &[u8], name: &[u8]) -> Result<()> {
        if !matches!(e.kind, Kind::File | Kind::Hardlink(_)) {
            return Err(self.bad(e, "a whiteout is an empty file and nothing else"));
        }
        if name == OPAQUE_MARKER {
            return self.opaque(parent);
        }
        if name.starts_with(RESERVED_PREFIX) {
            return Ok(());
        }
        match name.get(WHITEOUT_PREFIX.len()..).unwrap_or_default() {
            b"" | b"." | b".." => Err(self.bad(e, "a whiteout of no name")),
            hidden => self.whiteout(e, parent, hidden),
        }
    }

    fn whiteout(&mut self, e: &Entry, parent: &[u8], hidden: &[u8]) -> Result<()> {
        let rel = beneath::join(parent, hidden);
        let ownership = self.ownership;
        let dir = self.parent(parent)?;
        let made = rustix::fs::mknodat(dir, hidden, FileType::CharacterDevice, Mode::empty(), 0);
        match made {
            Ok(()) => rustix::fs::utimensat(dir, hidden, &times(e.mtime), AtFlags::SYMLINK_NOFOLLOW)
                .at("set times of", self.root.show(&rel)),
            // An entry of this layer stays; a directory has lost what lay below it.
            Err(Errno::EXIST) => match rustix::fs::statat(dir, hidden, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(st) if beneath::kind(&st) == FileType::Directory => self.opaque(&rel),
                r => r.map(drop).at("stat", self.root.show(&rel)),
            },
            Err(Errno::PERM) => {
                xattr_whiteout(dir, hidden, ownership).at("make whiteout", self.root.show(&rel))
            }
            Err(e) => Err(e).at("make whiteout", self.root.show(&rel)),
        }
    }

    fn opaque(&mut self, rel: &[u8]) -> Result<()> {
        let key = self.ownership.namespace().name(Private::Opaque);
        let dir = self.parent(rel)?;
        let r = rustix::fs::setxattr(
            PathBuf::from(beneath::proc_path(dir)).join("."),
            key,
            b"y",
            rustix::fs::XattrFlags::empty(),
        );
        r.at("make opaque", self.root.show(rel))
    }

    fn root_dir(&mut self, e: &Entry) -> Result<()> {
        let fd = self.root.dir(b"").at("open", self.root.path())?;
        self.attributes(e, fd.as_fd())?;
        self.done.implied.remove(&Vec::new());
        self.dir_times.insert(Vec::new(), e.mtime);
        Ok(())
    }

    fn dir(&mut self, e: &Entry, parent: &[u8], name: &[u8]) -> Result<()> {
        let dir = self.parent(parent)?;
        let mut replaced_whiteout = false;
        match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                replaced_whiteout = make_way_for_dir(dir, name).at("replace", self.root.show(&e.path))?
            }
            Err(err) => return Err(err).at("create", self.root.show(&e.path)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(self.parent(parent)?, name, flags, Mode::empty())
            .at("open", self.root.show(&e.path))?;
        self.attributes(e, fd.as_fd())?;
        if replaced_whiteout {
            self.opaque(&e.path)?;
        }
        self.done.implied.remove(&e.path);
        self.dir_times.insert(e.path.clone(), e.mtime);
        Ok(())
    }

    fn file(&mut self, e: &Entry, parent: &[u8], name: &[u8], fill: Fill<'_>) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            self.create(e, parent, name, |d| rustix::fs::openat(d, name, flags, Mode::from_raw_mode(0o600)))?;
        let mut f = File::from(fd);
        self.done.size += fill(&mut f, &self.root.show(&e.path))?;
        self.attributes(e, f.as_fd())?;
        rustix::fs::futimens(&f, &times(e.mtime)).at("set times of", self.root.show(&e.path))
    }

    fn hardlink(&mut self, e: &Entry, parent: &[u8], name: &[u8], target: &[u8]) -> Result<()> {
        let (target_dir, target_name) = split(target);
        let from = self.root.open_at(target_dir, OFlags::PATH | OFlags::DIRECTORY);
        let from = from.map_err(|_| self.bad(e, "a hard link to nothing in this layer"))?;
        let st = rustix::fs::statat(&from, target_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|_| self.bad(e, "a hard link to nothing in this layer"))?;
        if beneath::kind(&st) == FileType::Directory || beneath::is_whiteout_device(&st) {
            return Err(self.bad(e, "a hard link to a directory or a whiteout"));
        }
        if target == e.path {
            return Ok(());
        }
        self.create(e, parent, name, |d| rustix::fs::linkat(&from, target_name, d, name, AtFlags::empty()))
    }

    fn device(
        &mut self,
        e: &Entry,
        parent: &[u8],
        name: &[u8],
        kind: FileType,
        dev: (u32, u32),
    ) -> Result<()> {
        let number = rustix::fs::makedev(dev.0, dev.1);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        match self.ownership {
            Ownership::Real => {
                self.special(e, parent, name, |d| rustix::fs::mknodat(d, name, kind, mode, number))
            }
            // A user cannot make it: an empty file stands for it, and its record says what it is.
            Ownership::Recorded => {
                self.special(e, parent, name, |d| rustix::fs::openat(d, name, flags, mode).map(drop))
            }
        }
    }

    /// Makes something that is neither file nor directory, and gives it its attributes.
    fn special(
        &mut self,
        e: &Entry,
        parent: &[u8],
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<()>,
    ) -> Result<()> {
        self.create(e, parent, name, make)?;
        let dir = self.parent(parent)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).at("open", self.root.show(&e.path))?;
        self.path_attributes(e, fd.as_fd(), parent, name)?;
        let dir = self.parent(parent)?;
        rustix::fs::utimensat(dir, name, &times(e.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .at("set times of", self.root.show(&e.path))
    }

    /// Creates an entry; what an earlier entry of the same name left makes way.
    fn create<T>(
        &mut self,
        e: &Entry,
        parent: &[u8],
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let dir = self.parent(parent)?;
        match make(dir) {
            Err(Errno::EXIST) => {}
            r => return r.at("create", self.root.show(&e.path)),
        }
        beneath::remove(dir, name).at("replace", self.root.show(&e.path))?;
        self.forget(&e.path);
        let dir = self.parent(parent)?;
        make(dir).at("create", self.root.show(&e.path))
    }

    /// Forgets what was kept about a path that is gone.
    fn forget(&mut self, path: &[u8]) {
        self.last = None;
        let below = |p: &[u8]| p == path || p.strip_prefix(path).is_some_and(|r| r.first() == Some(&b'/'));
        self.dir_times.retain(|p, _| !below(p));
        self.done.implied.retain(|p| !below(p));
    }

    /// The directory `rel`, made if need be; never through a symbolic link.
    fn parent(&mut self, rel: &[u8]) -> Result<BorrowedFd<'_>> {
        if self.last.as_ref().is_none_or(|(p, _)| p != rel) {
            let fd = match self.root.dir(rel) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(rel)?,
                Err(Errno::LOOP | Errno::XDEV) => {
                    return Err(Error::invalid(
                        show(rel),
                        "an entry below something that is not a directory",
                    ));
                }
                Err(e) => return Err(e).at("open", self.root.show(rel)),
            };
            self.last = Some((rel.to_vec(), fd));
        }
        self.last.as_ref().map(|(_, fd)| fd.as_fd()).ok_or_else(|| Error::Damaged("no directory".into()))
    }

    fn make_parents(&mut self, rel: &[u8]) -> Result<OwnedFd> {
        let mut path: Vec<u8> = Vec::new();
        let mut fd = self.root.dir(b"").at("open", self.root.path())?;
        for c in rel.split(|b| *b == b'/') {
            path = beneath::join(&path, c);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fd = match rustix::fs::openat(&fd, c, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => self.make_implied(fd.as_fd(), c, &path)?,
                Err(Errno::NOTDIR) if whiteout_at(fd.as_fd(), c) => {
                    rustix::fs::unlinkat(&fd, c, AtFlags::empty()).at("replace", self.root.show(&path))?;
                    let made = self.make_implied(fd.as_fd(), c, &path)?;
                    let key = self.ownership.namespace().name(Private::Opaque);
                    rustix::fs::fsetxattr(&made, key, b"y", rustix::fs::XattrFlags::empty())
                        .at("make opaque", self.root.show(&path))?;
                    made
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return Err(Error::invalid(
                        show(rel),
                        "an entry below something that is not a directory",
                    ));
                }
                Err(e) => return Err(e).at("open", self.root.show(&path)),
            };
        }
        Ok(fd)
    }

    fn make_implied(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<OwnedFd> {
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)).at("create", self.root.show(path))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).at("open", self.root.show(path))?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755)).at("chmod", self.root.show(path))?;
        // The same tar gives the same tree, whenever it is unpacked.
        self.dir_times.insert(path.to_vec(), Time::default());
        self.done.implied.insert(path.to_vec());
        Ok(fd)
    }

    /// Owner, attributes and mode of an open file or directory, in this order: chown drops capabilities
    /// and set-uid bits.
    fn attributes(&mut self, e: &Entry, fd: BorrowedFd<'_>) -> Result<()> {
        let mode = match self.ownership {
            Ownership::Real => {
                rustix::fs::fchown(fd, Some(Uid::from_raw(e.uid)), Some(Gid::from_raw(e.gid)))
                    .at("chown", self.root.show(&e.path))?;
                e.mode
            }
            Ownership::Recorded => {
                let value = record(e).to_bytes();
                rustix::fs::fsetxattr(fd, OVERRIDE, &value, rustix::fs::XattrFlags::empty())
                    .at("record the owner of", self.root.show(&e.path))?;
                // The owner must be able to read what a stranger's mode would forbid; set-uid is for the record only.
                (e.mode & 0o777) | if e.kind == Kind::Dir { 0o700 } else { 0o600 }
            }
        };
        for (k, v) in e.xattrs.iter().filter(|(k, _)| keeps(k)) {
            self.xattr(e, k, rustix::fs::fsetxattr(fd, &k[..], v, rustix::fs::XattrFlags::empty()))?;
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)).at("chmod", self.root.show(&e.path))
    }

    /// The same for what can only be opened with O_PATH: the descriptor pins the file, links are not followed.
    fn path_attributes(&mut self, e: &Entry, fd: BorrowedFd<'_>, parent: &[u8], name: &[u8]) -> Result<()> {
        if self.ownership == Ownership::Real {
            let (uid, gid) = (Some(Uid::from_raw(e.uid)), Some(Gid::from_raw(e.gid)));
            rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)
                .at("chown", self.root.show(&e.path))?;
        } else if matches!(e.kind, Kind::Char(..) | Kind::Block(..)) {
            let dir = self.parent(parent)?;
            let value = record(e).to_bytes();
            beneath::set_xattr(dir, name, OVERRIDE, &value)
                .at("record the owner of", self.root.show(&e.path))?;
        }
        for (k, v) in e.xattrs.iter().filter(|(k, _)| keeps(k)) {
            let dir = self.parent(parent)?;
            let set = beneath::set_xattr(dir, name, k, v);
            self.xattr(e, k, set)?;
        }
        if matches!(e.kind, Kind::Symlink(_)) || self.ownership == Ownership::Recorded {
            return Ok(());
        }
        rustix::fs::chmod(beneath::proc_path(fd), Mode::from_raw_mode(e.mode))
            .at("chmod", self.root.show(&e.path))
    }

    /// An attribute that the file system or this user cannot keep is counted, not fatal: docker and podman
    /// do the same, and images carry SELinux labels everywhere.
    fn xattr(&mut self, e: &Entry, key: &[u8], set: rustix::io::Result<()>) -> Result<()> {
        match set {
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL) => {
                tracing::debug!("{}: attribute {} not kept", show(&e.path), key.escape_ascii());
                self.done.skipped_xattrs += 1;
                Ok(())
            }
            r => r.at("set attribute of", self.root.show(&e.path)),
        }
    }

    /// Sets what can only be set last.
    pub fn finish(mut self) -> Result<Applied> {
        self.last = None;
        for (path, t) in &self.dir_times {
            let fd = self.root.dir(path).at("open", self.root.show(path))?;
            rustix::fs::futimens(&fd, &times(*t)).at("set times of", self.root.show(path))?;
        }
        Ok(self.done)
    }

    fn bad(&self, e: &Entry, why: &str) -> Error {
        Error::invalid(show(&e.path), why)
    }
}

/// No component but the last may be a whiteout's name: nothing can lie below one.
fn refuse_whiteout_dirs(parent: &[u8]) -> Result<()> {
    match parent.split(|b| *b == b'/').any(|c| c.starts_with(WHITEOUT_PREFIX)) {
        true => Err(Error::invalid(show(parent), "a whiteout is not a directory, and no link's target")),
        false => Ok(()),
    }
}

/// Before a directory that an earlier entry's file or whiteout stands in for. Says whether it was a whiteout.
fn make_way_for_dir(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<bool> {
    let st = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if beneath::kind(&st) == FileType::Directory {
        return Ok(false);
    }
    let whiteout = whiteout_at(dir, name);
    rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700))?;
    Ok(whiteout)
}

fn whiteout_at(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    let path = beneath::proc_child(dir, name);
    let marked = |key: &[u8]| matches!(beneath::xattr(&path, key), Ok(Some(_)));
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(st) => {
            beneath::is_whiteout_device(&st)
                || st.st_size == 0
                    && (marked(b"trusted.overlay.whiteout") || marked(b"user.overlay.whiteout"))
        }
        Err(_) => false,
    }
}

/// Where mknod is not permitted: the form that overlayfs reads since Linux 6.7, an empty file with an
/// attribute in a directory marked as holding such.
fn xattr_whiteout(dir: BorrowedFd<'_>, name: &[u8], ownership: Ownership) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(&fd, ownership.namespace().name(Private::Whiteout), b"y", none)?;
    let key = ownership.namespace().name(Private::Opaque);
    let here = PathBuf::from(beneath::proc_path(dir)).join(".");
    match beneath::xattr(&here, key.to_bytes())? {
        Some(_) => Ok(()),
        None => rustix::fs::setxattr(&here, key, b"x", none),
    }
}

/// Attributes that are the image's own. The others speak to an overlay, or to one who mounts it.
fn keeps(key: &[u8]) -> bool {
    !contains(key, b".overlay.")
        && !key.starts_with(b"user.containers.")
        && !key.starts_with(b"user.fuseoverlayfs.")
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|w| w == needle)
}

fn record(e: &Entry) -> OverrideStat {
    let kind = match e.kind {
        Kind::Char(a, b) => Some(OverrideKind::Char(a, b)),
        Kind::Block(a, b) => Some(OverrideKind::Block(a, b)),
        _ => None,
    };
    OverrideStat { uid: e.uid, gid: e.gid, mode: e.mode, kind }
}

fn times(t: Time) -> Timestamps {
    let t = Timespec { tv_sec: t.secs, tv_nsec: t.nanos.into() };
    Timestamps { last_access: t, last_modification: t }
}

fn show(path: &[u8]) -> String {
    format!("entry \"{}\"", path.escape_ascii())
}
