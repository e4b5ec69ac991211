//! Attributes: what `stat` reports, and their changes.
//!
//! Owns the composition of a node's attributes from the layers. The kernel's counterparts are `ovl_getattr` and
//! `ovl_setattr`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::{Name, Private};
use plyfs_sys::{Errno, File, FileKind, Stat, Times, Timestamp, XattrFlags};

use crate::Result;
use crate::copy_up::Depth;
use crate::node::{Body, Leaf, Node};
use crate::object::{Attr, Caller, HandleId, NodeId, SetAttr, StatFs, Time, TimeSet};
use crate::overlay::Overlay;
use crate::upper::UpperObject;

impl Overlay {
    /// The attributes of a node.
    ///
    /// # Errors
    /// `ESTALE` for an unknown node; what the layer answers.
    pub fn getattr(&self, node: NodeId, _handle: Option<HandleId>) -> Result<Attr> {
        let node = self.node(node)?;
        let stat = self.stat_node(&node)?;
        Ok(self.compose(&node, &stat))
    }

    /// Changes attributes; the object is copied up first.
    ///
    /// # Errors
    /// `EROFS` without an upper; what the layer answers.
    pub fn setattr(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: Option<HandleId>,
        set: &SetAttr,
    ) -> Result<Attr> {
        let node = self.node(node)?;
        let upper = self.require_upper()?;
        self.may_change(&node, set)?;
        let depth = match set.size {
            Some(size) => Depth::Data { keep: size },
            None => Depth::Metadata,
        };
        // Where truncate(2), unlike ftruncate(2), changes no size, the file system decides about the times. After copy-up,
        // which copies no more than is kept, it would be too late to ask.
        let keeps_size =
            handle.is_none() && set.size.is_some() && set.size == Some(self.stat_node(&node)?.size);
        if set.changes_nothing() {
            self.check_may_strip(&node, caller)?;
        }
        self.ensure(&node, depth)?;
        let object = self.upper_object(&node)?;
        let changed = match set.size.filter(|_| keeps_size) {
            Some(size) => self.truncate_to_same(&node, size)?,
            None => true,
        };
        if changed {
            self.settle_privileges(&node, &object, caller, set)?;
        }
        if let Some(size) = set.size.filter(|_| !keeps_size) {
            self.set_size(&node, handle, size)?;
        }
        let may_gain = set.mode.is_some_and(|mode| mode & (S_ISUID | S_ISGID) != 0);
        gaining_privileges(&node, may_gain, || {
            self.change_owner(&object, self.show.owner_change(set)?, set.mode.map(|mode| mode & 0o7777))
        })?;
        if set.atime.is_some() || set.mtime.is_some() {
            upper.utimens(&object, Times { atime: to_sys(set.atime), mtime: to_sys(set.mtime) })?;
        }
        let stat = object.stat()?;
        Ok(self.compose(&node, &self.with_data_blocks(&node, stat)?))
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` for what is no link; what the layer answers.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        let Body::Leaf(leaf) = &node.body else { return Err(Errno::INVAL) };
        if node.kind != FileKind::Symlink {
            return Err(Errno::INVAL);
        }
        if node.in_upper() {
            return match self.upper_object(&node)? {
                UpperObject::Leaf(link) => plyfs_sys::readlink_self(&*link),
                UpperObject::Dir(_) => Err(Errno::INVAL),
            };
        }
        let lower = leaf.lower.as_ref().ok_or(Errno::IO)?;
        self.lower_at(lower)?.readlink()
    }

    /// What the file system holds and has left: the upper's, or the topmost layer's.
    ///
    /// # Errors
    /// What the layer answers.
    pub fn statfs(&self) -> Result<StatFs> {
        let stat = match (&self.upper, self.lowers.first()) {
            (Some(upper), _) => upper.root.statfs()?,
            (None, Some(lower)) => lower.root.statfs()?,
            (None, None) => return Err(Errno::IO),
        };
        Ok(StatFs {
            bsize: stat.bsize,
            frsize: stat.frsize,
            blocks: stat.blocks,
            bfree: stat.bfree,
            bavail: stat.bavail,
            files: stat.files,
            ffree: stat.ffree,
            namelen: u32::try_from(stat.namemax).unwrap_or(255),
        })
    }

    /// The attributes of the object that bears the node's metadata.
    pub(crate) fn stat_node(&self, node: &Node) -> Result<Stat> {
        match &node.body {
            Body::Dir(dir) => match dir.upper.get() {
                Some(_) => self.upper_dir(node)?.stat(),
                None => self.lower_dir(dir.lowers.first().ok_or(Errno::IO)?)?.stat(),
            },
            Body::Leaf(leaf) if leaf.upper.get().is_some() => {
                let stat = self.stat_upper_leaf(node, leaf)?;
                self.with_data_blocks(node, stat)
            }
            Body::Leaf(leaf) => {
                let lower = leaf.lower.as_ref().ok_or(Errno::IO)?;
                let stat = self.lower_at(lower)?.stat()?;
                self.with_data_blocks(node, stat)
            }
        }
    }

    /// What `stat` reports for a node whose object has these attributes.
    pub(crate) fn compose(&self, node: &Node, stat: &Stat) -> Attr {
        let nlink = match &node.body {
            Body::Dir(dir) if dir.is_merged() => 1,
            // Its lower object keeps its links; here it has none.
            Body::Leaf(leaf) if leaf.lost_its_name() && node.place().is_none() => 0,
            _ => stat.nlink,
        };
        let mut attr = Attr {
            ino: node.ino(),
            mode: stat.mode,
            nlink,
            uid: stat.uid,
            gid: stat.gid,
            rdev: (stat.rdev_major, stat.rdev_minor),
            size: stat.size,
            blocks: stat.blocks,
            blksize: stat.blksize,
            atime: to_time(stat.atime),
            mtime: to_time(stat.mtime),
            ctime: to_time(stat.ctime),
            btime: stat.btime.map(to_time),
            cacheable: true,
        };
        self.present(node, stat, &mut attr);
        if let Body::Leaf(leaf) = &node.body
            && leaf.index_entry().is_some()
        {
            match self.upper_object(node).and_then(|object| self.union_nlink(leaf, &object)) {
                Ok(count) => attr.nlink = count,
                Err(error) => tracing::debug!(%error, "the link count of an indexed file"),
            }
        }
        attr
    }

    /// The upper object of a node, for reading and changing its metadata. The node must be in upper.
    pub(crate) fn upper_object(&self, node: &Node) -> Result<UpperObject> {
        match &node.body {
            Body::Dir(_) => self.upper_dir(node).map(UpperObject::Dir),
            Body::Leaf(leaf) => self.upper_leaf_file(node, leaf).map(UpperObject::Leaf),
        }
    }

    /// A change of nothing comes from a write through a backing file, or from a chown to -1: the kernel does not say which.
    /// Without anyone who could be writing it is the latter, and only the owner's to make.
    fn check_may_strip(&self, node: &Node, caller: &Caller) -> Result<()> {
        let attr = self.compose(node, &self.stat_node(node)?);
        let privileged = !node.is_dir() && attr.mode & (S_ISUID | S_ISGID) != 0;
        if privileged && !self.handles.is_written(node) && caller.is_stranger_to(attr.uid) {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    /// The set-id bits and capabilities that go with a change which does not name them.
    fn settle_privileges(
        &self,
        node: &Node,
        object: &UpperObject,
        caller: &Caller,
        set: &SetAttr,
    ) -> Result<()> {
        if set.changes_nothing() && self.handles.is_written(node) && caller.is_root() {
            // A write by one who has CAP_FSETID: only a capability goes.
            return self.drop_capability(object);
        }
        if set.kill_priv || set.changes_nothing() {
            return self.strip_privileges(object, caller);
        }
        let chowns = (set.uid.is_some() || set.gid.is_some()) && !node.is_dir();
        if !chowns {
            return Ok(());
        }
        let owner = self.owner_of(object)?;
        let only_locks = owner.mode & (S_ISGID | S_IXGRP) == S_ISGID;
        if only_locks && !caller.is_member(owner.gid) {
            // The layer's file system does this for the mounter, who is privileged; the caller is not.
            self.change_owner(object, (None, None), Some(owner.mode & !S_ISGID))?;
        }
        Ok(())
    }

    /// Clears set-user-id, file capabilities, and set-group-id: where the group may execute, and also where it may not
    /// if the caller is not one of it (`setattr_should_drop_sgid`).
    pub(crate) fn strip_privileges(&self, object: &UpperObject, caller: &Caller) -> Result<()> {
        let stat = object.stat()?;
        if matches!(stat.kind(), FileKind::Directory | FileKind::Symlink) {
            return Ok(());
        }
        let mode = if self.show.any_record { self.owner_of(object)?.mode } else { stat.permissions() };
        let mut clear = mode & S_ISUID;
        if mode & S_ISGID != 0 && (mode & S_IXGRP != 0 || !caller.is_member(stat.gid)) {
            clear |= S_ISGID;
        }
        if clear != 0 {
            self.change_owner(object, (None, None), Some(mode & !clear))?;
        }
        self.drop_capability(object)
    }

    /// What a write by the mounter would take from a file.
    pub(crate) fn privileges(&self, object: &UpperObject) -> Result<Privileges> {
        let mode = object.stat()?.permissions();
        let capability = object.get_xattr(plyfs_format::xattr::CAPABILITY)?;
        Ok(Privileges { mode: (mode & (S_ISUID | S_ISGID) != 0).then_some(mode), capability })
    }

    /// Gives back what a write has taken.
    pub(crate) fn restore_privileges(&self, object: &UpperObject, held: &Privileges) -> Result<()> {
        let upper = self.require_upper()?;
        if let Some(mode) = held.mode
            && object.stat()?.permissions() != mode
        {
            upper.chmod(object, mode)?;
        }
        if let Some(capability) = &held.capability {
            upper.set_xattr(object, plyfs_format::xattr::CAPABILITY, capability, XattrFlags::empty())?;
        }
        Ok(())
    }

    fn drop_capability(&self, object: &UpperObject) -> Result<()> {
        match self.require_upper()?.remove_xattr(object, plyfs_format::xattr::CAPABILITY) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            // An ordinary user may not remove what is not there either.
            Err(Errno::PERM) if object.get_xattr(plyfs_format::xattr::CAPABILITY)?.is_none() => Ok(()),
            done => done,
        }
    }

    /// Sets the size that a file has already; false if its file system took that for no change at all, as xfs does with an
    /// empty file that has no blocks: there the privileges stay too.
    fn truncate_to_same(&self, node: &Arc<Node>, size: u64) -> Result<bool> {
        const XFS: u64 = 0x5846_5342;
        let upper = self.require_upper()?;
        let file = self.shared_file(node)?;
        let before = file.stat()?;
        upper.truncate_by_name(&file, size)?;
        let empty = size == 0 && before.blocks == 0;
        Ok(!(empty && upper.root.fs_magic()? == XFS))
    }

    fn set_size(&self, node: &Arc<Node>, handle: Option<HandleId>, size: u64) -> Result<()> {
        let upper = self.require_upper()?;
        let file = match handle {
            Some(handle) => self.handle_file(handle)?,
            None => self.shared_file(node)?,
        };
        upper.truncate(&file, size)
    }

    /// A leaf of upper by descriptor: one that is held already, or a new one that only names it.
    fn upper_leaf_file(&self, node: &Node, leaf: &Leaf) -> Result<Arc<File>> {
        if let Some(file) = leaf.orphan() {
            return Ok(Arc::clone(file));
        }
        if let Some(file) = leaf.usage().shared.lock().upgrade()
            && file.is_writable_grant()
        {
            return Ok(file);
        }
        match self.at_place(node, leaf, |dir, name| dir.open_path_mut(name).map(Arc::new), |file| file.stat())
        {
            Err(Errno::NOENT) => self.unnamed_upper(node, leaf),
            done => done,
        }
    }

    fn stat_upper_leaf(&self, node: &Node, leaf: &Leaf) -> Result<Stat> {
        self.at_place(node, leaf, |dir, name| dir.stat_at(name), |stat| Ok(*stat)).or_else(|error| {
            // Not what went wrong with the name, where there is no other way.
            self.unnamed_upper(node, leaf).map_err(|_| error)?.stat()
        })
    }

    /// Reaches an upper leaf by its name. A rename that runs beside can take the name away between reading it and using
    /// it: then nothing is found there, or something else (a whiteout cannot be opened, for one), and the name is read
    /// again and used while its directory is locked. So no `change` lock may be held by the caller.
    pub(crate) fn at_place<R>(
        &self,
        node: &Node,
        leaf: &Leaf,
        reach: impl Fn(&plyfs_sys::DirMut, Name<'_>) -> Result<R>,
        stat: impl Fn(&R) -> Result<Stat>,
    ) -> Result<R> {
        let expected = leaf.upper.get().map(|upper| upper.ino);
        let is_it = |found: &R| expected.is_none_or(|ino| stat(found).is_ok_and(|stat| stat.ino == ino));
        if let Some(entry) = leaf.index_entry() {
            // A whiteout takes the place of an entry whose last name went.
            return reach(self.index_dir()?, entry.as_name())
                .and_then(|found| if is_it(&found) { Ok(found) } else { Err(Errno::NOENT) });
        }
        let mut locked = false;
        loop {
            let Some(place) = node.place() else { return Err(Errno::NOENT) };
            let parent = place.parent.as_dir().ok_or(Errno::IO)?;
            let _still = locked.then(|| parent.change.lock());
            if locked && !node.has_place(place.parent.id, &place.name) {
                continue;
            }
            let dir = self.upper_dir(&place.parent)?;
            match reach(&dir, Name::new(&place.name).map_err(|_| Errno::IO)?) {
                Ok(found) if is_it(&found) => return Ok(found),
                // Somebody changed upper behind the engine's back.
                Ok(_) if locked => return Err(Errno::STALE),
                Err(error) if locked => return Err(error),
                _ => locked = true,
            }
        }
    }

    /// The blocks of a metacopy are those of its data.
    fn with_data_blocks(&self, node: &Node, mut stat: Stat) -> Result<Stat> {
        if let Body::Leaf(leaf) = &node.body
            && let Some(lower) = &leaf.lower
            && leaf.upper.get().map_or(lower.data.is_some(), |upper| upper.metacopy.load(Ordering::Acquire))
        {
            stat.blocks = self.data_blocks(lower, stat.size)?;
        }
        Ok(stat)
    }

    /// Sets a private attribute of an upper object. Without attributes a file marks an opaque directory, and the origins that
    /// make inode numbers last are not kept.
    pub(crate) fn set_private(&self, object: &UpperObject, private: Private, value: &[u8]) -> Result<()> {
        let upper = self.require_upper()?;
        if upper.abilities.xattr {
            return upper.set_xattr(object, self.namespace.name(private), value, XattrFlags::empty());
        }
        match (private, object) {
            (Private::Opaque, UpperObject::Dir(dir)) => upper.mark_opaque(dir),
            (Private::Origin | Private::Impure, _) => Ok(()),
            _ => Err(Errno::OPNOTSUPP),
        }
    }
}

/// The set-id bits, within the whole mode, and the capability that a file has.
pub(crate) struct Privileges {
    mode: Option<u32>,
    capability: Option<Vec<u8>>,
}

impl Privileges {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.mode.is_some() || self.capability.is_some()
    }
}

/// Makes a change by which a file may get set-id bits or a capability, if `may_gain` says so: not beside a write that was
/// found to have none to keep.
pub(crate) fn gaining_privileges<T>(
    node: &Node,
    may_gain: bool,
    change: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let Body::Leaf(leaf) = &node.body else { return change() };
    if !may_gain {
        return change();
    }
    let mut known = leaf.usage().privileged.write();
    *known = None;
    change()
}

const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o0010;

fn to_time(time: Timestamp) -> Time {
    Time { sec: time.sec, nsec: time.nsec }
}

fn to_sys(set: Option<TimeSet>) -> plyfs_sys::TimeSet {
    match set {
        None => plyfs_sys::TimeSet::Omit,
        Some(TimeSet::Now) => plyfs_sys::TimeSet::Now,
        Some(TimeSet::At(time)) => plyfs_sys::TimeSet::At(Timestamp { sec: time.sec, nsec: time.nsec }),
    }
}
