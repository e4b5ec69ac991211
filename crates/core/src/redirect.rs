//! Where a moved directory's lower content is, recorded in upper.
//!
//! Relative for a move within one directory, else absolute from the overlay's root. The kernel's counterpart is
//! `ovl_set_redirect`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::{Private, Redirect, RelPath};
use plyfs_sys::Errno;

use crate::Result;
use crate::directory::DirBody;
use crate::node::{Leaf, Node};
use crate::overlay::Overlay;
use crate::upper::UpperObject;

impl Overlay {
    /// Records, before a directory with lower content moves, where that content is.
    ///
    /// # Errors
    /// `EXDEV` where it cannot be recorded: the mover copies then.
    pub(crate) fn redirect_directory(
        &self,
        node: &Arc<Node>,
        dir: &DirBody,
        same_parent: bool,
    ) -> Result<()> {
        if !self.features.redirect_dir {
            return Err(Errno::XDEV);
        }
        let state = dir.upper.get().ok_or(Errno::IO)?;
        let known = state.redirect.lock().clone();
        let absolute = !same_parent;
        if known.as_deref().is_some_and(|redirect| !absolute || redirect.starts_with(b"/")) {
            return Ok(());
        }
        let value = self.redirect_value(node, known.as_deref(), absolute)?;
        let object = UpperObject::Dir(self.upper_dir(node)?);
        self.set_private(&object, Private::Redirect, &value).map_err(|_| Errno::XDEV)?;
        *state.redirect.lock() = Some(value.into_boxed_slice());
        Ok(())
    }

    /// The same for a file whose data is still below; `object` opens it.
    pub(crate) fn redirect_metacopy(
        &self,
        node: &Arc<Node>,
        leaf: &Leaf,
        same_parent: bool,
        object: impl FnOnce() -> Result<UpperObject>,
    ) -> Result<()> {
        if !leaf.upper.get().is_some_and(|upper| upper.metacopy.load(Ordering::Acquire)) {
            return Ok(());
        }
        let object = object()?;
        let known = object.get_xattr(self.namespace.name(Private::Redirect))?;
        let absolute = !same_parent || leaf.lower.as_ref().is_some_and(|lower| lower.hard_linked);
        if known.as_deref().is_some_and(|redirect| !absolute || redirect.starts_with(b"/")) {
            return Ok(());
        }
        let value = self.redirect_value(node, known.as_deref(), absolute)?;
        self.set_private(&object, Private::Redirect, &value).map_err(|_| Errno::XDEV)
    }

    fn redirect_value(&self, node: &Node, known: Option<&[u8]>, absolute: bool) -> Result<Vec<u8>> {
        let place = node.place().ok_or(Errno::NOENT)?;
        let own = known.map_or_else(|| place.name.to_vec(), <[u8]>::to_vec);
        if !absolute {
            return Ok(own);
        }
        let mut parts = vec![own];
        let mut above = Some(place.parent);
        while let Some(node) = above {
            let Some(place) = node.place() else { break };
            let redirect =
                node.as_dir().and_then(|dir| dir.upper.get()).and_then(|upper| upper.redirect.lock().clone());
            match redirect {
                Some(redirect) if redirect.starts_with(b"/") => {
                    parts.push(redirect.iter().skip(1).copied().collect());
                    break;
                }
                Some(redirect) => parts.push(redirect.into_vec()),
                None => parts.push(place.name.to_vec()),
            }
            above = Some(place.parent);
        }
        parts.reverse();
        let path = RelPath::parse(&parts.join(&b'/')).map_err(|_| Errno::XDEV)?;
        let redirect = Redirect::Absolute(path);
        if redirect.fits() { Ok(redirect.to_bytes()) } else { Err(Errno::XDEV) }
    }
}
