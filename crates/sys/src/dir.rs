//! [`Dir`]: a capability to one directory of a layer, with verbs that only read.
//!
//! It never changes anything and has no way to: that is [`crate::DirMut`], which only the upper and work directories
//! are opened as. The kernel's overlayfs has the same split in its private clones of the lower mounts, which are
//! read-only.

use std::ffi::{CStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use plyfs_format::{Name, RelPath};
use rustix::fs::{Mode, OFlags, ResolveFlags, StatVfsMountFlags};

use crate::file::{Grant, with_proc_path};
use crate::handle::{self, FileHandle};
use crate::inode_flags::{self, InodeFlags};
use crate::list::DirLister;
use crate::stat::statx_at;
use crate::xattr::{self, Target};
use crate::{Errno, File, Result, Stat, raw};

/// How a directory is opened: only to be a starting point, which needs no permission on it.
const DIR_FLAGS: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What every open of a file adds: never become a controlling terminal, never wait for the other end of a FIFO.
const FILE_FLAGS: OFlags =
    OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

/// Flags with which an open could change something.
const WRITE_FLAGS: OFlags = OFlags::WRONLY.union(OFlags::RDWR).union(OFlags::CREATE).union(OFlags::TRUNC);

/// How often a resolution is repeated that a concurrent rename made ambiguous (`EAGAIN` of openat2(2)).
const RESOLVE_ATTEMPTS: u32 = 64;

/// A directory of a layer, held by an `O_PATH` descriptor.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
}

/// The state of a file system (statvfs(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsStat {
    /// Preferred size of I/O, in bytes.
    pub bsize: u64,
    /// The unit of the block counts, in bytes.
    pub frsize: u64,
    /// Size in units of `frsize`.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for unprivileged users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// The file system's identifier (`f_fsid`).
    pub fsid: u64,
    /// `ST_*` flags of the mount.
    pub flags: u64,
    /// Longest name, in bytes.
    pub namemax: u64,
}

impl Dir {
    /// Opens the directory at `path`, following symbolic links: only for paths that the user gave (open(2)).
    pub fn open_root(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        raw::retry(|| rustix::fs::open(path, flags, Mode::empty())).map(Self::from_fd)
    }

    /// Takes a descriptor of a directory; `O_PATH` is enough.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Another capability to the same directory (`F_DUPFD_CLOEXEC` of fcntl(2)).
    pub fn try_clone(&self) -> Result<Self> {
        rustix::io::fcntl_dupfd_cloexec(&self.fd, 0).map(Self::from_fd)
    }

    /// Opens a directory beneath this one, following no symbolic link on the way (openat2(2)). `ELOOP` if there is one,
    /// `EXDEV` if `rel` would leave this directory. Mount points are crossed.
    pub fn open_dir(&self, rel: &RelPath) -> Result<Self> {
        if rel.is_root() {
            return self.try_clone();
        }
        self.resolve(rel, DIR_FLAGS).map(Self::from_fd)
    }

    /// Opens a subdirectory (openat(2)); `ENOTDIR` if it is a symbolic link or anything else.
    pub fn child_dir(&self, name: Name<'_>) -> Result<Self> {
        self.open_entry(name, DIR_FLAGS, 0).map(Self::from_fd)
    }

    /// The attributes of this directory (statx(2)).
    pub fn stat(&self) -> Result<Stat> {
        statx_at(&self.fd, c"")
    }

    /// The attributes of an entry, not following a symbolic link (statx(2)).
    pub fn stat_at(&self, name: Name<'_>) -> Result<Stat> {
        statx_at(&self.fd, name.as_bytes())
    }

