//! The process itself: forking, descriptor limit, session, standard descriptors, sockets and anonymous files, prctl(2).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, Signal};

use crate::{Errno, Result, raw};

/// Raises the soft limit of open descriptors to the hard one (setrlimit(2)) and returns it; `u64::MAX` is no limit.
pub fn raise_descriptor_limit() -> Result<u64> {
    let old = rustix::process::getrlimit(Resource::Nofile);
    if old.current != old.maximum {
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: old.maximum, maximum: old.maximum })?;
    }
    Ok(old.maximum.unwrap_or(u64::MAX))
}

/// Becomes the leader of a new session without a terminal (setsid(2)); `EPERM` if it leads a process group.
pub fn new_session() -> Result<()> {
    rustix::process::setsid().map(drop)
}

/// Makes descriptors 0, 1 and 2 refer to `/dev/null`, or, where that cannot be opened, returns the reason and leaves them
/// (dup2(2)). A daemon must never close them: the next file opened would take the number.
pub fn detach_standard_descriptors() -> Result<()> {
    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    redirect_standard_descriptor(null.as_fd(), 0)?;
    redirect_standard_descriptor(null.as_fd(), 1)?;
    redirect_standard_descriptor(null.as_fd(), 2)
}

/// Makes descriptor `number`, 0 to 2, refer to what `to` does (dup2(2)).
pub fn redirect_standard_descriptor(to: BorrowedFd<'_>, number: i32) -> Result<()> {
    if !(0..=2).contains(&number) {
        return Err(Errno::BADF);
    }
    // SAFETY: 0 to 2 are owned by nobody in Rust; replacing what they refer to cannot invalidate an `OwnedFd`.
    raw::check_int(unsafe { libc::dup2(to.as_raw_fd(), number) }).map(drop)
}

/// Opens `/dev/null` on each of 0, 1 and 2 that is closed, so that no file of a layer ever gets such a number (open(2)).
pub fn fill_standard_descriptors() -> Result<()> {
    loop {
        let null = rustix::fs::open(c"/dev/null", OFlags::RDWR, Mode::empty())?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        // It fills a gap and stays open for the life of the process.
        std::mem::forget(null);
    }
}

/// An anonymous file in memory (memfd_create(2)).
pub fn memfd(name: &str) -> Result<OwnedFd> {
    rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)
}

/// Closes every descriptor from `first` on when another program is executed (close_range(2) with `CLOSE_RANGE_CLOEXEC`).
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: only flags of descriptors change; nothing is closed here.
    raw::check(unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}

/// Whether other processes of the user may trace this one and read its `/proc` files (`PR_SET_DUMPABLE`). The kernel
/// clears it when a thread changes its file system ids.
pub fn set_dumpable(dumpable: bool) -> Result<()> {
    let behavior = if dumpable { DumpableBehavior::Dumpable } else { DumpableBehavior::NotDumpable };
    rustix::process::set_dumpable_behavior(behavior)
}

/// Has the kernel send SIGTERM when the parent thread ends (`PR_SET_PDEATHSIG`); the kernel forgets it when the thread
/// changes its ids.
pub fn die_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
}

/// Adopts orphaned descendants (`PR_SET_CHILD_SUBREAPER`).
pub fn adopt_orphans(enable: bool) -> Result<()> {
    rustix::process::set_child_subreaper(enable.then(rustix::process::getpid))
}

/// Marks the calling thread as part of the path by which memory is written back, so that its own allocations do not wait
/// for a file system it serves (`PR_SET_IO_FLUSHER`). Needs CAP_SYS_RESOURCE (`EPERM`).
pub fn mark_io_flusher() -> Result<()> {
    rustix::process::configure_io_flusher_behavior(true)
}

/// Names the calling thread, at most 15 bytes, for `/proc` and `top` (`PR_SET_NAME`).
pub fn name_thread(name: &str) -> Result<()> {
    raw::with_c_str(name.as_bytes(), rustix::thread::set_name)
}

/// Whether a process lives (kill(2) with signal 0); true also if it belongs to somebody else.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    !matches!(rustix::process::test_kill_process(pid), Err(Errno::SRCH))
}

/// Forks (fork(2)): `None` in the child, its process id in the parent. `EDEADLK` when the process has several threads, of
/// which the child would have only one, with the locks of the others held for ever.
pub fn fork() -> Result<Option<u32>> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(|error| io_errno(&error))?.count();
    if threads != 1 {
        return Err(Errno::DEADLK);
    }
    // SAFETY: the process has one thread, so that memory and locks of the child are consistent.
    let pid = raw::check_int(unsafe { libc::fork() })?;
    Ok(u32::try_from(pid).ok().filter(|&pid| pid != 0))
}

/// A pair of connected stream sockets, closed on exec (socketpair(2)).
pub fn socket_pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// Waits for a descriptor that the other side of a socket sends (SCM_RIGHTS of unix(7)); `None` if it closes without.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    raw::retry(|| {
        let mut parts = [IoSliceMut::new(&mut byte)];
        rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut messages = ancillary.drain();
    Ok(messages.find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

fn io_errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_several_threads_is_not_forked() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv().is_err());
        assert_eq!(fork(), Err(Errno::DEADLK));
        drop(stop);
        assert!(thread.join().expect("thread"));
    }

    #[test]
    fn a_socket_that_closes_without_a_descriptor_gives_none() {
        let (ours, theirs) = socket_pair().expect("socketpair");
        drop(theirs);
        assert!(receive_descriptor(ours.as_fd()).expect("recvmsg").is_none());
    }
}
