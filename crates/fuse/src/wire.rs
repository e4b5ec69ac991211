//! Reading and writing of native-endian integers and names in FUSE messages, without `unsafe` and without panics.
//!
//! Knows no message; `request` and `encode` say which members stand where.

use crate::abi::OUT_HEADER;

/// A message that is read from its beginning; every taking yields `None` where the message is too short.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Reads these bytes.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next 16-bit number.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    /// The next 32-bit number.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    /// The next 64-bit number.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    /// The next signed 64-bit number.
    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_ne_bytes)
    }

    /// Passes over bytes that mean nothing here.
    pub fn skip(&mut self, count: usize) -> Option<()> {
        self.bytes(count).map(drop)
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// The bytes up to the next NUL, which is taken too.
    pub fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|&b| b == 0)?;
        let name = self.bytes(end)?;
        self.skip(1)?;
        Some(name)
    }

    /// Everything that is left.
    #[must_use]
    pub const fn rest(self) -> &'a [u8] {
        self.0
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }
}

/// The body of an answer, as it grows. Room for the header is kept in front of it, so that header and body leave as one
/// piece of memory: the kernel maps each piece separately, which costs more than copying a small one.
#[derive(Debug)]
pub struct Output(Vec<u8>);

impl Default for Output {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl Output {
    /// An empty body that holds `capacity` bytes before it allocates again.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(OUT_HEADER + capacity);
        bytes.resize(OUT_HEADER, 0);
        Self(bytes)
    }

    /// Forgets the content and keeps the memory, unless one message made it unusually large.
    pub fn clear(&mut self) {
        const KEPT: usize = 64 << 10;
        self.0.truncate(OUT_HEADER);
        self.0.shrink_to(KEPT);
    }

    /// The body so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.get(OUT_HEADER..).unwrap_or_default()
    }

    /// Header and body.
    pub fn with_header(&mut self, header: [u8; OUT_HEADER]) -> &[u8] {
        if let Some(room) = self.0.first_chunk_mut() {
            *room = header;
        }
        &self.0
    }

    /// Length of the body so far, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends a 16-bit number.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// Appends a 32-bit number.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// Appends a signed 32-bit number.
    pub fn i32(&mut self, value: i32) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// Appends a 64-bit number.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// Appends a signed 64-bit number.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// Appends `count` zero bytes.
    pub fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// Appends zero bytes up to the next multiple of eight.
    pub fn align8(&mut self) -> &mut Self {
        self.zeros(self.0.len().next_multiple_of(8) - self.0.len())
    }
}
