//! The index: it keeps the names of a lower file with several hard links together when the file is copied up.
//!
//! Owns `workdir/index`. An entry is a further hard link of the copy, named after the lower file's handle, so that every
//! name that still lies below finds the copy. The union's link count is kept in `overlay.nlink`. Nodes with an entry are
//! reached by it: it never moves. The kernel's counterparts are `ovl_lookup_index`, `ovl_link_up` and
//! `ovl_indexdir_cleanup`.

use std::path::Path;
use std::sync::Arc;

use plyfs_format::origin::Parsed;
use plyfs_format::{FileHandle, Name, NameBuf, Namespace, Nlink, NlinkBase, Origin, Private};
use plyfs_sys::{Dir, DirMut, Errno, RenameFlags, Stat, XattrFlags};

use crate::Result;
use crate::copy_up::Depth;
use crate::error::AssembleError;
use crate::layer::{LayerDir, LowerLayer};
use crate::node::{Body, Leaf, LowerLeaf, Node};
use crate::overlay::{Overlay, directory_error};
use crate::remove::{exchange_and_clear, whiteout_over};
use crate::upper::{New, Upper, UpperObject};
use crate::work::names;

type Assembled<T> = core::result::Result<T, AssembleError>;

/// What the index says of a lower object.
pub(crate) enum IndexEntry {
    /// Nothing.
    None,
    /// It was removed.
    Retired,
    /// It is this directory of upper now.
    Upper(FileHandle),
    /// It is this leaf of upper now.
    Leaf(NameBuf, Stat),
}

/// The index of a mount that is being assembled.
pub(crate) struct Preparation<'a> {
    pub upper: &'a Upper,
    /// As the user wrote it, for messages.
    pub work: &'a Path,
    pub namespace: Namespace,
}

