//! The nodes: what is known of an inode of the merged view, and where its object lies in the layers.
//!
//! Owns the data structures only; it makes no system call. The kernel's counterparts are `struct ovl_inode` and
//! `struct ovl_entry`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use once_cell::race::OnceBox;
use parking_lot::{Mutex, RwLock};
use plyfs_format::{FileHandle, NameBuf, Protattr};
use plyfs_sys::{Errno, File, FileKind};
use smallvec::SmallVec;

use crate::directory::DirBody;
use crate::layer::LayerDir;
use crate::lock::{self, Ordered};
use crate::metacopy::LowerData;
use crate::object::NodeId;
use crate::protect::Protection;
use crate::table::Slot;

/// A shared name: one allocation serves the node, its lower object and the listing.
pub(crate) type SharedName = Arc<[u8]>;

/// An inode of the merged view.
#[derive(Debug)]
pub(crate) struct Node {
    /// Immutable.
    pub id: NodeId,
    /// Immutable.
    pub kind: FileKind,
    /// Where the node table has it. Immutable.
    pub slot: u32,
    /// What `stat` reports; changes once, when a lower hard link is broken by copy-up. Atomic.
    ino: AtomicU64,
    /// Lookups less forgets. Atomic; reaches zero only under the state lock of the parent.
    pub lookups: AtomicU64,
    /// The names of this node that are known; none once it is unlinked.
    pub places: Ordered<{ lock::PLACES }, SmallVec<[Place; 1]>>,
    /// Serialises copy-up of this inode.
    pub copy_up: Ordered<{ lock::COPY_UP }, ()>,
    /// Immutable in its variant.
    pub body: Body,
}

/// Where a node is in the merged tree.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub parent: Arc<Node>,
    pub name: SharedName,
    /// The name is being taken away: it does not keep the object reachable.
    leaving: bool,
}

/// What differs between directories and everything else.
#[derive(Debug)]
pub(crate) enum Body {
    Dir(Box<DirBody>),
    Leaf(Leaf),
}

/// A file, symlink or special file.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// The lower object, whether or not it was copied up. Immutable.
    pub lower: Option<LowerLeaf>,
    /// Set when the object lies in upper; never unset.
    pub upper: OnceBox<UpperLeaf>,
    /// Made on first use: most nodes are only looked at, and their number decides how much memory a walk takes.
    usage: OnceBox<Usage>,
}

/// What only an opened or unlinked leaf needs.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Keeps the upper object reachable once it has no name; set by the removal.
    pub orphan: OnceLock<Arc<File>>,
    /// A name was taken from it since it was found by its handle.
    pub name_removed: AtomicBool,
    /// The one open file that all handles share, while anyone holds it.
    pub shared: Mutex<Weak<File>>,
    /// Its data was offered to the front end's cache, or is too much for that. Atomic.
    pub offered: AtomicBool,
    /// Failures to make its data durable. The kernel tells one only once of the file that all handles share; here each
    /// handle is to hear of it.
    pub sync_failures: Mutex<SyncFailures>,
    /// Read while its data is being synced.
    pub syncing: RwLock<()>,
    /// Whether the upper file bears set-id bits or a capability; unknown until data is written back. Read while that is
    /// done to a file without any, and written while it may get some.
    pub privileged: RwLock<Option<bool>>,
}

/// How often syncing failed, and how the last time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SyncFailures {
    pub count: u64,
    pub last: Option<Errno>,
}

/// A leaf in a lower layer. Lower layers do not change, so its path is good for ever.
#[derive(Clone, Debug)]
pub(crate) struct LowerLeaf {
    /// Where it is. Immutable.
    pub at: LowerPlace,
    /// Links of the lower inode: above one, copy-up breaks the link and the inode number changes.
    pub hard_linked: bool,
    /// Append-only or immutable.
    pub protection: Protattr,
    /// Where its data lies, if not in itself.
    pub data: Option<Arc<LowerData>>,
}

/// How a leaf of a lower layer is reached.
#[derive(Clone, Debug)]
pub(crate) enum LowerPlace {
    /// By its name.
    Named { dir: Arc<LayerDir>, name: SharedName },
    /// By its file handle: no name of it is known (`nfs_export=on`).
    Handle(Box<HeldLower>),
}

/// A leaf of which only the handle is known.
#[derive(Clone, Debug)]
pub(crate) struct HeldLower {
    /// A layer on its file system.
    pub layer: u16,
    pub handle: FileHandle,
}

/// A leaf in upper.
#[derive(Debug)]
pub(crate) struct UpperLeaf {
    /// Inode number on the upper's file system.
    pub ino: u64,
    /// The upper object holds attributes only; its data is still the lower's. Goes from true to false, once.
    pub metacopy: AtomicBool,
    /// The name of its index entry, by which it is reached. Immutable.
    pub index: Option<Box<NameBuf>>,
    /// Append-only or immutable.
    pub protection: Protection,
}

