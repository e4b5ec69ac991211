//! Removing files and directories: from upper, by a whiteout, or both at once. Nothing is ever copied up to be deleted.
//!
//! The kernel's counterparts are `ovl_remove_upper` and `ovl_remove_and_whiteout`.

use std::sync::Arc;

use plyfs_format::Name;
use plyfs_sys::{DirMut, Errno, RenameFlags};

use crate::Result;
use crate::copy_up::Depth;
use crate::directory::{DirBody, lock_changes};
use crate::lookup::check_name;
use crate::node::{Body, Leaf, LowerPlace, Node, SharedName};
use crate::object::NodeId;
use crate::overlay::Overlay;
use crate::upper::{Upper, WhiteoutForm};

impl Overlay {
    /// Removes a name of anything but a directory.
    ///
    /// # Errors
    /// `EROFS` without an upper; `ENOENT`; `EISDIR`; what the upper answers.
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        self.remove(parent, name, |node| if node.is_dir() { Err(Errno::ISDIR) } else { Ok(()) })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `EROFS` without an upper; `ENOENT`; `ENOTDIR`; `ENOTEMPTY`; what the upper answers.
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        self.remove(parent, name, |node| if node.is_dir() { Ok(()) } else { Err(Errno::NOTDIR) })
    }

    fn remove(&self, parent: NodeId, name: &[u8], check: impl Fn(&Node) -> Result<()>) -> Result<()> {
        let parent = self.dir_node(parent)?;
        self.require_upper()?;
        check_name(name)?;
        loop {
            let node = match self.known_child(&parent, name) {
                Some(node) => node,
                None => self.lookup_node(&parent, name)?.ok_or(Errno::NOENT)?.0,
            };
            let removed = check(&node).and_then(|()| self.remove_node(&parent, name, &node));
            self.release_lookups(node, 1);
            if removed? {
                return Ok(());
            }
        }
    }

    /// Removes the node's name; false if it lost it meanwhile, so that the name must be looked up again.
    fn remove_node(&self, parent: &Arc<Node>, name: &[u8], node: &Arc<Node>) -> Result<bool> {
        let upper = self.require_upper()?;
        if let Body::Dir(body) = &node.body
            && !self.is_empty(node, body)?
        {
            // Before the parent is copied up for nothing.
            return Err(Errno::NOTEMPTY);
        }
        self.ensure(parent, Depth::Metadata)?;
        self.may_alter(parent)?;
        self.may_alter(node)?;
        self.ensure_indexed(node)?;
        let dir = parent.as_dir().ok_or(Errno::NOTDIR)?;
        let shared: SharedName = name.into();
        let _changes = lock_changes([parent, node]);
        if !node.has_place(parent.id, name) {
            return Ok(false);
        }
        let _index = self.features.index.then(|| upper.index_changes.lock());
        self.own_alias(parent, name, node)?;
        let removed = match &node.body {
            Body::Leaf(leaf) => self.remove_leaf(parent, dir, &shared, node, leaf),
            Body::Dir(body) if !self.is_empty(node, body)? => Err(Errno::NOTEMPTY),
            Body::Dir(body) => {
                body.state.lock().retire();
                self.remove_directory(parent, dir, &shared, node)
            }
        };
        if removed.is_err() {
            self.undo_leaving(parent, name, node);
        }
        removed?;
        self.retire_entry(node);
        self.forget_name(parent, dir, name, node);
        Ok(true)
    }

    /// After a removal that failed: the name stays.
    pub(crate) fn undo_leaving(&self, parent: &Node, name: &[u8], node: &Node) {
        node.stay(parent.id, name);
        if let Some(dir) = node.as_dir() {
            dir.state.lock().revive();
        }
        if let Some(dir) = parent.as_dir() {
            dir.state.lock().distrust();
        }
    }

    /// Takes a removed name out of what is known.
    pub(crate) fn forget_name(&self, parent: &Arc<Node>, dir: &DirBody, name: &[u8], node: &Node) {
        let mut state = dir.state.lock();
        state.changed();
        self.unlist(&mut state, name);
        self.detach(parent, &mut state, name, node);
    }

    fn remove_leaf(
        &self,
        parent: &Arc<Node>,
        dir: &DirBody,
        name: &SharedName,
        node: &Node,
        leaf: &Leaf,
    ) -> Result<()> {
        let upper = self.require_upper()?;
        let fd = self.upper_dir(parent)?;
        let checked = Name::new(name).map_err(|_| Errno::INVAL)?;
        let lower = shows_own_lower(dir, name, leaf) || self.lower_has(dir, name)?;
        if lower {
            self.expect_marks(upper, dir);
        }
        if leaf.upper.get().is_none() {
            return upper.whiteout(&fd, checked);
        }
        self.keep_reachable(parent.id, &fd, checked, node, leaf)?;
        if lower { whiteout_over(upper, &fd, checked) } else { upper.unlink(&fd, checked) }
    }

    /// Keeps an upper leaf reachable for those who have it open, once its last known name is gone.
    pub(crate) fn keep_reachable(
        &self,
        parent: NodeId,
        fd: &DirMut,
        name: Name<'_>,
        node: &Node,
        leaf: &Leaf,
    ) -> Result<()> {
        let last = node.start_leaving(parent, name.as_bytes());
        if last && leaf.upper.get().is_some() && leaf.orphan().is_none() {
            let file = Arc::new(fd.open_path_mut(name)?);
            leaf.usage().orphan.get_or_init(|| file);
        }
        Ok(())
    }

    fn remove_directory(
        &self,
        parent: &Arc<Node>,
        dir: &DirBody,
        name: &SharedName,
        node: &Arc<Node>,
    ) -> Result<()> {
        let upper = self.require_upper()?;
        let fd = self.upper_dir(parent)?;
        let checked = Name::new(name).map_err(|_| Errno::INVAL)?;
        let lower = self.lower_has(dir, name)?;
        if lower {
            self.expect_marks(upper, dir);
        }
        if !node.in_upper() {
            return upper.whiteout(&fd, checked);
        }
        self.keep_directory(node)?;
        match (lower, upper.abilities.whiteouts) {
            (true, WhiteoutForm::Device) => {
                let whiteout = upper.staged_whiteout()?;
                exchange_and_clear(upper, whiteout.as_name(), &fd, checked)
            }
            (true, WhiteoutForm::Named) => {
                upper.whiteout_mark(&fd, checked)?;
                remove_upper_directory(upper, &fd, checked)
            }
            (false, _) => remove_upper_directory(upper, &fd, checked),
        }
    }

    /// Notes that a directory is about to get a `.wh.` file, where whiteouts are made so.
    pub(crate) fn expect_marks(&self, upper: &Upper, dir: &DirBody) {
        if upper.abilities.whiteouts == WhiteoutForm::Named
            && let Some(state) = dir.upper.get()
        {
            state.oci_marks.expect();
        }
    }

    /// Keeps the descriptor of a directory that loses its name.
    pub(crate) fn keep_directory(&self, node: &Arc<Node>) -> Result<()> {
        let fd = self.upper_dir(node)?;
        if let Some(state) = node.as_dir().and_then(|dir| dir.upper.get()) {
            state.removed.get_or_init(|| fd);
        }
        Ok(())
    }
}

