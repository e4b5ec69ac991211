//! Mounting, unmounting and namespaces: what a FUSE session, `plyfs try` and the feature probes need.
//!
//! The policy (which options, in which namespace, in which order) is the caller's.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
pub use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use crate::file::with_proc_path;
use crate::{Errno, Result, raw};

/// Mounts a file system of type `fstype` at `target` with an option string as the file system understands it (mount(2)).
/// The kernel cuts options at one page.
pub fn mount(source: &CStr, target: &Path, fstype: &CStr, flags: MountFlags, options: &[u8]) -> Result<()> {
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(source, target, fstype, flags, Some(options.as_c_str()))
}

/// Mounts the FUSE connection of `device` (an open `/dev/fuse`) at `target` (mount(2), fuse(4)). `subtype` makes the type
/// `fuse.SUBTYPE`; `options` are those of FUSE beside `fd=`, which is put in front, for example
/// `rootmode=40755,user_id=0,group_id=0,default_permissions,allow_other`.
pub fn mount_fuse(
    device: BorrowedFd<'_>,
    source: &CStr,
    target: &Path,
    subtype: &str,
    flags: MountFlags,
    options: &[u8],
) -> Result<()> {
    let fstype = CString::new(format!("fuse.{subtype}")).map_err(|_| Errno::INVAL)?;
    let mut all = format!("fd={}", device.as_raw_fd()).into_bytes();
    if !options.is_empty() {
        all.push(b',');
        all.extend_from_slice(options);
    }
    mount(source, target, &fstype, flags, &all)
}

/// Unmounts what is at `target`, not following a symbolic link (umount2(2)). `EBUSY` while it is in use.
pub fn unmount(target: &Path) -> Result<()> {
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW)
}

/// Takes the mount at `target` out of the tree now, and lets it end with its last user (`MNT_DETACH` of umount2(2)).
pub fn unmount_detached(target: &Path) -> Result<()> {
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
}

/// A number of the topmost mount at `path` that tells it from what is mounted there later: the kernel never gives it
/// again (`STATX_MNT_ID_UNIQUE` of statx(2), Linux 6.8), or, before, gives it again only after an unmount. The file system
/// itself is not asked anything.
pub fn mount_id(path: &Path) -> Result<u64> {
    mount_id_at(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW)
}

/// The device, major and minor, of the file system at `path`, which itself is not asked anything (statx(2) with
/// `AT_STATX_DONT_SYNC`).
pub fn device_at(path: &Path) -> Result<(u32, u32)> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::empty())?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}

fn mount_id_at(dir: impl AsFd, path: impl rustix::path::Arg, flags: AtFlags) -> Result<u64> {
    let flags = flags | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::MNT_ID | StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE);
    let stat = rustix::fs::statx(dir, path, flags, wanted)?;
    if stat.stx_mask & (STATX_MNT_ID_UNIQUE | StatxFlags::MNT_ID.bits()) == 0 {
        return Err(Errno::NOSYS);
    }
    Ok(stat.stx_mnt_id)
}

/// `STATX_MNT_ID_UNIQUE`.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// One mount, held by a descriptor of its root: what is mounted at the same path later is never taken for it. While it is
/// held the mount is in use, and can only be detached.
#[derive(Debug)]
pub struct HeldMount(OwnedFd);

impl HeldMount {
    /// Holds the topmost mount at `path`, the root of a mount. Its file system is not asked anything.
    pub fn at(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map(Self)
    }

    /// Its number, as of [`mount_id`].
    pub fn id(&self) -> Result<u64> {
        mount_id_at(&self.0, c"", AtFlags::EMPTY_PATH)
    }

    /// Takes it out of the tree, and lets it end with its last user. `EINVAL` if it is not in the tree (of this mount
    /// namespace) any more, whatever is mounted in its place by now. What lies on it would be taken instead: the kernel
    /// goes up from the root that is named to what covers it.
    pub fn detach(self) -> Result<()> {
        // The link in /proc leads to the mount itself, and must be followed.
        with_proc_path(self.0.as_fd(), |path| rustix::mount::unmount(path, UnmountFlags::DETACH))
    }
}

/// Mounts a directory or file a second time at `target`, with the mounts below it if `recursive` (`MS_BIND` of mount(2)).
pub fn bind(source: &Path, target: &Path, recursive: bool) -> Result<()> {
    if recursive {
        rustix::mount::mount_bind_recursive(source, target)
    } else {
        rustix::mount::mount_bind(source, target)
    }
}

/// Changes the flags of the mount at `target` alone, not of its file system (`MS_REMOUNT | MS_BIND` of mount(2)).
pub fn remount_bind(target: &Path, flags: MountFlags) -> Result<()> {
    rustix::mount::mount_remount(target, MountFlags::BIND | flags, c"")
}

/// Changes the flags of the mount at `target` and of its file system (`MS_REMOUNT` of mount(2)).
pub fn remount(target: &Path, flags: MountFlags) -> Result<()> {
    rustix::mount::mount_remount(target, flags, c"")
}

/// Changes how mount events propagate from and to the mount at `target` (mount_namespaces(7)).
pub fn set_propagation(target: &Path, propagation: MountPropagationFlags) -> Result<()> {
    rustix::mount::mount_change(target, propagation)
}

/// Moves the mount at `source` to `target` (`MS_MOVE` of mount(2)).
pub fn move_path(source: &Path, target: &Path) -> Result<()> {
    rustix::mount::mount_move(source, target)
}

