//! The texts by which an overlay2 store names layers: `link`, `lower`, and the digests of the OCI image specification.
//!
//! Owns their forms and the computation of a ChainID. Reads no file. The kernel has no counterpart; the forms are
//! docker's overlay2 driver's and containers/storage's, the digests those of the OCI image specification (config.md).

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// How many characters a layer's short id has.
pub const LINK_ID_LENGTH: usize = 26;
/// The directory of symbolic links by short id, relative to the store's home.
pub const LINK_DIR: &str = "l";

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// A layer's short id: 26 characters of A-Z and 2-7. It keeps mount options short.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId([u8; LINK_ID_LENGTH]);

/// The layers below one, topmost first: the content of a `lower` file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LowerChain(Vec<LinkId>);

/// A SHA-256 digest, printed `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// The digest of a layer's uncompressed tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiffId(pub Digest);

/// The digest of a layer together with all layers below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(pub Digest);

/// Why a text is none of this module's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A layer's short id of the wrong length or alphabet.
    #[error("a layer's short id is not 26 characters of A-Z and 2-7")]
    LinkId,
    /// A `lower` file without content, as a power cut can leave it.
    #[error("the list of lower layers is empty")]
    EmptyLower,
    /// An element of a `lower` file that does not start with `l/`.
    #[error("element {0} of the list of lower layers does not start with l/")]
    LowerElement(usize),
    /// A digest of another algorithm or shape.
    #[error("a digest is not sha256: and 64 lower-case hexadecimal digits")]
    Digest,
}

impl LinkId {
    /// Reads a `link` file's content, which has no newline.
    pub fn parse(text: &[u8]) -> Result<Self, ChainError> {
        let id: [u8; LINK_ID_LENGTH] = text.try_into().map_err(|_| ChainError::LinkId)?;
        if id.iter().all(|byte| BASE32.contains(byte)) { Ok(Self(id)) } else { Err(ChainError::LinkId) }
    }

    /// The id that spells 128 random bits.
    #[must_use]
    pub fn from_random(random: [u8; 16]) -> Self {
        let mut bits = u128::from_be_bytes(random);
        let mut id = [b'A'; LINK_ID_LENGTH];
        for place in &mut id {
            let five = usize::try_from(bits >> 123).unwrap_or(0);
            *place = BASE32.get(five).copied().unwrap_or(b'A');
            bits <<= 5;
        }
        Self(id)
    }

    /// The 26 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The alphabet is ASCII, so the fallback is never taken.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The path of the layer's symbolic link, relative to the store's home: `l/ID`.
    #[must_use]
    pub fn link_path(&self) -> String {
        format!("{LINK_DIR}/{}", self.as_str())
    }
}

impl LowerChain {
    /// A chain of these layers, topmost first.
    #[must_use]
    pub fn new(ids: Vec<LinkId>) -> Self {
        Self(ids)
    }

    /// Reads a `lower` file's content, `l/A:l/B`.
    pub fn parse(text: &[u8]) -> Result<Self, ChainError> {
        if text.is_empty() {
            return Err(ChainError::EmptyLower);
        }
        let element = |(at, part): (usize, &[u8])| {
            let id = part.strip_prefix(b"l/").ok_or(ChainError::LowerElement(at + 1))?;
            LinkId::parse(id)
        };
        Ok(Self(text.split(|byte| *byte == b':').enumerate().map(element).collect::<Result<_, _>>()?))
    }

    /// The layers, topmost first.
    #[must_use]
    pub fn ids(&self) -> &[LinkId] {
        &self.0
    }

    /// The chain of a layer that is put on top of `parent`, whose own chain this is.
    #[must_use]
    pub fn push_top(&self, parent: LinkId) -> Self {
        let mut ids = Vec::with_capacity(self.0.len() + 1);
        ids.push(parent);
        ids.extend_from_slice(&self.0);
        Self(ids)
    }
}

