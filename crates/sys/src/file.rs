//! [`File`]: one object of a layer by descriptor, opened for I/O or only named (`O_PATH`).
//!
//! It remembers through which capability it was opened: one from a [`crate::Dir`] refuses every change with `EROFS`,
//! attributes included, which the kernel would allow on a descriptor opened for reading. Copying between files is in
//! `file_copy.rs`.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FallocateFlags, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags,
};

use crate::handle::{self, FileHandle};
use crate::inode_flags::{self, FsxAttr, InodeFlags};
use crate::stat::statx_at;
use crate::xattr::{self, Target};
use crate::{Errno, Result, Stat, Timestamp, raw};

/// What the capability behind a file allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// Opened through a [`crate::Dir`]: nothing may change.
    Read,
    /// Opened through a [`crate::DirMut`].
    Write,
}

/// A file of a layer.
#[derive(Debug)]
pub struct File {
    fd: OwnedFd,
    path_only: bool,
    grant: Grant,
}

/// One of the two times of [`Times`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSet {
    /// Leave it.
    Omit,
    /// The file system's present time.
    Now,
    /// This time.
    At(Timestamp),
}

/// What utimensat(2) sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// The time of the last access.
    pub atime: TimeSet,
    /// The time of the last change of the data.
    pub mtime: TimeSet,
}

/// Where a seek goes (lseek(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// From the start.
    Start,
    /// From the end.
    End,
    /// To the first data at or behind the offset; `ENXIO` if there is none.
    Data,
    /// To the first hole at or behind the offset; the end of the file counts as one.
    Hole,
}

/// Making, and what it is.
impl File {
    /// A descriptor opened with `flags` through a capability that allows `grant`.
    pub(crate) fn new(fd: OwnedFd, flags: OFlags, grant: Grant) -> Self {
        Self { fd, path_only: flags.contains(OFlags::PATH), grant }
    }

    /// Takes a descriptor whose object may only be read, whatever the descriptor allows (fcntl(2) tells whether it is
    /// `O_PATH`).
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        Ok(Self::new(fd, flags, Grant::Read))
    }

    /// Takes a descriptor whose object may be changed: one of the upper or work tree, or one that belongs to no layer.
    pub fn from_fd_writable(fd: OwnedFd) -> Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        Ok(Self::new(fd, flags, Grant::Write))
    }

    /// Another descriptor of the same open file, sharing its offset (fcntl(2)).
    pub fn try_clone(&self) -> Result<Self> {
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 0)?;
        Ok(Self { fd, path_only: self.path_only, grant: self.grant })
    }

    /// Opens the same inode anew through `/proc/self/fd` (proc_pid_fd(5)), with another access mode if need be. `EROFS` for
    /// a writing mode on a file of a lower layer.
    pub fn reopen(&self, flags: OFlags) -> Result<Self> {
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC) {
            self.require_write()?;
        }
        let all = (flags - OFlags::CREATE - OFlags::NOFOLLOW) | OFlags::CLOEXEC | OFlags::NOCTTY;
        let all = all | OFlags::NONBLOCK;
        let fd =
            with_proc_path(self.as_fd(), |path| raw::retry(|| rustix::fs::open(path, all, Mode::empty())))?;
        Ok(Self::new(fd, flags, self.grant))
    }

    /// The attributes (statx(2)).
    pub fn stat(&self) -> Result<Stat> {
        statx_at(&self.fd, c"")
    }

    /// The file handle (name_to_handle_at(2)); `None` where the file system has none.
    pub fn file_handle(&self) -> Result<Option<FileHandle>> {
        handle::of_descriptor(self.as_fd())
    }

    /// The access mode and status flags with which it is open (`F_GETFL` of fcntl(2)).
    pub fn status_flags(&self) -> Result<OFlags> {
        rustix::fs::fcntl_getfl(&self.fd)
    }

    /// Whether it may be changed, as opposed to one of a lower layer.
    #[must_use]
    pub fn is_writable_grant(&self) -> bool {
        self.grant == Grant::Write
    }

    pub(crate) fn require_write(&self) -> Result<()> {
        if self.is_writable_grant() { Ok(()) } else { Err(Errno::ROFS) }
    }
}

