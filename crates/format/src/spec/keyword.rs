//! The values that options choose from: each enum, its spellings and its list of accepted values in one place.

/// A value with a fixed set of spellings.
pub trait Keyword: Copy + Sized + 'static {
    /// All values, for messages: `on, off or auto`.
    const ACCEPTED: &'static str;
    /// The value of this spelling.
    fn from_bytes(text: &[u8]) -> Option<Self>;
    /// The spelling.
    fn as_str(self) -> &'static str;
}

macro_rules! keywords {
    ($(#[$doc:meta])* $name:ident, $accepted:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl Keyword for $name {
            const ACCEPTED: &'static str = $accepted;

            fn from_bytes(text: &[u8]) -> Option<Self> {
                $(if text == $text.as_bytes() { return Some(Self::$variant); })*
                None
            }

            fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

keywords! {
    /// `redirect_dir=` as it was written.
    RedirectDir, "on, off, follow or nofollow" {
        /// Renames of lower directories leave redirects, and redirects are followed.
        On = "on",
        /// The same as [`Self::Follow`] (`redirect_always_follow` is on in the kernel unless its builder changed it), and
        /// as [`Self::NoFollow`] beside `userxattr`.
        Off = "off",
        /// Redirects are followed, but none is made.
        Follow = "follow",
        /// Redirects are neither made nor followed.
        NoFollow = "nofollow",
    }
}

keywords! {
    /// What is done with redirects, once defaults and conflicts are resolved.
    RedirectMode, "on, follow or nofollow" {
        /// Made and followed. Without an upper, where nothing is made, the kernel says `on` for `follow`, too.
        On = "on",
        /// Followed, not made: a rename of a lower directory is EXDEV.
        Follow = "follow",
        /// Neither: a redirect that would have to be followed is EPERM.
        NoFollow = "nofollow",
    }
}

keywords! {
    /// Whether inode numbers carry the layer's file system in their high bits.
    Xino, "on, off or auto" {
        /// Always; a number that does not fit is a warning.
        On = "on",
        /// Never.
        Off = "off",
        /// If the numbers of all layers leave room.
        Auto = "auto",
    }
}

keywords! {
    /// Which UUID the overlay has (`statfs` f_fsid, and the file handles in `overlay.origin`).
    UuidMode, "off, null, auto or on" {
        /// The upper file system's; origins carry zeros.
        Off = "off",
        /// None of its own; origins carry the layers' UUIDs.
        Null = "null",
        /// One of its own, kept in `overlay.uuid`, for a new upper; [`Self::Null`] for an upper in use before.
        Auto = "auto",
        /// One of its own, kept in `overlay.uuid`.
        On = "on",
    }
}

keywords! {
    /// Whether metacopy digests are checked.
    Verity, "off, on or require" {
        /// Digests are neither made nor checked.
        Off = "off",
        /// Digests are checked where there are any, and made where the lower file has fs-verity.
        On = "on",
        /// As [`Self::On`]; a metacopy file without a digest cannot be opened.
        Require = "require",
    }
}

keywords! {
    /// `xattr_permissions=`: owners and modes kept in attributes instead of the files' own.
    XattrPermissions, "0, 1 or 2" {
        /// The files' own.
        Off = "0",
        /// `security.fuseoverlayfs.override_stat`
        Privileged = "1",
        /// `user.containers.override_stat`
        Containers = "2",
    }
}

keywords! {
    /// When access times are updated.
    Atime, "noatime, relatime or strictatime" {
        /// Never.
        NoAtime = "noatime",
        /// When older than the last change, or than a day.
        RelAtime = "relatime",
        /// At every read.
        StrictAtime = "strictatime",
    }
}
