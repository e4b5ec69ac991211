//! Tar archives as layers use them: a reader that trusts nothing, and a writer that always writes the same.
//!
//! Why not the `tar` crate's own loop: two readers that disagree on an ambiguous header are an attack
//! (CVE-2025-62518, CVE-2026-33055), and a crate that must read every archive in the world takes what this
//! one refuses. Formats: POSIX.1-2001 pax, ustar, GNU and old V7, as in pax(1) and GNU tar's manual.

mod header;
mod pax;
mod read;
mod sparse;
mod write;

pub use read::{Limits, Reader};
pub use write::Writer;

/// One block of a tar archive.
pub(crate) const BLOCK: usize = 512;

/// A point in time: seconds and nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub secs: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanos: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, with its data in the archive.
    File,
    /// Another name of the file of this path, relative to the archive's root.
    Hardlink(Vec<u8>),
    /// A symbolic link with this text.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A directory.
    Dir,
    /// A FIFO.
    Fifo,
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path relative to the root: no leading or trailing slash, no `.`, no `..`, no empty component.
    /// Empty for the root itself, which is a directory.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of data.
    pub mtime: Time,
    /// Length of the file as a reader of the file sees it; 0 for everything but files.
    pub size: u64,
    /// Extended attributes, in the order of the archive.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where a sparse file has data: offset and length, ascending. None for a file without holes.
    pub sparse: Option<Vec<(u64, u64)>>,
}