/// Data.
impl File {
    /// Reads at `offset` until `buf` is full or the file ends, and returns the number of bytes (pread(2)).
    pub fn pread(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&self.fd, rest, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                // What was read is read; the error will come again at the next offset.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Writes all of `buf` at `offset` (pwrite(2)); on a descriptor with `O_APPEND` the kernel ignores the offset. Returns
    /// the number of bytes, less than all of them only if an error stopped it after the first.
    pub fn pwrite(&self, buf: &[u8], offset: u64) -> Result<usize> {
        self.require_write()?;
        let mut done = 0;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(&self.fd, rest, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Sets the size (ftruncate(2)).
    pub fn truncate(&self, size: u64) -> Result<()> {
        self.require_write()?;
        raw::retry(|| rustix::fs::ftruncate(&self.fd, size))
    }

    /// Sets the size by name (truncate(2)): unlike ftruncate(2) this leaves it to the file system whether a size that does
    /// not change changes times.
    pub fn truncate_by_name(&self, size: u64) -> Result<()> {
        self.require_write()?;
        let size = libc::off_t::try_from(size).map_err(|_| Errno::FBIG)?;
        with_proc_path(self.fd.as_fd(), |path| {
            // SAFETY: `path` is a NUL-terminated string that outlives the call, which only reads it.
            raw::retry(|| raw::check_int(unsafe { libc::truncate(path.as_ptr(), size) }).map(drop))
        })
    }

    /// Allocates, punches, zeroes or collapses a range (fallocate(2)).
    pub fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> Result<()> {
        self.require_write()?;
        raw::retry(|| rustix::fs::fallocate(&self.fd, mode, offset, len))
    }

    /// Seeks, and returns the new offset (lseek(2)).
    pub fn seek(&self, offset: u64, whence: Whence) -> Result<u64> {
        let signed = i64::try_from(offset).map_err(|_| Errno::OVERFLOW);
        let target = match whence {
            Whence::Start => SeekFrom::Start(offset),
            Whence::End => SeekFrom::End(signed?),
            Whence::Data => SeekFrom::Data(offset),
            Whence::Hole => SeekFrom::Hole(offset),
        };
        rustix::fs::seek(&self.fd, target)
    }

    /// Writes data and attributes to the medium (fsync(2)), or only what reading the data needs (fdatasync(2)).
    pub fn sync(&self, datasync: bool) -> Result<()> {
        raw::retry(|| if datasync { rustix::fs::fdatasync(&self.fd) } else { rustix::fs::fsync(&self.fd) })
    }
}

/// Attributes.
impl File {
    /// Changes the owner, the group, or both (fchownat(2) with `AT_EMPTY_PATH`).
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.require_write()?;
        chown_descriptor(self.as_fd(), uid, gid)
    }

    /// Changes the permission bits (fchmod(2), fchmodat2(2)); `EOPNOTSUPP` for a symbolic link.
    pub fn chmod(&self, mode: u32) -> Result<()> {
        self.require_write()?;
        if self.path_only {
            return chmod_path_only(self.as_fd(), mode);
        }
        rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode & 0o7777))
    }

    /// Sets the times of access and of change (utimensat(2)).
    pub fn utimens(&self, times: Times) -> Result<()> {
        self.require_write()?;
        utimens_descriptor(self.as_fd(), times)
    }

    /// The value of an attribute (fgetxattr(2)); `None` if there is none, or the file system has no such attributes.
    pub fn get_xattr(&self, attr: &CStr) -> Result<Option<Vec<u8>>> {
        xattr::get(self.xattr_target(), attr)
    }

    /// Reads an attribute into `buf` and returns its length; an empty `buf` asks for the length (fgetxattr(2)).
    pub fn get_xattr_raw(&self, attr: &CStr, buf: &mut [u8]) -> Result<usize> {
        xattr::get_raw(self.xattr_target(), attr, buf)
    }

    /// The names of the attributes, each with a NUL behind it (flistxattr(2)).
    pub fn list_xattrs(&self) -> Result<Vec<u8>> {
        xattr::list(self.xattr_target())
    }

    /// Sets an attribute (fsetxattr(2)).
    pub fn set_xattr(&self, attr: &CStr, value: &[u8], flags: XattrFlags) -> Result<()> {
        self.require_write()?;
        xattr::set(self.xattr_target(), attr, value, flags)
    }

    /// Removes an attribute (fremovexattr(2)); `ENODATA` if there is none.
    pub fn remove_xattr(&self, attr: &CStr) -> Result<()> {
        self.require_write()?;
        xattr::remove(self.xattr_target(), attr)
    }

    /// The inode flags (`FS_IOC_GETFLAGS` of ioctl_iflags(2)); `EBADF` for an `O_PATH` descriptor.
    pub fn inode_flags(&self) -> Result<InodeFlags> {
        inode_flags::get(self.as_fd())
    }

    /// Sets the inode flags (`FS_IOC_SETFLAGS` of ioctl_iflags(2)).
    pub fn set_inode_flags(&self, flags: InodeFlags) -> Result<()> {
        self.require_write()?;
        inode_flags::set(self.as_fd(), flags)
    }

