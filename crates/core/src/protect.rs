//! Immutable and append-only files, and the other inode flags of `chattr(1)`.
//!
//! The two protecting flags of an upper object are kept in `overlay.protattr`: as real flags they would stop the overlay
//! itself. What they forbid is therefore refused here. The others are the real file's. The kernel's counterparts are
//! `ovl_set_protattr`, `ovl_check_protattr` and, for what is forbidden, the checks of its VFS.

use std::sync::atomic::{AtomicU8, Ordering};

use plyfs_format::{Private, Protattr};
use plyfs_sys::{Errno, InodeFlags, OFlags, Stat};

use crate::Result;
use crate::copy_up::Depth;
use crate::node::{Body, Node};
use crate::object::{NodeId, SetAttr, TimeSet};
use crate::overlay::Overlay;
use crate::upper::UpperObject;

const STATX_ATTR_IMMUTABLE: u64 = 0x10;
const STATX_ATTR_APPEND: u64 = 0x20;

/// The protection of an upper object, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Protection(AtomicU8);

impl Protection {
    pub fn new(flags: Protattr) -> Self {
        Self(AtomicU8::new(flags.bits()))
    }

    pub fn get(&self) -> Protattr {
        Protattr::from_bits_truncate(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, flags: Protattr) {
        self.0.store(flags.bits(), Ordering::Relaxed);
    }
}

/// The protecting flags of a lower object, which are its real ones.
pub(crate) fn of_lower(stat: &Stat) -> Protattr {
    let mut flags = Protattr::empty();
    flags.set(Protattr::IMMUTABLE, stat.attributes & STATX_ATTR_IMMUTABLE != 0);
    flags.set(Protattr::APPEND, stat.attributes & STATX_ATTR_APPEND != 0);
    flags
}

/// The protecting flags that an attribute's value names; of a malformed one those before the fault, as in the kernel.
pub(crate) fn parse(value: &[u8]) -> Protattr {
    Protattr::parse(value).unwrap_or_else(|error| {
        tracing::warn!(%error, "protecting flags");
        error.known
    })
}

impl Overlay {
    /// The inode flags (`FS_IOC_GETFLAGS`).
    ///
    /// # Errors
    /// `ENOTTY` where there are none.
    pub fn inode_flags(&self, node: NodeId) -> Result<u32> {
        let node = self.node(node)?;
        let real = match &node.body {
            Body::Dir(dir) if dir.upper.get().is_some() => self.upper_dir(&node)?.own_inode_flags()?,
            Body::Dir(dir) => self.lower_dir(dir.lowers.first().ok_or(Errno::IO)?)?.own_inode_flags()?,
            Body::Leaf(_) => self.shared_file(&node)?.inode_flags()?,
        };
        if !node.in_upper() {
            return Ok(real.0);
        }
        let value = self.upper_object(&node)?.get_xattr(self.namespace.name(Private::Protattr))?;
        let kept = value.map_or(Protattr::empty(), |value| parse(&value));
        Ok(with_protection(real, kept).0)
    }

    /// Sets the inode flags (`FS_IOC_SETFLAGS`). Whether the caller may is for the front end's kernel to check.
    ///
    /// # Errors
    /// `EROFS`; `ENOTTY`; what the upper answers.
    pub fn set_inode_flags(&self, node: NodeId, flags: u32) -> Result<()> {
        let node = self.node(node)?;
        let upper = self.require_upper()?;
        self.ensure(&node, Depth::ALL)?;
        let flags = InodeFlags(flags);
        let mut kept = Protattr::empty();
        kept.set(Protattr::IMMUTABLE, flags.contains(InodeFlags::IMMUTABLE));
        kept.set(Protattr::APPEND, flags.contains(InodeFlags::APPEND));
        let object = match &node.body {
            Body::Dir(_) => UpperObject::Dir(self.upper_dir(&node)?),
            Body::Leaf(_) => UpperObject::Leaf(self.shared_file(&node)?),
        };
        if kept != self.protection(&node) || !kept.is_empty() {
            self.keep_protection(&node, &object, kept)?;
        }
        upper.set_inode_flags(&object, flags.without(InodeFlags::IMMUTABLE).without(InodeFlags::APPEND))
    }

