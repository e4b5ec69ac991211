//! Every option's name, reader and printer, each defined once; and the options that are accepted and ignored.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use super::error::SpecError;
use super::keyword::{Atime, Keyword};
use super::layers::{escape, unescape};
use super::options::Options;
use crate::idmap::IdMap;

/// One option.
struct Def {
    name: &'static str,
    read: fn(&mut Options, Given<'_>) -> Result<(), SpecError>,
    /// `None` if the option need not be printed.
    print: fn(&Options) -> Option<Printed>,
}

/// An option as it was written.
#[derive(Clone, Copy)]
struct Given<'a> {
    name: &'static str,
    value: Option<&'a [u8]>,
}

/// An option as it is to be written.
enum Printed {
    Bare,
    Value(Vec<u8>),
}

/// Reads one option into `options`, or adds a line to `ignored`.
pub(super) fn read(
    options: &mut Options,
    ignored: &mut Vec<String>,
    name: &[u8],
    value: Option<&[u8]>,
) -> Result<(), SpecError> {
    if let Some(def) = DEFS.iter().find(|def| def.name.as_bytes() == name) {
        return (def.read)(options, Given { name: def.name, value });
    }
    let shown = String::from_utf8_lossy(name);
    if let Some((_, reason)) = IGNORED.iter().find(|(known, _)| known.as_bytes() == name) {
        ignored.push(format!("{shown}: {reason}"));
        return Ok(());
    }
    if IGNORED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        ignored.push(format!("{shown}: {FOR_MOUNT}"));
        return Ok(());
    }
    Err(SpecError::Unknown { nearest: nearest(&shown), name: shown.into_owned() })
}

/// The options as elements of an option string, escaped.
pub(super) fn print(options: &Options) -> Vec<Vec<u8>> {
    DEFS.iter()
        .filter_map(|def| {
            Some(match (def.print)(options)? {
                Printed::Bare => def.name.as_bytes().to_vec(),
                Printed::Value(value) => [def.name.as_bytes(), b"=", &value].concat(),
            })
        })
        .collect()
}

/// The names of every option that is accepted, those of layers first; prefixes such as `x-` are not among them.
pub fn known_names() -> impl Iterator<Item = &'static str> {
    LAYERS.into_iter().chain(DEFS.iter().map(|def| def.name)).chain(IGNORED.iter().map(|(name, _)| *name))
}

/// The known option that `name` was probably meant to be.
fn nearest(name: &str) -> Option<&'static str> {
    // No known name is longer, and the distance costs the product of the lengths.
    if name.len() > 32 {
        return None;
    }
    let budget = (name.chars().count() / 3).clamp(1, 3);
    known_names()
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, _)| *distance <= budget)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

const LAYERS: [&str; 5] = ["lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir"];

/// `name=VALUE` where the value is one of a set of words.
macro_rules! keyword {
    ($name:literal, $($field:ident).+) => {
        Def {
            name: $name,
            read: |options, given| { options.$($field).+ = Some(given.keyword()?); Ok(()) },
            print: |options| options.$($field).+.map(|value| Printed::text(value.as_str())),
        }
    };
}

/// `name=on` or `name=off`.
macro_rules! on_off {
    ($name:literal, $field:ident) => {
        Def {
            name: $name,
            read: |options, given| {
                options.$field = Some(given.on_off()?);
                Ok(())
            },
            print: |options| options.$field.map(|value| Printed::text(if value { "on" } else { "off" })),
        }
    };
}

/// `name`; with a value it is an error.
macro_rules! flag {
    ($name:literal, $($field:ident).+) => {
        Def {
            name: $name,
            read: |options, given| { given.bare()?; options.$($field).+ = true; Ok(()) },
            print: |options| options.$($field).+.then_some(Printed::Bare),
        }
    };
}

/// `name` or `name=1`, and `name=0` for not.
macro_rules! flag_01 {
    ($name:literal, $field:ident) => {
        Def {
            name: $name,
            read: |options, given| {
                options.$field = given.zero_one()?;
                Ok(())
            },
            print: |options| options.$field.then_some(Printed::Bare),
        }
    };
}

/// `name=0` or `name=1`, where not giving it is a third case; `name` alone is `name=1`.
macro_rules! given_01 {
    ($name:literal, $field:ident) => {
        Def {
            name: $name,
            read: |options, given| {
                options.$field = Some(given.zero_one()?);
                Ok(())
            },
            print: |options| options.$field.map(|value| Printed::text(if value { "1" } else { "0" })),
        }
    };
}

