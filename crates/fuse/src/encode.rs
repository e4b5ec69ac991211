//! The bodies of answers, byte for byte: the `fuse_*_out` structures of `fuse.h`.
//!
//! Pure: appends to an [`Output`] and decides nothing, except how long the kernel may keep what it is told
//! ([`Timeouts`]). Headers are the channel's.

use std::time::Duration;

use plyfs_core::{Attr, Entry, StatFs, Time};

use crate::abi::{InitFlags, MAJOR, MINOR, OpenFlags, STATX_BASIC_STATS, STATX_BTIME};
use crate::replaced::Inode;
use crate::wire::Output;

/// How long the kernel may answer from what it remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// That a name leads to a node.
    pub entry: Duration,
    /// The attributes of a node.
    pub attr: Duration,
    /// That a name does not exist.
    pub negative: Duration,
}

impl Timeouts {
    /// For ever, as the kernel counts: only the mount itself changes a mounted overlay, and tells the kernel. Ten
    /// years stay clear of every overflow in the kernel's conversion to ticks.
    pub const FOREVER: Self = Self::all(Duration::from_secs(10 * 365 * 86_400));

    /// The same for everything.
    #[must_use]
    pub const fn all(duration: Duration) -> Self {
        Self { entry: duration, attr: duration, negative: duration }
    }

    /// Attributes that change behind the kernel's back hold for a moment: an open asks for them twice, and no clock of a
    /// file system is finer than the kernel's tick, to which this is rounded up.
    const MOMENT: Duration = Duration::from_millis(1);

    /// For how long these attributes hold.
    fn of_attr(&self, attr: &Attr) -> Duration {
        if attr.cacheable { self.attr } else { self.attr.min(Self::MOMENT) }
    }
}

/// `fuse_entry_out`: a name that exists. The inode is the one that stands for the entry's node.
pub fn entry(out: &mut Output, inode: Inode, entry: &Entry, timeouts: &Timeouts) {
    entry_head(out, (inode.0, entry.generation), timeouts.entry, timeouts.of_attr(&entry.attr));
    attributes(out, &entry.attr);
}

/// `fuse_entry_out` of a name that does not exist: node 0, to be remembered.
pub fn absent(out: &mut Output, timeouts: &Timeouts) {
    entry_head(out, (0, 0), timeouts.negative, Duration::ZERO);
    out.zeros(ATTR);
}

/// `fuse_attr_out`.
pub fn attr(out: &mut Output, attr: &Attr, timeouts: &Timeouts) {
    let valid = timeouts.of_attr(attr);
    out.u64(valid.as_secs()).u32(valid.subsec_nanos()).u32(0);
    attributes(out, attr);
}

/// `fuse_statx_out`.
pub fn statx(out: &mut Output, attr: &Attr, timeouts: &Timeouts) {
    let valid = timeouts.of_attr(attr);
    out.u64(valid.as_secs()).u32(valid.subsec_nanos()).zeros(4 + 16);
    let mask = STATX_BASIC_STATS | if attr.btime.is_some() { STATX_BTIME } else { 0 };
    // attributes: none
    out.u32(mask).u32(attr.blksize).u64(0);
    // The mode has 16 bits here; those above mean nothing in `st_mode`.
    let [mode_low, mode_high, _, _] = attr.mode.to_le_bytes();
    out.u32(attr.nlink).u32(attr.uid).u32(attr.gid).u16(u16::from_le_bytes([mode_low, mode_high])).u16(0);
    out.u64(attr.ino).u64(attr.size).u64(attr.blocks).u64(0);
    for time in [attr.atime, attr.btime.unwrap_or_default(), attr.ctime, attr.mtime] {
        out.i64(time.sec).u32(time.nsec).u32(0);
    }
    // dev_major, dev_minor: the kernel knows the device
    out.u32(attr.rdev.0).u32(attr.rdev.1).zeros(8 + 14 * 8);
}

