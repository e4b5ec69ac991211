//! The file names by which OCI layers, and layers written under a FUSE mount program, spell deletions.
//!
//! Owns `.wh.NAME`, `.wh..wh..opq` and what is reserved beside them. The kernel's own forms are a character device 0:0
//! (nothing to parse) and the attribute forms of `xattr.rs`; the kernel does not know the names of this module.
//! Source: the OCI image specification, layer.md, "Whiteouts".

use crate::name::{Name, NameBuf, NameError};

/// What a whiteout's name starts with; the rest is the name that is deleted.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The marker file of a directory that hides what lies below it.
pub const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// What aufs keeps for itself (`.wh..wh.aufs`, `.wh..wh.plnk`, `.wh..wh.orph`): never content, never a whiteout.
pub const RESERVED_PREFIX: &[u8] = b".wh..wh.";
/// Device number of the kernel's whiteout character device (major 0, minor 0).
pub const WHITEOUT_DEVICE: u64 = 0;

/// What a file's name means in an OCI layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OciName<'a> {
    /// An ordinary name.
    Plain,
    /// The named entry of the same directory is deleted in the layers below.
    Whiteout(Name<'a>),
    /// The directory hides what lies below it.
    OpaqueMarker,
    /// A name in the whiteouts' space that deletes nothing that can exist.
    Invalid(OciNameError),
}

/// Why a name that starts with `.wh.` is no whiteout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OciNameError {
    /// `.wh.` alone, `.wh..` or `.wh...`: would delete the directory itself or its parent.
    #[error("the whiteout names no entry: {0}")]
    Target(NameError),
    /// `.wh..wh.` and anything but `.opq`.
    #[error("names that start with .wh..wh. are reserved")]
    Reserved,
}

impl<'a> OciName<'a> {
    /// Reads a file's name.
    #[must_use]
    pub fn parse(name: Name<'a>) -> Self {
        let bytes = name.as_bytes();
        let Some(target) = bytes.strip_prefix(WHITEOUT_PREFIX) else {
            return Self::Plain;
        };
        if bytes == OPAQUE_MARKER {
            return Self::OpaqueMarker;
        }
        if bytes.starts_with(RESERVED_PREFIX) {
            return Self::Invalid(OciNameError::Reserved);
        }
        match Name::new(target) {
            Ok(target) => Self::Whiteout(target),
            Err(error) => Self::Invalid(OciNameError::Target(error)),
        }
    }

    /// Whether a mount shows an entry of this name: only ordinary names are shown.
    #[must_use]
    pub fn is_plain(self) -> bool {
        matches!(self, Self::Plain)
    }
}

/// The name of the whiteout that deletes `name`: `.wh.NAME`.
///
/// [`NameError::TooLong`] if `name` has more than 251 bytes. A name that itself starts with `.wh.` cannot be deleted in
/// this form, since the result would be reserved; that is [`OciNameError::Reserved`].
pub fn whiteout_name(name: Name<'_>) -> Result<NameBuf, OciNameError> {
    if name.as_bytes().starts_with(WHITEOUT_PREFIX) {
        return Err(OciNameError::Reserved);
    }
    NameBuf::new([WHITEOUT_PREFIX, name.as_bytes()].concat()).map_err(OciNameError::Target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> OciName<'_> {
        OciName::parse(Name::new(bytes).unwrap())
    }

    #[test]
    fn whiteouts_and_the_opaque_marker_are_recognised() {
        assert_eq!(parse(b".wh.motd"), OciName::Whiteout(Name::new(b"motd").unwrap()));
        assert_eq!(parse(b".wh..hidden"), OciName::Whiteout(Name::new(b".hidden").unwrap()));
        assert_eq!(parse(b".wh....."), OciName::Whiteout(Name::new(b"....").unwrap()));
        assert_eq!(parse(b".wh..wh..opq"), OciName::OpaqueMarker);
        for plain in [&b"motd"[..], b".wh", b"x.wh.y", b".Wh.motd", b".wha"] {
            assert_eq!(parse(plain), OciName::Plain);
        }
    }

    #[test]
    fn whiteouts_of_the_directory_itself_or_its_parent_are_invalid() {
        for (bytes, reason) in
            [(&b".wh."[..], NameError::Empty), (b".wh..", NameError::Dot), (b".wh...", NameError::Dot)]
        {
            assert_eq!(parse(bytes), OciName::Invalid(OciNameError::Target(reason)));
        }
        for bytes in [&b".wh..wh."[..], b".wh..wh.aufs", b".wh..wh.plnk", b".wh..wh..opqx"] {
            assert_eq!(parse(bytes), OciName::Invalid(OciNameError::Reserved));
        }
    }

    #[test]
    fn built_names_read_back_as_the_whiteout_of_what_they_were_built_from() {
        let name = Name::new(&[b'n'; 251]).unwrap();
        let whiteout = whiteout_name(name).unwrap();
        assert_eq!(OciName::parse(whiteout.as_name()), OciName::Whiteout(name));
        let long = whiteout_name(Name::new(&[b'n'; 252]).unwrap());
        assert_eq!(long, Err(OciNameError::Target(NameError::TooLong(256))));
        assert_eq!(whiteout_name(Name::new(b".wh.x").unwrap()), Err(OciNameError::Reserved));
    }
}
