//! The names of the extended attributes that an overlay keeps for itself.
//!
//! Owns the private names in both namespaces, and the escaping by which an overlay's own layers can lie inside another
//! overlay. Never reads or writes an attribute. The kernel's counterparts are `ovl_xattr_table` and `xattrs.c`.

use std::borrow::Cow;
use std::ffi::CStr;

/// The longest attribute name, in bytes (`XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;

/// containers/storage's record of the owner and mode that a file should show; read before the older spelling.
pub const CONTAINERS_OVERRIDE_STAT: &CStr = c"user.containers.override_stat";
/// fuse-overlayfs's older record of the owner and mode that a file should show.
pub const FUSE_OVERLAYFS_OVERRIDE_STAT: &CStr = c"user.fuseoverlayfs.override_stat";
/// fuse-overlayfs's record under `xattr_permissions=1`, which only a privileged process can write.
pub const PRIVILEGED_OVERRIDE_STAT: &CStr = c"security.fuseoverlayfs.override_stat";

/// The spellings of an opaque directory that fuse-overlayfs honours, whatever namespace the mount uses.
pub const OPAQUE_SPELLINGS: [&CStr; 3] =
    [c"user.overlay.opaque", c"trusted.overlay.opaque", c"user.fuseoverlayfs.opaque"];

/// POSIX ACL of a file.
pub const ACL_ACCESS: &CStr = c"system.posix_acl_access";
/// POSIX ACL that new entries of a directory inherit.
pub const ACL_DEFAULT: &CStr = c"system.posix_acl_default";
/// File capabilities; dropped by the kernel on every data write, so copy-up sets it after the data.
pub const CAPABILITY: &CStr = c"security.capability";

/// Which prefix is private in a mount: `trusted.overlay.`, or `user.overlay.` with `userxattr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Namespace {
    /// `trusted.overlay.`: needs CAP_SYS_ADMIN in the initial user namespace.
    Trusted,
    /// `user.overlay.`: works for any owner, on regular files and directories only.
    User,
}

/// The attributes that an overlay keeps for itself. Each format is documented in the module named after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Private {
    /// The directory hides the same path in layers below (`opaque.rs`).
    Opaque,
    /// On an empty regular file in a directory with opaque=`x`: the file is a whiteout.
    Whiteout,
    /// Where the lower entries of a renamed directory or metacopy file lie (`redirect.rs`).
    Redirect,
    /// The lower file that this was copied up from (`origin.rs`).
    Origin,
    /// `y` on an upper directory that may hold copied-up or moved entries, so that d_ino must be looked up.
    Impure,
    /// Link count of an indexed file, relative to the real one (`nlink.rs`).
    Nlink,
    /// On index entries: the upper directory that the entry stands for (`origin.rs`).
    Upper,
    /// 16 raw bytes on the upper root: the file system's UUID.
    Uuid,
    /// The upper file has metadata only (`metacopy.rs`).
    Metacopy,
    /// Append-only and immutable, as the overlay shows them (`protattr.rs`).
    Protattr,
}

/// A name that grew beyond [`XATTR_NAME_MAX`] by escaping. The kernel answers EOPNOTSUPP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an escaped attribute name would have {length} bytes; at most 255 are allowed (EOPNOTSUPP)")]
pub struct XattrNameTooLong {
    /// Length of the escaped name.
    pub length: usize,
}

/// What each escape adds, and each unescape removes.
const ESCAPE: &[u8] = b"overlay.";

/// Names that are private whatever namespace the mount uses, as prefix and rest: fuse-overlayfs's mark of an opaque
/// directory, which counts in every layer, and the records of owner and mode, which count in a layer that keeps them.
const FOREIGN: [(&[u8], &[u8]); 4] = [
    (b"user.fuseoverlayfs.", b"opaque"),
    (b"user.fuseoverlayfs.", RECORD),
    (b"user.containers.", RECORD),
    (b"security.fuseoverlayfs.", RECORD),
];

