//! [`DirMut`]: a capability to a directory of the upper or work tree, with every verb that changes something.
//!
//! The one way to get one is [`DirMut::open_root`] and what follows from it; a [`Dir`] never becomes a [`DirMut`]. No
//! verb follows a symbolic link, and none applies an overlay rule. Modes given to the creating verbs are subject to the
//! thread's umask (see [`crate::creds`]).

use std::ffi::CStr;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use plyfs_format::{Name, RelPath};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, XattrFlags};

use crate::dir::file_flags;
use crate::file::{Grant, Times};
use crate::inode_flags::{self, InodeFlags};
use crate::xattr::{self, Target};
use crate::{Dir, Errno, File, Result, file, raw};

/// A directory that may be changed, and all that is beneath it. Reads as [`Dir`] does.
#[derive(Debug)]
pub struct DirMut(Dir);

impl Deref for DirMut {
    type Target = Dir;

    fn deref(&self) -> &Dir {
        &self.0
    }
}

impl AsFd for DirMut {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opening.
impl DirMut {
    /// Opens the directory at `path`, following symbolic links: only for the upper and work paths that the user gave
    /// (open(2)).
    pub fn open_root(path: &Path) -> Result<Self> {
        Dir::open_root(path).map(Self)
    }

    /// Takes a descriptor of a directory that may be changed; `O_PATH` is enough.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(Dir::from_fd(fd))
    }

    /// Another capability to the same directory (fcntl(2)).
    pub fn try_clone(&self) -> Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Opens a subdirectory (openat(2)); `ENOTDIR` if it is anything else.
    pub fn child_mut(&self, name: Name<'_>) -> Result<Self> {
        self.0.child_dir(name).map(Self)
    }

    /// Opens a directory beneath this one, following no symbolic link (openat2(2)).
    pub fn open_dir_mut(&self, rel: &RelPath) -> Result<Self> {
        self.0.open_dir(rel).map(Self)
    }

    /// Opens a regular file with any access mode, and lets the [`File`] change it, also its attributes (openat(2)). Never
    /// waits for a FIFO's other end; `ELOOP` for a symbolic link.
    pub fn open_writable(&self, name: Name<'_>, flags: OFlags) -> Result<File> {
        let fd = self.0.open_entry(name, file_flags(flags - OFlags::CREATE), 0)?;
        Ok(File::new(fd, flags, Grant::Write))
    }

    /// As [`Dir::open_handle`], with the right to change what is found.
    pub fn open_handle_mut(&self, handle: &plyfs_format::FileHandle) -> Result<File> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        self.by_handle(handle, flags).map(|fd| File::new(fd, flags, Grant::Write))
    }

    /// As [`DirMut::open_writable`], for a path beneath this directory (openat2(2)).
    pub fn open_writable_at(&self, rel: &RelPath, flags: OFlags) -> Result<File> {
        let fd = self.0.resolve(rel, file_flags(flags - OFlags::CREATE))?;
        Ok(File::new(fd, flags, Grant::Write))
    }

    /// A descriptor that names an entry of any type and lets its attributes be changed (`O_PATH` of open(2)).
    pub fn open_path_mut(&self, name: Name<'_>) -> Result<File> {
        self.0.open_path(name).map(|fd| File::new(fd, OFlags::PATH, Grant::Write))
    }
}

/// Creating, removing and renaming entries.
impl DirMut {
    /// Creates a directory (mkdirat(2)).
    pub fn create_dir(&self, name: Name<'_>, mode: u32) -> Result<()> {
        rustix::fs::mkdirat(self.as_fd(), name.as_bytes(), Mode::from_raw_mode(mode & 0o7777))
    }

    /// Creates a node of the type in `mode`, a regular file too (mknodat(2)); `rdev` as makedev(3) packs it.
    pub fn mknod(&self, name: Name<'_>, mode: u32, rdev: u64) -> Result<()> {
        let kind = FileType::from_raw_mode(mode);
        let permissions = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::mknodat(self.as_fd(), name.as_bytes(), kind, permissions, rdev)
    }

    /// Creates a regular file that did not exist, and opens it (`O_CREAT | O_EXCL` of openat(2)).
    pub fn create_file(&self, name: Name<'_>, flags: OFlags, mode: u32) -> Result<File> {
        let all = file_flags(flags | OFlags::CREATE | OFlags::EXCL);
        let fd = self.0.open_entry(name, all, mode & 0o7777)?;
        Ok(File::new(fd, flags, Grant::Write))
    }

    /// Creates a file without a name in this directory's file system (`O_TMPFILE` of openat(2)); `flags` must contain
    /// `WRONLY` or `RDWR`. `EOPNOTSUPP` or `EISDIR` where the file system has no such files.
    pub fn tmpfile(&self, mode: u32, flags: OFlags) -> Result<File> {
        let all = flags | OFlags::TMPFILE | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let fd = raw::retry(|| rustix::fs::openat(self.as_fd(), c".", all, mode))?;
        Ok(File::new(fd, flags, Grant::Write))
    }

    /// Gives a file, for example one of [`DirMut::tmpfile`], a name here (linkat(2) with `AT_EMPTY_PATH`; where that is not
    /// permitted through `/proc/self/fd`). `EROFS` for a file of a lower layer.
    pub fn link_file(&self, file: &File, name: Name<'_>) -> Result<()> {
        file.require_write()?;
        match rustix::fs::linkat(file.as_fd(), c"", self.as_fd(), name.as_bytes(), AtFlags::EMPTY_PATH) {
            // Without CAP_DAC_READ_SEARCH the kernel says ENOENT, as for a file that has lost its last name.
            Err(Errno::NOENT) => file::with_proc_path(file.as_fd(), |path| {
                let to = name.as_bytes();
                rustix::fs::linkat(rustix::fs::CWD, path, self.as_fd(), to, AtFlags::SYMLINK_FOLLOW)
            }),
            other => other,
        }
    }

