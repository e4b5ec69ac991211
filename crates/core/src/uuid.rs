//! The overlay's own UUID, kept on the root of upper.
//!
//! Owns who gets one; nothing here uses it, since a FUSE file system cannot choose its `f_fsid`: it is for the kernel, which
//! gives none to an upper that was in use before. The kernel's counterpart is `ovl_init_uuid_xattr` in `util.c`.

use plyfs_format::spec::UuidMode;
use plyfs_format::{Namespace, Private};
use plyfs_sys::{DirMut, XattrFlags, random};

use crate::Result;

/// Gives the upper a UUID if the mode wants it to have one and it has none. With `auto` one that was in use before, as its
/// mark `impure` tells, stays as it is.
pub(crate) fn prepare(root: &DirMut, mode: UuidMode, ns: Namespace) -> Result<()> {
    if !matches!(mode, UuidMode::Auto | UuidMode::On) || has(root, ns, Private::Uuid)? {
        return Ok(());
    }
    if mode == UuidMode::Auto && has(root, ns, Private::Impure)? {
        return Ok(());
    }
    root.set_own_xattr(ns.name(Private::Uuid), &random::uuid()?, XattrFlags::empty())
}

fn has(root: &DirMut, ns: Namespace, private: Private) -> Result<bool> {
    Ok(root.get_own_xattr(ns.name(private))?.is_some())
}