impl Preparation<'_> {
    /// Binds upper and index to each other and to the lower root, and removes what earlier mounts left. False where the lower
    /// file system has no handles, so that there can be no index.
    pub fn run(&self, lowers: &[LowerLayer], uuid: bool, nfs_export: bool) -> Assembled<bool> {
        let (Some(index), Some(lower)) = (&self.upper.index, lowers.first()) else { return Ok(false) };
        let root = &self.upper.root;
        let fail = |errno| directory_error("workdir", self.work, errno);
        let of = |layer: [u8; 16]| if uuid { layer } else { [0; 16] };
        let upper_uuid = root.filesystem_uuid().map_err(fail)?.unwrap_or_default();
        let handles = (lower.root.own_file_handle().map_err(fail)?, root.own_file_handle().map_err(fail)?);
        let (Some(lower_handle), Some(upper_handle)) = handles else {
            tracing::warn!("index=off: a layer's file system has no file handles");
            return Ok(false);
        };
        self.bind(root, Private::Origin, &Origin::new(of(lower.uuid), lower_handle))?;
        self.bind(index, Private::Upper, &Origin::new_upper(of(upper_uuid), upper_handle))?;
        for name in names(index).map_err(fail)? {
            self.clean_entry(index, name.as_name(), nfs_export).map_err(fail)?;
        }
        Ok(true)
    }

    /// Records a handle on a directory, or compares it with what is recorded.
    fn bind(&self, dir: &DirMut, private: Private, value: &Origin) -> Assembled<()> {
        let name = self.namespace.name(private);
        let bound = || match dir.get_own_xattr(name)? {
            None => dir.set_own_xattr(name, &value.encode(), XattrFlags::empty()).map(|()| true),
            Some(recorded) => {
                Ok(matches!(Origin::parse(&recorded), Ok(Parsed::Known(known)) if known == *value))
            }
        };
        match bound() {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(AssembleError::Stale { upper: self.upper.path.clone(), work: self.work.to_owned() })
            }
            Err(errno) => Err(directory_error("workdir", self.work, errno)),
        }
    }

    /// Removes an entry that no name can lead to any more. One that this version does not understand is an error: whoever
    /// wrote it relies on it.
    fn clean_entry(&self, index: &DirMut, name: Name<'_>, nfs_export: bool) -> Result<()> {
        if name.as_bytes().starts_with(b"#") {
            return match index.unlink(name) {
                // The kernel makes its copies of directories here.
                Err(Errno::ISDIR | Errno::PERM) => index.rmdir(name),
                done => done,
            };
        }
        let Ok(Parsed::Known(of)) = Origin::parse_index_name(name.as_bytes()) else {
            return Err(Errno::INVAL);
        };
        let stat = index.stat_at(name)?;
        if stat.is_whiteout() || (stat.is_dir() && !nfs_export) {
            return Ok(());
        }
        let state = if stat.is_dir() {
            self.state_of_directory(index, name, &of)?
        } else {
            self.state_of_file(index, name, &of, stat.nlink)?
        };
        match state {
            EntryState::Good => Ok(()),
            EntryState::Orphan if !nfs_export => index.unlink(name),
            EntryState::Orphan => {
                let whiteout = self.upper.single_whiteout()?;
                exchange_and_clear(self.upper, whiteout.as_name(), index, name)
            }
            EntryState::Stale if stat.is_dir() => index.rmdir(name),
            EntryState::Stale => index.unlink(name),
        }
    }

    fn state_of_file(&self, index: &DirMut, name: Name<'_>, of: &Origin, nlink: u32) -> Result<EntryState> {
        let origin = index.get_xattr(name, self.namespace.name(Private::Origin))?;
        if !is_known(origin.as_deref(), of) {
            return Ok(EntryState::Stale);
        }
        let count = index.get_xattr(name, self.namespace.name(Private::Nlink))?;
        let count = count.and_then(|value| Nlink::parse(&value).ok());
        let unnamed =
            count.is_some_and(|count| count.base == NlinkBase::Upper && count.apply(nlink).is_none());
        Ok(if nlink == 1 && unnamed { EntryState::Orphan } else { EntryState::Good })
    }

    /// An entry of a directory leads to an upper one, which says that it is a copy of the lower one that the entry is named after.
    fn state_of_directory(&self, index: &DirMut, name: Name<'_>, of: &Origin) -> Result<EntryState> {
        let value = index.get_xattr(name, self.namespace.name(Private::Upper))?;
        let Some(Ok(Parsed::Known(upper))) = value.as_deref().map(Origin::parse) else {
            return Ok(EntryState::Stale);
        };
        match self.upper.root.open_dir_handle(&upper.handle) {
            Ok(dir) => {
                let origin = dir.get_own_xattr(self.namespace.name(Private::Origin))?;
                Ok(if is_known(origin.as_deref(), of) { EntryState::Good } else { EntryState::Stale })
            }
            // It was removed, and the whiteout that should be here was not made any more.
            Err(Errno::STALE) => Ok(EntryState::Orphan),
            Err(error) => Err(error),
        }
    }
}

/// What is to become of an entry that an earlier mount left.
enum EntryState {
    Good,
    /// It belongs to nothing.
    Stale,
    /// What it led to was removed.
    Orphan,
}

fn is_known(value: Option<&[u8]>, origin: &Origin) -> bool {
    matches!(value.map(Origin::parse), Some(Ok(Parsed::Known(known))) if known == *origin)
}

impl Overlay {
    /// The name that a lower file's entry has.
    pub(crate) fn index_name(&self, lower: &LowerLeaf) -> Result<NameBuf> {
        let handle = self.lower_at(lower)?.file_handle()?.ok_or(Errno::IO)?;
        let uuid = self.recorded_uuid(lower.at.layer());
        Origin::new(uuid, handle).index_name().map_err(|_| Errno::IO)
    }

