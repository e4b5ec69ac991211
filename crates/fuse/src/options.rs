//! How a mount is to be made and served: everything that is no matter of the overlay itself.
//!
//! Owns the values and their defaults, not their text: the command line parses and refuses.

use std::time::Duration;

use crate::encode::Timeouts;

/// Options of a mount and its session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// What the mount table shows as source.
    pub source: String,
    /// What follows `fuse.` in the mount table's type.
    pub subtype: String,
    /// Others than the mounter may enter (the default for root).
    pub allow_other: bool,
    /// Flags of mount(2).
    pub flags: Flags,
    /// Labels for the kernel's security module, as `context=VALUE` without quotes.
    pub labels: Vec<String>,
    /// How long the kernel remembers, in place of "for ever".
    pub timeout: Option<Duration>,
    /// POSIX ACLs.
    pub acl: bool,
    /// Let the kernel read and write real files directly where it can.
    pub passthrough: bool,
    /// Where there is no passthrough, let the kernel collect writes.
    pub writeback: bool,
    /// Honour fsync; `false` answers it as done, without asking again.
    pub fsync: bool,
    /// Threads that serve; `None` chooses.
    pub threads: Option<usize>,
    /// Largest READ and WRITE in bytes, a multiple of a page.
    pub max_write: u32,
}

/// The flags of mount(2) that a user can choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "the names are those of mount(8)")]
pub struct Flags {
    pub read_only: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    pub nosymfollow: bool,
    pub noatime: bool,
    pub nodiratime: bool,
    pub relatime: bool,
    pub strictatime: bool,
    pub sync: bool,
    pub dirsync: bool,
    pub lazytime: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            source: "plyfs".to_owned(),
            subtype: "plyfs".to_owned(),
            allow_other: false,
            flags: Flags::default(),
            labels: Vec::new(),
            timeout: None,
            acl: true,
            passthrough: true,
            writeback: true,
            fsync: true,
            threads: None,
            max_write: 1 << 20,
        }
    }
}

impl MountOptions {
    /// What the kernel is told to remember.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        self.timeout.map_or(Timeouts::FOREVER, Timeouts::all)
    }
}
