//! Files on disk as entries of a tar. Owns reading one file's attributes and data, and hard links among
//! the files written so far. Knows nothing of layers but how to leave out the overlay's own attributes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use plyfs_format::{Namespace, OverrideKind, OverrideStat, xattr};
use rustix::fs::{FileType, OFlags, SeekFrom, Stat, major, minor};
use rustix::io::Errno;

use crate::beneath::{self, Root, split};
use crate::error::{Context, Result};
use crate::owner::{Ids, OVERRIDE};
use crate::tar::{Entry, Kind, Time, Writer};

/// Where a file's attributes are, and where its data.
pub struct Source<'a> {
    /// The tree and the path of the attributes.
    pub at: (&'a Root, &'a [u8]),
    /// The same for the data, where that differs.
    pub data: Option<(&'a Root, &'a [u8])>,
    /// Status of the former.
    pub stat: &'a Stat,
    /// Whose it is, where no record says so.
    pub ids: Ids,
    /// Whether records of owner and mode are believed there ([`crate::owner::Ownership::believes`]); else they are dropped.
    pub records: bool,
}

/// Writes entries, the second name of an inode as a hard link to the first.
pub struct Emit<W: Write> {
    tar: Writer<W>,
    /// What is being written, for messages.
    to: PathBuf,
    seen: HashMap<(u64, u64), Vec<u8>>,
    /// The newest time of change so far.
    pub newest: Option<Time>,
    /// Entries so far.
    pub entries: u64,
}

impl<W: Write> Emit<W> {
    /// Writes to `out`, which messages call `to`.
    pub fn new(out: W, to: &Path) -> Emit<W> {
        Emit { tar: Writer::new(out), to: to.to_owned(), seen: HashMap::new(), newest: None, entries: 0 }
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<(Option<Time>, u64)> {
        self.tar.finish().at("write", &self.to)?.flush().at("write", &self.to)?;
        Ok((self.newest, self.entries))
    }

    /// An empty file: a whiteout's marker.
    pub fn marker(&mut self, path: Vec<u8>) -> Result<()> {
        self.write(&Entry {
            path,
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            xattrs: Vec::new(),
            sparse: None,
        })
    }

    /// One file under the name `path`. Sockets are left out, as in every tar.
    pub fn file(&mut self, path: &[u8], from: &Source<'_>) -> Result<()> {
        let Some(mut e) = entry(path, from)? else {
            tracing::debug!("{}: a socket, left out", path.escape_ascii());
            return Ok(());
        };
        let st = from.stat;
        if st.st_nlink > 1 && e.kind != Kind::Dir {
            let first = self.seen.entry((st.st_dev, st.st_ino)).or_insert_with(|| path.to_vec());
            if first != path {
                e.kind = Kind::Hardlink(first.clone());
                (e.size, e.sparse, e.xattrs) = (0, None, Vec::new());
                return self.write(&e);
            }
        }
        if e.kind != Kind::File {
            return self.write(&e);
        }
        let (root, rel) = from.data.unwrap_or(from.at);
        let fd = root.open_at(rel, OFlags::RDONLY).at("open", root.show(rel))?;
        let mut f = File::from(fd);
        e.size = f.metadata().at("stat", root.show(rel))?.len();
        e.sparse = holes(&f, e.size).at("seek", root.show(rel))?;
        self.write(&e)?;
        self.data(&e, &mut f, &root.show(rel))
    }

    fn write(&mut self, e: &Entry) -> Result<()> {
        self.newest = self.newest.max(Some(e.mtime));
        self.entries += 1;
        self.tar.entry(e).at("write", &self.to)
    }

    fn data(&mut self, e: &Entry, f: &mut File, show: &Path) -> Result<()> {
        use std::io::Seek;
        let whole = [(0, e.size)];
        let mut buf = vec![0u8; usize::try_from(e.size.clamp(1, 256 << 10)).unwrap_or(4096)];
        for (offset, len) in e.sparse.as_deref().unwrap_or(&whole) {
            if e.sparse.is_some() {
                f.seek(std::io::SeekFrom::Start(*offset)).at("seek", show)?;
            }
            let mut left = *len;
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
                let part = buf.get_mut(..want).unwrap_or_default();
                f.read_exact(part).at("read", show)?;
                self.tar.data(part).at("write", &self.to)?;
                left -= want as u64;
            }
        }
        Ok(())
    }
}

