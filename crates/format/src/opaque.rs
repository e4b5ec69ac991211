//! The value of `overlay.opaque` on a directory.
//!
//! Owns its two meaningful values. Whether they are honoured (`x` is, on layers other than upper) is the engine's rule.
//! The kernel's counterpart is `ovl_get_opaquedir_val`.

/// What `overlay.opaque` says of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opaque {
    /// `y`: the same path in layers below is hidden.
    Opaque,
    /// `x`: the directory merges, and may contain whiteouts that are empty files with `overlay.whiteout`.
    XattrWhiteouts,
    /// Anything else, such as the `0` that the kernel's mount probe leaves on the work directory: no meaning.
    Other,
}

impl Opaque {
    /// Reads the attribute's value. Only a value of exactly one byte has a meaning.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        match value {
            b"y" => Self::Opaque,
            b"x" => Self::XattrWhiteouts,
            _ => Self::Other,
        }
    }

    /// The value to write; `None` for [`Self::Other`], which is never written.
    #[must_use]
    pub fn to_bytes(self) -> Option<&'static [u8]> {
        match self {
            Self::Opaque => Some(b"y"),
            Self::XattrWhiteouts => Some(b"x"),
            Self::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lone_y_or_x_has_a_meaning() {
        assert_eq!(Opaque::parse(b"y"), Opaque::Opaque);
        assert_eq!(Opaque::parse(b"x"), Opaque::XattrWhiteouts);
        for value in [&b""[..], b"0", b"Y", b"yy", b"y\0", b"xy"] {
            assert_eq!(Opaque::parse(value), Opaque::Other, "{}", value.escape_ascii());
        }
    }
}