impl Digest {
    /// Wraps a finished SHA-256.
    #[must_use]
    pub fn from_sha256(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest of `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }

    /// Reads `sha256:` and 64 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, ChainError> {
        Self::from_hex(text.strip_prefix("sha256:").ok_or(ChainError::Digest)?)
    }

    /// Reads 64 lower-case hexadecimal digits.
    pub fn from_hex(hex: &str) -> Result<Self, ChainError> {
        let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != 64 || !hex.bytes().all(lower_hex) {
            return Err(ChainError::Digest);
        }
        let mut bytes = [0; 32];
        for (place, pair) in bytes.iter_mut().zip(hex.as_bytes().as_chunks::<2>().0) {
            let pair = std::str::from_utf8(pair).map_err(|_| ChainError::Digest)?;
            *place = u8::from_str_radix(pair, 16).map_err(|_| ChainError::Digest)?;
        }
        Ok(Self(bytes))
    }

    /// The 64 hexadecimal digits alone.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl ChainId {
    /// The ChainID of a base layer: its DiffID.
    #[must_use]
    pub fn base(diff: DiffId) -> Self {
        Self(diff.0)
    }

    /// The ChainID of a layer on top of `self`: the digest of both, with a space between.
    #[must_use]
    pub fn extend(self, diff: DiffId) -> Self {
        Self(Digest::of(format!("{self} {diff}").as_bytes()))
    }

    /// The ChainID of layers from the base upwards; `None` for no layers.
    #[must_use]
    pub fn of(diffs: &[DiffId]) -> Option<Self> {
        let (base, above) = diffs.split_first()?;
        Some(above.iter().fold(Self::base(*base), |chain, diff| chain.extend(*diff)))
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl fmt::Debug for LinkId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl fmt::Display for LowerChain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, id) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { ":" };
            write!(out, "{separator}{}", id.link_path())?;
        }
        Ok(())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl FromStr for Digest {
    type Err = ChainError;

    fn from_str(text: &str) -> Result<Self, ChainError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const B: &[u8] = b"234567ABCDEFGHIJKLMNOPQRST";

    #[test]
    fn link_ids_have_26_characters_of_base32() {
        assert_eq!(LinkId::parse(A).unwrap().as_str().as_bytes(), A);
        for bad in [&b""[..], b"ABC", b"ABCDEFGHIJKLMNOPQRSTUVWXY1", b"abcdefghijklmnopqrstuvwxyz"] {
            assert_eq!(LinkId::parse(bad), Err(ChainError::LinkId), "{}", bad.escape_ascii());
        }
        assert_eq!(LinkId::parse(&[A, b"\n"].concat()), Err(ChainError::LinkId));
    }

    #[test]
    fn random_bits_are_spelt_in_base32_most_significant_first() {
        assert_eq!(LinkId::from_random([0; 16]).as_str(), "AAAAAAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(LinkId::from_random([255; 16]).as_str(), "77777777777777777777777774");
        let one = LinkId::from_random([0x08; 16]);
        assert!(one.as_str().starts_with("BAEAQCAI"), "{one}");
    }

    #[test]
    fn a_lower_file_is_read_and_printed_back() {
        let text = [b"l/", A, b":l/", B].concat();
        let chain = LowerChain::parse(&text).unwrap();
        assert_eq!(chain.to_string().as_bytes(), text);
        assert_eq!(chain.ids(), [LinkId::parse(A).unwrap(), LinkId::parse(B).unwrap()]);
        let base = LowerChain::default().push_top(LinkId::parse(B).unwrap());
        assert_eq!(base.push_top(LinkId::parse(A).unwrap()), chain);
    }

    #[test]
    fn damaged_lower_files_are_refused() {
        assert_eq!(LowerChain::parse(b""), Err(ChainError::EmptyLower));
        assert_eq!(LowerChain::parse(A), Err(ChainError::LowerElement(1)));
        assert_eq!(LowerChain::parse(&[b"l/", A, b":"].concat()), Err(ChainError::LowerElement(2)));
        assert_eq!(LowerChain::parse(&[b"l/", A, b"\n"].concat()), Err(ChainError::LinkId));
    }

    #[test]
    fn digests_are_lower_case_sha256() {
        let empty = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(empty.to_string(), text);
        assert_eq!(Digest::parse(text), Ok(empty));
        for bad in ["", "sha256:", "sha512:00", &text.to_uppercase(), &text.replace("e3", "+3")] {
            assert_eq!(Digest::parse(bad), Err(ChainError::Digest), "{bad}");
        }
    }

    #[test]
    fn a_chain_id_covers_every_layer_in_order() {
        let (one, two) = (DiffId(Digest::of(b"1")), DiffId(Digest::of(b"2")));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[one]), Some(ChainId(one.0)));
        let expected = Digest::of(format!("{} {}", one.0, two.0).as_bytes());
        assert_eq!(ChainId::of(&[one, two]), Some(ChainId(expected)));
        assert_ne!(ChainId::of(&[one, two]), ChainId::of(&[two, one]));
    }
}
