//! The ioctls of inode flags (chattr(1), lsattr(1)) as FUSE carries them.
//!
//! Owns their argument layouts (`<linux/fs.h>`: `int` flags and `struct fsxattr`) and the correspondence of the two sets
//! of flags; what a flag does to an inode is the engine's.

use plyfs_core::{NodeId, Overlay};
use plyfs_sys::Errno;

use crate::abi::ioctl::{FSGETXATTR, FSSETXATTR, GETFLAGS, GETFLAGS_32, SETFLAGS, SETFLAGS_32};
use crate::encode;
use crate::request::IoctlIn;
use crate::wire::{Input, Output};

/// `FS_*_FL` beside the `FS_XFLAG_*` of the same meaning.
const PAIRS: [(u32, u32); 5] = [
    (0x0000_0010, 0x0000_0008), // immutable
    (0x0000_0020, 0x0000_0010), // append only
    (0x0000_0008, 0x0000_0020), // sync
    (0x0000_0080, 0x0000_0040), // no atime
    (0x0000_0040, 0x0000_0080), // no dump
];

/// Size of `struct fsxattr`.
const FSXATTR: usize = 28;

/// Carries out an ioctl and writes its answer.
///
/// # Errors
/// ENOTTY for an ioctl that is not one of these; EOPNOTSUPP for flags that have no counterpart; the engine's.
pub fn perform(overlay: &Overlay, node: NodeId, ioctl: &IoctlIn<'_>, out: &mut Output) -> Result<(), Errno> {
    let mut input = Input::new(ioctl.data);
    match ioctl.cmd {
        GETFLAGS | GETFLAGS_32 => {
            encode::ioctl(out, &overlay.inode_flags(node)?.to_ne_bytes());
        }
        SETFLAGS | SETFLAGS_32 => {
            overlay.set_inode_flags(node, input.u32().ok_or(Errno::INVAL)?)?;
            encode::ioctl(out, &[]);
        }
        FSGETXATTR => {
            let mut argument = [0; FSXATTR];
            let xflags = to_xflags(overlay.inode_flags(node)?);
            argument.iter_mut().zip(xflags.to_ne_bytes()).for_each(|(place, byte)| *place = byte);
            encode::ioctl(out, &argument);
        }
        FSSETXATTR => {
            let xflags = input.u32().ok_or(Errno::INVAL)?;
            // Extent sizes and project ids: the layers' own business.
            let rest = input.bytes(16).ok_or(Errno::INVAL)?;
            if rest.iter().any(|&byte| byte != 0) {
                return Err(Errno::OPNOTSUPP);
            }
            let others = overlay.inode_flags(node)? & !known();
            overlay.set_inode_flags(node, others | from_xflags(xflags)?)?;
            encode::ioctl(out, &[]);
        }
        _ => return Err(Errno::NOTTY),
    }
    Ok(())
}

fn known() -> u32 {
    PAIRS.iter().fold(0, |all, (flag, _)| all | flag)
}

fn to_xflags(flags: u32) -> u32 {
    PAIRS.iter().filter(|(flag, _)| flags & flag != 0).fold(0, |all, (_, xflag)| all | xflag)
}

fn from_xflags(xflags: u32) -> Result<u32, Errno> {
    let mut left = xflags;
    let mut flags = 0;
    for (flag, xflag) in PAIRS {
        if left & xflag != 0 {
            flags |= flag;
            left &= !xflag;
        }
    }
    // FS_XFLAG_HASATTR only reports.
    if left & !0x8000_0000 == 0 { Ok(flags) } else { Err(Errno::OPNOTSUPP) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_back_as_they_went() {
        for (flag, xflag) in PAIRS {
            assert_eq!(to_xflags(flag), xflag);
            assert_eq!(from_xflags(xflag), Ok(flag));
        }
        assert_eq!(from_xflags(0x8000_0000), Ok(0));
        assert_eq!(from_xflags(0x0000_0100), Err(Errno::OPNOTSUPP));
    }
}
