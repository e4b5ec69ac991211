//! Owner, mode, attributes and times of what is committed, as the union shows them.

use std::ffi::CString;

use plyfs_format::Name;
use plyfs_sys::{DirMut, Errno, FileKind, Stat, Times, XattrFlags};

use crate::changes::{UpperDir, shown_xattrs};

/// Attributes as a list of names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The bits of a mode that give a program its owner's or group's rights.
pub const SET_ID: u32 = 0o6000;
/// The attribute that gives a program capabilities.
const CAPABILITIES: &[u8] = b"security.capability";

/// Whose the committed things become.
#[derive(Clone, Copy, Debug)]
pub enum Owners {
    /// As the upper has it.
    OfUpper,
    /// Not as the upper has it: then a program in it must not run with the rights of whoever owns it now.
    OfTarget {
        /// What stood there before belonged to these, and so shall this. `None`: it is as it shall be.
        before: Option<(u32, u32)>,
        /// The set-id bits that may stay, as the target has them with the same data.
        set_id: u32,
    },
}

impl Owners {
    /// The permissions of an entry whose mode in the upper is that of `stat`.
    fn permissions(self, stat: &Stat) -> u32 {
        match self {
            Self::OfTarget { set_id, .. } if stat.kind() == FileKind::Regular => {
                stat.permissions() & (!SET_ID | set_id)
            }
            _ => stat.permissions(),
        }
    }

    fn give(self, to: &DirMut, entry: Name<'_>, stat: &Stat) -> plyfs_sys::Result<()> {
        match self {
            Self::OfUpper => to.chown_at(entry, Some(stat.uid), Some(stat.gid)),
            Self::OfTarget { before: Some((uid, gid)), .. } => {
                match to.chown_at(entry, Some(uid), Some(gid)) {
                    // Who may not give files away keeps them.
                    Err(Errno::PERM) => Ok(()),
                    other => other,
                }
            }
            Self::OfTarget { before: None, .. } => Ok(()),
        }
    }
}

/// Gives an entry of a directory the attributes that an entry of the upper has. In this order: a change of owner clears
/// set-id bits and capabilities, and attributes may not be writable once the mode is set.
pub fn give(
    to: &DirMut,
    entry: Name<'_>,
    upper: &UpperDir,
    name: Name<'_>,
    stat: &Stat,
    owners: Owners,
) -> plyfs_sys::Result<()> {
    owners.give(to, entry, stat)?;
    let mut xattrs = shown_xattrs(upper, name)?;
    if matches!(owners, Owners::OfTarget { .. }) {
        keep_capabilities_only_if_there(to, entry, &mut xattrs)?;
    }
    replace_xattrs(to, entry, &xattrs)?;
    if stat.kind() != FileKind::Symlink {
        to.chmod_at(entry, owners.permissions(stat))?;
    }
    to.utimens_at(entry, Times::of(stat))
}

fn keep_capabilities_only_if_there(
    to: &DirMut,
    entry: Name<'_>,
    wanted: &mut Xattrs,
) -> plyfs_sys::Result<()> {
    if wanted.iter().any(|(name, _)| name == CAPABILITIES) {
        let there = to.get_xattr(entry, &c_string(CAPABILITIES)?)?;
        wanted.retain(|(name, value)| name != CAPABILITIES || there.as_ref() == Some(value));
    }
    Ok(())
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
