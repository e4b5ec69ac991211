//! Owner, mode, attributes and times of what is committed, as the union shows them.

use std::ffi::CString;

use plyfs_format::Name;
use plyfs_sys::{DirMut, Errno, FileKind, Stat, Times, XattrFlags};

use crate::changes::{UpperDir, shown_xattrs};

/// Attributes as a list of names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Gives an entry of a directory the attributes that an entry of the upper has. In this order: a change of owner clears
/// set-id bits and capabilities, and attributes may not be writable once the mode is set.
pub fn give(
    to: &DirMut,
    entry: Name<'_>,
    upper: &UpperDir,
    name: Name<'_>,
    stat: &Stat,
    ignore_owner: bool,
) -> plyfs_sys::Result<()> {
    if !ignore_owner {
        to.chown_at(entry, Some(stat.uid), Some(stat.gid))?;
    }
    replace_xattrs(to, entry, &shown_xattrs(upper, name)?)?;
    if stat.kind() != FileKind::Symlink {
        to.chmod_at(entry, stat.permissions())?;
    }
    to.utimens_at(entry, Times::of(stat))
}

/// Makes the attributes of an entry these, touching only what differs.
fn replace_xattrs(to: &DirMut, entry: Name<'_>, wanted: &Xattrs) -> plyfs_sys::Result<()> {
    for attr in to.list_xattrs(entry)?.split(|byte| *byte == 0).filter(|attr| !attr.is_empty()) {
        let kept = wanted.iter().any(|(name, _)| name == attr);
        // The security module's label is not the upper's to remove.
        if !kept && !attr.starts_with(b"security.selinux") && !attr.starts_with(b"system.nfs4_acl") {
            to.remove_xattr(entry, &c_string(attr)?)?;
        }
    }
    for (attr, value) in wanted {
        let attr = c_string(attr)?;
        if to.get_xattr(entry, &attr)?.as_ref() != Some(value) {
            to.set_xattr(entry, &attr, value, XattrFlags::empty())?;
        }
    }
    Ok(())
}

fn c_string(bytes: &[u8]) -> plyfs_sys::Result<CString> {
    CString::new(bytes).map_err(|_| Errno::INVAL)
}