/// Puts a whiteout in the place of an upper leaf, at once. A mark is there before the leaf goes, so that what is below never
/// shows.
pub(crate) fn whiteout_over(upper: &Upper, fd: &DirMut, name: Name<'_>) -> Result<()> {
    if upper.abilities.whiteouts == WhiteoutForm::Named {
        upper.whiteout_mark(fd, name)?;
        return upper.unlink(fd, name);
    }
    let whiteout = upper.staged_whiteout()?;
    let renamed = upper.rename(&upper.work, whiteout.as_name(), fd, name, RenameFlags::empty());
    if renamed.is_err() {
        upper.discard(whiteout.as_name());
    }
    renamed
}

/// Exchanges a whiteout in work with an upper directory, which is then cleared away in work.
pub(crate) fn exchange_and_clear(
    upper: &Upper,
    whiteout: Name<'_>,
    fd: &DirMut,
    name: Name<'_>,
) -> Result<()> {
    let exchanged = upper.rename(&upper.work, whiteout, fd, name, RenameFlags::EXCHANGE);
    upper.discard(whiteout);
    exchanged
}

/// Removes a directory of upper that shows nothing, though it may hold whiteouts.
fn remove_upper_directory(upper: &Upper, fd: &DirMut, name: Name<'_>) -> Result<()> {
    match upper.rmdir(fd, name) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        done => return done,
    }
    let temporary = upper.temporary_name()?;
    upper.rename(fd, name, &upper.work, temporary.as_name(), RenameFlags::NOREPLACE)?;
    upper.discard(temporary.as_name());
    Ok(())
}

/// Whether the leaf's own lower object is what the name covers: then no layer needs to be asked.
fn shows_own_lower(dir: &DirBody, name: &SharedName, leaf: &Leaf) -> bool {
    leaf.lower.as_ref().is_some_and(|lower| match &lower.at {
        LowerPlace::Named { dir: own, name: lower } => {
            **lower == **name && dir.lowers.iter().any(|layer| Arc::ptr_eq(layer, own))
        }
        LowerPlace::Handle(_) => false,
    })
}
