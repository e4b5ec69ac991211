//! Renaming: a plan, then its execution by one rename.
//!
//! What needs time (copy-up, reading whether a directory is empty) happens before the directories are locked. The
//! kernel's counterpart is `ovl_rename`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::{Name, NameBuf, Private};
use plyfs_sys::{DirMut, Errno, RenameFlags};

use crate::Result;
use crate::copy_up::Depth;
use crate::directory::{DirBody, lock_changes};
use crate::lock::{self, WriteGuard};
use crate::lookup::check_name;
use crate::node::{Body, Node, SharedName};
use crate::object::NodeId;
use crate::overlay::Overlay;
use crate::upper::{New, Upper, UpperObject, WhiteoutForm};
use crate::whiteout;

/// One end of a rename.
struct End {
    parent: Arc<Node>,
    name: SharedName,
    /// What has the name; counted as a lookup.
    node: Option<Arc<Node>>,
    /// Of the parent's names, before `node` was looked up.
    generation: u64,
}

type TreeGuard<'a> = WriteGuard<'a, { lock::TREE }, ()>;

impl Overlay {
    /// Renames, replaces or exchanges, with the flags of `renameat2(2)`.
    ///
    /// # Errors
    /// `EROFS` without an upper; `EINVAL` for flags other than `RENAME_NOREPLACE` and `RENAME_EXCHANGE`; `EXDEV` for a
    /// directory with lower content where redirects are off; what `rename(2)` answers.
    pub fn rename(
        &self,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        self.require_upper()?;
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        loop {
            let old = self.end(parent, name)?;
            let new = match self.end(new_parent, new_name) {
                Ok(new) => new,
                Err(error) => {
                    self.drop_end(old);
                    return Err(error);
                }
            };
            let renamed = self.rename_ends(&old, &new, flags);
            self.drop_end(old);
            self.drop_end(new);
            if renamed? {
                return Ok(());
            }
        }
    }

    fn end(&self, parent: NodeId, name: &[u8]) -> Result<End> {
        let parent = self.dir_node(parent)?;
        check_name(name)?;
        let generation = parent.as_dir().ok_or(Errno::NOTDIR)?.state.lock().generation;
        let node = match self.known_child(&parent, name) {
            Some(node) => Some(node),
            None if was_absent(&parent, self.table.hash_name(name)) => None,
            None => self.lookup_node(&parent, name)?.map(|(node, _)| node),
        };
        Ok(End { parent, name: name.into(), node, generation })
    }

    fn drop_end(&self, end: End) {
        if let Some(node) = end.node {
            self.release_lookups(node, 1);
        }
    }

    /// Renames; false if one of the names came to mean something else meanwhile, so that both must be looked up again.
    fn rename_ends(&self, old: &End, new: &End, flags: RenameFlags) -> Result<bool> {
        let upper = self.require_upper()?;
        let moved = old.node.as_ref().ok_or(Errno::NOENT)?;
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if !self.check_ends(old, new, moved, flags)? {
            return Ok(true);
        }
        self.ensure(moved, Depth::Metadata)?;
        // A file of several names may have been copied up by another of them.
        self.ensure(&old.parent, Depth::Metadata)?;
        self.ensure(&new.parent, Depth::Metadata)?;
        if let Some(other) = new.node.as_ref().filter(|_| exchange) {
            self.ensure(other, Depth::Metadata)?;
        }
        let replaced = new.node.as_ref().filter(|_| !exchange);
        for node in [Some(moved), new.node.as_ref(), Some(&old.parent)].into_iter().flatten() {
            self.may_alter(node)?;
        }
        self.may_add_names(&new.parent)?;
        if let Some(replaced) = replaced {
            self.ensure_indexed(replaced)?;
        }
        let _changes = lock_changes([&old.parent, &new.parent].into_iter().chain(replaced));
        for end in [old, new] {
            if end.dir()?.state.lock().removed {
                return Err(Errno::NOENT);
            }
            if end.node.as_ref().is_some_and(|node| !node.has_place(end.parent.id, &end.name)) {
                return Ok(false);
            }
        }
        let _index = self.features.index.then(|| upper.index_changes.lock());
        for end in [old, new] {
            if let Some(node) = &end.node {
                self.own_alias(&end.parent, &end.name, node)?;
            }
        }
        match new.node.as_ref() {
            Some(other) if exchange => self.exchange(old, new, moved, other)?,
            None if !self.is_still_free(new)? => return Ok(false),
            other => self.replace(old, new, moved, other)?,
        }
        Ok(true)
    }

