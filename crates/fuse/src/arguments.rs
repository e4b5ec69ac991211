//! The larger arguments of requests: structures that several operations or none but one big one need.
//!
//! Pure, as `request`, which says for which operation each stands. The kernel's counterpart are the `fuse_*_in` structures.

use crate::abi::{InitFlags, SetAttrValid};
use crate::wire::Input;

/// `fuse_setattr_in`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "members are named as in fuse.h")]
pub struct SetAttrIn {
    pub valid: SetAttrValid,
    pub handle: u64,
    pub size: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// `fuse_ioctl_in` and the argument's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "members are named as in fuse.h")]
pub struct IoctlIn<'a> {
    pub handle: u64,
    pub flags: u32,
    pub cmd: u32,
    pub data: &'a [u8],
    pub out_size: u32,
}

/// `fuse_copy_file_range_in`; the source node is the header's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "members are named as in fuse.h")]
pub struct CopyFileRangeIn {
    pub from: u64,
    pub from_offset: u64,
    pub to_node: u64,
    pub to: u64,
    pub to_offset: u64,
    pub len: u64,
    pub flags: u64,
    /// Whether the answer is `fuse_copy_file_range_out` (64 bits) rather than `fuse_write_out`.
    pub wide: bool,
}

/// `fuse_init_in`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "members are named as in fuse.h")]
pub struct InitIn {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: InitFlags,
}

/// The nodes and counts of a BATCH_FORGET.
#[derive(Clone, Copy, Debug)]
pub struct Forgets<'a> {
    left: u32,
    input: Input<'a>,
}

impl<'a> Forgets<'a> {
    pub(crate) fn decode(input: &mut Input<'a>) -> Option<Self> {
        let left = input.u32()?;
        input.skip(4)?;
        Some(Self { left, input: *input })
    }
}

impl Iterator for Forgets<'_> {
    /// Node and count.
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some((self.input.u64()?, self.input.u64()?))
    }
}

impl SetAttrIn {
    pub(crate) fn decode(input: &mut Input<'_>) -> Option<Self> {
        let valid = SetAttrValid::from_bits_retain(input.u32()?);
        input.skip(4)?;
        let (handle, size) = (input.u64()?, input.u64()?);
        // lock_owner
        input.skip(8)?;
        let (atime, mtime) = (input.i64()?, input.i64()?);
        // ctime: the layer's file system keeps its own
        input.skip(8)?;
        let (atime_nsec, mtime_nsec) = (input.u32()?, input.u32()?);
        input.skip(4)?;
        let mode = input.u32()?;
        input.skip(4)?;
        let (uid, gid) = (input.u32()?, input.u32()?);
        Some(Self {
            valid,
            handle,
            size,
            atime: (atime, atime_nsec),
            mtime: (mtime, mtime_nsec),
            mode,
            uid,
            gid,
        })
    }
}

impl<'a> IoctlIn<'a> {
    pub(crate) fn decode(input: &mut Input<'a>) -> Option<Self> {
        let (handle, flags, cmd) = (input.u64()?, input.u32()?, input.u32()?);
        // The argument's value: an address in the caller, of no use here.
        input.skip(8)?;
        let (in_size, out_size) = (input.u32()?, input.u32()?);
        let data = input.bytes(usize::try_from(in_size).ok()?)?;
        Some(Self { handle, flags, cmd, data, out_size })
    }
}

impl CopyFileRangeIn {
    pub(crate) fn decode(input: &mut Input<'_>, wide: bool) -> Option<Self> {
        Some(Self {
            from: input.u64()?,
            from_offset: input.u64()?,
            to_node: input.u64()?,
            to: input.u64()?,
            to_offset: input.u64()?,
            len: input.u64()?,
            flags: input.u64()?,
            wide,
        })
    }
}

impl InitIn {
    pub(crate) fn decode(input: &mut Input<'_>) -> Option<Self> {
        let (major, minor) = (input.u32()?, input.u32()?);
        // Before 7.6 there was nothing more; such a kernel is refused by the negotiation, not here.
        let max_readahead = input.u32().unwrap_or(0);
        let low = input.u32().unwrap_or(0);
        let mut flags = u64::from(low);
        if InitFlags::from_bits_retain(flags).contains(InitFlags::INIT_EXT) {
            flags |= u64::from(input.u32().unwrap_or(0)) << 32;
        }
        Some(Self { major, minor, max_readahead, flags: InitFlags::from_bits_retain(flags) })
    }
}
