//! The directory's part of a node: lower directories, upper directory, known children, cached listing.
//!
//! Owns the data structures only; it makes no system call (`fd_cache.rs` opens). The kernel's counterpart is
//! `struct ovl_entry` with `struct ovl_dir_cache`.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use hashbrown::HashTable;
use parking_lot::Mutex;
use plyfs_sys::DirMut;
use smallvec::SmallVec;

use crate::fd_cache::Slot;
use crate::layer::{LayerDir, OciMarks};
use crate::listing::Listing;
use crate::lock::{self, Guard, Ordered};
use crate::node::Node;
use crate::object::NodeId;
use crate::protect::Protection;
use crate::table::NodeTable;

/// What a directory node knows beyond other nodes.
#[derive(Debug)]
pub(crate) struct DirBody {
    /// The lower directories that are merged here, topmost first. Immutable.
    pub lowers: Box<[Arc<LayerDir>]>,
    /// Set when the directory exists in upper; never unset.
    pub upper: OnceLock<Box<UpperDir>>,
    /// Held while a name of this directory is being changed.
    pub change: Ordered<{ lock::CHANGE }, ()>,
    /// Never held over a system call.
    pub state: Ordered<{ lock::STATE }, DirState>,
}

/// The directory in upper.
#[derive(Debug)]
pub(crate) struct UpperDir {
    /// The descriptor, reopened by path when it was evicted.
    pub slot: Slot<DirMut>,
    /// Nothing of the lower layers shows here below the lowers recorded in the node. Atomic; set by changes.
    pub opaque: AtomicBool,
    /// Entries may be copies of lower objects, so their `origin` must be asked for. Atomic; only ever set.
    pub impure: AtomicBool,
    /// Append-only or immutable.
    pub protection: Protection,
    /// Whether it holds `.wh.` names.
    pub oci_marks: OciMarks,
    /// The redirect recorded on disk.
    pub redirect: Mutex<Option<Box<[u8]>>>,
    /// The descriptor once the directory has no name, so that it cannot be reopened by path.
    pub removed: OnceLock<Arc<DirMut>>,
}

/// What changes with lookups and listings.
#[derive(Debug, Default)]
pub(crate) struct DirState {
    children: HashTable<Child>,
    /// The complete merged listing, while it is cached.
    pub listing: Option<Box<Listing>>,
    /// The hash of the name that was last found absent, with no whiteout or mark in upper, since the last change of a name:
    /// a creation or rename of that name comes right after.
    pub absent: Option<u64>,
    /// Counts changes of names, so that a lookup or a listing that ran beside one is repeated.
    pub generation: u64,
    /// Nobody may create here any more.
    pub removed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Child {
    hash: u32,
    slot: u32,
}

impl DirBody {
    pub fn new(lowers: Vec<Arc<LayerDir>>, upper: Option<Box<UpperDir>>) -> Self {
        Self {
            lowers: lowers.into_boxed_slice(),
            upper: upper.map_or_else(OnceLock::new, OnceLock::from),
            change: Ordered::new(()),
            state: Ordered::new(DirState::default()),
        }
    }

    /// Whether entries of several directories show here (`OVL_TYPE_MERGE`): its link count is 1 then.
    pub fn is_merged(&self) -> bool {
        match self.upper.get() {
            Some(_) => !self.lowers.is_empty(),
            None => self.lowers.len() > 1,
        }
    }
}

impl DirBody {
    /// Whether what was read of the layers since `generation` still holds. While somebody else changes names the layers
    /// may be ahead of what is remembered: then it does not.
    pub fn is_unchanged(&self, state: &DirState, generation: u64, still: bool) -> bool {
        state.generation == generation && (still || !self.change.is_locked())
    }
}

impl DirState {
    /// Notes that a name changed.
    pub fn changed(&mut self) {
        self.generation += 1;
        self.absent = None;
    }

    /// The directory, which is empty, is being removed: nothing is found or made in it any more.
    pub fn retire(&mut self) {
        self.removed = true;
        self.distrust();
    }

    /// Takes [`retire`](Self::retire) back.
    pub fn revive(&mut self) {
        self.removed = false;
        self.distrust();
    }

    /// After a change that failed half-way: what is on disk counts, not what is remembered of it.
    pub fn distrust(&mut self) {
        self.changed();
        self.listing = None;
    }

    /// The node known under a name.
    pub fn child(&self, table: &NodeTable, parent: NodeId, name: &[u8]) -> Option<Arc<Node>> {
        let hash = table.hash_name(name) as u32;
        let mut found = None;
        self.children.find(spread(hash), |child| {
            child.hash == hash
                && table.at(child.slot).is_some_and(|node| {
                    let same = node.has_place(parent, name);
                    if same {
                        found = Some(node);
                    }
                    same
                })
        });
        found
    }

    /// Records that a node is known under a name. The node must have that place.
    pub fn add_child(&mut self, table: &NodeTable, name: &[u8], node: &Node) {
        let hash = table.hash_name(name) as u32;
        let child = Child { hash, slot: node.slot };
        self.children.insert_unique(spread(hash), child, |child| spread(child.hash));
    }

    /// Forgets that a node is known under a name.
    pub fn remove_child(&mut self, table: &NodeTable, name: &[u8], node: &Node) {
        let hash = table.hash_name(name) as u32;
        let this = |child: &Child| child.hash == hash && child.slot == node.slot;
        if let Ok(entry) = self.children.find_entry(spread(hash), this) {
            entry.remove();
        }
        if self.children.len() * 4 < self.children.capacity() {
            self.children.shrink_to_fit(|child| spread(child.hash));
        }
    }
}

/// A directory that is locked against changes of its names.
pub(crate) type ChangeGuard<'a> = Guard<'a, { lock::CHANGE }, ()>;

/// Locks the directories among these nodes against changes of their names, in the order of their addresses.
pub(crate) fn lock_changes<'a>(
    nodes: impl IntoIterator<Item = &'a Arc<Node>>,
) -> SmallVec<[ChangeGuard<'a>; 3]> {
    let mut dirs: SmallVec<[&DirBody; 3]> = nodes.into_iter().filter_map(|node| node.as_dir()).collect();
    dirs.sort_by_key(|dir| std::ptr::from_ref(*dir));
    dirs.dedup_by_key(|dir| std::ptr::from_ref(*dir));
    let mut guards = SmallVec::new();
    for dir in dirs {
        guards.push(if guards.is_empty() { dir.change.lock() } else { dir.change.lock_beside() });
    }
    guards
}

/// The table takes its tags from the top bits, so 32 bits of hash must reach them.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
