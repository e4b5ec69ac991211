//! The value of `overlay.metacopy`: an upper or lower file that has metadata only, its data lying further down.
//!
//! Owns the byte format, with the optional fs-verity digest of the data. Computing and comparing digests is the engine's
//! work. The kernel's counterparts are `struct ovl_metacopy` and `ovl_check_metacopy_xattr`.
//!
//! Layout: nothing at all, or u8 version (0), u8 total length, u8 flags, u8 digest algorithm, digest (at most 64 bytes).

/// The longest digest, in bytes (`FS_VERITY_MAX_DIGEST_SIZE`).
pub const DIGEST_MAX: usize = 64;

const VERSION: u8 = 0;
const HEADER: usize = 4;
const SHA256: u8 = 1;
const SHA512: u8 = 2;

/// A metadata-only file's mark.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Metacopy {
    /// Reserved; the kernel writes zero and ignores it.
    pub flags: u8,
    /// What the data's fs-verity digest must be.
    pub digest: MetacopyDigest,
}

/// The fs-verity digest of a metacopy file's data.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum MetacopyDigest {
    /// None is recorded.
    #[default]
    None,
    /// SHA-256.
    Sha256([u8; 32]),
    /// SHA-512.
    Sha512([u8; 64]),
    /// Another algorithm, or a digest whose length does not fit its algorithm: no data can match it, so it fails as soon
    /// as digests are checked, and not before.
    Unsupported {
        /// The algorithm's number.
        algorithm: u8,
        /// At most [`DIGEST_MAX`] bytes.
        bytes: Vec<u8>,
    },
}

/// Why a value is malformed. The kernel answers EIO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MetacopyError {
    /// 1 to 3 bytes, or more than a header and the longest digest.
    #[error("overlay.metacopy has {0} bytes; expected none or 4 to 68")]
    Size(usize),
    /// A later version.
    #[error("overlay.metacopy has version {0}, which is newer than 0")]
    Version(u8),
    /// The stated length is not the value's length.
    #[error("overlay.metacopy states a length of {stated} bytes but has {actual}")]
    Length {
        /// What the second byte says.
        stated: u8,
        /// What there is.
        actual: usize,
    },
}

impl Metacopy {
    /// Reads the attribute's value. No bytes mean the same as four zero bytes with the right length.
    pub fn parse(value: &[u8]) -> Result<Self, MetacopyError> {
        if value.is_empty() {
            return Ok(Self::default());
        }
        let size = value.len();
        let (header, digest) = value.split_first_chunk::<HEADER>().ok_or(MetacopyError::Size(size))?;
        let [version, stated, flags, algorithm] = *header;
        if version != VERSION {
            return Err(MetacopyError::Version(version));
        }
        if digest.len() > DIGEST_MAX {
            return Err(MetacopyError::Size(size));
        }
        // Four zero bytes are what an empty value stands for; there the length byte is zero.
        if usize::from(stated) != size && value != [0; HEADER] {
            return Err(MetacopyError::Length { stated, actual: size });
        }
        Ok(Self { flags, digest: MetacopyDigest::new(algorithm, digest) })
    }

    /// The value to write: empty if there is neither a digest nor a flag, as the kernel writes it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (algorithm, digest) = self.digest.parts();
        if algorithm == 0 && digest.is_empty() && self.flags == 0 {
            return Vec::new();
        }
        let length = HEADER + digest.len();
        // A digest of at most DIGEST_MAX bytes fits; a caller's longer one makes a value that every reader refuses.
        let stated = u8::try_from(length).unwrap_or(0);
        let mut value = vec![VERSION, stated, self.flags, algorithm];
        value.extend_from_slice(digest);
        value
    }
}

impl MetacopyDigest {
    fn new(algorithm: u8, bytes: &[u8]) -> Self {
        let known = match (algorithm, bytes) {
            (0, []) => Some(Self::None),
            (SHA256, _) => bytes.try_into().ok().map(Self::Sha256),
            (SHA512, _) => bytes.try_into().ok().map(Self::Sha512),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Unsupported { algorithm, bytes: bytes.to_vec() })
    }

    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Self::None => (0, &[]),
            Self::Sha256(digest) => (SHA256, digest),
            Self::Sha512(digest) => (SHA512, digest),
            Self::Unsupported { algorithm, bytes } => (*algorithm, bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_value_and_a_bare_header_mean_the_same() {
        assert_eq!(Metacopy::parse(b""), Ok(Metacopy::default()));
        assert_eq!(Metacopy::parse(&[0, 4, 0, 0]), Ok(Metacopy::default()));
        assert_eq!(Metacopy::default().encode(), b"");
    }

    #[test]
    fn digests_survive_being_written_and_read() {
        for digest in [MetacopyDigest::Sha256([3; 32]), MetacopyDigest::Sha512([9; 64])] {
            let metacopy = Metacopy { flags: 0, digest };
            assert_eq!(Metacopy::parse(&metacopy.encode()), Ok(metacopy));
        }
        let encoded = Metacopy { flags: 0, digest: MetacopyDigest::Sha256([3; 32]) }.encode();
        assert_eq!(encoded.get(..4), Some(&[0, 36, 0, 1][..]));
    }

    #[test]
    fn malformed_values_are_refused() {
        assert_eq!(Metacopy::parse(&[0]), Err(MetacopyError::Size(1)));
        assert_eq!(Metacopy::parse(&[0, 3, 0]), Err(MetacopyError::Size(3)));
        assert_eq!(Metacopy::parse(&[1, 4, 0, 0]), Err(MetacopyError::Version(1)));
        assert_eq!(Metacopy::parse(&[0, 5, 0, 0]), Err(MetacopyError::Length { stated: 5, actual: 4 }));
        let mut long = vec![0, 69, 0, 2];
        long.resize(69, 1);
        assert_eq!(Metacopy::parse(&long), Err(MetacopyError::Size(69)));
    }

    #[test]
    fn a_digest_that_nothing_can_match_is_kept_for_the_check_to_fail_on() {
        for value in [&[0, 5, 0, 1, 7][..], &[0, 5, 0, 9, 7], &[0, 4, 0, 1], &[0, 5, 0, 0, 7]] {
            let parsed = Metacopy::parse(value).unwrap();
            assert!(matches!(parsed.digest, MetacopyDigest::Unsupported { .. }), "{value:?}");
            assert_eq!(parsed.encode(), value);
        }
    }
}
