//! The packed file handle in `overlay.origin`, `overlay.upper` and the names of index entries.
//!
//! Owns the byte format. Making and opening handles is the system layer's work; the kernel's counterparts are
//! `struct ovl_fb`, `ovl_check_fb_len` and `ovl_get_index_name_fh`.
//!
//! Layout: u8 version (0), u8 magic (0xfb), u8 total length, u8 flags, u8 handle type, uuid\[16\], handle bytes.

use smallvec::SmallVec;

use crate::name::{NAME_MAX, NameBuf};

/// The most bytes that a file handle can have (`MAX_HANDLE_SZ`).
pub const HANDLE_MAX: usize = 128;

const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
const HEADER: usize = 21;

bitflags::bitflags! {
    /// How the handle bytes are to be read.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct OriginFlags: u8 {
        /// The handle was made on a big-endian machine.
        const BIG_ENDIAN = 1;
        /// The handle reads the same on either kind of machine.
        const ANY_ENDIAN = 2;
        /// The handle is of an upper directory, as in `overlay.upper`.
        const PATH_UPPER = 4;
    }
}

/// A file handle as `name_to_handle_at(2)` gives it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileHandle {
    kind: u8,
    bytes: SmallVec<[u8; 24]>,
}

/// A file handle together with the file system that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Byte order and kind.
    pub flags: OriginFlags,
    /// The file system's UUID; zeros with `uuid=off` and `uuid=null`.
    pub uuid: [u8; 16],
    /// The handle within that file system.
    pub handle: FileHandle,
}

/// What a well-formed value says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// No bytes: the file was copied up, and its origin is not known.
    Empty,
    /// The value is of a kind that this machine or version cannot use; to be treated as absent.
    Unknown(Unknown),
    /// A handle that can be used here.
    Known(Origin),
}

/// Why a value cannot be used although it may be well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// A later version of the format.
    #[error("the file handle has format version {0}, which is newer than 0")]
    Version(u8),
    /// A flag that is not defined.
    #[error("the file handle has unknown flags {0:#x}")]
    Flags(u8),
    /// Made on a machine of the other byte order.
    #[error("the file handle was made on a machine of the other byte order")]
    Endianness,
}

/// Why bytes are no packed file handle. The kernel warns and ignores the attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// Shorter than its header, or shorter than the length it states.
    #[error("the packed file handle is truncated or states a wrong length")]
    Length,
    /// The second byte is not 0xfb.
    #[error("the packed file handle has a wrong magic byte {0:#x}")]
    Magic(u8),
    /// More handle bytes than [`HANDLE_MAX`], or a name longer than a file name can be.
    #[error("the file handle has {0} bytes, more than fit")]
    TooLong(usize),
    /// An index entry whose name is not lower-case hexadecimal.
    #[error("the index entry's name is not lower-case hexadecimal")]
    Hex,
}

impl FileHandle {
    /// Wraps a handle; more than [`HANDLE_MAX`] bytes are refused.
    pub fn new(kind: u8, bytes: &[u8]) -> Result<Self, OriginError> {
        if bytes.len() > HANDLE_MAX {
            return Err(OriginError::TooLong(bytes.len()));
        }
        Ok(Self { kind, bytes: SmallVec::from_slice(bytes) })
    }

    /// The file system's handle type (`FILEID_…`).
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// The opaque bytes of the handle.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl OriginFlags {
    /// The flags of a handle made on this machine.
    #[must_use]
    pub fn native() -> Self {
        if cfg!(target_endian = "big") { Self::BIG_ENDIAN } else { Self::empty() }
    }

    fn usable_here(self) -> bool {
        self.contains(Self::ANY_ENDIAN) || (self & Self::BIG_ENDIAN) == Self::native()
    }
}

impl Origin {
    /// A handle made on this machine, of a lower or upper file that is not an index's upper directory.
    #[must_use]
    pub fn new(uuid: [u8; 16], handle: FileHandle) -> Self {
        Self { flags: OriginFlags::native(), uuid, handle }
    }

    /// A handle for `overlay.upper`.
    #[must_use]
    pub fn new_upper(uuid: [u8; 16], handle: FileHandle) -> Self {
        Self { flags: OriginFlags::native() | OriginFlags::PATH_UPPER, uuid, handle }
    }

    /// Reads an attribute's value. Bytes after the stated length are ignored, as in the kernel.
    pub fn parse(value: &[u8]) -> Result<Parsed, OriginError> {
        if value.is_empty() {
            return Ok(Parsed::Empty);
        }
        let (header, rest) = value.split_first_chunk::<HEADER>().ok_or(OriginError::Length)?;
        let [version, magic, length, flags, kind, uuid @ ..] = *header;
        let handle = usize::from(length)
            .checked_sub(HEADER)
            .and_then(|handle_length| rest.get(..handle_length))
            .ok_or(OriginError::Length)?;
        if magic != MAGIC {
            return Err(OriginError::Magic(magic));
        }
        if version > VERSION {
            return Ok(Parsed::Unknown(Unknown::Version(version)));
        }
        let Some(flags) = OriginFlags::from_bits(flags) else {
            return Ok(Parsed::Unknown(Unknown::Flags(flags)));
        };
        if !flags.usable_here() {
            return Ok(Parsed::Unknown(Unknown::Endianness));
        }
        Ok(Parsed::Known(Self { flags, uuid, handle: FileHandle::new(kind, handle)? }))
    }