impl LowerPlace {
    /// The layer that it is in.
    pub fn layer(&self) -> u16 {
        match self {
            Self::Named { dir, .. } => dir.layer,
            Self::Handle(held) => held.layer,
        }
    }
}

impl UpperLeaf {
    /// An upper object that holds its data.
    pub fn whole(ino: u64) -> Self {
        Self { ino, metacopy: AtomicBool::new(false), index: None, protection: Protection::default() }
    }
}

impl Node {
    /// A node with one name (none for the root) and no lookup yet.
    pub fn new(at: Slot, kind: FileKind, ino: u64, place: Option<Place>, body: Body) -> Self {
        Self {
            id: at.id,
            kind,
            slot: at.slot,
            ino: AtomicU64::new(ino),
            lookups: AtomicU64::new(0),
            places: Ordered::new(place.into_iter().collect()),
            copy_up: Ordered::new(()),
            body,
        }
    }

    pub fn ino(&self) -> u64 {
        self.ino.load(Ordering::Relaxed)
    }

    pub fn set_ino(&self, ino: u64) {
        self.ino.store(ino, Ordering::Relaxed);
    }

    /// The directory's part, or `None` for a leaf.
    pub fn as_dir(&self) -> Option<&DirBody> {
        match &self.body {
            Body::Dir(dir) => Some(dir),
            Body::Leaf(_) => None,
        }
    }

    pub fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir(_))
    }

    /// Whether the object (its metadata at least) lies in upper.
    pub fn in_upper(&self) -> bool {
        match &self.body {
            Body::Dir(dir) => dir.upper.get().is_some(),
            Body::Leaf(leaf) => leaf.upper.get().is_some(),
        }
    }

    /// A name of this node, one that stays if there is one; `None` for the root and for what was unlinked.
    pub fn place(&self) -> Option<Place> {
        let places = self.places.lock();
        places.iter().find(|place| !place.leaving).or_else(|| places.first()).cloned()
    }

    /// Whether this node is known under that name.
    pub fn has_place(&self, parent: NodeId, name: &[u8]) -> bool {
        self.places.lock().iter().any(|place| place.is(parent, name))
    }

    /// Notes that a name is about to go; true if none is left then that stays. Of several names that go at once, the
    /// last one asked for is the last one.
    pub fn start_leaving(&self, parent: NodeId, name: &[u8]) -> bool {
        let mut last = true;
        for place in self.places.lock().iter_mut() {
            if place.is(parent, name) {
                place.leaving = true;
            } else {
                last &= place.leaving;
            }
        }
        last
    }

    /// Takes [`start_leaving`](Self::start_leaving) back.
    pub fn stay(&self, parent: NodeId, name: &[u8]) {
        for place in self.places.lock().iter_mut().filter(|place| place.is(parent, name)) {
            place.leaving = false;
        }
    }

    /// Adds a name.
    pub fn add_place(&self, place: Place) {
        self.places.lock().push(place);
    }

    /// Takes a name away; says whether any known name is left.
    pub fn remove_place(&self, parent: NodeId, name: &[u8]) -> bool {
        let mut places = self.places.lock();
        places.retain(|place| !place.is(parent, name));
        !places.is_empty()
    }
}

impl Place {
    pub fn new(parent: Arc<Node>, name: SharedName) -> Self {
        Self { parent, name, leaving: false }
    }

    fn is(&self, parent: NodeId, name: &[u8]) -> bool {
        self.parent.id == parent && *self.name == *name
    }
}

impl Leaf {
    /// A leaf of a lower layer.
    pub fn lower(lower: LowerLeaf) -> Self {
        Self { lower: Some(lower), upper: OnceBox::new(), usage: OnceBox::new() }
    }

    /// A leaf of upper, with the lower object it was copied from or hides its metadata-only copy of.
    pub fn upper(upper: UpperLeaf, lower: Option<LowerLeaf>) -> Self {
        Self { lower, upper: OnceBox::with_value(Box::new(upper)), usage: OnceBox::new() }
    }

    /// What is known of its use.
    pub fn usage(&self) -> &Usage {
        self.usage.get_or_init(Box::default)
    }

    /// The descriptor that keeps it reachable without a name.
    pub fn orphan(&self) -> Option<&Arc<File>> {
        self.usage.get()?.orphan.get()
    }

    /// Whether a leaf without a place was removed: it lies below, and was found by a name once, or lost one since.
    pub fn lost_its_name(&self) -> bool {
        let held = |lower: &LowerLeaf| matches!(lower.at, LowerPlace::Handle(_));
        let removed = || self.usage.get().is_some_and(|usage| usage.name_removed.load(Ordering::Acquire));
        self.upper.get().is_none() && (!self.lower.as_ref().is_some_and(held) || removed())
    }

    /// Whether the data lies in upper too.
    pub fn data_in_upper(&self) -> bool {
        self.upper.get().is_some_and(|upper| !upper.metacopy.load(Ordering::Acquire))
    }
}