/// What the names of all records of owner and mode end with.
const RECORD: &[u8] = b"override_stat";

/// Whether `name` is on disk a record of owner and mode. In a layer that keeps none it is an attribute like any other: it
/// was not set through a mount, which would have escaped it.
#[must_use]
pub fn is_record(name: &[u8]) -> bool {
    FOREIGN.iter().any(|(prefix, rest)| *rest == RECORD && name.strip_prefix(*prefix) == Some(RECORD))
}

/// Whether `name` is one of the overlay's own attributes on disk: it has the private prefix and is not an escaped one, or
/// it is fuse-overlayfs's mark of an opaque directory or a record of owner and mode.
#[must_use]
pub fn is_private(namespace: Namespace, name: &[u8]) -> bool {
    split(namespace, name).is_some_and(|(_, rest)| !rest.starts_with(ESCAPE))
}

/// The name on disk of an attribute that was named `name` through the mount.
///
/// A private name gets one more `overlay.` behind its prefix; every other name stays as it is.
pub fn escape(namespace: Namespace, name: &[u8]) -> Result<Cow<'_, [u8]>, XattrNameTooLong> {
    let Some((prefix, rest)) = split(namespace, name) else {
        return Ok(Cow::Borrowed(name));
    };
    let escaped = [prefix, ESCAPE, rest].concat();
    if escaped.len() > XATTR_NAME_MAX {
        return Err(XattrNameTooLong { length: escaped.len() });
    }
    Ok(Cow::Owned(escaped))
}

/// The name through the mount of an attribute that is named `name` on disk; `None` if the mount hides it.
#[must_use]
pub fn unescape(namespace: Namespace, name: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some((prefix, rest)) = split(namespace, name) else {
        return Some(Cow::Borrowed(name));
    };
    let shown = rest.strip_prefix(ESCAPE)?;
    Some(Cow::Owned([prefix, shown].concat()))
}

/// The private prefix of a name, and what follows it, escaped or not.
fn split(namespace: Namespace, name: &[u8]) -> Option<(&'static [u8], &[u8])> {
    if let Some(rest) = name.strip_prefix(namespace.prefix()) {
        return Some((namespace.prefix(), rest));
    }
    FOREIGN.iter().find_map(|(prefix, own)| {
        let rest = name.strip_prefix(*prefix)?;
        let mut bare = rest;
        while let Some(inner) = bare.strip_prefix(ESCAPE) {
            bare = inner;
        }
        (bare == *own).then_some((*prefix, rest))
    })
}

impl Namespace {
    /// The private prefix, with its final dot.
    #[must_use]
    pub fn prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.",
            Self::User => b"user.overlay.",
        }
    }

    /// The full name of a private attribute.
    #[must_use]
    pub fn name(self, private: Private) -> &'static CStr {
        match self {
            Self::Trusted => private.trusted_name(),
            Self::User => private.user_name(),
        }
    }
}

impl Private {
    /// Every private attribute.
    pub const ALL: [Self; 10] = [
        Self::Opaque,
        Self::Whiteout,
        Self::Redirect,
        Self::Origin,
        Self::Impure,
        Self::Nlink,
        Self::Upper,
        Self::Uuid,
        Self::Metacopy,
        Self::Protattr,
    ];

