//! Looking names up, remembering nodes and forgetting them.
//!
//! Owns the life of a node: made here from what `merge.rs` found, dead when the front end and all children forgot it.
//! The kernel's counterparts are `ovl_lookup` and `ovl_get_inode`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_sys::{Errno, Stat};

use crate::Result;
use crate::directory::{DirBody, DirState};
use crate::merge::{Found, Object, Resolution};
use crate::node::{Body, Leaf, Node, Place, SharedName};
use crate::object::{Entry, NodeId};
use crate::overlay::Overlay;
use crate::table::{NodeTable, Slot};

impl Overlay {
    /// Looks a name up; `.` is the node itself, which need not be remembered where ids last (`nfs_export=on`), and `..` the
    /// directory above. `None` is a definite absence, which stays true until the name is created through this mount.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENAMETOOLONG`, `ESTALE` for an unknown parent, and whatever the layers answer.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Option<Entry>> {
        let found = match name {
            b"." => Some(self.node_of_id(parent)?),
            b".." => Some(self.parent_of(&*self.dir_node(parent)?)?),
            _ => self.lookup_node(&self.node(parent)?, name)?,
        };
        match found {
            Some((node, stat)) => Ok(Some(self.entry(&node, &stat))),
            None => Ok(None),
        }
    }

    /// What the front end is told of a node.
    pub(crate) fn entry(&self, node: &Node, stat: &Stat) -> Entry {
        let generation = self.export.as_ref().map_or(0, |export| export.generation(node.id));
        Entry { node: node.id, generation, attr: self.compose(node, stat) }
    }

    /// Gives back `count` lookups of a node.
    pub fn forget(&self, node: NodeId, count: u64) {
        if node == NodeId::ROOT {
            return;
        }
        if let Some(node) = self.table.get(node) {
            self.release_lookups(node, count);
        }
    }

    /// Whether a node is still remembered.
    #[must_use]
    pub fn remembers(&self, node: NodeId) -> bool {
        self.table.get(node).is_some()
    }

    /// The node with that id.
    pub(crate) fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.table.get(id).ok_or(Errno::STALE)
    }

    /// The directory with that id.
    pub(crate) fn dir_node(&self, id: NodeId) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        if node.is_dir() { Ok(node) } else { Err(Errno::NOTDIR) }
    }

    /// As `lookup`, with the node itself; counts one lookup.
    pub(crate) fn lookup_node(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Option<(Arc<Node>, Stat)>> {
        let dir = parent.as_dir().ok_or(Errno::NOTDIR)?;
        check_name(name)?;
        let mut shared: Option<SharedName> = None;
        let mut still = None;
        loop {
            let (known, generation) = {
                let state = dir.state.lock();
                if state.removed {
                    return Ok(None);
                }
                (self.acquire_child(&state, parent.id, name), state.generation)
            };
            if let Some(node) = known {
                drop(still);
                return self.stat_acquired(node).map(Some);
            }
            let name = Arc::clone(shared.get_or_insert_with(|| name.into()));
            let found = match self.resolve(parent, dir, &name) {
                Ok(Resolution::Found(found)) => found,
                Ok(nothing @ (Resolution::Absent | Resolution::Whiteout)) => {
                    let mut state = dir.state.lock();
                    if dir.is_unchanged(&state, generation, still.is_some()) {
                        // A listing does not tell an absent name from one that a whiteout hides.
                        let certain = matches!(nothing, Resolution::Absent) && state.listing.is_none();
                        state.absent = certain.then(|| self.table.hash_name(&name));
                        return Ok(None);
                    }
                    drop(state);
                    still.get_or_insert_with(|| dir.change.lock());
                    continue;
                }
                Err(Errno::AGAIN) => continue,
                Err(error) => return Err(error),
            };
            let stat = found.stat;
            if let Some(node) = self.adopt(parent, dir, &name, found, (generation, still.is_some())) {
                return Ok(Some((node, stat)));
            }
            still.get_or_insert_with(|| dir.change.lock());
        }
    }

    /// The node already known under that name; counts one lookup.
    pub(crate) fn known_child(&self, parent: &Node, name: &[u8]) -> Option<Arc<Node>> {
        let dir = parent.as_dir()?;
        self.acquire_child(&dir.state.lock(), parent.id, name)
    }

    fn acquire_child(&self, state: &DirState, parent: NodeId, name: &[u8]) -> Option<Arc<Node>> {
        state.child(&self.table, parent, name).filter(|node| acquire(node))
    }

    /// Stats a node whose lookup was counted; gives the lookup back on failure.
    pub(crate) fn stat_acquired(&self, node: Arc<Node>) -> Result<(Arc<Node>, Stat)> {
        match self.stat_node(&node) {
            Ok(stat) => Ok((node, stat)),
            Err(error) => {
                self.release_lookups(node, 1);
                Err(error)
            }
        }
    }

    /// Makes a node of what was found, unless names changed since the generation, or may be changing at this moment (the
    /// flag says that the caller keeps them from it); counts one lookup.
    pub(crate) fn adopt(
        &self,
        parent: &Arc<Node>,
        dir: &DirBody,
        name: &SharedName,
        found: Found,
        (generation, still): (u64, bool),
    ) -> Option<Arc<Node>> {
        let mut state = dir.state.lock();
        if !dir.is_unchanged(&state, generation, still) {
            return None;
        }
        if let Some(node) = self.acquire_child(&state, parent.id, name) {
            return Some(node);
        }
        Some(self.make_node(parent, &mut state, name, found))
    }

    /// Makes a node under a name that has none; counts one lookup, and one of the parent for the child.
    pub(crate) fn make_node(
        &self,
        parent: &Arc<Node>,
        state: &mut DirState,
        name: &SharedName,
        found: Found,
    ) -> Arc<Node> {
        parent.lookups.fetch_add(1, Ordering::Relaxed);
        let place = Place::new(Arc::clone(parent), Arc::clone(name));
        let kind = found.stat.kind();
        let is_dir = found.stat.is_dir();
        // An id that is another directory's, or not of this type, comes from a damaged stack.
        let lasting = found.lasting.filter(|id| {
            self.table.get(*id).is_none_or(|node| !is_dir && !node.is_dir() || !is_alive(&node))
        });
        let linked = match &found.object {
            // Names that still lie below do not count in upper.
            Object::UpperLeaf { upper, .. } if found.stat.nlink > 1 || upper.index.is_some() => {
                Some(self.link_key(upper.ino, found.ino))
            }
            Object::LowerLeaf(lower) if self.is_indexed(lower) => Some(found.ino),
            _ => None,
        };
        let body = match found.object {
            Object::Dir { lowers, upper } => Body::Dir(Box::new(DirBody::new(lowers, upper))),
            Object::UpperLeaf { upper, lower } => Body::Leaf(Leaf::upper(upper, lower)),
            Object::LowerLeaf(lower) => Body::Leaf(Leaf::lower(lower)),
        };
        let make = |at| {
            let node = Node::new(at, kind, found.ino, Some(place.clone()), body);
            node.lookups.store(1, Ordering::Relaxed);
            node
        };
        let node = match linked {
            Some(key) if lasting.is_none() => self.link_or_insert(key, &place, make),
            _ => match lasting {
                Some(id) if !is_dir => self.share_or_insert(id, &place, make),
                lasting => self.table.insert(lasting, make),
            },
        };
        state.add_child(&self.table, name, &node);
        node
    }

    /// What the names of one file have in common. An indexed file keeps its number when it is copied up.
    pub(crate) fn link_key(&self, upper_ino: u64, ino: u64) -> u64 {
        if self.features.index { ino } else { upper_ino }
    }

    /// All names of an upper leaf share one node.
    fn link_or_insert(&self, key: u64, place: &Place, make: impl FnOnce(Slot) -> Node) -> Arc<Node> {
        if let Some(node) = self.table.linked(key)
            && acquire(&node)
        {
            node.add_place(place.clone());
            return node;
        }
        let node = self.table.insert(None, make);
        self.table.add_link(key, node.id);
        node
    }

    /// A node whose id says what it is: the leaf that is remembered has one more name.
    fn share_or_insert(&self, id: NodeId, place: &Place, make: impl FnOnce(Slot) -> Node) -> Arc<Node> {
        let mut shared = None;
        let share = |node: &Arc<Node>| {
            let taken = acquire(node);
            shared = Some(taken);
            taken
        };
        let node = self.table.share_or_insert(id, share, make);
        if shared == Some(true) {
            node.add_place(place.clone());
        }
        node
    }

    /// Gives lookups back; a node without any dies, and with it its claim on its parents.
    pub(crate) fn release_lookups(&self, node: Arc<Node>, count: u64) {
        let mut pending = vec![(node, count)];
        while let Some((node, count)) = pending.pop() {
            if node.id == NodeId::ROOT || !release(&node, count) {
                continue;
            }
            let places = std::mem::take(&mut *node.places.lock());
            for place in places {
                if let Some(dir) = place.parent.as_dir() {
                    dir.state.lock().remove_child(&self.table, &place.name, &node);
                }
                pending.push((place.parent, 1));
            }
            if let Body::Leaf(leaf) = &node.body {
                let upper = leaf.upper.get().map(|upper| upper.ino);
                if self.features.index || upper.is_some() {
                    self.table.remove_link(self.link_key(upper.unwrap_or(0), node.ino()), node.id);
                }
            }
            self.table.remove(&node);
        }
        self.trim_memory();
    }

    /// Takes a name away from a node (it was unlinked, or moved from there); gives back the claim on the parent.
    pub(crate) fn detach(&self, parent: &Arc<Node>, state: &mut DirState, name: &[u8], node: &Node) {
        state.remove_child(&self.table, name, node);
        node.remove_place(parent.id, name);
        if let (Body::Leaf(leaf), true) = (&node.body, self.export.is_some()) {
            leaf.usage().name_removed.store(true, Ordering::Release);
        }
        // The parent lives on: the caller holds a request on it.
        parent.lookups.fetch_sub(1, Ordering::Relaxed);
    }

    /// Gives a node another name.
    pub(crate) fn attach(
        &self,
        parent: &Arc<Node>,
        state: &mut DirState,
        name: &SharedName,
        node: &Arc<Node>,
    ) {
        parent.lookups.fetch_add(1, Ordering::Relaxed);
        node.add_place(Place::new(Arc::clone(parent), Arc::clone(name)));
        state.add_child(&self.table, name, node);
    }
}

/// Refuses what cannot be a name.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    match plyfs_format::Name::new(name) {
        Ok(_) => Ok(()),
        Err(_) if name.len() > 255 => Err(Errno::NAMETOOLONG),
        Err(_) => Err(Errno::INVAL),
    }
}

fn is_alive(node: &Node) -> bool {
    node.lookups.load(Ordering::Relaxed) > 0
}

/// Counts a lookup, unless the node is dying.
pub(crate) fn acquire(node: &Node) -> bool {
    node.lookups
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count > 0).then(|| count + 1))
        .is_ok()
}

/// Gives lookups back; true for whoever took the last one.
fn release(node: &Node, count: u64) -> bool {
    let before = node
        .lookups
        .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |have| Some(have.saturating_sub(count)))
        .unwrap_or(0);
    before > 0 && before <= count
}

impl NodeTable {
    /// Makes the root node, which is first.
    pub(crate) fn insert_root(&self, make: impl FnOnce(Slot) -> Node) -> Arc<Node> {
        let root = self.insert(Some(NodeId::ROOT), make);
        root.lookups.store(1, Ordering::Relaxed);
        root
    }
}