/// A detached copy of the mount that holds `path` beneath `dir`, or, without `OPEN_TREE_CLONE`, a descriptor of it
/// (open_tree(2)).
pub fn open_tree(dir: impl AsFd, path: &Path, flags: OpenTreeFlags) -> Result<OwnedFd> {
    rustix::mount::open_tree(dir, path, flags | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

/// Attaches a detached mount at `target` beneath `dir` (move_mount(2)).
pub fn attach(mount: impl AsFd, dir: impl AsFd, target: &Path) -> Result<()> {
    rustix::mount::move_mount(mount, c"", dir, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Attaches a detached mount over the directory that `target` refers to (move_mount(2)).
pub fn attach_over(mount: impl AsFd, target: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags)
}

/// `struct mount_attr` (include/uapi/linux/mount.h).
#[repr(C)]
struct RawMountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// What [`set_attributes`] changes: `MOUNT_ATTR_*` flags to set and to clear, and the user namespace of an idmapped mount
/// (which needs `MOUNT_ATTR_IDMAP`, set by itself).
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttributes<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// Map ids by this user namespace.
    pub idmap: Option<BorrowedFd<'a>>,
}

/// `MOUNT_ATTR_RDONLY`: the mount is read-only.
pub const ATTR_RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`: set-id bits and file capabilities are ignored.
pub const ATTR_NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`: device nodes cannot be opened.
pub const ATTR_NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`: nothing can be executed.
pub const ATTR_NOEXEC: u64 = 0x8;
/// `MOUNT_ATTR_IDMAP`.
const ATTR_IDMAP: u64 = 0x10_0000;
/// `AT_RECURSIVE`.
const AT_RECURSIVE: libc::c_int = 0x8000;

/// Changes the attributes of the mount that `mount` refers to, and of those below it if `recursive` (mount_setattr(2),
/// Linux 5.12).
pub fn set_attributes(mount: impl AsFd, attributes: &MountAttributes<'_>, recursive: bool) -> Result<()> {
    let mut raw_attr =
        RawMountAttr { set: attributes.set, clear: attributes.clear, propagation: 0, userns: 0 };
    if let Some(userns) = attributes.idmap {
        raw_attr.set |= ATTR_IDMAP;
        raw_attr.userns = u64::try_from(userns.as_raw_fd()).map_err(|_| Errno::BADF)?;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    let size = size_of::<RawMountAttr>();
    let fd = mount.as_fd().as_raw_fd();
    // SAFETY: the path is NUL-terminated, and `raw_attr` has the layout of `struct mount_attr` and the size given.
    raw::check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw mut raw_attr, size)
    })
    .map(drop)
}

/// One parameter of a new file system.
#[derive(Clone, Copy, Debug)]
pub enum Parameter<'a> {
    /// A word alone.
    Flag(&'a CStr),
    /// A key and a text.
    Text(&'a CStr, &'a CStr),
    /// A key and a descriptor.
    Descriptor(&'a CStr, BorrowedFd<'a>),
}

/// Makes a detached mount of a new file system by the mount API of Linux 5.2 (fsopen(2), fsconfig(2), fsmount(2)), which
/// has no limit of one page on all options together, only of 256 bytes on each.
pub fn new_filesystem(fstype: &CStr, parameters: &[Parameter<'_>], attributes: u32) -> Result<OwnedFd> {
    let context = rustix::mount::fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for parameter in parameters {
        match *parameter {
            Parameter::Flag(key) => rustix::mount::fsconfig_set_flag(context.as_fd(), key)?,
            Parameter::Text(key, value) => rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?,
            Parameter::Descriptor(key, fd) => rustix::mount::fsconfig_set_fd(context.as_fd(), key, fd)?,
        }
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::from_bits_retain(attributes);
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Makes `new_root` the root of the mount namespace and puts the old one at `put_old` (pivot_root(2)); `.` for both
/// stacks the old root on the new one, from where it can be detached.
pub fn pivot_root(new_root: &Path, put_old: &Path) -> Result<()> {
    rustix::process::pivot_root(new_root, put_old)
}

/// The namespaces that [`unshare`] makes new (namespaces(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// A user namespace; its maps are written by [`write_id_maps`].
    pub user: bool,
    /// A mount namespace.
    pub mount: bool,
    /// A PID namespace, for children.
    pub pid: bool,
    /// A namespace of System V IPC and POSIX message queues.
    pub ipc: bool,
    /// A network namespace, with the abstract unix sockets.
    pub network: bool,
}

/// Moves the calling thread to new namespaces (unshare(2)). `EINVAL` for a user namespace once the process has several
/// threads.
pub fn unshare(namespaces: Namespaces) -> Result<()> {
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWUSER, namespaces.user);
    flags.set(UnshareFlags::NEWNS, namespaces.mount);
    flags.set(UnshareFlags::NEWPID, namespaces.pid);
    flags.set(UnshareFlags::NEWIPC, namespaces.ipc);
    flags.set(UnshareFlags::NEWNET, namespaces.network);
    // SAFETY: only namespaces are made new, never the table of descriptors (`CLONE_FILES`), on which Rust's ownership of
    // descriptors rests.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Maps the ids `(inside, outside, count)` of the user namespace that the calling process is in, denying setgroups(2) if
/// `deny_setgroups`, which an unprivileged process must (user_namespaces(7)).
pub fn write_id_maps(
    uids: &[(u32, u32, u32)],
    gids: &[(u32, u32, u32)],
    deny_setgroups: bool,
) -> std::io::Result<()> {
    if deny_setgroups {
        std::fs::write("/proc/self/setgroups", "deny")?;
    }
    std::fs::write("/proc/self/uid_map", id_map(uids))?;
    std::fs::write("/proc/self/gid_map", id_map(gids))
}

fn id_map(ranges: &[(u32, u32, u32)]) -> String {
    ranges.iter().map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect()
}
