//! Every mount option as a typed field. `None` means "not given", which is not the same as the default given.

use std::ffi::OsString;
use std::time::Duration;

use super::conflict::{Conflict, Defaults, Effective, Situation};
use super::keyword::{Atime, RedirectDir, UuidMode, Verity, XattrPermissions, Xino};
use crate::idmap::IdMap;

/// The options of a mount beside its layers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// `redirect_dir=`
    pub redirect_dir: Option<RedirectDir>,
    /// `index=on|off`: hard links survive copy-up.
    pub index: Option<bool>,
    /// `nfs_export=on|off`: file handles stay valid.
    pub nfs_export: Option<bool>,
    /// `metacopy=on|off`: changes of metadata copy no data.
    pub metacopy: Option<bool>,
    /// `xino=`
    pub xino: Option<Xino>,
    /// `uuid=`
    pub uuid: Option<UuidMode>,
    /// `verity=`
    pub verity: Option<Verity>,
    /// `userxattr`: private attributes are `user.overlay.*`.
    pub userxattr: bool,
    /// `default_permissions`: the kernel checks the modes that the mount shows.
    pub default_permissions: bool,
    /// `volatile`: nothing is synced; a crash costs the upper.
    pub volatile: bool,
    /// `override_creds` (true) or `nooverride_creds` (false): whose credentials access the layers.
    pub override_creds: Option<bool>,

    /// `uidmapping=`
    pub uid_mapping: Option<IdMap>,
    /// `gidmapping=`
    pub gid_mapping: Option<IdMap>,
    /// `squash_to_root`: everything shows as owned by 0:0.
    pub squash_to_root: bool,
    /// `squash_to_uid=`; stronger than `squash_to_root`.
    pub squash_to_uid: Option<u32>,
    /// `squash_to_gid=`; stronger than `squash_to_root`.
    pub squash_to_gid: Option<u32>,
    /// `xattr_permissions=`
    pub xattr_permissions: Option<XattrPermissions>,
    /// `static_nlink`: directories show one link.
    pub static_nlink: bool,
    /// `noacl`: ACL attributes are neither shown nor set.
    pub noacl: bool,
    /// `noxattrs`: no attributes are shown or set.
    pub noxattrs: bool,
    /// `ino32_t`: inode numbers fit 32 bits.
    pub ino32: bool,
    /// `timeout=`, in seconds: how long the kernel may keep attributes and entries.
    pub timeout: Option<Duration>,
    /// `fsync=0|1`: whether fsync reaches the disk and copy-up is synced before it is published.
    pub fsync: Option<bool>,
    /// `writeback=0|1`: whether the kernel may hold back writes.
    pub writeback: Option<bool>,
    /// `allow_other`: other users may enter the mount.
    pub allow_other: bool,
    /// `allow_root`: root may enter the mount.
    pub allow_root: bool,
    /// `threaded=0|1`: whether requests are served in parallel.
    pub threaded: Option<bool>,
    /// `debug`: trace requests.
    pub debug: bool,
    /// `max_write=`, in bytes: the largest write request.
    pub max_write: Option<u32>,
    /// `lower_passthrough`: lower files are read through the layer's own page cache, which all mounts share; what has one open
    /// does not see a later copy-up.
    pub lower_passthrough: bool,

    /// The security modules' options.
    pub contexts: SecurityContexts,
    /// The generic flags of mount(8).
    pub mount: MountFlags,
    /// `fsname=`: the source that the mount table shows.
    pub fsname: Option<OsString>,
    /// `subtype=`: the type that the mount table shows after `fuse.`.
    pub subtype: Option<OsString>,
    /// `remount`: the mount exists already; only its flags are to change.
    pub remount: bool,
}

/// SELinux labels for the mount; passed to the kernel as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SecurityContexts {
    /// `context=`: of every file.
    pub context: Option<OsString>,
    /// `fscontext=`: of the file system itself.
    pub fscontext: Option<OsString>,
    /// `defcontext=`: of files without a label.
    pub defcontext: Option<OsString>,
    /// `rootcontext=`: of the root directory.
    pub rootcontext: Option<OsString>,
}

/// The generic mount flags. Each is `Some(false)` if its opposite was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountFlags {
    /// `ro` or `rw`
    pub read_only: Option<bool>,
    /// `nosuid` or `suid`
    pub nosuid: Option<bool>,
    /// `nodev` or `dev`
    pub nodev: Option<bool>,
    /// `noexec` or `exec`
    pub noexec: Option<bool>,
    /// `nosymfollow` or `symfollow`
    pub nosymfollow: Option<bool>,
    /// `noatime`, `relatime` (also `atime` and `norelatime`) or `strictatime`
    pub atime: Option<Atime>,
    /// `nodiratime` or `diratime`
    pub nodiratime: Option<bool>,
    /// `sync` or `async`
    pub sync: Option<bool>,
    /// `dirsync`
    pub dirsync: bool,
    /// `lazytime` or `nolazytime`
    pub lazytime: Option<bool>,
}

impl Options {
    /// Applies plyfs's defaults and the kernel's rules of which options exclude each other.
    ///
    /// `privileged` means CAP_SYS_ADMIN in the initial user namespace. Data-only layers have a rule of their own, which
    /// [`StackSpec::effective`](super::StackSpec::effective) applies as well.
    pub fn check_conflicts(&self, has_upper: bool, privileged: bool) -> Result<Effective, Conflict> {
        self.resolve(Situation { has_upper, has_data_lowers: false, privileged }, Defaults::PLYFS)
    }
}
