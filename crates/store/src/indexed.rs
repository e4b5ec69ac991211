//! The index beside an upper (`index=on`): which files of the image were copied up under one of their names, so that the
//! others show the copy, too.
//!
//! Owns reading `work/index`: its entries are the copies, each named by the file handle of what it was copied from. The
//! kernel's counterpart is `ovl_lookup_index`.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::Path;

use plyfs_format::origin::{FileHandle, Origin, Parsed};
use plyfs_sys::handle;
use rustix::fs::{FileType, OFlags, Stat};

use crate::beneath::{self, Root};
use crate::error::{Context, Result};

/// The copies, by what they are copies of.
pub struct Index {
    root: Root,
    names: HashMap<FileHandle, Vec<u8>>,
}

impl Index {
    /// Reads the index of a work directory; none if there is none, or nothing in it but directories and whiteouts.
    pub fn open(work: &Path) -> Result<Option<Index>> {
        let path = work.join("index");
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let root = Root::open(&path)?;
        let mut names = HashMap::new();
        for name in beneath::names(root.as_fd()).at("read", &path)? {
            let Ok(Parsed::Known(origin)) = Origin::parse_index_name(&name) else { continue };
            let st = root.stat(&name)?;
            if st
                .is_some_and(|s| beneath::kind(&s) != FileType::Directory && !beneath::is_whiteout_device(&s))
            {
                names.insert(origin.handle, name);
            }
        }
        Ok((!names.is_empty()).then_some(Index { root, names }))
    }

    /// The directory of the copies.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The copy of the file `rel` of a layer: its name in the index, and its status.
    pub fn copy_of(&self, layer: &Root, rel: &[u8], st: &Stat) -> Result<Option<(Vec<u8>, Stat)>> {
        if st.st_nlink < 2 || beneath::kind(st) == FileType::Directory {
            return Ok(None);
        }
        let fd = layer.open_at(rel, OFlags::PATH).at("open", layer.show(rel))?;
        let handle = handle::of_descriptor(fd.as_fd()).at("read the handle of", layer.show(rel))?;
        let Some(name) = handle.and_then(|h| self.names.get(&h)) else { return Ok(None) };
        let Some(mut copy) = self.root.stat(name)? else { return Ok(None) };
        // The names that only the image has are links, too.
        copy.st_nlink += 1;
        Ok(Some((name.clone(), copy)))
    }
}
