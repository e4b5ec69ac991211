//! Who owns a file: as root the file system says, as a user an extended attribute does.
//!
//! Owns the choice between the two and the overlay's xattr namespace. The attribute is containers/storage's
//! (`user.containers.override_stat`, plyfs_format::override_stat), so that layers unpacked by a user keep
//! their owners, and plyfs's FUSE mount shows them.
//!
//! Also owns which records are believed. Any program can set the attribute on a file of its own, and the kernel's overlay
//! hands it to the upper as it is: where the file system says who owns a file, a record is a claim and nothing else.

use std::path::Path;

use plyfs_format::{Namespace, OverrideStat};
use rustix::fs::XattrFlags;

use crate::beneath::{self, Root};
use crate::error::{Context, Result};

/// The attribute's name.
pub const OVERRIDE: &[u8] = b"user.containers.override_stat";

/// How this machine's ids are a container's, for files that have no record: what a user makes in a container is the user's
/// on disk and its root's inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    root: Option<(u32, u32)>,
}

impl Ids {
    /// Files belong to whom the file system says.
    pub const KEPT: Ids = Ids { root: None };

    /// A container's owner and group for what is on disk.
    pub fn inside(self, uid: u32, gid: u32) -> (u32, u32) {
        match self.root {
            Some((u, g)) => (if uid == u { 0 } else { uid }, if gid == g { 0 } else { gid }),
            None => (uid, gid),
        }
    }
}

/// How this process writes layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// chown, chmod and mknod do it; overlay xattrs are `trusted.overlay.*`.
    Real,
    /// An attribute remembers it; the files are the user's; overlay xattrs are `user.overlay.*`.
    Recorded,
}

impl Ownership {
    /// What this process may do: real ownership needs root in the initial user namespace.
    pub fn detect() -> Ownership {
        if rustix::process::geteuid().is_root() && initial_namespace() {
            Ownership::Real
        } else {
            Ownership::Recorded
        }
    }

    /// The ids of what a container made.
    pub fn ids(self) -> Ids {
        match self {
            Ownership::Real => Ids::KEPT,
            Ownership::Recorded => {
                Ids { root: Some((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())) }
            }
        }
    }

    /// Whether records in the tree `root`, which programs can write to, are believed: where this store records owners and
    /// the tree's root directory bears a record, as the roots do that the store makes (plyfs-core's rule for a mount).
    pub fn believes(self, root: &Root) -> Result<bool> {
        let marked = || beneath::xattr(root.path(), OVERRIDE).at("read the owner of", root.path());
        Ok(self == Ownership::Recorded && marked()?.is_some())
    }

    /// The same for a committed layer: its records are the store's own, whatever its root bears, because a tar's are dropped.
    pub fn believes_layer(self) -> bool {
        self == Ownership::Recorded
    }

    /// Makes `dir`, an upper's root without a record, bear one: an image without an entry for its root gives it none.
    pub fn mark(self, dir: &Path) -> Result<()> {
        if self == Ownership::Real || self.believes(&Root::open(dir)?)? {
            return Ok(());
        }
        let mode = rustix::fs::stat(dir).at("stat", dir)?.st_mode & 0o7777;
        let record = OverrideStat { uid: 0, gid: 0, mode, kind: None }.to_bytes();
        rustix::fs::setxattr(dir, OVERRIDE, &record, XattrFlags::empty()).at("record the owner of", dir)
    }

    /// The namespace of the overlay's private attributes.
    pub fn namespace(self) -> Namespace {
        match self {
            Ownership::Real => Namespace::Trusted,
            Ownership::Recorded => Namespace::User,
        }
    }
}

fn initial_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_user_is_the_containers_root() {
        let ids = Ids { root: Some((1000, 100)) };
        assert_eq!(ids.inside(1000, 100), (0, 0));
        assert_eq!(ids.inside(33, 1000), (33, 1000));
        assert_eq!(Ids::KEPT.inside(1000, 100), (1000, 100));
    }

    #[test]
    fn a_record_is_believed_where_owners_are_recorded_and_the_root_bears_one() {
        let t = tempfile::tempdir().unwrap();
        let root = Root::open(t.path()).unwrap();
        assert!(!Ownership::Recorded.believes(&root).unwrap());
        Ownership::Real.mark(t.path()).unwrap();
        assert!(!Ownership::Recorded.believes(&root).unwrap(), "a store with real owners marks nothing");
        Ownership::Recorded.mark(t.path()).unwrap();
        assert!(Ownership::Recorded.believes(&root).unwrap());
        assert!(!Ownership::Real.believes(&root).unwrap());
    }
}
