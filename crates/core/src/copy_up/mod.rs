//! Copy-up: who and when. How is in `stage.rs` (temporary and commit), `data.rs` (bytes) and `meta.rs` (attributes).
//!
//! All or nothing: the copy is made in work and published by one link or rename; a crash at any point leaves the old
//! state or the new one. The kernel's counterpart is `copy_up.c`.

mod data;
mod meta;
mod stage;

use std::sync::Arc;

use crate::Result;
use crate::node::{Body, Node, Place};
use crate::overlay::{Overlay, Stale};

/// How much of an object must be in upper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Depth {
    /// The object with its attributes; its data may stay below where metacopy allows it.
    Metadata,
    /// The data too, but no more than the first `keep` bytes of it.
    Data { keep: u64 },
}

impl Depth {
    /// All of the data.
    pub const ALL: Self = Self::Data { keep: u64::MAX };
}

impl Overlay {
    /// Sees to it that a node is in upper, with all its ancestors.
    ///
    /// Must not be called while a `change` lock is held.
    pub(crate) fn ensure(&self, node: &Arc<Node>, depth: Depth) -> Result<()> {
        self.require_upper()?;
        if is_there(node, depth) {
            return Ok(());
        }
        for ancestor in self.missing_ancestors(node).iter().rev() {
            self.ensure_one(ancestor, Depth::Metadata)?;
            self.tell(Stale::Attributes(ancestor.id));
        }
        let (new, ino) = (!node.in_upper(), node.ino());
        self.ensure_one(node, depth)?;
        if new {
            self.tell(Stale::Attributes(node.id));
        }
        if node.ino() != ino
            && let Some(place) = node.place()
        {
            self.tell(Stale::Listing(place.parent.id));
        }
        Ok(())
    }

    /// The ancestors that are not in upper, the nearest first.
    fn missing_ancestors(&self, node: &Node) -> Vec<Arc<Node>> {
        let mut missing = Vec::new();
        let mut place = node.place();
        while let Some(Place { parent, .. }) = place {
            if parent.in_upper() {
                break;
            }
            place = parent.place();
            missing.push(parent);
        }
        missing
    }

    fn ensure_one(&self, node: &Arc<Node>, depth: Depth) -> Result<()> {
        let _this_one = node.copy_up.lock();
        if is_there(node, depth) {
            return Ok(());
        }
        let done = match &node.body {
            Body::Dir(dir) => self.copy_up_directory(node, dir),
            Body::Leaf(leaf) if leaf.upper.get().is_some() => self.complete_metacopy(node, leaf, depth),
            Body::Leaf(leaf) => self.copy_up_leaf(node, leaf, depth),
        };
        if let Err(error) = &done {
            tracing::debug!(node = node.id.0, %error, "copy-up failed");
        }
        done
    }
}

fn is_there(node: &Node, depth: Depth) -> bool {
    match (&node.body, depth) {
        (Body::Leaf(leaf), Depth::Data { .. }) => leaf.data_in_upper(),
        _ => node.in_upper(),
    }
}
