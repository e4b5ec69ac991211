//! What the kernel is told without having asked: `FUSE_NOTIFY_*`.
//!
//! Owns the encoding, and the rule about when something may be told: a notification that concerns page cache or names
//! takes locks that a request in progress may hold, and must not be sent by the thread that is to answer it.
//! [`attributes_changed`] takes none of them; [`data`] waits for reads of the same pages. Only the mount itself changes what it shows, so that nothing else needs telling.

use plyfs_core::Stale;
use plyfs_sys::Errno;

use crate::abi::NotifyCode;
use crate::channel::Channel;
use crate::replaced::{Inode, Replaced};
use crate::wire::Output;

/// The attributes and ACLs remembered for a node no longer hold. May be sent before the answer to a request about the same
/// node.
///
/// # Errors
/// The errno of writev(2). A node that the kernel does not know is no error.
pub fn attributes_changed(channel: &Channel, inode: Inode) -> Result<(), Errno> {
    let mut body = Output::default();
    // A negative offset spares the page cache.
    body.u64(inode.0).i64(-1).i64(0);
    match channel.notify(NotifyCode::InvalInode, body.as_bytes()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// As [`attributes_changed`]; a failure is logged.
pub fn attributes_or_log(channel: &Channel, inode: Inode) {
    if let Err(errno) = attributes_changed(channel, inode) {
        tracing::warn!(%errno, inode = inode.0, "the kernel could not be told to ask for attributes again");
    }
}

/// The listing remembered for a directory no longer holds, nor do its attributes. A directory's cached pages are locked
/// only while they are copied from or to, never over a request; so this may be sent before any answer, too.
///
/// # Errors
/// The errno of writev(2). A node that the kernel does not know is no error.
pub fn listing_changed(channel: &Channel, inode: Inode) -> Result<(), Errno> {
    let mut body = Output::default();
    body.u64(inode.0).i64(0).i64(0);
    match channel.notify(NotifyCode::InvalInode, body.as_bytes()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Tells the kernel what an operation of the engine made untrue.
pub fn stale(channel: &Channel, replaced: &Replaced, stale: Stale) {
    let told = match stale {
        Stale::Attributes(node) => attributes_changed(channel, replaced.inode(node)),
        Stale::Listing(node) => listing_changed(channel, replaced.inode(node)),
    };
    if let Err(errno) = told {
        tracing::warn!(%errno, ?stale, "the kernel could not be told to ask again");
    }
}

/// The first bytes of a file, for the page cache: all of a small one. Sent when a node is opened for the first time, when no
/// read of it can be under way; should one be, another worker answers it.
///
/// # Errors
/// The errno of writev(2). A node that the kernel does not know is no error.
pub fn data(channel: &Channel, inode: Inode, data: &[u8]) -> Result<(), Errno> {
    let mut body = Output::default();
    let size = u32::try_from(data.len()).map_err(|_| Errno::INVAL)?;
    body.u64(inode.0).u64(0).u32(size).u32(0);
    match channel.notify_with(NotifyCode::Store, body.as_bytes(), data) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