/// One of two opposite words for the same field: this one sets it to the given value.
macro_rules! side {
    ($name:literal, $($field:ident).+, $value:expr) => {
        Def {
            name: $name,
            read: |options, given| { given.bare()?; options.$($field).+ = Some($value); Ok(()) },
            print: |options| (options.$($field).+ == Some($value)).then_some(Printed::Bare),
        }
    };
}

/// A second spelling, which is never printed.
macro_rules! synonym {
    ($name:literal, $($field:ident).+, $value:expr) => {
        Def {
            name: $name,
            read: |options, given| { given.bare()?; options.$($field).+ = Some($value); Ok(()) },
            print: |_| None,
        }
    };
}

/// `name=NUMBER`
macro_rules! number {
    ($name:literal, $field:ident) => {
        Def {
            name: $name,
            read: |options, given| {
                options.$field = Some(given.number()?);
                Ok(())
            },
            print: |options| options.$field.map(|value| Printed::text(&value.to_string())),
        }
    };
}

/// `name=DISK:SHOWN:LENGTH…`
macro_rules! id_map {
    ($name:literal, $field:ident) => {
        Def {
            name: $name,
            read: |options, given| {
                options.$field = Some(given.id_map()?);
                Ok(())
            },
            print: |options| options.$field.as_ref().map(|value| Printed::text(&value.to_string())),
        }
    };
}

/// `name="LABEL"`, the quotes being optional.
macro_rules! label {
    ($name:literal, $field:ident) => {
        Def {
            name: $name,
            read: |options, given| {
                options.contexts.$field = Some(given.label()?);
                Ok(())
            },
            print: |options| options.contexts.$field.as_deref().map(Printed::label),
        }
    };
}

/// `name=TEXT`, with escapes.
macro_rules! text {
    ($name:literal, $field:ident) => {
        Def {
            name: $name,
            read: |options, given| {
                options.$field = Some(given.text()?);
                Ok(())
            },
            print: |options| options.$field.as_deref().map(Printed::escaped),
        }
    };
}

const DEFS: &[Def] = &[
    // The kernel's overlayfs.
    keyword!("redirect_dir", redirect_dir),
    on_off!("index", index),
    on_off!("nfs_export", nfs_export),
    on_off!("metacopy", metacopy),
    keyword!("xino", xino),
    keyword!("uuid", uuid),
    keyword!("verity", verity),
    flag!("userxattr", userxattr),
    flag!("default_permissions", default_permissions),
    flag!("volatile", volatile),
    side!("override_creds", override_creds, true),
    side!("nooverride_creds", override_creds, false),
    // fuse-overlayfs.
    id_map!("uidmapping", uid_mapping),
    id_map!("gidmapping", gid_mapping),
    flag_01!("squash_to_root", squash_to_root),
    number!("squash_to_uid", squash_to_uid),
    number!("squash_to_gid", squash_to_gid),
    keyword!("xattr_permissions", xattr_permissions),
    flag_01!("static_nlink", static_nlink),
    flag_01!("noacl", noacl),
    flag_01!("noxattrs", noxattrs),
    flag_01!("ino32_t", ino32),
    Def {
        name: "timeout",
        read: |options, given| {
            options.timeout = Some(given.seconds()?);
            Ok(())
        },
        print: |options| options.timeout.map(Printed::seconds),
    },
    given_01!("fsync", fsync),
    given_01!("writeback", writeback),
    flag!("allow_other", allow_other),
    flag!("allow_root", allow_root),
    given_01!("threaded", threaded),
    flag!("debug", debug),
    number!("max_write", max_write),
    flag_01!("lower_passthrough", lower_passthrough),
    // Security modules.
    label!("context", context),
    label!("fscontext", fscontext),
    label!("defcontext", defcontext),
    label!("rootcontext", rootcontext),
    // mount(8) and libfuse.
    side!("ro", mount.read_only, true),
    side!("rw", mount.read_only, false),
    side!("nosuid", mount.nosuid, true),
    side!("suid", mount.nosuid, false),
    side!("nodev", mount.nodev, true),
    side!("dev", mount.nodev, false),
    side!("noexec", mount.noexec, true),
    side!("exec", mount.noexec, false),
    side!("nosymfollow", mount.nosymfollow, true),
    side!("symfollow", mount.nosymfollow, false),
    side!("noatime", mount.atime, Atime::NoAtime),
    side!("relatime", mount.atime, Atime::RelAtime),
    side!("strictatime", mount.atime, Atime::StrictAtime),
    synonym!("atime", mount.atime, Atime::RelAtime),
    synonym!("norelatime", mount.atime, Atime::RelAtime),
    synonym!("nostrictatime", mount.atime, Atime::RelAtime),
    side!("nodiratime", mount.nodiratime, true),
    side!("diratime", mount.nodiratime, false),
    side!("sync", mount.sync, true),
    side!("async", mount.sync, false),
    flag!("dirsync", mount.dirsync),
    side!("lazytime", mount.lazytime, true),
    side!("nolazytime", mount.lazytime, false),
    text!("fsname", fsname),
    text!("subtype", subtype),
    flag!("remount", remount),
];