/// `fuse_open_out`; `backing` is the number of a registered backing file beside [`OpenFlags::PASSTHROUGH`].
pub fn open(out: &mut Output, handle: u64, flags: OpenFlags, backing: Option<u32>) {
    out.u64(handle).u32(flags.bits()).u32(backing.unwrap_or(0));
}

/// `fuse_write_out`.
pub fn written(out: &mut Output, size: u32) {
    out.u32(size).u32(0);
}

/// `fuse_statfs_out`. Sizes of a block that do not fit 32 bits do not exist.
pub fn statfs(out: &mut Output, stat: &StatFs) {
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    out.u64(stat.blocks).u64(stat.bfree).u64(stat.bavail).u64(stat.files).u64(stat.ffree);
    out.u32(narrow(stat.bsize)).u32(stat.namelen).u32(narrow(stat.frsize)).zeros(4 + 6 * 4);
}

/// `fuse_getxattr_out`: only how long the value or list is.
pub fn xattr_size(out: &mut Output, size: u32) {
    out.u32(size).u32(0);
}

/// `fuse_lseek_out` and `fuse_copy_file_range_out`: one number.
pub fn number(out: &mut Output, number: u64) {
    out.u64(number);
}

/// `fuse_ioctl_out` of an ioctl that went well, and the argument it gives back.
pub fn ioctl(out: &mut Output, argument: &[u8]) {
    out.i32(0).u32(0).u32(0).u32(0).bytes(argument);
}

/// The answer to INIT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InitOut {
    /// Minor version spoken from now on.
    pub minor: u32,
    /// Read-ahead in bytes; never more than the kernel offered.
    pub max_readahead: u32,
    /// What is switched on.
    pub flags: InitFlags,
    /// Asynchronous requests that may be outstanding.
    pub max_background: u16,
    /// Outstanding asynchronous requests from which the device counts as congested.
    pub congestion_threshold: u16,
    /// Largest WRITE in bytes.
    pub max_write: u32,
    /// Largest request in pages.
    pub max_pages: u16,
    /// Depth of stacked file systems below, plus one; 0 without passthrough.
    pub max_stack_depth: u32,
}

/// `fuse_init_out`.
pub fn init(out: &mut Output, init: &InitOut) {
    let bits = init.flags.bits();
    let low = u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
    let high = u32::try_from(bits >> 32).unwrap_or_default();
    out.u32(MAJOR).u32(init.minor).u32(init.max_readahead).u32(low);
    out.u16(init.max_background).u16(init.congestion_threshold).u32(init.max_write);
    // The granularity of times is a nanosecond; no alignment of DAX maps.
    out.u32(1).u16(init.max_pages).u16(0).u32(high).u32(init.max_stack_depth).zeros(24);
}

/// The answer to an INIT of a newer major version: ours, to be asked again in it.
pub fn version(out: &mut Output) {
    out.u32(MAJOR).u32(MINOR).zeros(56);
}

