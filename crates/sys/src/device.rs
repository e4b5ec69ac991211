//! `/dev/fuse`: opening it, a queue of its own for a thread, registering backing files, and moving requests and replies.
//!
//! What the bytes mean is the FUSE transport's (`plyfs-fuse`).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};

use crate::{Errno, File, Result, raw};

/// `struct fuse_backing_map` (include/uapi/linux/fuse.h).
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// `FUSE_DEV_IOC_MAGIC`.
const MAGIC: u8 = 229;
/// `FUSE_DEV_IOC_CLONE`.
const CLONE: libc::Ioctl = raw::ior::<u32>(MAGIC, 0);
/// `FUSE_DEV_IOC_BACKING_OPEN`.
const BACKING_OPEN: libc::Ioctl = raw::iow::<BackingMap>(MAGIC, 1);
/// `FUSE_DEV_IOC_BACKING_CLOSE`.
const BACKING_CLOSE: libc::Ioctl = raw::iow::<u32>(MAGIC, 2);

/// Opens `/dev/fuse` (fuse(4)). `ENOENT` or `ENODEV` if the kernel has no FUSE, `EACCES` if the user may not.
pub fn open_dev_fuse() -> Result<OwnedFd> {
    raw::retry(|| rustix::fs::open(c"/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()))
}

/// Another descriptor of the connection of `session`, with a queue of processed requests of its own
/// (`FUSE_DEV_IOC_CLONE`).
pub fn clone_dev(session: BorrowedFd<'_>) -> Result<OwnedFd> {
    let fd = open_dev_fuse()?;
    let source = u32::try_from(session.as_raw_fd()).map_err(|_| Errno::BADF)?;
    // SAFETY: `source` is the 32-bit number of a descriptor, which the call reads.
    raw::check_int(unsafe { libc::ioctl(fd.as_raw_fd(), CLONE, &raw const source) })?;
    Ok(fd)
}

/// Registers `file` as a backing file and returns its id in the connection (`FUSE_DEV_IOC_BACKING_OPEN`). Needs
/// CAP_SYS_ADMIN in the initial user namespace (`EPERM`); `ELOOP` if the file system is stacked too deep. I/O runs with the
/// credentials that the calling thread has now.
pub fn backing_open(session: BorrowedFd<'_>, file: &File) -> Result<u32> {
    use std::os::fd::AsFd;
    let map = BackingMap { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: `map` has the layout of `struct fuse_backing_map`, which the call reads.
    let id = raw::check_int(unsafe { libc::ioctl(session.as_raw_fd(), BACKING_OPEN, &raw const map) })?;
    u32::try_from(id).map_err(|_| Errno::OVERFLOW)
}

/// Drops a backing id (`FUSE_DEV_IOC_BACKING_CLOSE`); opens that use it keep their file.
pub fn backing_close(session: BorrowedFd<'_>, id: u32) -> Result<()> {
    // SAFETY: `id` is a 32-bit number, which the call reads.
    raw::check_int(unsafe { libc::ioctl(session.as_raw_fd(), BACKING_CLOSE, &raw const id) }).map(drop)
}

/// Reads one request (readv(2)). `ENODEV` when the file system was unmounted, `EAGAIN` if there is none on a non-blocking
/// descriptor, `ENOENT` if the request was interrupted meanwhile; the caller repeats after the last two and `EINTR`.
pub fn read_request(fd: BorrowedFd<'_>, buffers: &mut [IoSliceMut<'_>]) -> Result<usize> {
    rustix::io::readv(fd, buffers)
}

/// Writes one reply or notification, which the kernel takes whole or not at all (writev(2)). `ENOENT` if nobody waits for
/// it any more.
pub fn write_reply(fd: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> Result<usize> {
    raw::retry(|| rustix::io::writev(fd, parts))
}

/// Makes reads of a descriptor wait or not (`O_NONBLOCK` of fcntl(2)).
pub fn set_nonblocking(fd: BorrowedFd<'_>, nonblocking: bool) -> Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(fd)?;
    flags.set(OFlags::NONBLOCK, nonblocking);
    rustix::fs::fcntl_setfl(fd, flags)
}

/// What [`wait`] found on a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// There is something to read.
    pub readable: bool,
    /// The other side is gone: an unmounted file system, a closed pipe.
    pub closed: bool,
}

/// Waits until one of `fds` can be read or is closed, at most for `timeout` (poll(2)), and tells which. All are unready
/// after the time has passed.
pub fn wait<const N: usize>(fds: [BorrowedFd<'_>; N], timeout: Option<Duration>) -> Result<[Ready; N]> {
    let timeout = timeout.map(|time| Timespec::try_from(time).map_err(|_| Errno::INVAL)).transpose()?;
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    raw::retry(|| rustix::event::poll(&mut polled, timeout.as_ref()))?;
    Ok(polled.map(|entry| {
        let seen = entry.revents();
        Ready {
            readable: seen.contains(PollFlags::IN),
            closed: seen.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctl_numbers_are_the_kernels() {
        assert_eq!(CLONE, 0x8004_E500);
        assert_eq!(BACKING_OPEN, 0x4010_E501);
        assert_eq!(BACKING_CLOSE, 0x4004_E502);
    }
}
