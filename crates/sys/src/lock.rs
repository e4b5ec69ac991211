//! Advisory locks on directories (flock(2)): how one mount tells others that its upper or work directory is in use.
//!
//! Who has to hold which lock is the engine's. The kernel's overlayfs marks the inode in memory instead, which only it sees.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::FlockOperation;

use crate::{DirMut, Result, raw};

/// An exclusive lock on a directory, held until this is dropped and, since it belongs to the open file, until every process
/// that inherited it by fork(2) has ended. It stays with the inode when the directory is renamed.
#[derive(Debug)]
pub struct DirLock {
    #[expect(dead_code, reason = "the lock lives as long as the open file")]
    fd: OwnedFd,
}

impl DirMut {
    /// Takes the lock on this directory without waiting (flock(2)); `EAGAIN` if somebody holds it, also this process by
    /// another open.
    pub fn try_lock(&self) -> Result<DirLock> {
        let fd = self.reopen()?;
        raw::retry(|| rustix::fs::flock(fd.as_fd(), FlockOperation::NonBlockingLockExclusive))?;
        Ok(DirLock { fd })
    }
}
