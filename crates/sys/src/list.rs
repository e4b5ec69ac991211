//! Raw listing of one directory by `getdents64(2)`. It neither sorts nor merges nor interprets: that is the engine's.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};

use crate::{Errno, FileKind, Result, raw};

/// Bytes that one `getdents64(2)` may return: some 8,000 entries, so that a large directory costs few calls, and
/// memory that the kernel touches only as far as a directory is large.
const BUFFER_BYTES: usize = 256 * 1024;

thread_local! {
    /// The buffer of this thread, lent to one listing at a time; a nested listing allocates its own.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One entry of a directory as the file system returned it, never `.` or `..`.
#[derive(Clone, Copy, Debug)]
pub struct RawEntry<'a> {
    /// The name, without a terminating NUL.
    pub name: &'a [u8],
    /// The inode number, as `d_ino` gives it (for a mount point, that of the directory underneath).
    pub ino: u64,
    /// The type; `None` where the file system does not report it (`DT_UNKNOWN`).
    pub dtype: Option<FileKind>,
}

/// A directory opened for listing.
#[derive(Debug)]
pub struct DirLister {
    fd: OwnedFd,
    at_start: bool,
}

impl DirLister {
    /// Opens the directory that `dir` (usually an `O_PATH` descriptor) refers to, for reading (open(2)).
    pub(crate) fn open(dir: impl AsFd) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = raw::retry(|| rustix::fs::openat(dir.as_fd(), c".", flags, Mode::empty()))?;
        Ok(Self { fd, at_start: true })
    }

    /// Calls `visit` for every entry in the file system's order, until it breaks or the directory ends
    /// (getdents64(2)). Each call lists from the beginning. `ENOENT` if the directory was removed meanwhile.
    pub fn for_each(&mut self, mut visit: impl FnMut(RawEntry<'_>) -> ControlFlow<()>) -> Result<()> {
        if !std::mem::replace(&mut self.at_start, false) {
            rustix::fs::seek(&self.fd, SeekFrom::Start(0))?;
        }
        let mut buffer = BUFFER.take();
        buffer.reserve(BUFFER_BYTES);
        let result = visit_all(&self.fd, &mut buffer, &mut visit);
        BUFFER.set(buffer);
        result
    }

    /// Whether the directory has no entry.
    pub fn is_empty(&mut self) -> Result<bool> {
        let mut empty = true;
        self.for_each(|_| {
            empty = false;
            ControlFlow::Break(())
        })?;
        Ok(empty)
    }
}

fn visit_all(
    fd: &OwnedFd,
    buffer: &mut Vec<u8>,
    visit: &mut dyn FnMut(RawEntry<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let seen = RawEntry { name, ino: entry.ino(), dtype: kind(entry.file_type()) };
        if visit(seen).is_break() {
            break;
        }
    }
    Ok(())
}

fn kind(raw: FileType) -> Option<FileKind> {
    Some(match raw {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::CharacterDevice => FileKind::Char,
        FileType::BlockDevice => FileKind::Block,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::Unknown => return None,
    })
}