const FOR_MOUNT: &str = "it is addressed to mount(8)";
const FOR_LIBFUSE: &str = "it is addressed to libfuse, which plyfs does not use";
const BY_KERNEL: &str = "the kernel decides this by itself";

const IGNORED_PREFIXES: [&[u8]; 2] = [b"x-", b"X-"];

const IGNORED: &[(&str, &str)] = &[
    ("defaults", FOR_MOUNT),
    ("auto", FOR_MOUNT),
    ("noauto", FOR_MOUNT),
    ("user", FOR_MOUNT),
    ("nouser", FOR_MOUNT),
    ("users", FOR_MOUNT),
    ("owner", FOR_MOUNT),
    ("group", FOR_MOUNT),
    ("nofail", FOR_MOUNT),
    ("_netdev", FOR_MOUNT),
    ("comment", FOR_MOUNT),
    ("loud", FOR_MOUNT),
    ("silent", FOR_MOUNT),
    ("mand", "Linux has no mandatory locks any more"),
    ("nomand", "Linux has no mandatory locks any more"),
    ("iversion", BY_KERNEL),
    ("noiversion", BY_KERNEL),
    ("fast_ino", "inode numbers are always fast"),
    ("plugins", "plyfs has no plug-ins"),
    ("nonempty", "a mountpoint may always hold files"),
    ("auto_unmount", "plyfs unmounts by itself when it ends"),
    ("rootmode", BY_KERNEL),
    ("user_id", BY_KERNEL),
    ("group_id", BY_KERNEL),
    ("blksize", BY_KERNEL),
    ("max_read", BY_KERNEL),
    ("max_readahead", BY_KERNEL),
    ("kernel_cache", FOR_LIBFUSE),
    ("auto_cache", FOR_LIBFUSE),
    ("noauto_cache", FOR_LIBFUSE),
    ("direct_io", FOR_LIBFUSE),
    ("entry_timeout", FOR_LIBFUSE),
    ("attr_timeout", FOR_LIBFUSE),
    ("ac_attr_timeout", FOR_LIBFUSE),
    ("negative_timeout", FOR_LIBFUSE),
    ("noforget", FOR_LIBFUSE),
    ("remember", FOR_LIBFUSE),
    ("intr", FOR_LIBFUSE),
    ("intr_signal", FOR_LIBFUSE),
    ("modules", FOR_LIBFUSE),
    ("clone_fd", FOR_LIBFUSE),
    ("max_threads", FOR_LIBFUSE),
    ("max_idle_threads", FOR_LIBFUSE),
    ("max_background", FOR_LIBFUSE),
    ("congestion_threshold", FOR_LIBFUSE),
    ("hard_remove", FOR_LIBFUSE),
    ("use_ino", FOR_LIBFUSE),
    ("readdir_ino", FOR_LIBFUSE),
    ("umask", FOR_LIBFUSE),
    ("uid", FOR_LIBFUSE),
    ("gid", FOR_LIBFUSE),
    ("nopath", FOR_LIBFUSE),
    ("big_writes", FOR_LIBFUSE),
    ("large_read", FOR_LIBFUSE),
    ("async_read", FOR_LIBFUSE),
    ("sync_read", FOR_LIBFUSE),
    ("atomic_o_trunc", FOR_LIBFUSE),
    ("no_remote_lock", FOR_LIBFUSE),
    ("no_remote_flock", FOR_LIBFUSE),
    ("no_remote_posix_lock", FOR_LIBFUSE),
    ("splice_read", FOR_LIBFUSE),
    ("splice_write", FOR_LIBFUSE),
    ("splice_move", FOR_LIBFUSE),
    ("no_splice_read", FOR_LIBFUSE),
    ("no_splice_write", FOR_LIBFUSE),
    ("no_splice_move", FOR_LIBFUSE),
];

