//! Inode numbers: one number space for all layers, stable across copy-up and remount.
//!
//! Owns the mapping from (file system, inode) to the number that `stat` reports. The kernel's counterpart is
//! `ovl_map_dev_ino` with `xino`; FUSE has one device number for the whole mount, so the mapping is always on.

/// Which of the stack's file systems an object is on: the upper's is 0, the others in order of appearance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FsIndex(pub u16);

/// The number space of a mount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InoSpace {
    /// Bits at the top that say which file system; 0 when all layers are on one.
    bits: u32,
    /// Numbers are folded to 32 bits, for programs that know no longer ones.
    fold: bool,
}

impl InoSpace {
    /// For a stack on `filesystems` file systems (at least one). The width is the kernel's for xino=on: the lowest of
    /// the top bits stays free.
    pub fn new(filesystems: usize, fold: bool) -> Self {
        let bits = if filesystems <= 1 { 0 } else { (filesystems - 1).ilog2() + 2 };
        Self { bits, fold }
    }

    /// The number of an inode. An inode number so large that it reaches into the top bits keeps its value: it is then
    /// still stable, but could meet another one.
    pub fn map(self, fs: FsIndex, ino: u64) -> u64 {
        let wide = self.wide(fs, ino);
        if self.fold { (wide ^ (wide >> 32)) & u64::from(u32::MAX) } else { wide }
    }

    fn wide(self, fs: FsIndex, ino: u64) -> u64 {
        if self.bits == 0 {
            return ino;
        }
        let shift = 64 - self.bits;
        if ino >> shift != 0 {
            return ino;
        }
        ino | (u64::from(fs.0) << (shift + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_on_one_file_system_keep_their_numbers() {
        assert_eq!(InoSpace::new(1, false).map(FsIndex(0), 42), 42);
    }

    #[test]
    fn the_same_inode_on_two_file_systems_has_two_numbers() {
        let space = InoSpace::new(2, false);
        assert_eq!(space.map(FsIndex(0), 42), 42);
        assert_eq!(space.map(FsIndex(1), 42), 42 | 1 << 63);
    }

    #[test]
    fn a_number_that_needs_all_bits_is_left_alone() {
        assert_eq!(InoSpace::new(3, false).map(FsIndex(2), u64::MAX), u64::MAX);
    }

    #[test]
    fn folded_numbers_fit_32_bits_and_still_tell_file_systems_apart() {
        let space = InoSpace::new(2, true);
        assert_eq!(space.map(FsIndex(0), 42), 42);
        assert_eq!(space.map(FsIndex(1), 42), 42 | 1 << 31);
        assert!(space.map(FsIndex(0), 42 | 7 << 32) <= u64::from(u32::MAX));
    }
}