    fn trusted_name(self) -> &'static CStr {
        match self {
            Self::Opaque => c"trusted.overlay.opaque",
            Self::Whiteout => c"trusted.overlay.whiteout",
            Self::Redirect => c"trusted.overlay.redirect",
            Self::Origin => c"trusted.overlay.origin",
            Self::Impure => c"trusted.overlay.impure",
            Self::Nlink => c"trusted.overlay.nlink",
            Self::Upper => c"trusted.overlay.upper",
            Self::Uuid => c"trusted.overlay.uuid",
            Self::Metacopy => c"trusted.overlay.metacopy",
            Self::Protattr => c"trusted.overlay.protattr",
        }
    }

    fn user_name(self) -> &'static CStr {
        match self {
            Self::Opaque => c"user.overlay.opaque",
            Self::Whiteout => c"user.overlay.whiteout",
            Self::Redirect => c"user.overlay.redirect",
            Self::Origin => c"user.overlay.origin",
            Self::Impure => c"user.overlay.impure",
            Self::Nlink => c"user.overlay.nlink",
            Self::Upper => c"user.overlay.upper",
            Self::Uuid => c"user.overlay.uuid",
            Self::Metacopy => c"user.overlay.metacopy",
            Self::Protattr => c"user.overlay.protattr",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_private_name_starts_with_its_namespaces_prefix_and_is_private_there_only() {
        for private in Private::ALL {
            for (own, other) in [(Namespace::Trusted, Namespace::User), (Namespace::User, Namespace::Trusted)]
            {
                let name = own.name(private).to_bytes();
                assert!(name.starts_with(own.prefix()));
                assert!(is_private(own, name) && !is_private(other, name));
                assert_eq!(unescape(own, name), None);
                assert_eq!(unescape(other, name).as_deref(), Some(name));
            }
        }
    }

    #[test]
    fn each_level_of_nesting_adds_one_prefix() {
        let once = escape(Namespace::Trusted, b"trusted.overlay.opaque").unwrap();
        assert_eq!(&*once, b"trusted.overlay.overlay.opaque");
        assert!(!is_private(Namespace::Trusted, &once));
        let twice = escape(Namespace::Trusted, &once).unwrap().into_owned();
        assert_eq!(twice, b"trusted.overlay.overlay.overlay.opaque");
        assert_eq!(unescape(Namespace::Trusted, &twice).as_deref(), Some(&*once));
    }

    #[test]
    fn the_marks_and_records_of_fuse_overlayfs_are_private_in_both_namespaces() {
        for namespace in [Namespace::Trusted, Namespace::User] {
            for (name, on_disk) in [
                ("user.fuseoverlayfs.opaque", "user.fuseoverlayfs.overlay.opaque"),
                ("user.fuseoverlayfs.override_stat", "user.fuseoverlayfs.overlay.override_stat"),
                ("user.containers.override_stat", "user.containers.overlay.override_stat"),
                ("security.fuseoverlayfs.override_stat", "security.fuseoverlayfs.overlay.override_stat"),
            ] {
                assert!(is_private(namespace, name.as_bytes()), "{name}");
                assert_eq!(is_record(name.as_bytes()), name.ends_with("override_stat"));
                let escaped = escape(namespace, name.as_bytes()).unwrap().into_owned();
                assert_eq!(escaped, on_disk.as_bytes());
                assert!(!is_private(namespace, &escaped) && !is_record(&escaped), "{on_disk}");
                assert_eq!(unescape(namespace, &escaped).as_deref(), Some(name.as_bytes()));
            }
            let other = b"user.containers.other";
            assert_eq!(&*escape(namespace, other).unwrap(), other);
        }
    }

    #[test]
    fn names_outside_the_private_prefix_are_left_alone() {
        for name in [&b"user.mime"[..], b"trusted.overlay", b"trusted.overlayx.y", b"security.capability"] {
            assert_eq!(&*escape(Namespace::Trusted, name).unwrap(), name);
            assert_eq!(unescape(Namespace::Trusted, name).as_deref(), Some(name));
        }
    }

    #[test]
    fn a_name_that_grows_beyond_255_bytes_is_refused() {
        let mut name = b"user.overlay.".to_vec();
        name.resize(247, b'x');
        assert_eq!(escape(Namespace::User, &name).unwrap().len(), 255);
        name.push(b'x');
        assert_eq!(escape(Namespace::User, &name), Err(XattrNameTooLong { length: 256 }));
    }
}
