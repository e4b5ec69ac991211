//! One file name, and a path of such names below the overlay's root.
//!
//! Owns the rule of what may be a name inside a layer. Never touches a file system, and never turns bytes into text: a
//! name on Linux is bytes. The kernel's counterpart is `struct qstr` together with the checks of `lookup_one_len`.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// The longest name that a Linux file system takes, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// One validated path component: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<'a>(&'a [u8]);

/// An owned [`Name`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameBuf(Box<[u8]>);

/// A path below the overlay's root: zero or more names joined by `/`. The empty path is the root itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RelPath(Vec<u8>);

/// Why some bytes are not a [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all; in a path also a doubled, leading or trailing `/`.
    #[error("a file name is empty")]
    Empty,
    /// More than [`NAME_MAX`] bytes. File systems answer ENAMETOOLONG.
    #[error("a file name has {0} bytes; at most 255 are allowed")]
    TooLong(usize),
    /// A `/` inside one name.
    #[error("a file name contains '/'")]
    Slash,
    /// A NUL byte.
    #[error("a file name contains a NUL byte")]
    Nul,
    /// `.` or `..`, which name no entry of their own.
    #[error("a file name is '.' or '..'")]
    Dot,
}

impl<'a> Name<'a> {
    /// Checks `bytes` and wraps them.
    pub fn new(bytes: &'a [u8]) -> Result<Self, NameError> {
        match bytes {
            b"" => Err(NameError::Empty),
            b"." | b".." => Err(NameError::Dot),
            _ if bytes.len() > NAME_MAX => Err(NameError::TooLong(bytes.len())),
            _ if bytes.contains(&b'/') => Err(NameError::Slash),
            _ if bytes.contains(&0) => Err(NameError::Nul),
            _ => Ok(Self(bytes)),
        }
    }

    /// Checks the bytes of `text` and wraps them.
    pub fn from_os_str(text: &'a OsStr) -> Result<Self, NameError> {
        Self::new(text.as_bytes())
    }

    /// The bytes of the name.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The name as system-call wrappers want it.
    #[must_use]
    pub fn as_os_str(self) -> &'a OsStr {
        OsStr::from_bytes(self.0)
    }

    /// A copy that owns its bytes.
    #[must_use]
    pub fn to_owned(self) -> NameBuf {
        NameBuf(self.0.into())
    }
}

impl NameBuf {
    /// Checks `bytes` and owns them.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Result<Self, NameError> {
        let bytes = bytes.into();
        Name::new(&bytes)?;
        Ok(Self(bytes))
    }

    /// The name, borrowed.
    #[must_use]
    pub fn as_name(&self) -> Name<'_> {
        Name(&self.0)
    }

    /// The bytes of the name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as system-call wrappers want it.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

/// Lets a map keyed by [`NameBuf`] be searched with the bytes of a name (hash, order and equality agree).
impl Borrow<[u8]> for NameBuf {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl From<Name<'_>> for NameBuf {
    fn from(name: Name<'_>) -> Self {
        name.to_owned()
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Debug for NameBuf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_name().fmt(out)
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&String::from_utf8_lossy(self.0), out)
    }
}

impl fmt::Display for NameBuf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_name().fmt(out)
    }
}

impl RelPath {
    /// The root itself.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// Reads `a/b/c`. The empty string is the root; a leading, doubled or trailing `/` is [`NameError::Empty`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        if !bytes.is_empty() {
            for component in bytes.split(|byte| *byte == b'/') {
                Name::new(component)?;
            }
        }
        Ok(Self(bytes.to_vec()))
    }

    /// This path with one more name at its end.
    #[must_use]
    pub fn join(&self, name: Name<'_>) -> Self {
        let mut path = Vec::with_capacity(self.0.len() + 1 + name.as_bytes().len());
        path.extend_from_slice(&self.0);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        Self(path)
    }

    /// The path without its last name; `None` at the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let name = self.file_name()?;
        let kept = self.0.len() - name.as_bytes().len();
        Some(Self(self.0.iter().copied().take(kept.saturating_sub(1)).collect()))
    }

    /// The last name; `None` at the root.
    #[must_use]
    pub fn file_name(&self) -> Option<Name<'_>> {
        self.components().next_back()
    }

    /// The names, from the root downwards.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = Name<'_>> + Clone {
        self.0.split(|byte| *byte == b'/').filter(|component| !component.is_empty()).map(Name)
    }

    /// The path without a leading `/`; empty at the root.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The bytes of [`Self::as_os_str`].
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Name<'_>> for RelPath {
    fn from(name: Name<'_>) -> Self {
        Self(name.as_bytes().to_vec())
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "\"/{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&String::from_utf8_lossy(&self.0), out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_255_bytes_is_accepted_and_one_of_256_is_not() {
        assert!(Name::new(&[b'a'; 255]).is_ok());
        assert_eq!(Name::new(&[b'a'; 256]), Err(NameError::TooLong(256)));
    }

    #[test]
    fn bytes_that_are_no_name_are_refused_with_their_reason() {
        for (bytes, reason) in [
            (&b""[..], NameError::Empty),
            (b".", NameError::Dot),
            (b"..", NameError::Dot),
            (b"a/b", NameError::Slash),
            (b"/", NameError::Slash),
            (b"a\0b", NameError::Nul),
        ] {
            assert_eq!(Name::new(bytes), Err(reason), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn names_that_are_not_utf8_or_start_with_dots_are_names() {
        for bytes in [&b"\xff\xfe"[..], b"...", b"..a", b" ", b"\n"] {
            assert_eq!(Name::new(bytes).unwrap().as_bytes(), bytes);
        }
        assert_eq!(format!("{:?}", Name::new(b"a\xff\n").unwrap()), "\"a\\xff\\n\"");
    }

    #[test]
    fn the_root_has_no_name_and_no_parent() {
        let root = RelPath::root();
        assert!(root.is_root());
        assert_eq!(root, RelPath::parse(b"").unwrap());
        assert!(root.file_name().is_none() && root.parent().is_none());
        assert_eq!(root.components().count(), 0);
    }

    #[test]
    fn join_and_parent_are_inverse() {
        let one = RelPath::root().join(Name::new(b"etc").unwrap());
        let two = one.join(Name::new(b"motd").unwrap());
        assert_eq!(two.as_bytes(), b"etc/motd");
        assert_eq!(two.file_name().unwrap().as_bytes(), b"motd");
        assert_eq!(two.parent(), Some(one.clone()));
        assert_eq!(one.parent(), Some(RelPath::root()));
    }

    #[test]
    fn a_path_with_an_empty_or_dot_component_is_refused() {
        for bytes in [&b"/"[..], b"/a", b"a/", b"a//b", b"a/./b", b"a/..", b"../a"] {
            assert!(RelPath::parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }
}
