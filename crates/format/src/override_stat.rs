//! The owner, mode and type that a file should show, kept in an attribute where the real ones cannot be set.
//!
//! Owns the text `uid:gid:mode[:type]` of `user.containers.override_stat` and its older spellings. The kernel has no
//! counterpart; the forms are those of fuse-overlayfs (three fields), containers/storage (four) and libkrun (file type
//! bits in the mode).

use std::fmt;

const TYPE_MASK: u32 = 0o170_000;

/// What the attribute says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OverrideStat {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits with set-id and sticky bits: 0 to 0o7777.
    pub mode: u32,
    /// The file's type, where the value states it.
    pub kind: Option<OverrideKind>,
}

/// The type that a file should show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OverrideKind {
    /// `file`
    File,
    /// `dir`
    Dir,
    /// `symlink`; the target is the real file's content or link.
    Symlink,
    /// `pipe`
    Pipe,
    /// `socket`
    Socket,
    /// `block-MAJOR-MINOR`
    Block(u32, u32),
    /// `char-MAJOR-MINOR`
    Char(u32, u32),
}

/// Which field of a value is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OverrideStatError {
    /// Fewer than three fields.
    #[error("override_stat has fewer than three fields; expected uid:gid:mode")]
    Fields,
    /// The owner.
    #[error("override_stat has a malformed uid")]
    Uid,
    /// The group.
    #[error("override_stat has a malformed gid")]
    Gid,
    /// The mode.
    #[error("override_stat has a malformed mode; expected octal digits")]
    Mode,
    /// The type, or a device's numbers.
    #[error("override_stat has a malformed file type")]
    Kind,
}

impl OverrideStat {
    /// Reads the attribute's value. Fields after the fourth are left to later versions.
    pub fn parse(value: &[u8]) -> Result<Self, OverrideStatError> {
        let text = std::str::from_utf8(value).map_err(|_| OverrideStatError::Fields)?;
        let mut fields = text.split(':');
        let (Some(uid), Some(gid), Some(mode)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(OverrideStatError::Fields);
        };
        let uid = decimal(uid).ok_or(OverrideStatError::Uid)?;
        let gid = decimal(gid).ok_or(OverrideStatError::Gid)?;
        let bits = octal(mode).ok_or(OverrideStatError::Mode)?;
        let kind = match fields.next() {
            Some(kind) => Some(OverrideKind::parse(kind).ok_or(OverrideStatError::Kind)?),
            None => OverrideKind::from_mode(bits),
        };
        Ok(Self { uid, gid, mode: bits & 0o7777, kind })
    }

    /// The value to write.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}

impl fmt::Display for OverrideStat {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:{:04o}", self.uid, self.gid, self.mode)?;
        match self.kind {
            Some(kind) => write!(out, ":{kind}"),
            None => Ok(()),
        }
    }
}

impl OverrideKind {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let kind = parts.next()?;
        let mut number = || parts.next().and_then(decimal);
        match kind {
            "file" => Some(Self::File),
            "dir" => Some(Self::Dir),
            "symlink" => Some(Self::Symlink),
            "pipe" => Some(Self::Pipe),
            "socket" => Some(Self::Socket),
            "block" => Some(Self::Block(number()?, number()?)),
            "char" => Some(Self::Char(number()?, number()?)),
            _ => None,
        }
    }

    /// The type in a mode's upper bits. A device's numbers are not there, so that devices are left to the real file.
    fn from_mode(mode: u32) -> Option<Self> {
        match mode & TYPE_MASK {
            0o100_000 => Some(Self::File),
            0o040_000 => Some(Self::Dir),
            0o120_000 => Some(Self::Symlink),
            0o010_000 => Some(Self::Pipe),
            0o140_000 => Some(Self::Socket),
            _ => None,
        }
    }

    /// The type as the upper bits of `st_mode`.
    #[must_use]
    pub fn mode_bits(self) -> u32 {
        match self {
            Self::File => 0o100_000,
            Self::Dir => 0o040_000,
            Self::Symlink => 0o120_000,
            Self::Pipe => 0o010_000,
            Self::Socket => 0o140_000,
            Self::Block(..) => 0o060_000,
            Self::Char(..) => 0o020_000,
        }
    }
}

impl fmt::Display for OverrideKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => out.write_str("file"),
            Self::Dir => out.write_str("dir"),
            Self::Symlink => out.write_str("symlink"),
            Self::Pipe => out.write_str("pipe"),
            Self::Socket => out.write_str("socket"),
            Self::Block(major, minor) => write!(out, "block-{major}-{minor}"),
            Self::Char(major, minor) => write!(out, "char-{major}-{minor}"),
        }
    }
}

/// Digits only: `str::parse` would also take a sign.
fn decimal(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn octal(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| u32::from_str_radix(text, 8).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_form_is_read() {
        let plain = |uid, gid, mode, kind| OverrideStat { uid, gid, mode, kind };
        for (text, expected) in [
            ("0:0:755", plain(0, 0, 0o755, None)),
            ("0:0:0755", plain(0, 0, 0o755, None)),
            ("1000:100:4755", plain(1000, 100, 0o4755, None)),
            ("0:0:0755:dir", plain(0, 0, 0o755, Some(OverrideKind::Dir))),
            ("0:0:0100755", plain(0, 0, 0o755, Some(OverrideKind::File))),
            ("0:6:0660:block-8-1", plain(0, 6, 0o660, Some(OverrideKind::Block(8, 1)))),
            ("0:0:0666:char-1-3", plain(0, 0, 0o666, Some(OverrideKind::Char(1, 3)))),
            ("0:0:0600:file:later", plain(0, 0, 0o600, Some(OverrideKind::File))),
        ] {
            assert_eq!(OverrideStat::parse(text.as_bytes()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn malformed_values_are_refused_with_the_field() {
        for (text, expected) in [
            ("", OverrideStatError::Fields),
            ("0:0", OverrideStatError::Fields),
            (":0:755", OverrideStatError::Uid),
            ("-1:0:755", OverrideStatError::Uid),
            ("+1:0:755", OverrideStatError::Uid),
            ("0:4294967296:755", OverrideStatError::Gid),
            ("0:0:8", OverrideStatError::Mode),
            ("0:0:", OverrideStatError::Mode),
            ("0:0:755:", OverrideStatError::Kind),
            ("0:0:755:char-1", OverrideStatError::Kind),
            ("0:0:755:char-1-x", OverrideStatError::Kind),
            ("0:0:755:door", OverrideStatError::Kind),
        ] {
            assert_eq!(OverrideStat::parse(text.as_bytes()), Err(expected), "{text}");
        }
    }

    #[test]
    fn the_mode_is_written_with_four_digits() {
        let stat = OverrideStat { uid: 0, gid: 7, mode: 0o44, kind: Some(OverrideKind::Char(5, 1)) };
        assert_eq!(stat.to_bytes(), b"0:7:0044:char-5-1");
    }
}