    /// The value to write.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let length = HEADER + self.handle.bytes.len();
        // HANDLE_MAX bytes and the header fit a u8, so the fallback is never taken.
        let stated = u8::try_from(length).unwrap_or(u8::MAX);
        let mut value = Vec::with_capacity(length);
        value.extend([VERSION, MAGIC, stated, self.flags.bits(), self.handle.kind]);
        value.extend(self.uuid);
        value.extend_from_slice(&self.handle.bytes);
        value
    }

    /// The name of this file's index entry: the whole packed handle in lower-case hexadecimal.
    pub fn index_name(&self) -> Result<NameBuf, OriginError> {
        let name: Vec<u8> =
            self.encode().into_iter().flat_map(|byte| [hex(byte >> 4), hex(byte & 15)]).collect();
        if name.len() > NAME_MAX {
            return Err(OriginError::TooLong(name.len()));
        }
        NameBuf::new(name).map_err(|_| OriginError::Hex)
    }

    /// Reads back an index entry's name.
    pub fn parse_index_name(name: &[u8]) -> Result<Parsed, OriginError> {
        let (pairs, odd) = name.as_chunks::<2>();
        if !odd.is_empty() || name.is_empty() {
            return Err(OriginError::Hex);
        }
        let packed: Option<Vec<u8>> =
            pairs.iter().map(|[high, low]| Some(unhex(*high)? << 4 | unhex(*low)?)).collect();
        Self::parse(&packed.ok_or(OriginError::Hex)?)
    }
}

/// One lower-case hexadecimal digit of a value below 16.
fn hex(digit: u8) -> u8 {
    if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }
}

/// The value of one lower-case hexadecimal digit.
fn unhex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Origin {
        Origin::new([7; 16], FileHandle::new(1, &[0x0c, 0, 0, 0, 0xef, 0xbe, 0xad, 0xde]).unwrap())
    }

    #[test]
    fn a_handle_survives_being_written_and_read() {
        let value = sample().encode();
        assert_eq!(value.get(..5), Some(&[0, 0xfb, 29, OriginFlags::native().bits(), 1][..]));
        assert_eq!(Origin::parse(&value), Ok(Parsed::Known(sample())));
        let mut longer = value.clone();
        longer.push(0);
        assert_eq!(Origin::parse(&longer), Ok(Parsed::Known(sample())));
    }

    #[test]
    fn no_bytes_mean_an_unknown_origin() {
        assert_eq!(Origin::parse(b""), Ok(Parsed::Empty));
    }

    #[test]
    fn truncated_and_foreign_values_are_told_apart_from_unknown_ones() {
        let good = sample().encode();
        for cut in 1..good.len() {
            assert_eq!(Origin::parse(&good[..cut]), Err(OriginError::Length), "cut at {cut}");
        }
        let with = |at: usize, byte: u8| {
            let mut value = good.clone();
            value[at] = byte;
            Origin::parse(&value)
        };
        assert_eq!(with(1, 0xfa), Err(OriginError::Magic(0xfa)));
        assert_eq!(with(2, 20), Err(OriginError::Length));
        assert_eq!(with(0, 1), Ok(Parsed::Unknown(Unknown::Version(1))));
        assert_eq!(with(3, 8), Ok(Parsed::Unknown(Unknown::Flags(8))));
        let other_endian = OriginFlags::native() ^ OriginFlags::BIG_ENDIAN;
        assert_eq!(with(3, other_endian.bits()), Ok(Parsed::Unknown(Unknown::Endianness)));
        let any = other_endian | OriginFlags::ANY_ENDIAN;
        assert!(matches!(with(3, any.bits()), Ok(Parsed::Known(_))));
    }

    #[test]
    fn an_index_name_is_the_packed_handle_in_lower_case_hex_and_reads_back() {
        let name = sample().index_name().unwrap();
        assert!(name.as_bytes().starts_with(b"00fb1d0"));
        assert_eq!(Origin::parse_index_name(name.as_bytes()), Ok(Parsed::Known(sample())));
        for bad in [&b"0"[..], b"00FB", b"zz", b"", b"#3"] {
            assert!(Origin::parse_index_name(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn handles_too_long_for_a_name_or_for_the_kernel_are_refused() {
        assert!(FileHandle::new(1, &[0; 129]).is_err());
        let long = Origin::new([0; 16], FileHandle::new(1, &[0; 128]).unwrap());
        assert_eq!(Origin::parse(&long.encode()), Ok(Parsed::Known(long.clone())));
        assert_eq!(long.index_name(), Err(OriginError::TooLong(298)));
    }
}