    /// Whether a name that meant nothing when it was looked up still does; its parent is locked.
    fn is_still_free(&self, new: &End) -> Result<bool> {
        let dir = new.dir()?;
        if dir.state.lock().generation == new.generation {
            return Ok(true);
        }
        let fd = self.upper_dir(&new.parent)?;
        match self.check_free(&new.parent, dir, &fd, &new.name) {
            Ok(_) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Refuses what cannot be; false if there is nothing to do.
    fn check_ends(&self, old: &End, new: &End, moved: &Arc<Node>, flags: RenameFlags) -> Result<bool> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        match &new.node {
            None if exchange => return Err(Errno::NOENT),
            Some(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(Errno::EXIST),
            Some(other) if Arc::ptr_eq(other, moved) => return Ok(false),
            Some(other) if !exchange && moved.is_dir() && !other.is_dir() => return Err(Errno::NOTDIR),
            Some(other) if !exchange && !moved.is_dir() && other.is_dir() => return Err(Errno::ISDIR),
            _ => {}
        }
        if whiteout::is_reserved(Name::new(&new.name).map_err(|_| Errno::INVAL)?) {
            return Err(Errno::INVAL);
        }
        let same_parent = old.parent.id == new.parent.id;
        let movers = [Some(moved), new.node.as_ref().filter(|_| exchange)];
        for node in movers.into_iter().flatten() {
            let Some(dir) = node.as_dir() else { continue };
            if !dir.lowers.is_empty() && !self.features.redirect_dir {
                return Err(Errno::XDEV);
            }
        }
        if !same_parent && moved.is_dir() && is_below(&new.parent, moved) {
            return Err(Errno::INVAL);
        }
        if let Some(replaced) = new.node.as_ref().filter(|_| !exchange)
            && let Body::Dir(dir) = &replaced.body
            && !dir.lowers.is_empty()
            && !self.is_empty(replaced, dir)?
        {
            // Before anything is copied up for nothing. Of a directory of upper alone the rename itself says it.
            return Err(Errno::NOTEMPTY);
        }
        Ok(true)
    }

    fn replace(&self, old: &End, new: &End, moved: &Arc<Node>, other: Option<&Arc<Node>>) -> Result<()> {
        let prepared = match other {
            Some(other) => self.prepare_target(new, other),
            None => Ok(None),
        };
        let emptied = prepared.as_ref().ok().and_then(Option::clone);
        match prepared.and_then(|_| self.rename_over(old, new, moved)) {
            Ok(tree) => {
                if let Some(other) = other {
                    self.retire_entry(other);
                    self.forget_name(&new.parent, new.dir()?, &new.name, other);
                }
                self.move_name(old, new, moved)?;
                drop(tree);
                if let Some(emptied) = emptied {
                    self.require_upper()?.discard(emptied.as_name());
                }
                Ok(())
            }
            Err(error) => {
                if let Some(emptied) = emptied {
                    self.put_back(new, emptied.as_name());
                }
                if let Some(other) = other {
                    self.undo_leaving(&new.parent, &new.name, other);
                }
                Err(error)
            }
        }
    }

    /// The rename itself, with whatever has the new name. Until the nodes have their new names, nobody may rebuild a path:
    /// the lock is returned.
    fn rename_over(&self, old: &End, new: &End, moved: &Arc<Node>) -> Result<Option<TreeGuard<'_>>> {
        let upper = self.require_upper()?;
        self.prepare_move(old, new, moved)?;
        let (from, to) = (self.upper_dir(&old.parent)?, self.upper_dir(&new.parent)?);
        let (old_name, new_name) = (old.checked()?, new.checked()?);
        let leaves_whiteout = self.lower_has(old.dir()?, &old.name)?;
        if leaves_whiteout {
            self.expect_marks(upper, old.dir()?);
        }
        let over_whiteout = !was_absent(&new.parent, self.table.hash_name(&new.name))
            && match to.stat_at(new_name) {
                Ok(stat) => stat.is_whiteout(),
                Err(Errno::NOENT) => false,
                Err(error) => return Err(error),
            };
        let tree = moved.is_dir().then(|| self.tree.write());
        if over_whiteout && (leaves_whiteout || moved.is_dir()) {
            // The whiteout goes where the source was, and from there if nothing is to be hidden.
            upper.rename(&from, old_name, &to, new_name, RenameFlags::EXCHANGE)?;
            if !leaves_whiteout && let Err(error) = upper.unlink(&from, old_name) {
                tracing::warn!(%error, "a needless whiteout stays");
            }
        } else if leaves_whiteout {
            rename_with_whiteout(upper, &from, old_name, &to, new_name)?;
        } else {
            upper.rename(&from, old_name, &to, new_name, RenameFlags::empty())?;
        }
        Ok(tree)
    }

    /// Makes what is to be replaced replaceable: a directory that only holds whiteouts is emptied (what was there is
    /// then in work, under the returned name), and whoever has it open keeps it.
    fn prepare_target(&self, new: &End, other: &Arc<Node>) -> Result<Option<NameBuf>> {
        let fd = self.upper_dir(&new.parent)?;
        match &other.body {
            Body::Leaf(leaf) => {
                self.keep_reachable(new.parent.id, &fd, new.checked()?, other, leaf)?;
                Ok(None)
            }
            Body::Dir(dir) => {
                if !self.is_empty(other, dir)? {
                    return Err(Errno::NOTEMPTY);
                }
                dir.state.lock().retire();
                if !other.in_upper() {
                    return Ok(None);
                }
                self.keep_directory(other)?;
                let target = self.upper_dir(other)?;
                if target.list()?.is_empty()? {
                    return Ok(None);
                }
                self.exchange_with_empty(new, &target).map(Some)
            }
        }
    }

    /// Puts an empty opaque directory of the same attributes in the place of one that holds whiteouts.
    fn exchange_with_empty(&self, new: &End, target: &Arc<DirMut>) -> Result<NameBuf> {
        let upper = self.require_upper()?;
        let fd = self.upper_dir(&new.parent)?;
        let temporary = upper.temporary_name()?;
        upper.create_as_mounter(&upper.work, temporary.as_name(), 0o700, New::Dir)?;
        let swap = || -> Result<()> {
            let empty = UpperObject::Dir(Arc::new(upper.work.child_mut(temporary.as_name())?));
            self.copy_upper_metadata(target, &empty)?;
            self.set_private(&empty, Private::Opaque, b"y")?;
            upper.rename(&upper.work, temporary.as_name(), &fd, new.checked()?, RenameFlags::EXCHANGE)
        };
        if let Err(error) = swap() {
            upper.discard(temporary.as_name());
            return Err(error);
        }
        Ok(temporary)
    }

    /// Undoes [`exchange_with_empty`](Self::exchange_with_empty).
    fn put_back(&self, new: &End, emptied: Name<'_>) {
        let Some(upper) = &self.upper else { return };
        let back = self
            .upper_dir(&new.parent)
            .and_then(|fd| upper.rename(&upper.work, emptied, &fd, new.checked()?, RenameFlags::EXCHANGE));
        if let Err(error) = back {
            tracing::error!(%error, "an empty directory lost its whiteouts; it is opaque on disk");
        }
        upper.discard(emptied);
    }

    fn exchange(&self, old: &End, new: &End, moved: &Arc<Node>, other: &Arc<Node>) -> Result<()> {
        let upper = self.require_upper()?;
        self.prepare_move(old, new, moved)?;
        self.prepare_move(new, old, other)?;
        let (from, to) = (self.upper_dir(&old.parent)?, self.upper_dir(&new.parent)?);
        let _tree = (moved.is_dir() || other.is_dir()).then(|| self.tree.write());
        upper.rename(&from, old.checked()?, &to, new.checked()?, RenameFlags::EXCHANGE)?;
        self.give_name(new, moved)?;
        self.give_name(old, other)?;
        self.take_name(old, moved)?;
        self.take_name(new, other)
    }

    /// Records what must be on disk before the move: redirect or opaque mark, and the target's impurity.
    fn prepare_move(&self, from: &End, to: &End, node: &Arc<Node>) -> Result<()> {
        let same_parent = from.parent.id == to.parent.id;
        let has_origin = match &node.body {
            Body::Dir(dir) => !dir.lowers.is_empty(),
            Body::Leaf(leaf) => self.has_origin(node, leaf),
        };
        if !same_parent && has_origin {
            self.mark_impure(&to.parent)?;
        }
        match &node.body {
            Body::Leaf(leaf) => self.redirect_metacopy(node, leaf, same_parent, || {
                let object = self.upper_dir(&from.parent)?.open_path_mut(from.checked()?)?;
                Ok(UpperObject::Leaf(Arc::new(object)))
            }),
            Body::Dir(dir) if !dir.lowers.is_empty() => self.redirect_directory(node, dir, same_parent),
            Body::Dir(dir) if !to.dir()?.lowers.is_empty() => self.make_opaque(node, dir),
            Body::Dir(_) => Ok(()),
        }
    }

    /// A directory without lower content must hide what its new place may show.
    fn make_opaque(&self, node: &Arc<Node>, dir: &DirBody) -> Result<()> {
        let state = dir.upper.get().ok_or(Errno::IO)?;
        if state.opaque.load(Ordering::Acquire) {
            return Ok(());
        }
        let object = UpperObject::Dir(self.upper_dir(node)?);
        self.set_private(&object, Private::Opaque, b"y").map_err(|_| Errno::XDEV)?;
        state.opaque.store(true, Ordering::Release);
        Ok(())
    }

    /// Gives the node its new name before it loses the old one: it must not be without any in between, as if it had been
    /// removed.
    fn move_name(&self, old: &End, new: &End, node: &Arc<Node>) -> Result<()> {
        self.give_name(new, node)?;
        self.forget_name(&old.parent, old.dir()?, &old.name, node);
        Ok(())
    }

    fn give_name(&self, end: &End, node: &Arc<Node>) -> Result<()> {
        let mut state = end.dir()?.state.lock();
        state.changed();
        self.list_moved(&mut state, &end.name, node);
        self.attach(&end.parent, &mut state, &end.name, node);
        Ok(())
    }

    /// Takes a name away that another node has now.
    fn take_name(&self, end: &End, node: &Arc<Node>) -> Result<()> {
        let mut state = end.dir()?.state.lock();
        state.changed();
        self.detach(&end.parent, &mut state, &end.name, node);
        Ok(())
    }
}

impl End {
    fn dir(&self) -> Result<&DirBody> {
        self.parent.as_dir().ok_or(Errno::NOTDIR)
    }

