//! Who owns a file: as root the file system says, as a user an extended attribute does.
//!
//! Owns the choice between the two and the overlay's xattr namespace. The attribute is containers/storage's
//! (`user.containers.override_stat`, plyfs_format::override_stat), so that layers unpacked by a user keep
//! their owners, and plyfs's FUSE mount shows them.

use plyfs_format::Namespace;

/// The attribute's name.
pub const OVERRIDE: &[u8] = b"user.containers.override_stat";

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
