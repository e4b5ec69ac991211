//! The value of `overlay.nlink`: the link count that the overlay shows for an indexed file.
//!
//! Owns the text `U%+i` and `L%+i`. The kernel's counterparts are `ovl_set_nlink_common` and `ovl_get_nlink`.

use std::fmt;

/// The real inode that the count is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NlinkBase {
    /// The upper (index) inode's link count.
    Upper,
    /// The lower inode's link count.
    Lower,
}

/// The union's link count, as a difference from a real one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nlink {
    /// Which real count to add to.
    pub base: NlinkBase,
    /// Union count minus real count.
    pub difference: i32,
}

/// A value that is neither `U` nor `L` followed by a decimal number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("overlay.nlink is malformed; expected U or L and a signed number")]
pub struct NlinkError;

impl Nlink {
    /// Reads the attribute's value. The sign may be missing, as for the kernel's `kstrtoint`.
    pub fn parse(value: &[u8]) -> Result<Self, NlinkError> {
        let (base, number) = match value.split_first() {
            Some((b'U', number)) => (NlinkBase::Upper, number),
            Some((b'L', number)) => (NlinkBase::Lower, number),
            _ => return Err(NlinkError),
        };
        let text = std::str::from_utf8(number).map_err(|_| NlinkError)?;
        let difference = text.parse().map_err(|_| NlinkError)?;
        Ok(Self { base, difference })
    }

    /// The value to write.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        self.to_string().into_bytes()
    }

    /// The union's count, given the real count of the base; `None` if that is not a positive number.
    #[must_use]
    pub fn apply(self, real: u32) -> Option<u32> {
        real.checked_add_signed(self.difference).filter(|count| *count > 0)
    }
}

impl fmt::Display for Nlink {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = match self.base {
            NlinkBase::Upper => 'U',
            NlinkBase::Lower => 'L',
        };
        write!(out, "{base}{:+}", self.difference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_spellings_are_read_and_printed_back() {
        for (text, base, difference) in
            [("U+0", NlinkBase::Upper, 0), ("U-2", NlinkBase::Upper, -2), ("L+3", NlinkBase::Lower, 3)]
        {
            let nlink = Nlink::parse(text.as_bytes()).unwrap();
            assert_eq!(nlink, Nlink { base, difference });
            assert_eq!(nlink.to_bytes(), text.as_bytes());
        }
    }

    #[test]
    fn malformed_values_are_refused() {
        for value in [&b""[..], b"U", b"X+1", b"U+", b"U+1 ", b"u+1", b"U+2147483648", b"L--1", b"+1"] {
            assert_eq!(Nlink::parse(value), Err(NlinkError), "{}", value.escape_ascii());
        }
    }

    #[test]
    fn a_count_that_would_not_be_positive_is_none() {
        let nlink = Nlink { base: NlinkBase::Upper, difference: -2 };
        assert_eq!(nlink.apply(5), Some(3));
        assert_eq!(nlink.apply(2), None);
        assert_eq!(nlink.apply(1), None);
    }
}
