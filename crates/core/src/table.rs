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
    /// Ids may be given from outside. Immutable.
    lasting: bool,
}

/// The bit that no lasting id has, and where there are such, every other id.
pub(crate) const FLEETING: u64 = 1 << 63;

#[derive(Debug, Default)]
struct Slots {
    nodes: Vec<Option<Arc<Node>>>,
    free: Vec<u32>,
    /// Nodes forgotten so far. It makes the upper half of an id, so that none is given twice: the kernel and NFS clients keep
    /// file handles made of it.
    forgotten: u32,
    /// The places of nodes with an id that lasts (`export.rs`).
    lasting: HashMap<NodeId, u32>,
}

/// Where a new node is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub id: NodeId,
    pub slot: u32,
}

impl NodeTable {
    /// A table whose nodes may have ids that last. The others' are unlike those of earlier mounts, as far as chance goes.
    pub fn with_lasting_ids() -> Self {
        let table = Self { lasting: true, ..Self::default() };
        table.slots.write().forgotten = table.hasher.hash_one(std::process::id()) as u32;
        table
    }

    /// The node with that id, or `None` for one that is not remembered.
    pub fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        let slots = self.slots.read();
        let node =
            |index: u32| slots.nodes.get(index as usize)?.as_ref().filter(|node| node.id == id).cloned();
        match node((id.0 as u32).wrapping_sub(1)) {
            None if self.lasting => slots.lasting.get(&id).copied().and_then(node),
            found => found,
        }
    }

    /// The node at that place.
    pub fn at(&self, slot: u32) -> Option<Arc<Node>> {
        self.slots.read().nodes.get(slot as usize)?.clone()
    }

    /// Gives a new node an id, the one that it is to have or one of our own, and remembers it.
    pub fn insert(&self, id: Option<NodeId>, make: impl FnOnce(Slot) -> Node) -> Arc<Node> {
        self.insert_into(&mut self.slots.write(), id, make)
    }

    fn insert_into(
        &self,
        slots: &mut Slots,
        id: Option<NodeId>,
        make: impl FnOnce(Slot) -> Node,
    ) -> Arc<Node> {
        let slot = slots.free.pop().unwrap_or(u32::try_from(slots.nodes.len()).unwrap_or(u32::MAX));
        let own = (u64::from(slots.forgotten) << 32) | (u64::from(slot) + 1);
        let given = id.unwrap_or(NodeId(if self.lasting { own | FLEETING } else { own }));
        let node = Arc::new(make(Slot { id: given, slot }));
        match slots.nodes.get_mut(slot as usize) {
            Some(place) => *place = Some(Arc::clone(&node)),
            None => slots.nodes.push(Some(Arc::clone(&node))),
        }
        if id.is_some() {
            slots.lasting.insert(given, slot);
        }
        node
    }

    /// The node with an id that lasts, if `share` takes it; else a new one, which has it from then on.
    pub fn share_or_insert(
        &self,
        id: NodeId,
        share: impl FnOnce(&Arc<Node>) -> bool,
        make: impl FnOnce(Slot) -> Node,
    ) -> Arc<Node> {
        let mut slots = self.slots.write();
        match slots.lasting.get(&id).and_then(|slot| slots.nodes.get(*slot as usize)).and_then(Option::as_ref)
        {
            Some(node) if share(node) => Arc::clone(node),
            _ => self.insert_into(&mut slots, Some(id), make),
        }
    }

    /// Forgets a node.
    pub fn remove(&self, node: &Arc<Node>) {
        let mut slots = self.slots.write();
        let taken = slots
            .nodes
            .get_mut(node.slot as usize)
            .and_then(|place| place.take_if(|there| Arc::ptr_eq(there, node)));
        if taken.is_some() {
            slots.forgotten = slots.forgotten.wrapping_add(1);
            slots.free.push(node.slot);
            // A successor may have the id by now.
            if self.lasting && slots.lasting.get(&node.id) == Some(&node.slot) {
                slots.lasting.remove(&node.id);
            }
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

    fn insert(table: &NodeTable) -> Arc<Node> {
        let body = || Body::Dir(Box::new(DirBody::new(Vec::new(), None)));
        table.insert(None, |at| Node::new(at, FileKind::Directory, 1, None, body()))
    }

    #[test]
    fn an_id_is_never_given_twice() {
        let table = NodeTable::default();
        assert_eq!(insert(&table).id, NodeId::ROOT);
        let old = insert(&table);
        table.remove(&old);
        let new = insert(&table);
        assert_eq!(old.slot, new.slot, "the place is used again");
        assert_ne!(old.id, new.id);
        assert!(table.get(old.id).is_none() && table.get(new.id).is_some());
        table.remove(&old);
        assert!(table.get(new.id).is_some(), "forgetting the old one again does not touch the new one");
        assert!(table.get(NodeId(0)).is_none());
    }

    #[test]
    fn an_id_that_lasts_is_that_of_the_node_that_came_last() {
        let table = NodeTable::with_lasting_ids();
        let make = |at| {
            Node::new(at, FileKind::Directory, 1, None, Body::Dir(Box::new(DirBody::new(Vec::new(), None))))
        };
        let id = NodeId(4711);
        let old = table.insert(Some(id), make);
        let new = table.insert(Some(id), make);
        table.remove(&old);
        assert!(table.get(id).is_some_and(|found| Arc::ptr_eq(&found, &new)));
        table.remove(&new);
        assert!(table.get(id).is_none());
        assert_ne!(insert(&table).id.0 & FLEETING, 0, "no other id looks like one that lasts");
    }
}