    /// The extended inode flags and project (`FS_IOC_FSGETXATTR` of ioctl_xfs_fsgetxattr(2)).
    pub fn fsx_attr(&self) -> Result<FsxAttr> {
        inode_flags::get_fsx(self.as_fd())
    }

    /// Sets the extended inode flags and project (`FS_IOC_FSSETXATTR` of ioctl_xfs_fsgetxattr(2)).
    pub fn set_fsx_attr(&self, attr: &FsxAttr) -> Result<()> {
        self.require_write()?;
        inode_flags::set_fsx(self.as_fd(), attr)
    }

    fn xattr_target(&self) -> Target<'_> {
        if self.path_only { Target::PathOnly(self.as_fd()) } else { Target::Open(self.as_fd()) }
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<File> for OwnedFd {
    fn from(file: File) -> Self {
        file.fd
    }
}

impl Times {
    /// Sets both times to those of `stat`.
    #[must_use]
    pub fn of(stat: &Stat) -> Self {
        Self { atime: TimeSet::At(stat.atime), mtime: TimeSet::At(stat.mtime) }
    }

    pub(crate) fn to_raw(self) -> Timestamps {
        Timestamps { last_access: self.atime.to_raw(), last_modification: self.mtime.to_raw() }
    }
}

impl TimeSet {
    fn to_raw(self) -> Timespec {
        match self {
            Self::Omit => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            Self::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            Self::At(time) => Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
        }
    }
}

/// Changes the owner of what a descriptor of any kind refers to.
pub(crate) fn chown_descriptor(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)
}

/// Sets the times of what a descriptor of any kind refers to. Linux before 5.8 refuses `AT_EMPTY_PATH` here.
pub(crate) fn utimens_descriptor(fd: BorrowedFd<'_>, times: Times) -> Result<()> {
    let raw = times.to_raw();
    match rustix::fs::utimensat(fd, c"", &raw, AtFlags::EMPTY_PATH) {
        Err(Errno::INVAL) => {
            with_proc_path(fd, |path| rustix::fs::utimensat(rustix::fs::CWD, path, &raw, AtFlags::empty()))
        }
        other => other,
    }
}

/// Changes the mode of what an `O_PATH` descriptor refers to; `EOPNOTSUPP` for a symbolic link.
pub(crate) fn chmod_path_only(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    match fchmodat2(fd, c"", mode, libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::NOSYS) => chmod_by_proc(fd, mode),
        other => other,
    }
}

/// Through `/proc/self/fd`, which leads to the object itself. Some file systems would change a symbolic link's mode, so
/// the refusal is ours.
fn chmod_by_proc(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    if statx_at(fd, c"")?.kind() == crate::FileKind::Symlink {
        return Err(Errno::OPNOTSUPP);
    }
    with_proc_path(fd, |path| rustix::fs::chmod(path, Mode::from_raw_mode(mode & 0o7777)))
}

/// fchmodat2(2), Linux 6.6; `ENOSYS` before it.
pub(crate) fn fchmodat2(dir: BorrowedFd<'_>, path: &CStr, mode: u32, flags: libc::c_int) -> Result<()> {
    // The same number on every architecture of the common table.
    const FCHMODAT2: libc::c_long = 452;
    // SAFETY: the path is NUL-terminated; the other arguments are plain numbers.
    raw::check(unsafe { libc::syscall(FCHMODAT2, dir.as_raw_fd(), path.as_ptr(), mode & 0o7777, flags) })
        .map(drop)
}

/// Calls `f` with the path below `/proc/self/fd` that leads to what `fd` refers to.
pub(crate) fn with_proc_path<T>(fd: BorrowedFd<'_>, f: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    raw::with_c_str(path.as_bytes(), f)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn path_only(path: &std::path::Path) -> OwnedFd {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).expect("open O_PATH")
    }

    #[test]
    fn chmod_by_proc_changes_the_object_and_refuses_a_symlink() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("file");
        let link = dir.path().join("link");
        std::fs::write(&file, b"x").expect("write");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        symlink("file", &link).expect("symlink");
        assert_eq!(chmod_by_proc(path_only(&link).as_fd(), 0o777), Err(Errno::OPNOTSUPP));
        assert_eq!(file.metadata().expect("stat").permissions().mode() & 0o7777, 0o600);
        chmod_by_proc(path_only(&file).as_fd(), 0o4711).expect("chmod by proc");
        assert_eq!(file.metadata().expect("stat").permissions().mode() & 0o7777, 0o4711);
    }
}