    /// The copy of a lower file that its other names led to, with the name of its entry.
    pub(crate) fn find_indexed(&self, lower: &LowerLeaf) -> Result<Option<(NameBuf, Stat)>> {
        if !self.is_indexed(lower) {
            return Ok(None);
        }
        let name = self.index_name(lower)?;
        match self.index_dir()?.stat_at(name.as_name()) {
            Ok(stat) if stat.is_whiteout() => Err(Errno::STALE),
            Ok(stat) => Ok(Some((name, stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The entry of an upper file that was found by its name in upper.
    pub(crate) fn entry_of_upper(&self, origin: Option<&[u8]>, stat: &Stat) -> Result<Option<Box<NameBuf>>> {
        if !self.features.index || stat.nlink < 2 {
            return Ok(None);
        }
        let Some(Ok(Parsed::Known(origin))) = origin.map(Origin::parse) else { return Ok(None) };
        let Ok(name) = origin.index_name() else { return Ok(None) };
        match self.index_dir()?.stat_at(name.as_name()) {
            Ok(entry) if entry.ino == stat.ino => Ok(Some(Box::new(name))),
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the copies of a lower file's names are kept together.
    pub(crate) fn is_indexed(&self, lower: &LowerLeaf) -> bool {
        self.features.index && (lower.hard_linked || self.features.nfs_export)
    }

    pub(crate) fn index_dir(&self) -> Result<&DirMut> {
        self.require_upper()?.index.as_ref().ok_or(Errno::IO)
    }

    /// Publishes a copy as the entry that all its names lead to. It counts as many links as the lower file.
    pub(crate) fn publish_in_index(
        &self,
        leaf: &Leaf,
        object: &UpperObject,
        temporary: Option<Name<'_>>,
    ) -> Result<Box<NameBuf>> {
        let upper = self.require_upper()?;
        let name = self.index_name(leaf.lower.as_ref().ok_or(Errno::IO)?)?;
        self.write_nlink(object, NlinkBase::Lower, 0)?;
        let index = self.index_dir()?;
        match (temporary, object) {
            (Some(temporary), _) => {
                upper.rename(&upper.work, temporary, index, name.as_name(), RenameFlags::NOREPLACE)?;
            }
            (None, UpperObject::Leaf(file)) => upper.link_file(file, index, name.as_name())?,
            (None, UpperObject::Dir(_)) => return Err(Errno::IO),
        }
        Ok(Box::new(name))
    }

    /// Before a name of an indexed file is taken away or moved: it is in upper, and the link count is relative to upper's.
    /// The parent is locked.
    pub(crate) fn own_alias(&self, parent: &Arc<Node>, name: &[u8], node: &Node) -> Result<()> {
        let Body::Leaf(leaf) = &node.body else { return Ok(()) };
        let Some(entry) = leaf.index_entry() else { return Ok(()) };
        let upper = self.require_upper()?;
        let checked = Name::new(name).map_err(|_| Errno::INVAL)?;
        let object = self.upper_object(node)?;
        let count = self.union_nlink(leaf, &object)?;
        match self.upper_dir(parent)?.stat_at(checked) {
            Ok(_) => {}
            Err(Errno::NOENT) => {
                if let Some(lower) = self.lower_nlink(leaf)? {
                    self.write_nlink(&object, NlinkBase::Lower, difference(count, lower))?;
                }
                let index = self.index_dir()?;
                self.publish(parent, |to| upper.hard_link(index, entry.as_name(), to, checked))?;
                if let Some(dir) = parent.as_dir() {
                    self.mark_listed_upper(dir, name);
                }
            }
            Err(error) => return Err(error),
        }
        self.write_nlink(&object, NlinkBase::Upper, difference(count, object.stat()?.nlink))
    }

    /// As [`own_alias`](Self::own_alias), where no name is touched: a further one is about to be made.
    pub(crate) fn own_count(&self, node: &Node) -> Result<()> {
        let Body::Leaf(leaf) = &node.body else { return Ok(()) };
        if leaf.index_entry().is_none() {
            return Ok(());
        }
        let object = self.upper_object(node)?;
        let count = self.union_nlink(leaf, &object)?;
        self.write_nlink(&object, NlinkBase::Upper, difference(count, object.stat()?.nlink))
    }

    /// Copies an indexed lower file up before one of its names goes: the count of those that are left must be kept.
    pub(crate) fn ensure_indexed(&self, node: &Arc<Node>) -> Result<()> {
        match &node.body {
            Body::Leaf(leaf)
                if leaf.lower.as_ref().is_some_and(|lower| lower.hard_linked && self.is_indexed(lower)) =>
            {
                self.ensure(node, Depth::Metadata)
            }
            _ => Ok(()),
        }
    }

    /// Takes the entry of what has lost its last name away; where handles last, a whiteout stays in its place, so that they are
    /// stale from now on. Nothing is copied up for that. What stays after a failure goes at the next mount.
    pub(crate) fn retire_entry(&self, node: &Node) {
        let retired = match &node.body {
            Body::Leaf(leaf) => self.retire_leaf(node, leaf),
            Body::Dir(dir) => dir.lowers.first().map_or(Ok(()), |lower| self.retire_dir(lower)),
        };
        if let Err(error) = retired {
            tracing::warn!(%error, "an index entry stays until the next mount");
        }
    }

    fn retire_leaf(&self, node: &Node, leaf: &Leaf) -> Result<()> {
        let (upper, lasts) = (self.require_upper()?, self.export.is_some());
        match (leaf.index_entry(), &leaf.lower) {
            (Some(entry), _) => {
                if self.union_nlink(leaf, &self.upper_object(node)?)? > 0 {
                    return Ok(());
                }
                let index = self.index_dir()?;
                if lasts {
                    whiteout_over(upper, index, entry.as_name())
                } else {
                    upper.unlink(index, entry.as_name())
                }
            }
            (None, Some(lower)) if lasts && leaf.upper.get().is_none() => {
                upper.whiteout(self.index_dir()?, self.index_name(lower)?.as_name())
            }
            _ => Ok(()),
        }
    }

    fn retire_dir(&self, lower: &LayerDir) -> Result<()> {
        if self.export.is_none() {
            return Ok(());
        }
        let (upper, index) = (self.require_upper()?, self.index_dir()?);
        let handle = self.lower_dir(lower)?.own_file_handle()?.ok_or(Errno::IO)?;
        let name =
            Origin::new(self.recorded_uuid(lower.layer), handle).index_name().map_err(|_| Errno::IO)?;
        match upper.whiteout(index, name.as_name()) {
            Err(Errno::EXIST) => {
                exchange_and_clear(upper, upper.staged_whiteout()?.as_name(), index, name.as_name())
            }
            done => done,
        }
    }

    /// Whether a lower file was removed, as the index records it where handles last.
    pub(crate) fn is_retired(&self, lower: &LowerLeaf) -> Result<bool> {
        match self.index_dir()?.stat_at(self.index_name(lower)?.as_name()) {
            Ok(stat) => Ok(stat.is_whiteout()),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the index has for a lower object.
    pub(crate) fn upper_of_entry(&self, origin: &Origin) -> Result<IndexEntry> {
        let Ok(name) = origin.index_name() else { return Ok(IndexEntry::None) };
        let index = self.index_dir()?;
        let stat = match index.stat_at(name.as_name()) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(IndexEntry::None),
            Err(error) => return Err(error),
        };
        if stat.is_whiteout() {
            return Ok(IndexEntry::Retired);
        }
        if !stat.is_dir() {
            return Ok(IndexEntry::Leaf(name, stat));
        }
        match index
            .get_xattr(name.as_name(), self.namespace.name(Private::Upper))?
            .as_deref()
            .map(Origin::parse)
        {
            Some(Ok(Parsed::Known(upper))) => Ok(IndexEntry::Upper(upper.handle)),
            _ => Ok(IndexEntry::None),
        }
    }

    /// Enters an upper directory in the index, under the handle of the lower one that it is a copy of.
    pub(crate) fn index_directory(&self, origin: &Origin, handle: FileHandle) -> Result<()> {
        let (upper, index) = (self.require_upper()?, self.index_dir()?);
        let name = origin.index_name().map_err(|_| Errno::IO)?;
        let temporary = upper.temporary_name()?;
        upper.create_as_mounter(&upper.work, temporary.as_name(), 0, New::Dir)?;
        let finish = || {
            let entry = UpperObject::Dir(Arc::new(upper.work.child_mut(temporary.as_name())?));
            let uuid =
                if self.features.uuid { upper.root.filesystem_uuid()?.unwrap_or_default() } else { [0; 16] };
            self.set_private(&entry, Private::Upper, &Origin::new_upper(uuid, handle).encode())?;
            upper.rename(&upper.work, temporary.as_name(), index, name.as_name(), RenameFlags::NOREPLACE)
        };
        let entered = finish();
        if entered.is_err() {
            upper.discard(temporary.as_name());
        }
        match entered {
            // Somebody was faster.
            Err(Errno::EXIST) => Ok(()),
            done => done,
        }
    }

    /// Whether a lower directory is the one that the upper directory of that name was copied from. One that says nothing was
    /// made to merge.
    pub(crate) fn is_origin_of(
        &self,
        fd: &Dir,
        name: Name<'_>,
        lower: Option<&Arc<LayerDir>>,
    ) -> Result<bool> {
        let Some(lower) = lower else { return Ok(true) };
        let value = fd.get_xattr(name, self.namespace.name(Private::Origin))?;
        let Some(Ok(Parsed::Known(origin))) = value.as_deref().map(Origin::parse) else { return Ok(true) };
        let handle = self.lower_dir(lower)?.own_file_handle()?;
        Ok(handle.is_none_or(|handle| Origin::new(self.recorded_uuid(lower.layer), handle) == origin))
    }

    /// The link count that the union shows for an indexed file.
    pub(crate) fn union_nlink(&self, leaf: &Leaf, object: &UpperObject) -> Result<u32> {
        let real = object.stat()?.nlink;
        let value = object.get_xattr(self.namespace.name(Private::Nlink))?;
        let recorded = value.and_then(|value| Nlink::parse(&value).ok());
        let count = match recorded {
            Some(nlink) if nlink.base == NlinkBase::Lower => {
                self.lower_nlink(leaf)?.and_then(|lower| lower.checked_add_signed(nlink.difference))
            }
            Some(nlink) => Some(real.checked_add_signed(nlink.difference).unwrap_or(0)),
            None => None,
        };
        // Without a record the entry itself is all that is not a name.
        Ok(count.unwrap_or(real.saturating_sub(1)))
    }

    /// Links of the lower file; where only the upper one is known, the entry's name tells which it is.
    fn lower_nlink(&self, leaf: &Leaf) -> Result<Option<u32>> {
        if let Some(lower) = leaf.lower.as_ref() {
            return self.lower_at(lower)?.stat().map(|stat| Some(stat.nlink));
        }
        let Some(Ok(Parsed::Known(origin))) =
            leaf.index_entry().map(|entry| Origin::parse_index_name(entry.as_bytes()))
        else {
            return Ok(None);
        };
        let on = |layer: &&LowerLayer| !self.features.uuid || layer.uuid == origin.uuid;
        for layer in self.lowers.iter().filter(on) {
            match layer.root.open_handle(&origin.handle) {
                Ok(file) => return file.stat().map(|stat| Some(stat.nlink)),
                Err(Errno::STALE | Errno::INVAL) => {}
                // Not the privilege.
                Err(error) => {
                    tracing::debug!(%error, "the lower file of an index entry");
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    fn write_nlink(&self, object: &UpperObject, base: NlinkBase, difference: i32) -> Result<()> {
        self.set_private(object, Private::Nlink, &Nlink { base, difference }.to_bytes())
    }
}

fn difference(count: u32, real: u32) -> i32 {
    i32::try_from(i64::from(count) - i64::from(real)).unwrap_or(0)
}

impl Leaf {
    /// The name of the leaf's index entry.
    pub(crate) fn index_entry(&self) -> Option<&NameBuf> {
        self.upper.get().and_then(|upper| upper.index.as_deref())
    }
}
