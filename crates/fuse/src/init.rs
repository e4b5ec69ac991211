//! The negotiation of INIT: what the kernel offers, what plyfs wants, what holds for the session.
//!
//! Pure decision; `session` reads and answers the request. The kernel's counterpart is `process_init_reply` in
//! `fs/fuse/inode.c`.

use crate::abi::{InitFlags, MAJOR, MINOR, OLDEST_MINOR};
use crate::encode::InitOut;
use crate::options::MountOptions;
use crate::request::{Dialect, InitIn};

/// What both sides agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// The answer, with everything that is switched on.
    pub answer: InitOut,
    /// How requests are laid out from now on.
    pub dialect: Dialect,
}

/// Why the two sides cannot speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the kernel speaks FUSE {major}.{minor}; plyfs needs {MAJOR}.{OLDEST_MINOR} (Linux 5.4) or newer")]
pub struct TooOld {
    /// Major version of the kernel's protocol.
    pub major: u32,
    /// Minor version of the kernel's protocol.
    pub minor: u32,
}

/// The depth of stacked file systems that a mount counts for: 1 leaves it usable as a layer of an overlay.
const STACK_DEPTH: u32 = 1;

/// Asynchronous requests (read-ahead, releases) that may be outstanding. The kernel's default of 12 makes readers wait
/// for each other.
const MAX_BACKGROUND: u16 = 256;

impl Agreed {
    /// Whether opens may name a backing file.
    #[must_use]
    pub const fn passthrough(&self) -> bool {
        self.answer.flags.contains(InitFlags::PASSTHROUGH)
    }

    /// Whether the kernel collects writes.
    #[must_use]
    pub const fn writeback(&self) -> bool {
        self.answer.flags.contains(InitFlags::WRITEBACK_CACHE)
    }
}

/// Whether the kernel asked with a newer major version; it then wants to hear ours and asks again.
#[must_use]
pub const fn asks_again(offer: &InitIn) -> bool {
    offer.major > MAJOR
}

/// Decides. `may_back` tells whether this process may register backing files (CAP_SYS_ADMIN of the initial user
/// namespace, which the kernel checks only later).
///
/// # Errors
/// [`TooOld`].
pub fn negotiate(offer: &InitIn, options: &MountOptions, may_back: bool) -> Result<Agreed, TooOld> {
    if offer.major < MAJOR || (offer.major == MAJOR && offer.minor < OLDEST_MINOR) {
        return Err(TooOld { major: offer.major, minor: offer.minor });
    }
    let mut wanted = WANTED;
    wanted.set(InitFlags::POSIX_ACL, options.acl);
    let passthrough = options.passthrough && may_back && offer.flags.contains(InitFlags::PASSTHROUGH);
    wanted.set(InitFlags::PASSTHROUGH, passthrough);
    // The two exclude each other: the kernel ignores passthrough beside the writeback cache.
    wanted.set(InitFlags::WRITEBACK_CACHE, !passthrough && options.writeback && !options.flags.read_only);
    let flags = wanted & offer.flags;
    let pages = options.max_write.div_ceil(4096).clamp(1, 256);
    let max_pages = if flags.contains(InitFlags::MAX_PAGES) { pages } else { pages.min(32) };
    let answer = InitOut {
        minor: MINOR.min(offer.minor),
        max_readahead: offer.max_readahead,
        flags,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: max_pages * 4096,
        max_pages: u16::try_from(max_pages).unwrap_or(u16::MAX),
        max_stack_depth: if passthrough { STACK_DEPTH } else { 0 },
    };
    Ok(Agreed { answer, dialect: Dialect { setxattr_ext: flags.contains(InitFlags::SETXATTR_EXT) } })
}

/// Always wanted. READDIRPLUS_AUTO: a listing brings nodes along as long as the program looks at them, and is several times
/// cheaper, here and in memory, for one that only wants names. Not among them: locks, which the kernel keeps itself;
/// AUTO_INVAL_DATA, since only the mount changes what it shows.
const WANTED: InitFlags = InitFlags::ASYNC_READ
    .union(InitFlags::ATOMIC_O_TRUNC)
    .union(InitFlags::EXPORT_SUPPORT)
    .union(InitFlags::BIG_WRITES)
    .union(InitFlags::DONT_MASK)
    .union(InitFlags::DO_READDIRPLUS)
    .union(InitFlags::READDIRPLUS_AUTO)
    .union(InitFlags::ASYNC_DIO)
    .union(InitFlags::PARALLEL_DIROPS)
    .union(InitFlags::MAX_PAGES)
    .union(InitFlags::CACHE_SYMLINKS)
    .union(InitFlags::NO_OPENDIR_SUPPORT)
    .union(InitFlags::EXPLICIT_INVAL_DATA)
    .union(InitFlags::HANDLE_KILLPRIV_V2)
    .union(InitFlags::SETXATTR_EXT)
    .union(InitFlags::INIT_EXT)
    .union(InitFlags::DIRECT_IO_ALLOW_MMAP)
    .union(InitFlags::ALLOW_IDMAP);

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(flags: InitFlags) -> InitIn {
        InitIn { major: 7, minor: 45, max_readahead: 128 << 10, flags }
    }

    #[test]
    fn nothing_is_switched_on_that_the_kernel_does_not_offer() {
        let agreed = negotiate(&offer(InitFlags::ASYNC_READ), &MountOptions::default(), true).unwrap();
        assert_eq!(agreed.answer.flags, InitFlags::ASYNC_READ);
        assert_eq!(agreed.answer.max_pages, 32);
        assert!(!agreed.dialect.setxattr_ext && !agreed.passthrough());
    }

    #[test]
    fn passthrough_and_the_writeback_cache_exclude_each_other() {
        for may_back in [true, false] {
            let agreed = negotiate(&offer(InitFlags::all()), &MountOptions::default(), may_back).unwrap();
            assert_eq!(agreed.passthrough(), may_back);
            assert_eq!(agreed.writeback(), !may_back);
            assert_eq!(agreed.answer.max_stack_depth, u32::from(may_back));
        }
        let without = MountOptions { writeback: false, passthrough: false, ..MountOptions::default() };
        let agreed = negotiate(&offer(InitFlags::all()), &without, true).unwrap();
        assert!(!agreed.passthrough() && !agreed.writeback());
    }

    #[test]
    fn the_larger_version_gives_way() {
        let mut older = offer(InitFlags::all());
        older.minor = 36;
        assert_eq!(negotiate(&older, &MountOptions::default(), true).unwrap().answer.minor, 36);
        older.minor = 30;
        assert_eq!(negotiate(&older, &MountOptions::default(), true), Err(TooOld { major: 7, minor: 30 }));
        assert!(asks_again(&InitIn { major: 8, ..offer(InitFlags::empty()) }));
    }
}
