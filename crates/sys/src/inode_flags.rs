//! Inode flags (`chattr(1)`): immutable, append-only and their kin. Which of them an overlay keeps is the engine's.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::{Result, raw};

/// `FS_*_FL`: the flags of `FS_IOC_GETFLAGS`, as one word (ioctl_iflags(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InodeFlags(pub u32);

impl InodeFlags {
    /// `FS_SYNC_FL`: writes are synchronous.
    pub const SYNC: Self = Self(0x8);
    /// `FS_IMMUTABLE_FL`: nothing may change.
    pub const IMMUTABLE: Self = Self(0x10);
    /// `FS_APPEND_FL`: data may only be appended.
    pub const APPEND: Self = Self(0x20);
    /// `FS_NOATIME_FL`: the time of access is not kept.
    pub const NOATIME: Self = Self(0x80);

    /// Whether all flags of `other` are set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With the flags of `other` set as well.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// With the flags of `other` cleared.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// `struct fsxattr` (include/uapi/linux/fs.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsxAttr {
    /// `FS_XFLAG_*`.
    pub xflags: u32,
    /// Extent size hint in bytes.
    pub extsize: u32,
    /// Number of extents; read only.
    pub nextents: u32,
    /// The project whose quota counts.
    pub projid: u32,
    /// Extent size hint for copy on write, in bytes.
    pub cowextsize: u32,
    /// Reserved.
    pub pad: [u8; 8],
}

/// `FS_IOC_GETFLAGS`; `ENOTTY` or `EOPNOTSUPP` where the file system has none.
pub(crate) fn get(fd: BorrowedFd<'_>) -> Result<InodeFlags> {
    // The kernel writes an int, although the number of the call is made from long.
    let mut flags: libc::c_uint = 0;
    // SAFETY: `flags` is an int that the call may write.
    raw::check_int(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) })?;
    Ok(InodeFlags(flags))
}

/// `FS_IOC_SETFLAGS`.
pub(crate) fn set(fd: BorrowedFd<'_>, flags: InodeFlags) -> Result<()> {
    let flags: libc::c_uint = flags.0;
    // SAFETY: `flags` is an int that the call reads.
    raw::check_int(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) }).map(drop)
}

/// `FS_IOC_FSGETXATTR`.
pub(crate) fn get_fsx(fd: BorrowedFd<'_>) -> Result<FsxAttr> {
    let mut attr = FsxAttr::default();
    // SAFETY: `attr` has the layout of `struct fsxattr`, and the call may write it.
    raw::check_int(unsafe { libc::ioctl(fd.as_raw_fd(), FSGETXATTR, &raw mut attr) })?;
    Ok(attr)
}

/// `FS_IOC_FSSETXATTR`.
pub(crate) fn set_fsx(fd: BorrowedFd<'_>, attr: &FsxAttr) -> Result<()> {
    // SAFETY: `attr` has the layout of `struct fsxattr`, and the call only reads it.
    raw::check_int(unsafe { libc::ioctl(fd.as_raw_fd(), FSSETXATTR, std::ptr::from_ref(attr)) }).map(drop)
}

/// `_IOR('X', 31, struct fsxattr)`.
const FSGETXATTR: libc::Ioctl = raw::ior::<FsxAttr>(b'X', 31);
/// `_IOW('X', 32, struct fsxattr)`.
const FSSETXATTR: libc::Ioctl = raw::iow::<FsxAttr>(b'X', 32);
