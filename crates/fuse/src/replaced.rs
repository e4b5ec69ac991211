//! Which inode of the kernel stands for a node of the engine: its own, unless that one was replaced.
//!
//! Owns the numbers of the inodes that come after the first. An inode whose data the kernel reads from a lower file by
//! itself cannot be told of another file while it is open (`fs/fuse/iomode.c`). So when such a file was copied up, its inode
//! stays with those who have it open and goes on showing the lower file; every other open is answered `ESTALE`, on which
//! the kernel asks for the name again (`LOOKUP_REVAL`) and is given another inode.
//!
//! It never decides when that happens: `iomode` does. The kernel's overlay did so for every copy-up before Linux 4.19.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use plyfs_core::NodeId;

/// The number by which the kernel knows a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Inode(pub u64);

impl From<NodeId> for Inode {
    /// The first inode of a node.
    fn from(node: NodeId) -> Self {
        Self(node.0)
    }
}

/// The nodes whose inode was replaced.
#[derive(Debug, Default)]
pub struct Replaced {
    /// Whether there is any; spares the look into the table otherwise.
    any: AtomicBool,
    table: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// The node of each inode that is not its first.
    nodes: HashMap<Inode, NodeId>,
    /// The inode of each node whose first was replaced, and those it had before.
    current: HashMap<NodeId, Successor>,
    /// How many were made.
    made: u64,
}

#[derive(Debug)]
struct Successor {
    inode: Inode,
    earlier: Vec<Inode>,
}

impl Replaced {
    /// The node that an inode stands for.
    pub fn node(&self, inode: Inode) -> NodeId {
        let first = NodeId(inode.0);
        if !self.any.load(Ordering::Acquire) {
            return first;
        }
        self.table.read().nodes.get(&inode).copied().unwrap_or(first)
    }

    /// The inode that stands for a node now.
    pub fn inode(&self, node: NodeId) -> Inode {
        if !self.any.load(Ordering::Acquire) {
            return node.into();
        }
        self.table.read().current.get(&node).map_or(node.into(), |successor| successor.inode)
    }

    /// Whether another inode stands for the node by now.
    pub fn is_past(&self, inode: Inode) -> bool {
        self.any.load(Ordering::Acquire) && self.inode(self.node(inode)) != inode
    }

    /// From now on another inode stands for the node of this one; nothing happens if that is so already.
    pub fn replace(&self, inode: Inode) {
        let node = self.node(inode);
        let mut table = self.table.write();
        if table.current.get(&node).map_or(node.into(), |successor| successor.inode) != inode {
            return;
        }
        table.made += 1;
        // The lower half of a node's own number is never 0 (`plyfs_core`'s table of nodes).
        let next = Inode(table.made << 32);
        table.nodes.insert(next, node);
        match table.current.get_mut(&node) {
            Some(successor) => successor.earlier.push(std::mem::replace(&mut successor.inode, next)),
            None => drop(table.current.insert(node, Successor { inode: next, earlier: Vec::new() })),
        }
        self.any.store(true, Ordering::Release);
    }

    /// The engine remembers the node no more, and so the kernel none of its inodes.
    pub fn forget(&self, node: NodeId) {
        let mut table = self.table.write();
        if let Some(Successor { inode, earlier }) = table.current.remove(&node) {
            for inode in earlier.into_iter().chain([inode]) {
                table.nodes.remove(&inode);
            }
            self.any.store(!table.current.is_empty(), Ordering::Release);
        }
    }

    /// Whether any inode was replaced.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId((7 << 32) | 5);

    #[test]
    fn a_node_is_found_by_every_inode_it_ever_had() {
        let replaced = Replaced::default();
        let first = Inode::from(NODE);
        assert_eq!((replaced.node(first), replaced.inode(NODE)), (NODE, first));
        replaced.replace(first);
        let second = replaced.inode(NODE);
        replaced.replace(second);
        let third = replaced.inode(NODE);
        assert!(first != second && second != third && first != third);
        for inode in [first, second, third] {
            assert_eq!(replaced.node(inode), NODE);
            assert_eq!(replaced.is_past(inode), inode != third);
        }
    }

    #[test]
    fn an_inode_is_replaced_once_however_many_ask() {
        let replaced = Replaced::default();
        replaced.replace(NODE.into());
        let second = replaced.inode(NODE);
        replaced.replace(NODE.into());
        assert_eq!(replaced.inode(NODE), second);
    }

    #[test]
    fn what_is_forgotten_leaves_nothing_behind() {
        let replaced = Replaced::default();
        let other = NodeId(9);
        replaced.replace(NODE.into());
        replaced.replace(other.into());
        let kept = replaced.inode(other);
        replaced.forget(NODE);
        assert_eq!((replaced.inode(other), replaced.inode(NODE)), (kept, NODE.into()));
        replaced.forget(other);
        assert!(!replaced.any() && replaced.table.read().nodes.is_empty());
    }
}