/// A device number as `fuse_attr.rdev` and `fuse_mknod_in.rdev` carry it (the kernel's `new_encode_dev`).
#[must_use]
pub const fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// The reverse of [`device_number`].
#[must_use]
pub const fn split_device_number(device: u32) -> (u32, u32) {
    ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

/// Size of `fuse_attr`.
const ATTR: usize = 88;

fn entry_head(out: &mut Output, (node, generation): (u64, u32), entry: Duration, attr: Duration) {
    out.u64(node).u64(generation.into()).u64(entry.as_secs()).u64(attr.as_secs());
    out.u32(entry.subsec_nanos()).u32(attr.subsec_nanos());
}

/// `fuse_attr`.
fn attributes(out: &mut Output, attr: &Attr) {
    let seconds = |time: Time| time.sec.cast_unsigned();
    out.u64(attr.ino).u64(attr.size).u64(attr.blocks);
    out.u64(seconds(attr.atime)).u64(seconds(attr.mtime)).u64(seconds(attr.ctime));
    out.u32(attr.atime.nsec).u32(attr.mtime.nsec).u32(attr.ctime.nsec);
    out.u32(attr.mode).u32(attr.nlink).u32(attr.uid).u32(attr.gid);
    out.u32(device_number(attr.rdev)).u32(attr.blksize).u32(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::ENTRY_OUT;
    use crate::wire::Input;

    fn sample() -> Attr {
        Attr {
            ino: 11,
            mode: 0o100_644,
            nlink: 2,
            uid: 3,
            gid: 4,
            rdev: (8, 0x1_2345),
            size: 5,
            blocks: 8,
            blksize: 4096,
            atime: Time { sec: -1, nsec: 7 },
            mtime: Time { sec: 1 << 33, nsec: 8 },
            ctime: Time::default(),
            btime: None,
            cacheable: true,
        }
    }

    fn sample_entry() -> Entry {
        Entry { node: plyfs_core::NodeId(2), generation: 0, attr: sample() }
    }

    #[test]
    fn structures_have_the_sizes_of_the_header_file() {
        type Case = (fn(&mut Output), usize);
        let sizes: [Case; 7] = [
            (|o| entry(o, Inode(2), &sample_entry(), &Timeouts::FOREVER), ENTRY_OUT),
            (|o| absent(o, &Timeouts::FOREVER), ENTRY_OUT),
            (|o| attr(o, &sample(), &Timeouts::FOREVER), 104),
            (|o| statx(o, &sample(), &Timeouts::FOREVER), 32 + 256),
            (|o| open(o, 1, OpenFlags::PASSTHROUGH, Some(1)), 16),
            (
                |o| {
                    statfs(
                        o,
                        &StatFs {
                            bsize: 4096,
                            frsize: 4096,
                            blocks: 0,
                            bfree: 0,
                            bavail: 0,
                            files: 0,
                            ffree: 0,
                            namelen: 255,
                        },
                    )
                },
                80,
            ),
            (
                |o| {
                    init(
                        o,
                        &InitOut {
                            minor: 45,
                            max_readahead: 0,
                            flags: InitFlags::PASSTHROUGH,
                            max_background: 1,
                            congestion_threshold: 1,
                            max_write: 1,
                            max_pages: 1,
                            max_stack_depth: 1,
                        },
                    )
                },
                64,
            ),
        ];
        for (index, (encode, size)) in sizes.into_iter().enumerate() {
            let mut out = Output::default();
            encode(&mut out);
            assert_eq!(out.len(), size, "structure {index}");
        }
    }

    #[test]
    fn attributes_that_change_behind_the_engine_are_kept_for_a_moment() {
        let mut out = Output::default();
        attr(&mut out, &Attr { cacheable: false, ..sample() }, &Timeouts::FOREVER);
        let mut input = Input::new(out.as_bytes());
        assert_eq!((input.u64(), input.u32()), (Some(0), Some(1_000_000)));
        out.clear();
        attr(&mut out, &sample(), &Timeouts::FOREVER);
        assert_ne!(Input::new(out.as_bytes()).u64(), Some(0));
    }

    #[test]
    fn a_time_before_1970_keeps_its_sign() {
        let mut out = Output::default();
        attr(&mut out, &sample(), &Timeouts::FOREVER);
        let mut input = Input::new(out.as_bytes());
        input.skip(16 + 24).unwrap();
        assert_eq!(input.i64(), Some(-1));
        assert_eq!(input.i64(), Some(1 << 33));
    }

    #[test]
    fn device_numbers_come_back_as_they_went() {
        for device in [(0, 0), (8, 1), (0xfff, 0xf_ffff), (1, 0x100)] {
            assert_eq!(split_device_number(device_number(device)), device);
        }
        // The values of stat(2) for /dev/null and of a large minor number.
        assert_eq!(device_number((1, 3)), 0x103);
        assert_eq!(device_number((8, 0x1_2345)), 0x1230_0845);
    }
}