impl<'a> Given<'a> {
    fn bare(self) -> Result<(), SpecError> {
        match self.value {
            None => Ok(()),
            Some(value) => Err(SpecError::UnexpectedValue { name: self.name, value: lossy(value) }),
        }
    }

    fn required(self, accepted: &'static str) -> Result<&'a [u8], SpecError> {
        self.value.ok_or(SpecError::MissingValue { name: self.name, accepted })
    }

    fn wrong(self, accepted: &'static str) -> SpecError {
        SpecError::Value { name: self.name, value: lossy(self.value.unwrap_or_default()), accepted }
    }

    fn keyword<K: Keyword>(self) -> Result<K, SpecError> {
        K::from_bytes(self.required(K::ACCEPTED)?).ok_or_else(|| self.wrong(K::ACCEPTED))
    }

    fn on_off(self) -> Result<bool, SpecError> {
        const ACCEPTED: &str = "on or off";
        match self.required(ACCEPTED)? {
            b"on" => Ok(true),
            b"off" => Ok(false),
            _ => Err(self.wrong(ACCEPTED)),
        }
    }

    fn zero_one(self) -> Result<bool, SpecError> {
        match self.value {
            None | Some(b"1") => Ok(true),
            Some(b"0") => Ok(false),
            Some(_) => Err(self.wrong("0 or 1")),
        }
    }

    fn number(self) -> Result<u32, SpecError> {
        const ACCEPTED: &str = "a number from 0 to 4294967295";
        digits(self.required(ACCEPTED)?)
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| self.wrong(ACCEPTED))
    }

    fn id_map(self) -> Result<IdMap, SpecError> {
        let value = self.required("groups of three numbers, DISK:SHOWN:LENGTH")?;
        IdMap::parse(value).map_err(|reason| SpecError::IdMap {
            name: self.name,
            value: lossy(value),
            reason,
        })
    }

    /// Seconds with at most nine digits after the point.
    fn seconds(self) -> Result<Duration, SpecError> {
        const ACCEPTED: &str = "a number of seconds, such as 1 or 0.5";
        let value = self.required(ACCEPTED)?;
        let mut parts = value.splitn(2, |byte| *byte == b'.');
        let whole = parts.next().and_then(digits);
        let fraction = parts.next().map_or(Some(0), nanoseconds);
        match (whole, fraction) {
            (Some(whole), Some(nanos)) => Ok(Duration::new(whole, nanos)),
            _ => Err(self.wrong(ACCEPTED)),
        }
    }

    fn label(self) -> Result<OsString, SpecError> {
        let value = self.required("a security context")?;
        let inner = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
        match inner.unwrap_or(value) {
            label if label.is_empty() || label.contains(&b'"') || label.contains(&b'\\') => {
                Err(self.wrong("a security context, in double quotes if it has commas"))
            }
            label => Ok(OsString::from_vec(label.to_vec())),
        }
    }

    fn text(self) -> Result<OsString, SpecError> {
        self.required("a name").map(|value| OsString::from_vec(unescape(value)))
    }
}

impl Printed {
    fn text(value: &str) -> Self {
        Self::Value(value.as_bytes().to_vec())
    }

    fn escaped(value: &OsStr) -> Self {
        Self::Value(escape(value.as_bytes(), b","))
    }

    fn label(value: &OsStr) -> Self {
        Self::Value([b"\"", value.as_bytes(), b"\""].concat())
    }

    fn seconds(value: Duration) -> Self {
        let text = format!("{}.{:09}", value.as_secs(), value.subsec_nanos());
        Self::text(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// Digits only: `str::parse` would also take a sign.
fn digits(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The digits after a decimal point as nanoseconds.
fn nanoseconds(fraction: &[u8]) -> Option<u32> {
    let padding = 9_usize.checked_sub(fraction.len())?;
    let padded = [fraction, &vec![b'0'; padding]].concat();
    digits(&padded).and_then(|nanos| u32::try_from(nanos).ok())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
