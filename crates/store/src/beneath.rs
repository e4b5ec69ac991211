//! Resolution beneath a directory, for trees whose names a stranger chose.
//!
//! Owns the one way in: openat2(2) with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS`,
//! then operations on the descriptor and a single component. Never joins a stranger's name to a path, never
//! changes mode or owner through a name that may be a symbolic link.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

use crate::error::{Context, Result};

const SAFE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// The root of a tree, and where it lies for messages.
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens a directory of the store (its own path is trusted).
    pub fn open(path: &Path) -> Result<Root> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::open(path, flags, Mode::empty()).at("open", path)?;
        Ok(Root { fd, path: path.to_owned() })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path of the tree as a person would write it; for messages only.
    pub fn show(&self, rel: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(rel))
    }

    /// Opens `rel` beneath the root without following any symbolic link. Empty is the root itself.
    pub fn open_at(&self, rel: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let rel: &[u8] = if rel.is_empty() { b"." } else { rel };
        loop {
            match rustix::fs::openat2(
                &self.fd,
                rel,
                flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                Mode::empty(),
                SAFE,
            ) {
                // The kernel saw a rename race and asks for another try.
                Err(Errno::AGAIN) => {}
                r => return r,
            }
        }
    }

    /// Opens the directory `rel`.
    pub fn dir(&self, rel: &[u8]) -> rustix::io::Result<OwnedFd> {
        self.open_at(rel, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// The status of `rel`, or none if it, or a directory above it, is missing or not a directory.
    pub fn stat(&self, rel: &[u8]) -> Result<Option<Stat>> {
        match self.open_at(rel, OFlags::PATH) {
            Ok(fd) => rustix::fs::fstat(&fd).map(Some).at("stat", self.show(rel)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
            Err(e) => Err(e).at("open", self.show(rel)),
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Splits a path into its parent and its last component.
pub fn split(rel: &[u8]) -> (&[u8], &[u8]) {
    match rel.iter().rposition(|b| *b == b'/') {
        Some(i) => (rel.get(..i).unwrap_or_default(), rel.get(i + 1..).unwrap_or_default()),
        None => (&[], rel),
    }
}

/// Appends a component to a path.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// The type of a file, from its mode.
pub fn kind(st: &Stat) -> FileType {
    FileType::from_raw_mode(st.st_mode)
}

/// The kernel's whiteout: a character device 0:0.
pub fn is_whiteout_device(st: &Stat) -> bool {
    kind(st) == FileType::CharacterDevice && st.st_rdev == 0
}

/// Removes `name` in `dir`, with all below it; symbolic links and mounts are never entered.
pub fn remove(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        Err(Errno::NOENT) => return Ok(()),
        r => return r,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    for n in names(fd.as_fd())? {
        remove(fd.as_fd(), &n)?;
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// The names in a directory, sorted, without `.` and `..`.
pub fn names(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut v = Vec::new();
    for e in Dir::read_from(dir)? {
        let e = e?;
        let n = e.file_name().to_bytes();
        if n != b"." && n != b".." {
            v.push(n.to_vec());
        }
    }
    v.sort();
    Ok(v)
}

/// The path of what a descriptor refers to, for calls that have no *at form. Opened with O_PATH and
/// O_NOFOLLOW, the descriptor names the file itself, so nothing can be swapped under the call.
pub fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The path of one component in an open directory, for the l*xattr calls, which do not follow it.
pub fn proc_child(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    Path::new(&proc_path(dir)).join(OsStr::from_bytes(name))
}

/// All extended attributes of `name` in `dir` (or of `dir` itself for an empty name), sorted by name.
pub fn xattrs(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = if name.is_empty() { PathBuf::from(proc_path(dir)).join(".") } else { proc_child(dir, name) };
    let mut list = vec![0u8; 4096];
    let n = loop {
        match rustix::fs::llistxattr(&path, &mut list[..]) {
            Ok(n) => break n,
            Err(Errno::RANGE) if list.len() < 1 << 20 => list.resize(list.len() * 4, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        }
    };
    list.truncate(n);
    let mut out = Vec::new();
    for n in list.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        if let Some(v) = xattr(&path, n)? {
            out.push((n.to_vec(), v));
        }
    }
    out.sort();
    Ok(out)
}

/// One extended attribute of the file at `path` itself; none if it is absent or not supported.
pub fn xattr(path: &Path, name: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut v = vec![0u8; 256];
    loop {
        match rustix::fs::lgetxattr(path, name, &mut v[..]) {
            Ok(n) => {
                v.truncate(n);
                return Ok(Some(v));
            }
            Err(Errno::RANGE) if v.len() < 1 << 17 => v.resize(v.len() * 8, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// Sets an extended attribute of `name` in `dir` itself.
pub fn set_xattr(dir: BorrowedFd<'_>, name: &[u8], key: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(proc_child(dir, name), key, value, XattrFlags::empty())
}

/// Opens a regular file beneath the root for reading: anything else is refused, without blocking on a FIFO.
pub fn open_regular(root: &Root, rel: &[u8]) -> Result<Option<File>> {
    let fd = match root.open_at(rel, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(e) => return Err(e).at("open", root.show(rel)),
    };
    let st = rustix::fs::fstat(&fd).at("stat", root.show(rel))?;
    Ok((kind(&st) == FileType::RegularFile).then(|| File::from(fd)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_outside_the_root_is_reached() {
        let t = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(t.path().join("in/d")).unwrap();
        std::fs::write(t.path().join("secret"), "s").unwrap();
        symlink("../secret", t.path().join("in/up")).unwrap();
        symlink("d", t.path().join("in/inner")).unwrap();
        symlink(t.path(), t.path().join("in/abs")).unwrap();
        let r = Root::open(&t.path().join("in")).unwrap();
        for p in [&b"../secret"[..], b"up", b"abs/secret", b"inner/.", b"d/../../secret"] {
            assert!(r.open_at(p, OFlags::RDONLY).is_err(), "{}", p.escape_ascii());
        }
        assert!(r.dir(b"d").is_ok());
        assert!(open_regular(&r, b"up").unwrap().is_none());
    }

    #[test]
    fn removal_does_not_follow_links_out_of_the_tree() {
        let t = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(t.path().join("in/a/b")).unwrap();
        std::fs::create_dir(t.path().join("out")).unwrap();
        std::fs::write(t.path().join("out/keep"), "").unwrap();
        symlink(t.path().join("out"), t.path().join("in/a/b/l")).unwrap();
        let r = Root::open(&t.path().join("in")).unwrap();
        remove(r.as_fd(), b"a").unwrap();
        assert!(t.path().join("out/keep").exists());
        assert!(!t.path().join("in/a").exists());
    }

    #[test]
    fn a_fifo_where_a_file_is_expected_neither_blocks_nor_opens() {
        let t = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            t.path().join("f"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let r = Root::open(t.path()).unwrap();
        assert!(open_regular(&r, b"f").unwrap().is_none());
    }
}
