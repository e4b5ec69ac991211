//! What one `statx(2)` call tells about an object. Nothing here decides what a union shows for it.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Statx, StatxFlags, StatxTimestamp};
use rustix::path::Arg;

use crate::{Errno, Result};

/// The type of a file, from `S_IFMT` of a mode or from `d_type` of a directory entry (inode(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A UNIX domain socket.
    Socket,
}

impl FileKind {
    /// The kind that the `S_IFMT` bits of `mode` name; `None` if they name none.
    #[must_use]
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFREG => Self::Regular,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFCHR => Self::Char,
            libc::S_IFBLK => Self::Block,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            _ => return None,
        })
    }

    /// The `S_IFMT` bits of this kind.
    #[must_use]
    pub fn mode_bits(self) -> u32 {
        match self {
            Self::Regular => libc::S_IFREG,
            Self::Directory => libc::S_IFDIR,
            Self::Symlink => libc::S_IFLNK,
            Self::Char => libc::S_IFCHR,
            Self::Block => libc::S_IFBLK,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
        }
    }
}

/// A point in time: seconds since the epoch (negative before 1970) and nanoseconds (0 to 999,999,999) after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds since 1970-01-01 00:00:00 UTC, rounded towards the past.
    pub sec: i64,
    /// Nanoseconds to add.
    pub nsec: u32,
}

/// The attributes of an object as `statx(2)` reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Major number of the device that holds the object.
    pub dev_major: u32,
    /// Minor number of the device that holds the object.
    pub dev_minor: u32,
    /// Inode number.
    pub ino: u64,
    /// Type and permission bits (`S_IFMT` and 07777).
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Major number of the device that a device node names.
    pub rdev_major: u32,
    /// Minor number of the device that a device node names.
    pub rdev_minor: u32,
    /// Size in bytes; of a symbolic link the length of its target.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Preferred size of I/O, in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation, where the file system records it.
    pub btime: Option<Timestamp>,
    /// The mount through which it was reached: the number of `/proc/self/mountinfo` (`STATX_MNT_ID`), unique while
    /// the mount lives; 0 before Linux 5.8.
    pub mount_id: u64,
    /// `STATX_ATTR_*`.
    pub attributes: u64,
}

impl Stat {
    /// The type of the object.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        // A value that came from the kernel has a type: `from_statx` refused it otherwise.
        FileKind::from_mode(self.mode).unwrap_or(FileKind::Regular)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind() == FileKind::Directory
    }

    /// Whether it is a character device 0:0, the overlay's whiteout (kernel documentation, overlayfs, "whiteouts
    /// and opaque directories").
    #[must_use]
    pub fn is_whiteout(&self) -> bool {
        self.kind() == FileKind::Char && self.rdev_major == 0 && self.rdev_minor == 0
    }

    /// The permission bits with set-user-id, set-group-id and sticky (07777).
    #[must_use]
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    /// The device that holds the object, as one number (makedev(3)).
    #[must_use]
    pub fn dev(&self) -> u64 {
        rustix::fs::makedev(self.dev_major, self.dev_minor)
    }

    /// The device that a device node names, as one number (makedev(3)).
    #[must_use]
    pub fn rdev(&self) -> u64 {
        rustix::fs::makedev(self.rdev_major, self.rdev_minor)
    }

    /// Whether both describe the same inode of the same file system.
    #[must_use]
    pub fn same_inode(&self, other: &Self) -> bool {
        self.ino == other.ino && self.dev_major == other.dev_major && self.dev_minor == other.dev_minor
    }
}

/// One `statx(2)` of `path` beneath `dir`, without following a symbolic link; of `dir` itself when `path` is empty.
pub(crate) fn statx_at(dir: impl AsFd, path: impl Arg) -> Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    from_statx(&rustix::fs::statx(dir, path, flags, wanted)?)
}

/// Translates the kernel's structure; `EIO` if it names no file type, as a damaged file system may.
fn from_statx(raw: &Statx) -> Result<Stat> {
    let mode = u32::from(raw.stx_mode);
    FileKind::from_mode(mode).ok_or(Errno::IO)?;
    let has = |flag: StatxFlags| raw.stx_mask & flag.bits() != 0;
    Ok(Stat {
        dev_major: raw.stx_dev_major,
        dev_minor: raw.stx_dev_minor,
        ino: raw.stx_ino,
        mode,
        nlink: raw.stx_nlink,
        uid: raw.stx_uid,
        gid: raw.stx_gid,
        rdev_major: raw.stx_rdev_major,
        rdev_minor: raw.stx_rdev_minor,
        size: raw.stx_size,
        blocks: raw.stx_blocks,
        blksize: raw.stx_blksize,
        atime: timestamp(raw.stx_atime),
        mtime: timestamp(raw.stx_mtime),
        ctime: timestamp(raw.stx_ctime),
        btime: has(StatxFlags::BTIME).then(|| timestamp(raw.stx_btime)),
        mount_id: if has(StatxFlags::MNT_ID) { raw.stx_mnt_id } else { 0 },
        attributes: raw.stx_attributes.bits(),
    })
}

fn timestamp(raw: StatxTimestamp) -> Timestamp {
    Timestamp { sec: raw.tv_sec, nsec: raw.tv_nsec }
}
