//! Hard links.
//!
//! The kernel's counterpart is `ovl_link`.

use std::sync::Arc;

use plyfs_format::Name;
use plyfs_sys::{DirMut, Errno, RenameFlags};

use crate::Result;
use crate::copy_up::Depth;
use crate::create::Free;
use crate::lookup::check_name;
use crate::node::{Body, Leaf, Node, SharedName};
use crate::object::{Entry, NodeId};
use crate::overlay::Overlay;
use crate::upper::Upper;
use crate::whiteout;

impl Overlay {
    /// Gives a node a further name; the object is copied up first.
    ///
    /// # Errors
    /// `EROFS` without an upper; `EPERM` for a directory; `EEXIST`; `EINVAL` for a reserved name; what the upper answers.
    pub fn link(&self, node: NodeId, parent: NodeId, name: &[u8]) -> Result<Entry> {
        let node = self.node(node)?;
        let parent = self.dir_node(parent)?;
        let upper = self.require_upper()?;
        check_name(name)?;
        let checked = Name::new(name).map_err(|_| Errno::INVAL)?;
        let Body::Leaf(leaf) = &node.body else { return Err(Errno::PERM) };
        if whiteout::is_reserved(checked) {
            return Err(Errno::INVAL);
        }
        self.may_alter(&node)?;
        self.ensure(&node, Depth::Metadata)?;
        self.ensure(&parent, Depth::Metadata)?;
        self.may_add_names(&parent)?;
        self.redirect_metacopy(&node, leaf, false, || self.upper_object(&node))?;
        // Opened before the parent is locked: it may have to wait for a rename.
        let object = self.upper_object(&node)?;
        let crate::upper::UpperObject::Leaf(file) = object else { return Err(Errno::PERM) };
        let dir = parent.as_dir().ok_or(Errno::NOTDIR)?;
        let shared: SharedName = name.into();
        let _change = dir.change.lock();
        let fd = self.upper_dir(&parent)?;
        let free = self.check_free(&parent, dir, &fd, &shared)?;
        if self.has_origin(&node, leaf) {
            self.mark_impure(&parent)?;
        }
        let _index = self.features.index.then(|| upper.index_changes.lock());
        self.own_count(&node)?;
        link_at(upper, &file, &fd, checked, free == Free::Whiteout)?;
        let stat = file.stat()?;
        self.table.add_link(self.link_key(stat.ino, node.ino()), node.id);
        let mut state = dir.state.lock();
        state.changed();
        self.list_upper(&mut state, &shared, &stat);
        self.attach(&parent, &mut state, &shared, &node);
        node.lookups.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(self.entry(&node, &stat))
    }

    /// Whether an upper leaf records a lower object that it was copied from.
    pub(crate) fn has_origin(&self, node: &Arc<Node>, leaf: &Leaf) -> bool {
        match (&leaf.lower, leaf.upper.get()) {
            (Some(lower), Some(upper)) if !lower.hard_linked || upper.index.is_some() => true,
            (_, Some(upper)) => node.ino() != self.upper_ino(upper.ino),
            _ => false,
        }
    }
}

fn link_at(
    upper: &Upper,
    file: &plyfs_sys::File,
    dir: &DirMut,
    name: Name<'_>,
    over_whiteout: bool,
) -> Result<()> {
    if !over_whiteout {
        return upper.link_file(file, dir, name);
    }
    let temporary = upper.temporary_name()?;
    upper.link_file(file, &upper.work, temporary.as_name())?;
    let renamed = upper.rename(&upper.work, temporary.as_name(), dir, name, RenameFlags::empty());
    if renamed.is_err() {
        upper.discard(temporary.as_name());
    }
    renamed
}
