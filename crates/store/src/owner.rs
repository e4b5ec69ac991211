//! Who owns a file: as root the file system says, as a user an extended attribute does.
//!
//! Owns the choice between the two and the overlay's xattr namespace. The attribute is containers/storage's
//! (`user.containers.override_stat`, plyfs_format::override_stat), so that layers unpacked by a user keep
//! their owners, and plyfs's FUSE mount shows them.

use plyfs_format::Namespace;

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
}