    /// Whether the directory `name` has an entry `entry` (statx(2)). One system call; the caller has seen that `name` is a
    /// directory. Should it have become a symbolic link, the answer is about where that leads, and nothing is opened.
    pub fn has_entry_in(&self, name: Name<'_>, entry: Name<'_>) -> Result<bool> {
        let path = [name.as_bytes(), b"/", entry.as_bytes()].concat();
        match statx_at(&self.fd, path.as_slice()) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The attributes of what lies at `rel` beneath this directory, following no symbolic link (openat2(2), statx(2)).
    pub fn stat_path(&self, rel: &RelPath) -> Result<Stat> {
        if rel.is_root() {
            return self.stat();
        }
        statx_at(self.resolve(rel, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)?, c"")
    }

    /// A descriptor that only names an entry of any type, also a symbolic link (`O_PATH` of open(2)).
    pub fn open_path(&self, name: Name<'_>) -> Result<OwnedFd> {
        self.open_entry(name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, 0)
    }

    /// As [`Dir::open_path`], for a path beneath this directory (openat2(2)).
    pub fn open_path_at(&self, rel: &RelPath) -> Result<OwnedFd> {
        if rel.is_root() {
            return self.try_clone().map(|dir| dir.fd);
        }
        self.resolve(rel, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)
    }

    /// Opens a regular file for reading (openat(2)). The caller has seen that it is regular; should it have become a FIFO,
    /// the open does not wait. `EROFS` for flags that could write, create or truncate; `ELOOP` for a symbolic link. Every
    /// change through the [`File`] is refused with `EROFS`.
    pub fn open_file(&self, name: Name<'_>, flags: OFlags) -> Result<File> {
        refuse_writing(flags)?;
        self.open_entry(name, flags | FILE_FLAGS, 0).map(|fd| File::new(fd, flags, Grant::Read))
    }

    /// As [`Dir::open_file`], for a path beneath this directory (openat2(2)).
    pub fn open_file_at(&self, rel: &RelPath, flags: OFlags) -> Result<File> {
        refuse_writing(flags)?;
        self.resolve(rel, flags | FILE_FLAGS).map(|fd| File::new(fd, flags, Grant::Read))
    }

    /// The target of a symbolic link (readlinkat(2)); `EINVAL` if the entry is none.
    pub fn readlink(&self, name: Name<'_>) -> Result<Vec<u8>> {
        let target = rustix::fs::readlinkat(&self.fd, name.as_bytes(), Vec::new())?;
        Ok(target.into_bytes())
    }

    /// The value of an attribute of an entry (getxattrat(2)); `None` if it has none, or if the file system has no such
    /// attributes.
    pub fn get_xattr(&self, name: Name<'_>, attr: &CStr) -> Result<Option<Vec<u8>>> {
        xattr::get(self.entry(name), attr)
    }

    /// Reads an attribute of an entry into `buf` and returns its length; an empty `buf` asks for the length
    /// (getxattrat(2)). `ENODATA` if it has none, `ERANGE` if `buf` is too small.
    pub fn get_xattr_raw(&self, name: Name<'_>, attr: &CStr, buf: &mut [u8]) -> Result<usize> {
        xattr::get_raw(self.entry(name), attr, buf)
    }

    /// The names of an entry's attributes, each with a NUL behind it (listxattrat(2)).
    pub fn list_xattrs(&self, name: Name<'_>) -> Result<Vec<u8>> {
        xattr::list(self.entry(name))
    }

    /// As [`Dir::get_xattr`], of this directory.
    pub fn get_own_xattr(&self, attr: &CStr) -> Result<Option<Vec<u8>>> {
        xattr::get(Target::OwnDir(self.fd.as_fd()), attr)
    }

    /// As [`Dir::get_xattr_raw`], of this directory.
    pub fn get_own_xattr_raw(&self, attr: &CStr, buf: &mut [u8]) -> Result<usize> {
        xattr::get_raw(Target::OwnDir(self.fd.as_fd()), attr, buf)
    }

    /// As [`Dir::list_xattrs`], of this directory.
    pub fn list_own_xattrs(&self) -> Result<Vec<u8>> {
        xattr::list(Target::OwnDir(self.fd.as_fd()))
    }

    /// The inode flags of this directory (`FS_IOC_GETFLAGS` of ioctl_iflags(2)).
    pub fn own_inode_flags(&self) -> Result<InodeFlags> {
        inode_flags::get(self.reopen()?.as_fd())
    }

    /// Opens this directory for listing (open(2), getdents64(2)).
    pub fn list(&self) -> Result<DirLister> {
        DirLister::open(&self.fd)
    }

    /// The state of the file system (fstatfs(2)).
    pub fn statfs(&self) -> Result<FsStat> {
        let raw = rustix::fs::fstatvfs(&self.fd)?;
        Ok(FsStat {
            bsize: raw.f_bsize,
            frsize: raw.f_frsize,
            blocks: raw.f_blocks,
            bfree: raw.f_bfree,
            bavail: raw.f_bavail,
            files: raw.f_files,
            ffree: raw.f_ffree,
            fsid: raw.f_fsid,
            flags: raw.f_flag.bits(),
            namemax: raw.f_namemax,
        })
    }

    /// The magic number of the file system's type (`f_type` of fstatfs(2)).
    pub fn fs_magic(&self) -> Result<u64> {
        let magic = rustix::fs::fstatfs(&self.fd)?.f_type;
        // A number of 32 bits that some architectures keep in a signed field.
        Ok(u64::from(magic as u32))
    }

    /// The mount this directory was reached through, as numbered in `/proc/self/mountinfo` (statx(2)).
    pub fn mount_id(&self) -> Result<u64> {
        self.stat().map(|stat| stat.mount_id)
    }

    /// Whether the mount or the file system is read-only (`ST_RDONLY` of statvfs(3)).
    pub fn is_readonly_mount(&self) -> Result<bool> {
        Ok(rustix::fs::fstatvfs(&self.fd)?.f_flag.contains(StatVfsMountFlags::RDONLY))
    }

    /// Whether set-user-id bits and file capabilities are ignored on this mount (`ST_NOSUID` of statvfs(3)).
    pub fn is_nosuid_mount(&self) -> Result<bool> {
        Ok(rustix::fs::fstatvfs(&self.fd)?.f_flag.contains(StatVfsMountFlags::NOSUID))
    }

    /// The file handle of an entry, not following a symbolic link (name_to_handle_at(2)); `None` where the file system has
    /// none.
    pub fn file_handle(&self, name: Name<'_>) -> Result<Option<FileHandle>> {
        handle::of_entry(self.fd.as_fd(), name)
    }

    /// The file handle of this directory (name_to_handle_at(2)).
    pub fn own_file_handle(&self) -> Result<Option<FileHandle>> {
        handle::of_descriptor(self.fd.as_fd())
    }

    /// Opens the inode that a handle names in this directory's file system, of any type and only to name it (`O_PATH` of
    /// open_by_handle_at(2), as the mounter). The inode can lie anywhere in the file system: whether it belongs to the
    /// layer is for the caller to find out. `ESTALE` if it is gone; `EPERM` without CAP_DAC_READ_SEARCH.
    pub fn open_handle(&self, handle: &FileHandle) -> Result<File> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        self.by_handle(handle, flags).map(|fd| File::new(fd, flags, Grant::Read))
    }

