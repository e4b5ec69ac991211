//! The table of open files.
//!
//! Owns the mapping from handle to open file. The kernel's counterpart is `struct ovl_file`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use plyfs_sys::File;

use crate::node::Node;
use crate::object::HandleId;

/// An open file of the merged view.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub node: Arc<Node>,
    /// Opened for writing.
    pub writes: bool,
    /// The real file; a lower one gives way to the upper one once the node was copied up.
    pub file: Mutex<Arc<File>>,
    /// The kernel reads the lower file by itself, so that it stays the one of this handle.
    pub stays_lower: AtomicBool,
    /// The failures to sync that this handle need not be told of any more.
    pub failures_told: AtomicU64,
}

/// All open files, by handle.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    open: RwLock<HashMap<u64, Arc<OpenFile>>>,
    next: AtomicU64,
}

impl Handles {
    pub fn insert(&self, file: OpenFile) -> HandleId {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().insert(id, Arc::new(file));
        HandleId(id)
    }

    pub fn get(&self, id: HandleId) -> Option<Arc<OpenFile>> {
        self.open.read().get(&id.0).cloned()
    }

    /// Whether the node is open for writing.
    pub fn is_written(&self, node: &Node) -> bool {
        self.open.read().values().any(|open| open.writes && open.node.id == node.id)
    }

    pub fn remove(&self, id: HandleId) -> Option<Arc<OpenFile>> {
        self.open.write().remove(&id.0)
    }
}
