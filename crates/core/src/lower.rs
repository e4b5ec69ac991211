//! An object of a lower layer, opened far enough to be read: by its name in a directory, or by a descriptor of its own where
//! only its file handle is known.
//!
//! Owns the verbs that all of lookup, copy-up and attributes read a lower object with. It changes nothing.

use std::ffi::CStr;
use std::sync::Arc;

use plyfs_format::{FileHandle, Name};
use plyfs_sys::{Dir, Errno, File, InodeFlags, OFlags, Stat};

use crate::Result;
use crate::node::{LowerLeaf, LowerPlace, SharedName};
use crate::overlay::Overlay;

/// A lower object that can be read.
#[derive(Debug)]
pub(crate) enum LowerAt {
    /// An entry of a directory.
    Entry(Arc<Dir>, SharedName),
    /// A directory itself.
    Dir(Arc<Dir>),
    /// Anything by a descriptor that only names it.
    Held(File),
}

impl Overlay {
    /// A lower leaf, to be read.
    pub(crate) fn lower_at(&self, lower: &LowerLeaf) -> Result<LowerAt> {
        match &lower.at {
            LowerPlace::Named { dir, name } => Ok(LowerAt::Entry(self.lower_dir(dir)?, Arc::clone(name))),
            LowerPlace::Handle(held) => {
                let layer = self.lowers.get(usize::from(held.layer)).ok_or(Errno::IO)?;
                layer.root.open_handle(&held.handle).map(LowerAt::Held)
            }
        }
    }

    /// The UUID that an `origin` and an index entry record for a layer.
    pub(crate) fn recorded_uuid(&self, layer: u16) -> [u8; 16] {
        match self.lowers.get(usize::from(layer)) {
            Some(layer) if self.features.uuid => layer.uuid,
            _ => [0; 16],
        }
    }
}

impl LowerAt {
    pub fn stat(&self) -> Result<Stat> {
        match self {
            Self::Entry(dir, name) => dir.stat_at(checked(name)?),
            Self::Dir(dir) => dir.stat(),
            Self::Held(file) => file.stat(),
        }
    }

    /// The target of a symbolic link.
    pub fn readlink(&self) -> Result<Vec<u8>> {
        match self {
            Self::Entry(dir, name) => dir.readlink(checked(name)?),
            Self::Dir(_) => Err(Errno::INVAL),
            Self::Held(file) => plyfs_sys::readlink_self(file),
        }
    }

    pub fn list_xattrs(&self) -> Result<Vec<u8>> {
        match self {
            Self::Entry(dir, name) => dir.list_xattrs(checked(name)?),
            Self::Dir(dir) => dir.list_own_xattrs(),
            Self::Held(file) => file.list_xattrs(),
        }
    }

    pub fn get_xattr(&self, attr: &CStr) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Entry(dir, name) => dir.get_xattr(checked(name)?, attr),
            Self::Dir(dir) => dir.get_own_xattr(attr),
            Self::Held(file) => file.get_xattr(attr),
        }
    }

    /// The inode flags of a directory or regular file.
    pub fn inode_flags(&self) -> Result<InodeFlags> {
        match self {
            Self::Dir(dir) => dir.own_inode_flags(),
            Self::Entry(..) | Self::Held(_) => self.open()?.inode_flags(),
        }
    }

    /// A regular file, opened for reading.
    pub fn open(&self) -> Result<File> {
        match self {
            Self::Entry(dir, name) => dir.open_file(checked(name)?, OFlags::RDONLY),
            Self::Dir(_) => Err(Errno::ISDIR),
            Self::Held(file) => file.reopen(OFlags::RDONLY),
        }
    }

    /// `None` where the file system has no handles, or one that the format cannot hold.
    pub fn file_handle(&self) -> Result<Option<FileHandle>> {
        match self {
            Self::Entry(dir, name) => dir.file_handle(checked(name)?),
            Self::Dir(dir) => dir.own_file_handle(),
            Self::Held(file) => file.file_handle(),
        }
    }
}

fn checked(name: &SharedName) -> Result<Name<'_>> {
    Name::new(name).map_err(|_| Errno::IO)
}
