//! Backing files registered with the kernel, by number.
//!
//! Owns the two ioctls' meaning and the knowledge whether they work here at all. Which node uses which number is
//! `iomode`'s. The kernel's counterpart is `fs/fuse/backing.c`.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use plyfs_core::Shareable;
use plyfs_sys::{Errno, device};

use crate::channel::Channel;

/// The number of a registered backing file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BackingId(pub u32);

/// Registers files `F` and drops them. A trait so that the state machine above is tested without a kernel.
pub trait Registry<F>: Send + Sync {
    /// Registers the file; `None` if the kernel cannot use it, so that its data must come through the daemon.
    fn register(&self, file: &F) -> Option<BackingId>;
    /// Drops a number. Opens that use it keep their file.
    fn drop_id(&self, id: BackingId);
}

/// The kernel's own table, over one connection.
#[derive(Debug)]
pub struct KernelRegistry {
    channel: Arc<Channel>,
    allowed: AtomicBool,
}

impl KernelRegistry {
    /// Over a connection that negotiated passthrough.
    #[must_use]
    pub const fn new(channel: Arc<Channel>) -> Self {
        Self { channel, allowed: AtomicBool::new(true) }
    }
}

impl Registry<Shareable> for KernelRegistry {
    fn register(&self, file: &Shareable) -> Option<BackingId> {
        if !self.allowed.load(Ordering::Relaxed) {
            return None;
        }
        match device::backing_open(self.channel.as_fd(), file.file()) {
            Ok(id) => Some(BackingId(id)),
            Err(errno @ (Errno::PERM | Errno::NOTTY | Errno::NOSYS)) => {
                // It will not be otherwise for the next file.
                tracing::warn!(%errno, "the kernel takes no backing files; data goes through the daemon");
                self.allowed.store(false, Ordering::Relaxed);
                None
            }
            Err(errno) => {
                // ELOOP: the layer lies on a stacked file system. EOPNOTSUPP: no regular file.
                tracing::debug!(%errno, "a file was not accepted as backing; its data goes through the daemon");
                None
            }
        }
    }

    fn drop_id(&self, id: BackingId) {
        if let Err(errno) = device::backing_close(self.channel.as_fd(), id.0) {
            tracing::warn!(%errno, id = id.0, "a backing file could not be given back");
        }
    }
}
