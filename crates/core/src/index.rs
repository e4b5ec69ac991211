//! The index: it keeps the names of a lower file with several hard links together when the file is copied up.
//!
//! Owns `workdir/index`. An entry is a further hard link of the copy, named after the lower file's handle, so that every
//! name that still lies below finds the copy. The union's link count is kept in `overlay.nlink`. Nodes with an entry are
//! reached by it: it never moves. The kernel's counterparts are `ovl_lookup_index`, `ovl_link_up` and
//! `ovl_indexdir_cleanup`.

use std::path::Path;
use std::sync::Arc;

use plyfs_format::origin::Parsed;
use plyfs_format::{Name, NameBuf, Namespace, Nlink, NlinkBase, Origin, Private};
use plyfs_sys::{DirMut, Errno, RenameFlags, Stat, XattrFlags};

use crate::Result;
use crate::copy_up::Depth;
use crate::error::AssembleError;
use crate::layer::LowerLayer;
use crate::node::{Body, Leaf, LowerLeaf, Node};
use crate::overlay::{Overlay, directory_error};
use crate::upper::{Upper, UpperObject};
use crate::work::names;

type Assembled<T> = core::result::Result<T, AssembleError>;

/// Binds upper and index to each other and to the lower root, and removes what earlier mounts left. False where the lower
/// file system has no handles, so that there can be no index.
pub(crate) fn prepare(
    upper: &Upper,
    work: &Path,
    lowers: &[LowerLayer],
    ns: Namespace,
    uuid: bool,
) -> Assembled<bool> {
    let (Some(index), Some(lower)) = (&upper.index, lowers.first()) else { return Ok(false) };
    let fail = |errno| directory_error("workdir", work, errno);
    let of = |layer: [u8; 16]| if uuid { layer } else { [0; 16] };
    let upper_uuid = upper.root.filesystem_uuid().map_err(fail)?.unwrap_or_default();
    let handles = (lower.root.own_file_handle().map_err(fail)?, upper.root.own_file_handle().map_err(fail)?);
    let (Some(lower_handle), Some(upper_handle)) = handles else {
        tracing::warn!("index=off: a layer's file system has no file handles");
        return Ok(false);
    };
    let bind = |dir: &DirMut, private, value: &Origin| -> Assembled<()> {
        let matches = bind_directory(dir, ns, private, value).map_err(fail)?;
        if matches {
            Ok(())
        } else {
            Err(AssembleError::Stale { upper: upper.path.clone(), work: work.to_owned() })
        }
    };
    bind(&upper.root, Private::Origin, &Origin::new(of(lower.uuid), lower_handle))?;
    bind(index, Private::Upper, &Origin::new_upper(of(upper_uuid), upper_handle))?;
    for name in names(index).map_err(fail)? {
        clean_entry(index, name.as_name(), ns).map_err(fail)?;
    }
    Ok(true)
}

/// Records a handle on a directory, or compares it with what is recorded.
fn bind_directory(dir: &DirMut, ns: Namespace, private: Private, value: &Origin) -> Result<bool> {
    match dir.get_own_xattr(ns.name(private))? {
        None => dir.set_own_xattr(ns.name(private), &value.encode(), XattrFlags::empty()).map(|()| true),
        Some(recorded) => Ok(matches!(Origin::parse(&recorded), Ok(Parsed::Known(known)) if known == *value)),
    }
}

/// Removes an entry that no name can lead to any more. One that this version does not understand is an error: whoever
/// wrote it relies on it.
fn clean_entry(index: &DirMut, name: Name<'_>, ns: Namespace) -> Result<()> {
    if name.as_bytes().starts_with(b"#") {
        return index.unlink(name);
    }
    let Ok(Parsed::Known(of)) = Origin::parse_index_name(name.as_bytes()) else { return Err(Errno::INVAL) };
    let stat = index.stat_at(name)?;
    if stat.is_whiteout() || stat.is_dir() {
        return Ok(());
    }
    let origin = index.get_xattr(name, ns.name(Private::Origin))?;
    let stale =
        !matches!(origin.as_deref().map(Origin::parse), Some(Ok(Parsed::Known(known))) if known == of);
    let count = index.get_xattr(name, ns.name(Private::Nlink))?.and_then(|value| Nlink::parse(&value).ok());
    let orphan = stat.nlink == 1
        && count.is_some_and(|count| count.base == NlinkBase::Upper && count.apply(stat.nlink).is_none());
    if stale || orphan { index.unlink(name) } else { Ok(()) }
}

impl Overlay {
    /// The name that a lower file's entry has.
    pub(crate) fn index_name(&self, lower: &LowerLeaf) -> Result<NameBuf> {
        let name = Name::new(&lower.name).map_err(|_| Errno::IO)?;
        let handle = self.lower_dir(&lower.dir)?.file_handle(name)?.ok_or(Errno::IO)?;
        let uuid = match self.lowers.get(usize::from(lower.dir.layer)) {
            Some(layer) if self.features.uuid => layer.uuid,
            _ => [0; 16],
        };
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
        self.features.index && lower.hard_linked
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
            Body::Leaf(leaf) if leaf.lower.as_ref().is_some_and(|lower| self.is_indexed(lower)) => {
                self.ensure(node, Depth::Metadata)
            }
            _ => Ok(()),
        }
    }

    /// Removes the entry of a file that has lost its last name. What stays after a failure goes at the next mount.
    pub(crate) fn drop_unused_entry(&self, node: &Node) {
        let Body::Leaf(leaf) = &node.body else { return };
        let Some(entry) = leaf.index_entry() else { return };
        let dropped = self.upper_object(node).and_then(|object| {
            if self.union_nlink(leaf, &object)? > 0 {
                return Ok(());
            }
            self.require_upper()?.unlink(self.index_dir()?, entry.as_name())
        });
        if let Err(error) = dropped {
            tracing::warn!(%error, "an index entry stays until the next mount");
        }
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

    fn lower_nlink(&self, leaf: &Leaf) -> Result<Option<u32>> {
        let Some(lower) = leaf.lower.as_ref() else { return Ok(None) };
        let name = Name::new(&lower.name).map_err(|_| Errno::IO)?;
        self.lower_dir(&lower.dir)?.stat_at(name).map(|stat| Some(stat.nlink))
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
