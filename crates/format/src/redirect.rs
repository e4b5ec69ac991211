//! The value of `overlay.redirect`: where in the layers below the entries of a directory or metacopy file lie.
//!
//! Owns the two forms and their checks. Whether a redirect may be followed is the engine's rule. The kernel's
//! counterparts are `ovl_get_redirect_xattr` and `ovl_set_redirect`.

use crate::name::{Name, NameBuf, NameError, RelPath};

/// The longest absolute redirect that is written, in bytes; a longer one makes rename answer EXDEV (`redirect_max`).
pub const REDIRECT_MAX: usize = 256;

/// Where to look in the layers below.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Redirect {
    /// Another name in the same parent directory: a rename within one directory.
    Relative(NameBuf),
    /// A path from the overlay's root: a rename to another directory. Never the root itself.
    Absolute(RelPath),
}

/// Why a value is no redirect. The kernel answers EINVAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    /// A value of no bytes.
    #[error("overlay.redirect is empty")]
    Empty,
    /// A component that is no file name.
    #[error("overlay.redirect is invalid: {0}")]
    Name(#[from] NameError),
}

impl Redirect {
    /// Reads the attribute's value. Of the value's length only each component is limited, as in the kernel.
    pub fn parse(value: &[u8]) -> Result<Self, RedirectError> {
        match value.split_first() {
            None => Err(RedirectError::Empty),
            Some((b'/', [])) => Err(NameError::Empty.into()),
            Some((b'/', path)) => Ok(Self::Absolute(RelPath::parse(path)?)),
            Some(_) => Ok(Self::Relative(Name::new(value)?.to_owned())),
        }
    }

    /// The value to write.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Relative(name) => name.as_bytes().to_vec(),
            Self::Absolute(path) => [b"/", path.as_bytes()].concat(),
        }
    }

    /// Whether the value is short enough to be written ([`REDIRECT_MAX`] binds absolute redirects only).
    #[must_use]
    pub fn fits(&self) -> bool {
        match self {
            Self::Relative(_) => true,
            Self::Absolute(path) => path.as_bytes().len() < REDIRECT_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_printed_back() {
        for value in [&b"old name"[..], b"/a", b"/usr/share/doc", b"\xff"] {
            assert_eq!(Redirect::parse(value).unwrap().to_bytes(), value);
        }
    }

    #[test]
    fn malformed_redirects_are_refused() {
        assert_eq!(Redirect::parse(b""), Err(RedirectError::Empty));
        for value in [
            &b"/"[..],
            b"//a",
            b"/a/",
            b"/a//b",
            b"a/b",
            b"a\0",
            b"/a\0b",
            b"..",
            b"/../etc",
            b"/a/./b",
            b".",
        ] {
            assert!(Redirect::parse(value).is_err(), "{}", value.escape_ascii());
        }
    }

    #[test]
    fn only_absolute_redirects_are_limited_to_redirect_max() {
        let name = NameBuf::new(vec![b'n'; 255]).unwrap();
        assert!(Redirect::Relative(name.clone()).fits());
        let exact = RelPath::from(name.as_name());
        assert_eq!(Redirect::Absolute(exact.clone()).to_bytes().len(), 256);
        assert!(Redirect::Absolute(exact.clone()).fits());
        let longer = RelPath::parse(b"d").unwrap().join(name.as_name());
        assert!(!Redirect::Absolute(longer).fits());
    }
}
