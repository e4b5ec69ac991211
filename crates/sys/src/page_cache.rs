//! What of a file lies in the page cache: reading only that, without asking the medium. It never writes.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::ReadWriteFlags;

use crate::file::File;
use crate::{Errno, Result, raw};

impl File {
    /// As [`pread`](Self::pread), but only if all of `buf` is in memory: 0 where the medium would have to be asked, or the
    /// kernel does not tell this caller.
    ///
    /// # Errors
    /// What preadv2(2) answers, except that it would have to wait.
    pub fn pread_cached(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        // A read with `RWF_NOWAIT` waits for nothing but starts reading ahead, so the question comes first.
        match cached_pages(self.as_fd(), offset, buf.len() as u64) {
            Ok(pages) if pages.saturating_mul(rustix::param::page_size() as u64) >= buf.len() as u64 => {}
            Err(Errno::NOSYS) => {}
            _ => return Ok(0),
        }
        match rustix::io::preadv2(self.as_fd(), &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => Ok(0),
            done => done,
        }
    }
}

/// How many pages of a range are in the page cache (cachestat(2), Linux 6.5; `EPERM` for a file of others since 6.15).
fn cached_pages(fd: BorrowedFd<'_>, offset: u64, length: u64) -> Result<u64> {
    // The same number on every architecture of the common table.
    const CACHESTAT: libc::c_long = 451;
    let range = Range { offset, length };
    let mut stat = CacheStat::default();
    // SAFETY: both structures have the kernel's layout and live through the call, which writes the second only.
    raw::check(unsafe { libc::syscall(CACHESTAT, fd.as_raw_fd(), &raw const range, &raw mut stat, 0) })?;
    Ok(stat.cached)
}

/// `struct cachestat_range` (include/uapi/linux/mman.h), in bytes.
#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// `struct cachestat` (include/uapi/linux/mman.h), in pages.
#[repr(C)]
#[derive(Default)]
struct CacheStat {
    cached: u64,
    _dirty: u64,
    _writeback: u64,
    _evicted: u64,
    _recently_evicted: u64,
}