    /// As [`Dir::open_handle`], of a directory: `ENOTDIR` for anything else.
    pub fn open_dir_handle(&self, handle: &FileHandle) -> Result<Self> {
        self.by_handle(handle, DIR_FLAGS).map(Self::from_fd)
    }

    /// The directory above this one, which can be above the layer too; the root of the mount is above itself (openat(2) of
    /// `..`).
    pub fn above(&self) -> Result<Self> {
        raw::retry(|| rustix::fs::openat(&self.fd, c"..", DIR_FLAGS, Mode::empty())).map(Self::from_fd)
    }

    pub(crate) fn by_handle(&self, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd> {
        crate::creds::assume_mounter()?;
        // The call takes no O_PATH descriptor for the mount.
        handle::open_by_handle(self.reopen()?.as_fd(), handle, flags)
    }

    /// The UUID of the file system that holds this directory; see [`handle::filesystem_uuid`].
    pub fn filesystem_uuid(&self) -> Result<Option<[u8; 16]>> {
        handle::filesystem_uuid(self.reopen()?.as_fd())
    }

    /// The path by which this process reaches the directory now, without symbolic links (`/proc/self/fd`). That of a directory
    /// that was removed leads nowhere.
    pub fn real_path(&self) -> Result<PathBuf> {
        let target = with_proc_path(self.fd.as_fd(), |path| rustix::fs::readlink(path, Vec::new()))?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    /// A descriptor of this directory that can be read, synced and given to ioctls (open(2) of `.`).
    pub fn reopen(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        raw::retry(|| rustix::fs::openat(&self.fd, c".", flags, Mode::empty()))
    }

    /// Opens an entry with exactly these flags.
    pub(crate) fn open_entry(&self, name: Name<'_>, flags: OFlags, mode: u32) -> Result<OwnedFd> {
        let mode = Mode::from_raw_mode(mode);
        raw::retry(|| rustix::fs::openat(&self.fd, name.as_bytes(), flags, mode))
    }

    /// Opens what lies at `rel`, beneath this directory and over no symbolic link. A path longer than one system call takes
    /// (`PATH_MAX`) is walked in pieces.
    pub(crate) fn resolve(&self, rel: &RelPath, flags: OFlags) -> Result<OwnedFd> {
        let path = rel.as_bytes();
        if path.len() <= PIECE {
            return open_beneath(self.fd.as_fd(), path, flags);
        }
        let mut rest = path;
        let mut at: Option<OwnedFd> = None;
        loop {
            let base = at.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            let Some((piece, behind)) = split_piece(rest) else { return open_beneath(base, rest, flags) };
            at = Some(open_beneath(base, piece, DIR_FLAGS)?);
            rest = behind;
        }
    }

    pub(crate) fn entry<'a>(&'a self, name: Name<'a>) -> Target<'a> {
        Target::Child(self.fd.as_fd(), name)
    }
}

/// Longest path given to one system call, in bytes: `PATH_MAX` with some to spare.
const PIECE: usize = 4000;

/// The longest run of whole components that one call takes, and what follows; `None` if all of it fits.
fn split_piece(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let head = path.get(..PIECE).filter(|_| path.len() > PIECE)?;
    let slash = head.iter().rposition(|byte| *byte == b'/')?;
    Some((path.get(..slash)?, path.get(slash + 1..)?))
}

fn open_beneath(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut attempts = 0;
    loop {
        match rustix::fs::openat2(dir, path, flags, Mode::empty(), how) {
            // A rename or mount somewhere raced with the walk; the kernel cannot tell whether `..` stayed beneath.
            Err(Errno::AGAIN) if attempts < RESOLVE_ATTEMPTS => attempts += 1,
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> Self {
        dir.fd
    }
}

/// What every open of a file adds to the caller's flags.
pub(crate) fn file_flags(flags: OFlags) -> OFlags {
    flags | FILE_FLAGS
}

fn refuse_writing(flags: OFlags) -> Result<()> {
    if flags.intersects(WRITE_FLAGS) || flags.contains(OFlags::TMPFILE) { Err(Errno::ROFS) } else { Ok(()) }
}

/// The target of the symbolic link that an `O_PATH | O_NOFOLLOW` descriptor refers to (readlinkat(2) with an empty
/// path); `ENOENT` if it refers to anything else.
pub fn readlink_self(link: impl AsFd) -> Result<Vec<u8>> {
    let target = rustix::fs::readlinkat(link, c"", Vec::new())?;
    Ok(target.into_bytes())
}