/// A file's attributes as an entry without data; none for a socket.
pub fn entry(path: &[u8], from: &Source<'_>) -> Result<Option<Entry>> {
    let (root, rel) = from.at;
    let st = from.stat;
    let mut mode = st.st_mode & 0o7777;
    let (mut uid, mut gid) = from.ids.inside(st.st_uid, st.st_gid);
    let mut recorded = None;
    let mut xattrs = Vec::new();
    for (k, v) in all_xattrs(root, rel)? {
        if k == OVERRIDE && from.records {
            if let Ok(o) = OverrideStat::parse(&v) {
                (uid, gid, mode, recorded) = (o.uid, o.gid, o.mode, o.kind);
            }
        } else if let Some(name) = shown(&k) {
            xattrs.push((name, v));
        }
    }
    let kind = match (recorded, beneath::kind(st)) {
        (Some(OverrideKind::Char(a, b)), _) => Kind::Char(a, b),
        (Some(OverrideKind::Block(a, b)), _) => Kind::Block(a, b),
        (_, FileType::Directory) => Kind::Dir,
        (_, FileType::Symlink) => Kind::Symlink(link_text(root, rel)?),
        (_, FileType::CharacterDevice) => Kind::Char(major(st.st_rdev), minor(st.st_rdev)),
        (_, FileType::BlockDevice) => Kind::Block(major(st.st_rdev), minor(st.st_rdev)),
        (_, FileType::Fifo) => Kind::Fifo,
        (_, FileType::Socket) => return Ok(None),
        _ => Kind::File,
    };
    let mtime = Time { secs: st.st_mtime, nanos: u32::try_from(st.st_mtime_nsec).unwrap_or(0) };
    let size = if kind == Kind::File { u64::try_from(st.st_size).unwrap_or(0) } else { 0 };
    Ok(Some(Entry { path: path.to_vec(), kind, mode, uid, gid, mtime, size, xattrs, sparse: None }))
}

/// All attributes as they are on disk, without the security module's label.
pub fn raw_xattrs(root: &Root, rel: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut all = all_xattrs(root, rel)?;
    all.retain(|(k, _)| k != b"security.selinux");
    Ok(all)
}

fn all_xattrs(root: &Root, rel: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let (dir, name) = split(rel);
    let fd = root.open_at(dir, OFlags::PATH | OFlags::DIRECTORY).at("open", root.show(dir))?;
    beneath::xattrs(fd.as_fd(), name).at("read attributes of", root.show(rel))
}

/// An attribute's name as the merged view shows it: the overlay's own and ownership records are not part of
/// the file, escaped ones lose their escape.
fn shown(key: &[u8]) -> Option<Vec<u8>> {
    if is_record(key) || key == b"security.selinux" {
        return None;
    }
    let once = xattr::unescape(Namespace::Trusted, key)?;
    let name = xattr::unescape(Namespace::User, &once)?.into_owned();
    // Either, unescaped, would be dropped again when it is unpacked, and must never act there.
    (!is_record(&name) && !name.windows(9).any(|w| w == b".overlay.")).then_some(name)
}

fn is_record(key: &[u8]) -> bool {
    key.starts_with(b"user.containers.") || key.starts_with(b"user.fuseoverlayfs.")
}

fn link_text(root: &Root, rel: &[u8]) -> Result<Vec<u8>> {
    let (dir, name) = split(rel);
    let fd = root.open_at(dir, OFlags::PATH | OFlags::DIRECTORY).at("open", root.show(dir))?;
    Ok(rustix::fs::readlinkat(fd, name, Vec::new()).at("read link", root.show(rel))?.into_bytes())
}

/// Where a file has data; none if it has no holes.
pub fn holes(f: &File, size: u64) -> rustix::io::Result<Option<Vec<(u64, u64)>>> {
    if size == 0 || rustix::fs::seek(f, SeekFrom::Hole(0)).unwrap_or(size) >= size {
        rustix::fs::seek(f, SeekFrom::Start(0))?;
        return Ok(None);
    }
    let mut map = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(f, SeekFrom::Data(at)) {
            Ok(s) => s,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e),
        };
        let end = rustix::fs::seek(f, SeekFrom::Hole(start))?.min(size);
        map.push((start, end - start));
        at = end;
    }
    rustix::fs::seek(f, SeekFrom::Start(0))?;
    Ok(Some(map))
}