    /// A further name here for an entry of `from`, a symbolic link included (linkat(2)).
    pub fn hard_link(&self, from: &Self, old: Name<'_>, new: Name<'_>) -> Result<()> {
        let (old, new) = (old.as_bytes(), new.as_bytes());
        rustix::fs::linkat(from.as_fd(), old, self.as_fd(), new, AtFlags::empty())
    }

    /// Creates a symbolic link (symlinkat(2)).
    pub fn symlink(&self, target: &[u8], name: Name<'_>) -> Result<()> {
        rustix::fs::symlinkat(target, self.as_fd(), name.as_bytes())
    }

    /// Removes an entry that is no directory (unlinkat(2)).
    pub fn unlink(&self, name: Name<'_>) -> Result<()> {
        rustix::fs::unlinkat(self.as_fd(), name.as_bytes(), AtFlags::empty())
    }

    /// Removes an empty directory (unlinkat(2) with `AT_REMOVEDIR`).
    pub fn rmdir(&self, name: Name<'_>) -> Result<()> {
        rustix::fs::unlinkat(self.as_fd(), name.as_bytes(), AtFlags::REMOVEDIR)
    }

    /// Renames an entry to `new` in `to` (renameat2(2)).
    pub fn rename(&self, old: Name<'_>, to: &Self, new: Name<'_>, flags: RenameFlags) -> Result<()> {
        rustix::fs::renameat_with(self.as_fd(), old.as_bytes(), to.as_fd(), new.as_bytes(), flags)
    }

    /// Writes this directory's entries to the medium (fsync(2)).
    pub fn sync(&self) -> Result<()> {
        let fd = self.reopen()?;
        raw::retry(|| rustix::fs::fsync(&fd))
    }

    /// Writes the whole file system to the medium (syncfs(2)).
    pub fn sync_filesystem(&self) -> Result<()> {
        rustix::fs::syncfs(self.reopen()?)
    }
}

/// Attributes of an entry.
impl DirMut {
    /// Changes the owner, the group, or both (fchownat(2)); of a symbolic link itself.
    pub fn chown_at(&self, name: Name<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        rustix::fs::chownat(self.as_fd(), name.as_bytes(), uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Changes the permission bits; `EOPNOTSUPP` for a symbolic link, never its target (fchmodat2(2), before Linux 6.6
    /// through an `O_PATH` descriptor).
    pub fn chmod_at(&self, name: Name<'_>, mode: u32) -> Result<()> {
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        let answer =
            raw::with_c_str(name.as_bytes(), |path| file::fchmodat2(self.as_fd(), path, mode, flags));
        match answer {
            Err(Errno::NOSYS) => file::chmod_path_only(self.0.open_path(name)?.as_fd(), mode),
            other => other,
        }
    }

    /// Sets the times of access and of change; of a symbolic link itself (utimensat(2)).
    pub fn utimens_at(&self, name: Name<'_>, times: Times) -> Result<()> {
        let raw = times.to_raw();
        rustix::fs::utimensat(self.as_fd(), name.as_bytes(), &raw, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Sets an attribute of an entry, of a symbolic link itself (setxattrat(2)).
    pub fn set_xattr(&self, name: Name<'_>, attr: &CStr, value: &[u8], flags: XattrFlags) -> Result<()> {
        xattr::set(self.entry(name), attr, value, flags)
    }

    /// Removes an attribute of an entry (removexattrat(2)); `ENODATA` if there is none.
    pub fn remove_xattr(&self, name: Name<'_>, attr: &CStr) -> Result<()> {
        xattr::remove(self.entry(name), attr)
    }
}

/// Attributes of this directory itself.
impl DirMut {
    /// As [`DirMut::chown_at`], of this directory (fchownat(2) with `AT_EMPTY_PATH`).
    pub fn chown_self(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        file::chown_descriptor(self.as_fd(), uid, gid)
    }

    /// As [`DirMut::chmod_at`], of this directory (fchmodat2(2)).
    pub fn chmod_self(&self, mode: u32) -> Result<()> {
        file::chmod_path_only(self.as_fd(), mode)
    }

    /// As [`DirMut::utimens_at`], of this directory (utimensat(2) with `AT_EMPTY_PATH`).
    pub fn utimens_self(&self, times: Times) -> Result<()> {
        file::utimens_descriptor(self.as_fd(), times)
    }

    /// As [`DirMut::set_xattr`], of this directory.
    pub fn set_own_xattr(&self, attr: &CStr, value: &[u8], flags: XattrFlags) -> Result<()> {
        xattr::set(Target::OwnDir(self.as_fd()), attr, value, flags)
    }

    /// As [`DirMut::remove_xattr`], of this directory.
    pub fn remove_own_xattr(&self, attr: &CStr) -> Result<()> {
        xattr::remove(Target::OwnDir(self.as_fd()), attr)
    }

    /// Sets the inode flags of this directory (`FS_IOC_SETFLAGS` of ioctl_iflags(2)).
    pub fn set_own_inode_flags(&self, flags: InodeFlags) -> Result<()> {
        inode_flags::set(self.reopen()?.as_fd(), flags)
    }

    /// The raw number of this directory's descriptor, for messages.
    #[must_use]
    pub fn raw_fd(&self) -> i32 {
        self.as_fd().as_raw_fd()
    }
}
