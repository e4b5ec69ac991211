//! The layer system calls of plyfs: the one crate with `unsafe`, and the one through which layers are touched.
//!
//! What it owns: capabilities to directories ([`Dir`], [`DirMut`]) and files ([`File`]), the per-thread
//! credentials with which things are created ([`creds`]), and the calls that mounting and serving FUSE need
//! ([`mount`], [`device`]). What it never does: overlay policy. No function here knows what a whiteout or an
//! opaque directory means for a union; each does what its manual page says, restarts what a signal interrupted,
//! and returns the kernel's own [`Errno`].
//!
//! Two rules are kept by types and by a check at run time:
//!
//! - A [`Dir`] has no mutating verb, and a [`File`] opened through it refuses every change with `EROFS`, so a lower
//!   layer cannot be written, whatever the engine does.
//! - Nothing here follows a symbolic link inside a layer: paths are resolved beneath a directory by `openat2(2)`
//!   with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS`, names by calls that do not follow.
//!
//! Descriptors are always opened with `O_CLOEXEC`. Mount points below a layer's root are crossed; whoever must not
//! cross one compares [`Stat::mount_id`].

pub mod affinity;
pub mod alarm;
pub mod confine;
pub mod creds;
pub mod device;
mod dir;
mod dir_mut;
pub mod fault;
mod file;
mod file_copy;
pub mod handle;
mod inode_flags;
mod list;
mod lock;
pub mod malloc;
pub mod mount;
pub mod mountinfo;
mod page_cache;
pub mod process;
pub mod quota;
pub mod random;
mod raw;
mod stat;
mod verity;
mod xattr;

pub use dir::{Dir, FsStat, readlink_self};
pub use dir_mut::DirMut;
pub use fault::Faults;
pub use file::{File, TimeSet, Times, Whence};
pub use file_copy::CopyMethod;
pub use inode_flags::{FsxAttr, InodeFlags};
pub use list::{DirLister, RawEntry};
pub use lock::DirLock;
pub use rustix::fs::{FallocateFlags, OFlags, RenameFlags, XattrFlags};
pub use rustix::io::Errno;
pub use stat::{FileKind, Stat, Timestamp};

/// The result of a system call: its value, or the kernel's errno.
pub type Result<T> = core::result::Result<T, Errno>;