    fn keep_protection(&self, node: &Node, object: &UpperObject, kept: Protattr) -> Result<()> {
        let upper = self.require_upper()?;
        match kept.to_bytes() {
            Some(value) => {
                // A directory that is not impure is not asked for its entries' attributes.
                if let Some(place) = node.place() {
                    self.mark_impure(&place.parent)?;
                }
                self.set_private(object, Private::Protattr, value)?;
            }
            None => match upper.remove_xattr(object, self.namespace.name(Private::Protattr)) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
            },
        }
        match &node.body {
            Body::Dir(dir) => dir.upper.get().map(|upper| upper.protection.set(kept)),
            Body::Leaf(leaf) => leaf.upper.get().map(|upper| upper.protection.set(kept)),
        };
        Ok(())
    }

    /// Gives a staged copy the protecting flags of its lower object.
    pub(crate) fn copy_protection(&self, from: &Stat, to: &UpperObject) -> Result<Protattr> {
        let flags = of_lower(from);
        if let Some(value) = flags.to_bytes() {
            self.set_private(to, Private::Protattr, value)?;
        }
        Ok(flags)
    }

    /// Gives a staged copy those of the other flags that a copy has in common with its original (`OVL_COPY_FS_FLAGS_MASK`).
    /// File systems without flags, and files that may not be opened to ask, have nothing to copy.
    pub(crate) fn copy_inode_flags(&self, original: Result<InodeFlags>, to: &UpperObject) -> Result<()> {
        let kept = InodeFlags::SYNC.with(InodeFlags::NOATIME);
        let wanted = InodeFlags(original.unwrap_or_default().0 & kept.0);
        if wanted == InodeFlags::default() {
            return Ok(());
        }
        let present = match to {
            UpperObject::Dir(dir) => dir.own_inode_flags(),
            UpperObject::Leaf(file) => file.inode_flags(),
        };
        let Ok(present) = present else { return Ok(()) };
        self.require_upper()?.set_inode_flags(to, present.with(wanted))
    }

    /// What protects a node; of a lower directory nothing is known until it is copied up.
    pub(crate) fn protection(&self, node: &Node) -> Protattr {
        match &node.body {
            Body::Dir(dir) => dir.upper.get().map(|upper| upper.protection.get()),
            Body::Leaf(leaf) => match leaf.upper.get() {
                Some(upper) => Some(upper.protection.get()),
                None => leaf.lower.as_ref().map(|lower| lower.protection),
            },
        }
        .unwrap_or_default()
    }

    /// Refuses to open for writing what is immutable, or append-only and not opened so.
    pub(crate) fn may_open_for_writing(&self, node: &Node, flags: OFlags) -> Result<()> {
        let protection = self.protection(node);
        let appends = flags.contains(OFlags::APPEND) && !flags.contains(OFlags::TRUNC);
        refuse(
            protection.contains(Protattr::IMMUTABLE) || (protection.contains(Protattr::APPEND) && !appends),
        )
    }

    /// Refuses changes of attributes; the times of an append-only file may be set to the present.
    pub(crate) fn may_change(&self, node: &Node, set: &SetAttr) -> Result<()> {
        let protection = self.protection(node);
        let now = |time: Option<TimeSet>| matches!(time, None | Some(TimeSet::Now));
        let touches = SetAttr { atime: None, mtime: None, ..*set } == SetAttr::default();
        let touches = touches && now(set.atime) && now(set.mtime);
        refuse(
            protection.contains(Protattr::IMMUTABLE) || (protection.contains(Protattr::APPEND) && !touches),
        )
    }

    /// Refuses to give something protected another name or attribute, or to take one away.
    pub(crate) fn may_alter(&self, node: &Node) -> Result<()> {
        refuse(!self.protection(node).is_empty())
    }

    /// Refuses new names in an immutable directory; the directory is in upper.
    pub(crate) fn may_add_names(&self, parent: &Node) -> Result<()> {
        refuse(self.protection(parent).contains(Protattr::IMMUTABLE))
    }
}

fn refuse(forbidden: bool) -> Result<()> {
    if forbidden { Err(Errno::PERM) } else { Ok(()) }
}

fn with_protection(real: InodeFlags, kept: Protattr) -> InodeFlags {
    let mut flags = real;
    if kept.contains(Protattr::IMMUTABLE) {
        flags = flags.with(InodeFlags::IMMUTABLE);
    }
    if kept.contains(Protattr::APPEND) {
        flags = flags.with(InodeFlags::APPEND);
    }
    flags
}
