//! The table of nodes that the front end remembers, and the index of upper hard links.
//!
//! Owns the mapping from node id to node. It never decides when a node dies (`lookup.rs` does). The kernel's
//! counterpart is the inode cache.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::node::Node;
use crate::object::NodeId;

/// All nodes, by id.
#[derive(Debug, Default)]
pub(crate) struct NodeTable {
    slots: RwLock<Slots>,
    hasher: hashbrown::DefaultHashBuilder,
    /// Nodes of leaves with several names, by the upper's inode number (with an index, by the one that is shown), so that
    /// all names share one node.
    links: Mutex<HashMap<u64, NodeId>>,
}

#[derive(Debug, Default)]
struct Slots {
    nodes: Vec<Option<Arc<Node>>>,
    free: Vec<u32>,
    /// Nodes forgotten so far. It makes the upper half of an id, so that none is given twice: the kernel and NFS clients keep
    /// file handles made of it.
    forgotten: u32,
}

impl NodeTable {
    /// The place of an id in the table: its lower half, less one.
    pub fn index(id: NodeId) -> u32 {
        (id.0 as u32).wrapping_sub(1)
    }

    /// The node with that id, or `None` for one that is not remembered.
    pub fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.at(Self::index(id)).filter(|node| node.id == id)
    }

    /// The node at that place.
    pub fn at(&self, index: u32) -> Option<Arc<Node>> {
        self.slots.read().nodes.get(index as usize)?.clone()
    }

    /// Gives a new node an id and remembers it.
    pub fn insert(&self, make: impl FnOnce(NodeId) -> Node) -> Arc<Node> {
        let mut slots = self.slots.write();
        let index = slots.free.pop().unwrap_or(u32::try_from(slots.nodes.len()).unwrap_or(u32::MAX));
        let id = (u64::from(slots.forgotten) << 32) | (u64::from(index) + 1);
        let node = Arc::new(make(NodeId(id)));
        match slots.nodes.get_mut(index as usize) {
            Some(slot) => *slot = Some(Arc::clone(&node)),
            None => slots.nodes.push(Some(Arc::clone(&node))),
        }
        node
    }

    /// Forgets a node.
    pub fn remove(&self, id: NodeId) {
        let index = Self::index(id);
        let mut slots = self.slots.write();
        let taken = slots.nodes.get_mut(index as usize).and_then(|slot| slot.take_if(|node| node.id == id));
        if taken.is_some() {
            slots.forgotten = slots.forgotten.wrapping_add(1);
            slots.free.push(index);
        }
        let live = slots.nodes.len() - slots.free.len();
        drop(slots);
        drop(taken);
        self.shrink(live);
    }

    /// Number of nodes that are remembered.
    pub fn len(&self) -> usize {
        let slots = self.slots.read();
        slots.nodes.len() - slots.free.len()
    }

    /// Hash of a name under this mount's secret key: names chosen by an attacker do not collide on purpose.
    pub fn hash_name(&self, name: &[u8]) -> u64 {
        self.hasher.hash_one(name)
    }

    /// The node of an upper leaf with several names.
    pub fn linked(&self, upper_ino: u64) -> Option<Arc<Node>> {
        let id = self.links.lock().get(&upper_ino).copied()?;
        self.get(id)
    }

    /// Records the node of an upper leaf with several names.
    pub fn add_link(&self, upper_ino: u64, id: NodeId) {
        self.links.lock().insert(upper_ino, id);
    }

    /// Forgets the node of an upper leaf with several names.
    pub fn remove_link(&self, upper_ino: u64, id: NodeId) {
        let mut links = self.links.lock();
        if links.get(&upper_ino) == Some(&id) {
            links.remove(&upper_ino);
        }
    }

    /// Gives memory back once few nodes are left of many.
    fn shrink(&self, live: usize) {
        const WORTH_IT: usize = 4096;
        let mut slots = self.slots.write();
        if slots.nodes.len() < WORTH_IT
            || live * 8 > slots.nodes.len()
            || slots.nodes.len() - slots.free.len() != live
        {
            return;
        }
        while slots.nodes.len() > 1 && slots.nodes.last().is_some_and(Option::is_none) {
            slots.nodes.pop();
        }
        let len = slots.nodes.len();
        slots.free.retain(|index| (*index as usize) < len);
        slots.nodes.shrink_to_fit();
        slots.free.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use plyfs_sys::FileKind;

    use super::*;
    use crate::directory::DirBody;
    use crate::node::Body;

    fn insert(table: &NodeTable) -> NodeId {
        let body = || Body::Dir(Box::new(DirBody::new(Vec::new(), None)));
        table.insert(|id| Node::new(id, FileKind::Directory, 1, None, body())).id
    }

    #[test]
    fn an_id_is_never_given_twice() {
        let table = NodeTable::default();
        assert_eq!(insert(&table), NodeId::ROOT);
        let old = insert(&table);
        table.remove(old);
        let new = insert(&table);
        assert_eq!(NodeTable::index(old), NodeTable::index(new), "the place is used again");
        assert_ne!(old, new);
        assert!(table.get(old).is_none() && table.get(new).is_some());
        table.remove(old);
        assert!(table.get(new).is_some(), "forgetting the old one again does not touch the new one");
        assert!(table.get(NodeId(0)).is_none());
    }
}