    fn checked(&self) -> Result<Name<'_>> {
        Name::new(&self.name).map_err(|_| Errno::INVAL)
    }
}

/// Moves and leaves a whiteout behind, at once where the file system can.
fn rename_with_whiteout(
    upper: &Upper,
    from: &DirMut,
    old: Name<'_>,
    to: &DirMut,
    new: Name<'_>,
) -> Result<()> {
    if upper.abilities.whiteouts == WhiteoutForm::Named {
        // What upper has still shows beside the mark, so an end between the two steps leaves the old state.
        upper.whiteout_mark(from, old)?;
        return upper.rename(from, old, to, new, RenameFlags::empty());
    }
    if upper.abilities.rename_whiteout {
        return upper.rename(from, old, to, new, RenameFlags::WHITEOUT);
    }
    upper.rename(from, old, to, new, RenameFlags::empty())?;
    upper.whiteout(from, old)
}

/// Whether the name was just found absent, in upper too.
fn was_absent(parent: &Node, hash: u64) -> bool {
    parent.as_dir().is_some_and(|dir| dir.state.lock().absent == Some(hash))
}

/// Whether a directory lies beneath another.
fn is_below(node: &Arc<Node>, above: &Arc<Node>) -> bool {
    let mut here = Some(Arc::clone(node));
    while let Some(node) = here {
        if Arc::ptr_eq(&node, above) {
            return true;
        }
        here = node.place().map(|place| place.parent);
    }
    false
}
