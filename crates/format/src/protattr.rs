//! The value of `overlay.protattr`: the append-only and immutable attributes of an upper file.
//!
//! Owns the letters `a` and `i`. The overlay keeps them here, because the real attributes would stop the overlay itself
//! from changing the upper file. The kernel's counterparts are `ovl_check_protattr` and `ovl_set_protattr`.

/// The longest value, in bytes.
pub const PROTATTR_MAX: usize = 32;

bitflags::bitflags! {
    /// The protecting attributes that the overlay shows for a file.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Protattr: u8 {
        /// `a`: append only (`FS_APPEND_FL`).
        const APPEND = 1;
        /// `i`: immutable (`FS_IMMUTABLE_FL`).
        const IMMUTABLE = 2;
    }
}

/// A value with something else than the letters `a` and `i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("overlay.protattr is malformed; expected at most 32 letters 'a' and 'i'")]
pub struct ProtattrError {
    /// The attributes named before the first unknown letter. The kernel warns and honours these.
    pub known: Protattr,
}

impl Protattr {
    /// Reads the attribute's value. An empty value is malformed: the attribute is removed rather than emptied.
    pub fn parse(value: &[u8]) -> Result<Self, ProtattrError> {
        let mut known = Self::empty();
        if value.is_empty() || value.len() > PROTATTR_MAX {
            return Err(ProtattrError { known });
        }
        for letter in value {
            known |= match letter {
                b'a' => Self::APPEND,
                b'i' => Self::IMMUTABLE,
                _ => return Err(ProtattrError { known }),
            };
        }
        Ok(known)
    }

    /// The value to write; `None` if the attribute is to be removed.
    #[must_use]
    pub fn to_bytes(self) -> Option<&'static [u8]> {
        match (self.contains(Self::APPEND), self.contains(Self::IMMUTABLE)) {
            (true, true) => Some(b"ai"),
            (true, false) => Some(b"a"),
            (false, true) => Some(b"i"),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_flags_survives_being_written_and_read() {
        for flags in [Protattr::APPEND, Protattr::IMMUTABLE, Protattr::all()] {
            assert_eq!(Protattr::parse(flags.to_bytes().unwrap()), Ok(flags));
        }
        assert_eq!(Protattr::empty().to_bytes(), None);
        assert_eq!(Protattr::parse(b"iai"), Ok(Protattr::all()));
    }

    #[test]
    fn a_malformed_value_keeps_what_was_known_before_the_fault() {
        assert_eq!(Protattr::parse(b""), Err(ProtattrError { known: Protattr::empty() }));
        assert_eq!(Protattr::parse(b"ax"), Err(ProtattrError { known: Protattr::APPEND }));
        assert!(Protattr::parse(&[b'a'; 33]).is_err());
    }
}
