//! `cp`: files between a container and here.
//!
//! Owns both directions. The container's side is resolved once beneath its root, without symbolic links, and
//! only descriptors are used from then on: a program in the container that swaps a directory for a link while
//! the copy runs gains nothing (CVE-2018-15664, CVE-2021-41089).

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::beneath::{self, Root, split};
use crate::error::{Context, Error, Result};
use crate::mount::Backend;
use crate::store::Store;

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A place to copy from or to: a directory and a name in it.
struct Place {
    dir: OwnedFd,
    name: Vec<u8>,
    /// For messages.
    shown: String,
}

impl Store {
    /// Copies `from` to `to`; exactly one of the two is `CONTAINER:PATH`. A directory is copied with all below
    /// it; into an existing directory it goes under its own name.
    pub fn copy(&self, from: &str, to: &str) -> Result<()> {
        let (name, outward) = match (container_path(from), container_path(to)) {
            (Some((c, _)), None) => (c, true),
            (None, Some((c, _))) => (c, false),
            _ => return Err(Error::invalid("cp", "exactly one of the two paths must be CONTAINER:PATH")),
        };
        let merged = self.mount(name, Backend::Auto)?;
        let r = Root::open(&merged).and_then(|root| copy_in_or_out(&root, from, to, outward));
        self.unmount(name, false)?;
        r
    }
}

/// `CONTAINER:PATH`; a path of this machine that has a colon is written `./a:b`.
fn container_path(text: &str) -> Option<(&str, &str)> {
    let (c, p) = text.split_once(':')?;
    (!c.is_empty() && !c.contains('/') && c != ".").then_some((c, p))
}

fn copy_in_or_out(root: &Root, from: &str, to: &str, outward: bool) -> Result<()> {
    let inside = |text: &str| container_path(text).map_or("", |(_, p)| p).to_owned();
    let (source, target) = if outward {
        (beneath_place(root, &inside(from))?, host_place(to)?)
    } else {
        (host_place(from)?, beneath_place(root, &inside(to))?)
    };
    let st = stat(&source)?;
    let target = into_directory(target, &source)?;
    // Owners are the container's on the way in, and the caller's on the way out.
    let owner = if outward { None } else { Some((0, 0)) };
    copy(source.dir.as_fd(), &source.name, target.dir.as_fd(), &target.name, &st, owner)
        .at("copy", format!("{} to {}", source.shown, target.shown))
}

fn beneath_place(root: &Root, text: &str) -> Result<Place> {
    let clean: Vec<&[u8]> =
        text.as_bytes().split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").collect();
    if clean.contains(&&b".."[..]) {
        return Err(Error::invalid(text, "a path with \"..\""));
    }
    let rel = clean.join(&b'/');
    let (dir, name) = split(&rel);
    let fd = root.dir(dir).map_err(|e| match e {
        Errno::LOOP => Error::invalid(text, "is reached through a symbolic link; name the real path"),
        e => Error::Io { op: "open", path: root.show(dir), source: e.into() },
    })?;
    Ok(Place {
        dir: fd,
        name: if name.is_empty() { b".".to_vec() } else { name.to_vec() },
        shown: text.to_owned(),
    })
}

fn host_place(text: &str) -> Result<Place> {
    let p = Path::new(text);
    let (dir, name) = match (p.parent(), p.file_name()) {
        (Some(d), Some(n)) => (if d.as_os_str().is_empty() { Path::new(".") } else { d }, n.as_bytes()),
        _ => (p, &b"."[..]),
    };
    let fd = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at("open", dir)?;
    Ok(Place { dir: fd, name: name.to_vec(), shown: text.to_owned() })
}

fn stat(p: &Place) -> Result<rustix::fs::Stat> {
    rustix::fs::statat(&p.dir, &p.name[..], AtFlags::SYMLINK_NOFOLLOW).at("stat", &p.shown)
}

/// An existing directory takes the source under its own name.
fn into_directory(to: Place, from: &Place) -> Result<Place> {
    match rustix::fs::openat(&to.dir, &to.name[..], DIR, Mode::empty()) {
        Ok(dir) => {
            let name = if from.name == b"." { b"root".to_vec() } else { from.name.clone() };
            let shown = format!("{}/{}", to.shown, OsStr::from_bytes(&name).display());
            Ok(Place { dir, name, shown })
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(to),
        Err(e) => Err(e).at("open", &to.shown),
    }
}

type Owner = Option<(u32, u32)>;

fn copy(
    from: BorrowedFd<'_>,
    name: &[u8],
    to: BorrowedFd<'_>,
    as_name: &[u8],
    st: &rustix::fs::Stat,
    owner: Owner,
) -> std::io::Result<()> {
    match beneath::kind(st) {
        FileType::Directory => copy_dir(from, name, to, as_name, st, owner)?,
        FileType::RegularFile => copy_file(from, name, to, as_name, st, owner)?,
        FileType::Symlink => {
            let text = rustix::fs::readlinkat(from, name, Vec::new())?;
            beneath::remove(to, as_name)?;
            rustix::fs::symlinkat(text, to, as_name)?;
        }
        // Devices, FIFOs and sockets are not copied, as docker does not.
        _ => {}
    }
    Ok(())
}

fn copy_dir(
    from: BorrowedFd<'_>,
    name: &[u8],
    to: BorrowedFd<'_>,
    as_name: &[u8],
    st: &rustix::fs::Stat,
    owner: Owner,
) -> std::io::Result<()> {
    let source = rustix::fs::openat(from, name, DIR, Mode::empty())?;
    match rustix::fs::mkdirat(to, as_name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let target = rustix::fs::openat(to, as_name, DIR, Mode::empty())?;
    for n in beneath::names(source.as_fd())? {
        let child = match rustix::fs::statat(&source, &n[..], AtFlags::SYMLINK_NOFOLLOW) {
            Ok(st) => st,
            // It went away while the copy ran.
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        copy(source.as_fd(), &n, target.as_fd(), &n, &child, owner)?;
    }
    attributes(target.as_fd(), st, owner)
}

fn copy_file(
    from: BorrowedFd<'_>,
    name: &[u8],
    to: BorrowedFd<'_>,
    as_name: &[u8],
    st: &rustix::fs::Stat,
    owner: Owner,
) -> std::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut source = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
    if !source.metadata()?.is_file() {
        return Err(Errno::LOOP.into());
    }
    beneath::remove(to, as_name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut target = File::from(rustix::fs::openat(to, as_name, flags, Mode::from_raw_mode(0o600))?);
    std::io::copy(&mut source, &mut target)?;
    attributes(target.as_fd(), st, owner)
}

/// Owner, mode and times; set-uid bits do not leave or enter a container this way.
fn attributes(fd: BorrowedFd<'_>, st: &rustix::fs::Stat, owner: Owner) -> std::io::Result<()> {
    if let Some((uid, gid)) = owner.filter(|_| rustix::process::geteuid().is_root()) {
        rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(st.st_mode & 0o1777))?;
    let t = Timespec { tv_sec: st.st_mtime, tv_nsec: st.st_mtime_nsec.try_into().unwrap_or(0) };
    Ok(rustix::fs::futimens(fd, &Timestamps { last_access: t, last_modification: t })?)
}
