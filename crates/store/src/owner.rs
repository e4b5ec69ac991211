//! Who owns a file: as root the file system says, as a user an extended attribute does.
//!
//! Owns the choice of the overlay's xattr namespace and the form of the override attribute, which is
//! fuse-overlayfs's (`user.containers.override_stat`, `UID:GID:MODE` with an octal mode), so that layers
//! unpacked by a user keep their owners, and plyfs's FUSE mount shows them.

use rustix::fs::FileType;

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
        if rustix::process::geteuid().is_root() && initial_namespace() { Ownership::Real } else { Ownership::Recorded }
    }

    /// A private attribute of the overlay, such as `opaque`.
    pub fn overlay_xattr(self, name: &str) -> Vec<u8> {
        let ns = match self {
            Ownership::Real => "trusted",
            Ownership::Recorded => "user",
        };
        format!("{ns}.overlay.{name}").into_bytes()
    }
}

fn initial_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// What a file's attribute says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// The type and the device number, where the file itself could not be made.
    pub special: Option<(FileType, u32, u32)>,
}

impl Recorded {
    /// The attribute's value: `UID:GID:MODE`, and `:TYPE-MAJOR-MINOR` for a device (containers/storage's form).
    pub fn encode(&self) -> Vec<u8> {
        let tail = match self.special {
            Some((FileType::CharacterDevice, a, b)) => format!(":char-{a}-{b}"),
            Some((FileType::BlockDevice, a, b)) => format!(":block-{a}-{b}"),
            _ => String::new(),
        };
        format!("{}:{}:{:o}{tail}", self.uid, self.gid, self.mode).into_bytes()
    }

    /// Reads the attribute; none if it is malformed.
    pub fn decode(value: &[u8]) -> Option<Recorded> {
        let text = std::str::from_utf8(value).ok()?;
        let mut parts = text.splitn(4, ':');
        let uid = parts.next()?.parse().ok()?;
        let gid = parts.next()?.parse().ok()?;
        let mode = u32::from_str_radix(parts.next()?, 8).ok()? & 0o7777;
        let special = match parts.next() {
            None | Some("file" | "dir" | "symlink" | "pipe" | "socket") => None,
            Some(d) => Some(device(d)?),
        };
        Some(Recorded { uid, gid, mode, special })
    }
}

fn device(text: &str) -> Option<(FileType, u32, u32)> {
    let mut p = text.splitn(3, '-');
    let kind = match p.next()? {
        "char" => FileType::CharacterDevice,
        "block" => FileType::BlockDevice,
        _ => return None,
    };
    Some((kind, p.next()?.parse().ok()?, p.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attribute_reads_back() {
        for special in [None, Some((FileType::CharacterDevice, 1, 3)), Some((FileType::BlockDevice, 8, 0))] {
            let r = Recorded { uid: 0, gid: 42, mode: 0o4755, special };
            assert_eq!(Recorded::decode(&r.encode()), Some(r));
        }
        assert_eq!(Recorded::decode(b"0:0:0000755").unwrap().mode, 0o755);
        for bad in [&b""[..], b"0:0", b"0:0:9", b"-1:0:0", b"0:0:0:char-1", b"\xff"] {
            assert_eq!(Recorded::decode(bad), None);
        }
    }
}
