//! The numbers of the FUSE wire protocol, up to ABI 7.45 (Linux 6.18), as far as plyfs uses them.
//!
//! Owns names for numbers and sizes; decides nothing and encodes nothing (see `request` and `encode`). The kernel's
//! counterpart and the source of every value is `include/uapi/linux/fuse.h`, whose names are kept.

use bitflags::bitflags;

/// The protocol's major version.
pub const MAJOR: u32 = 7;
/// The newest minor version this crate knows.
pub const MINOR: u32 = 45;
/// The oldest minor version this crate speaks: layouts of `init_out`, `entry_out` and `attr_out` are fixed since.
pub const OLDEST_MINOR: u32 = 31;

/// Size of `fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// Size of `fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// Size of `fuse_write_in`, which stands between the header and the data of a WRITE.
pub const WRITE_IN: usize = 40;
/// Size of `fuse_entry_out`.
pub const ENTRY_OUT: usize = 128;
/// Size of `fuse_dirent` without the name.
pub const DIRENT: usize = 24;
/// Smallest read buffer the kernel accepts.
pub const MIN_READ_BUFFER: usize = 8192;

/// Declares the operations once: the enum, its decoding and its names.
macro_rules! opcodes {
    ($($name:ident = $number:literal,)*) => {
        /// An operation that the kernel asks for.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum Opcode { $($name = $number,)* }

        impl Opcode {
            /// The operation of this number, if this crate knows it.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

opcodes! {
    Lookup = 1,
    Forget = 2,
    GetAttr = 3,
    SetAttr = 4,
    ReadLink = 5,
    Symlink = 6,
    MkNod = 8,
    MkDir = 9,
    Unlink = 10,
    RmDir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    StatFs = 17,
    Release = 18,
    Fsync = 20,
    SetXattr = 21,
    GetXattr = 22,
    ListXattr = 23,
    RemoveXattr = 24,
    Flush = 25,
    Init = 26,
    OpenDir = 27,
    ReadDir = 28,
    ReleaseDir = 29,
    FsyncDir = 30,
    Access = 34,
    Create = 35,
    Interrupt = 36,
    Destroy = 38,
    Ioctl = 39,
    BatchForget = 42,
    Fallocate = 43,
    ReadDirPlus = 44,
    Rename2 = 45,
    Lseek = 46,
    CopyFileRange = 47,
    SyncFs = 50,
    TmpFile = 51,
    Statx = 52,
    CopyFileRange64 = 53,
}

bitflags! {
    /// `FUSE_*` flags of INIT; bits 32 to 63 travel in `flags2`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct InitFlags: u64 {
        const ASYNC_READ = 1;
        const ATOMIC_O_TRUNC = 1 << 3;
        const EXPORT_SUPPORT = 1 << 4;
        const BIG_WRITES = 1 << 5;
        const DONT_MASK = 1 << 6;
        const AUTO_INVAL_DATA = 1 << 12;
        const DO_READDIRPLUS = 1 << 13;
        const READDIRPLUS_AUTO = 1 << 14;
        const ASYNC_DIO = 1 << 15;
        const WRITEBACK_CACHE = 1 << 16;
        const NO_OPEN_SUPPORT = 1 << 17;
        const PARALLEL_DIROPS = 1 << 18;
        const POSIX_ACL = 1 << 20;
        const ABORT_ERROR = 1 << 21;
        const MAX_PAGES = 1 << 22;
        const CACHE_SYMLINKS = 1 << 23;
        const NO_OPENDIR_SUPPORT = 1 << 24;
        const EXPLICIT_INVAL_DATA = 1 << 25;
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        const SETXATTR_EXT = 1 << 29;
        const INIT_EXT = 1 << 30;
        const HAS_EXPIRE_ONLY = 1 << 35;
        const DIRECT_IO_ALLOW_MMAP = 1 << 36;
        const PASSTHROUGH = 1 << 37;
        const HAS_RESEND = 1 << 39;
        const ALLOW_IDMAP = 1 << 40;
        const _ = !0;
    }

    /// `FOPEN_*` flags of an answer to OPEN, CREATE and TMPFILE.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct OpenFlags: u32 {
        const DIRECT_IO = 1;
        const KEEP_CACHE = 1 << 1;
        const CACHE_DIR = 1 << 3;
        const NOFLUSH = 1 << 5;
        const PARALLEL_DIRECT_WRITES = 1 << 6;
        const PASSTHROUGH = 1 << 7;
    }

    /// `FATTR_*` flags of SETATTR: which members are valid.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct SetAttrValid: u32 {
        const MODE = 1;
        const UID = 1 << 1;
        const GID = 1 << 2;
        const SIZE = 1 << 3;
        const ATIME = 1 << 4;
        const MTIME = 1 << 5;
        const FH = 1 << 6;
        const ATIME_NOW = 1 << 7;
        const MTIME_NOW = 1 << 8;
        const LOCKOWNER = 1 << 9;
        const CTIME = 1 << 10;
        const KILL_SUIDGID = 1 << 11;
        const _ = !0;
    }
}

/// `FUSE_GETATTR_FH`: the file handle of a GETATTR or STATX is valid.
pub const GETATTR_FH: u32 = 1;
/// `FUSE_OPEN_KILL_SUIDGID`: an opening that truncates also clears set-id bits.
pub const OPEN_KILL_SUIDGID: u32 = 1;
/// `FUSE_WRITE_CACHE`: the page cache writes back, not a writer.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_WRITE_KILL_SUIDGID`: the writer lacks CAP_FSETID.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_FSYNC_FDATASYNC`: only data.
pub const FSYNC_FDATASYNC: u32 = 1;
/// `FUSE_SETXATTR_ACL_KILL_SGID`: clear set-group-id with an access ACL.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1;

/// The bit of an OPEN's flags that says the file is opened to be executed (`FMODE_EXEC`, no flag of open(2)).
pub const FMODE_EXEC: u32 = 0x20;

/// `STATX_BASIC_STATS`.
pub const STATX_BASIC_STATS: u32 = 0x7ff;
/// `STATX_BTIME`.
pub const STATX_BTIME: u32 = 0x800;

/// `FUSE_NOTIFY_*`: messages from the server that answer no request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum NotifyCode {
    InvalInode = 2,
    /// Data for the page cache of a node.
    Store = 4,
}

/// The ioctl requests that plyfs answers, as numbered by `<linux/fs.h>` on 64-bit systems.
pub mod ioctl {
    /// `FS_IOC_GETFLAGS`
    pub const GETFLAGS: u32 = 0x8008_6601;
    /// `FS_IOC_SETFLAGS`
    pub const SETFLAGS: u32 = 0x4008_6602;
    /// `FS_IOC32_GETFLAGS`
    pub const GETFLAGS_32: u32 = 0x8004_6601;
    /// `FS_IOC32_SETFLAGS`
    pub const SETFLAGS_32: u32 = 0x4004_6602;
    /// `FS_IOC_FSGETXATTR`
    pub const FSGETXATTR: u32 = 0x801c_581f;
    /// `FS_IOC_FSSETXATTR`
    pub const FSSETXATTR: u32 = 0x401c_5820;
}
