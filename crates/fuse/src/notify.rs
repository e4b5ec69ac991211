//! What the kernel is told without having asked: `FUSE_NOTIFY_*`.
//!
//! Owns the encoding, and the rule about when something may be told: a notification that concerns page cache or names
//! takes locks that a request in progress may hold, and must not be sent by the thread that is to answer it. The one sent
//! here takes none of them. Only the mount itself changes what it shows, so that nothing else needs telling.

use plyfs_core::NodeId;
use plyfs_sys::Errno;

use crate::abi::NotifyCode;
use crate::channel::Channel;
use crate::wire::Output;

/// The attributes and ACLs remembered for a node no longer hold. May be sent before the answer to a request about the same
/// node.
///
/// # Errors
/// The errno of writev(2). A node that the kernel does not know is no error.
pub fn attributes_changed(channel: &Channel, node: NodeId) -> Result<(), Errno> {
    let mut body = Output::default();
    // A negative offset spares the page cache.
    body.u64(node.0).i64(-1).i64(0);
    match channel.notify(NotifyCode::InvalInode, body.as_bytes()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
