//! Copy-up: the bytes.
//!
//! Reflink where the file system can, else a copy that preserves holes. The kernel's counterpart is
//! `ovl_copy_up_file`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::Private;
use plyfs_sys::{Errno, File};

use super::Depth;
use crate::Result;
use crate::node::{Leaf, LowerLeaf, Node};
use crate::overlay::Overlay;
use crate::upper::UpperObject;

impl Overlay {
    /// The lower file that holds a leaf's data, opened for reading.
    pub(crate) fn open_lower(&self, lower: &LowerLeaf) -> Result<File> {
        if let Some(data) = &lower.data {
            return self.open_data(data);
        }
        self.lower_at(lower)?.open()
    }

    /// Fills a new upper file with the first `keep` bytes of the lower's data. Returns the file with that data, if there is
    /// any.
    pub(super) fn fill(
        &self,
        lower: &LowerLeaf,
        size: u64,
        to: &Arc<File>,
        keep: u64,
    ) -> Result<Option<File>> {
        let len = size.min(keep);
        if len == 0 {
            return Ok(None);
        }
        let from = self.open_lower(lower)?;
        self.require_upper()?.copy_data(&from, to, len)?;
        Ok(Some(from))
    }

    /// Gives an upper object that has only attributes its data. The data counts once the attribute is removed, so a crash
    /// before that leaves the old state.
    pub(super) fn complete_metacopy(&self, node: &Arc<Node>, leaf: &Leaf, depth: Depth) -> Result<()> {
        let Depth::Data { keep } = depth else { return Ok(()) };
        let (Some(lower), Some(state)) = (&leaf.lower, leaf.upper.get()) else { return Err(Errno::IO) };
        let upper = self.require_upper()?;
        let file = Arc::new(self.open_upper_leaf(node, leaf)?);
        let object = UpperObject::Leaf(Arc::clone(&file));
        let capability = object.get_xattr(plyfs_format::xattr::CAPABILITY)?;
        let size = file.stat()?.size;
        self.fill(lower, size, &file, keep)?;
        if let Some(capability) = capability {
            // Writing the data dropped it.
            upper.set_xattr(
                &object,
                plyfs_format::xattr::CAPABILITY,
                &capability,
                plyfs_sys::XattrFlags::empty(),
            )?;
        }
        if self.features.sync {
            upper.sync(&file, false)?;
        }
        if keep < size {
            // Before the data counts: it is short by intention, and must not show zeros where the rest was.
            upper.truncate(&file, keep)?;
        }
        upper.remove_xattr(&object, self.namespace.name(Private::Metacopy))?;
        state.metacopy.store(false, Ordering::Release);
        Ok(())
    }
}
