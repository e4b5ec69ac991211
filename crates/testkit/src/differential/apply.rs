//! Applies one operation to one side through plain system calls.
//!
//! Owns the side's open descriptors and its view of inode identity. Compares nothing.

use super::listing;
use super::op::{LockArg, On, Op, PathArg, Step, TimeArg};
use super::outcome::{Outcome, StatShot, or_failed};
use crate::snapshot::{Clock, link_count};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    self, Access, AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// One side, as one thread sees it.
#[derive(Debug)]
pub struct Side {
    base: Vec<u8>,
    pub(super) clock: Clock,
    device: u64,
    slots: HashMap<u8, Slot>,
    /// Numbers inodes in the order in which they are first seen; none where inode numbers are reused.
    inodes: Option<HashMap<u64, usize>>,
}

#[derive(Debug)]
struct Slot {
    fd: OwnedFd,
    ino: u64,
    direct: bool,
}

impl Side {
    /// The side whose mount's root is `root`, seen by a thread that works in `base` below it.
    pub fn new(root: &Path, base: &str, clock: Clock, inodes_identify: bool) -> Result<Self, Errno> {
        let device = fs::stat(root)?.st_dev;
        let base = root.join(base).into_os_string().as_bytes().to_vec();
        Ok(Self { base, clock, device, slots: HashMap::new(), inodes: inodes_identify.then(HashMap::new) })
    }

    /// The path of the base directory.
    pub fn base(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.base))
    }

    /// Applies `op` as the user that the thread is.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Umask(_) => Outcome::Done,
            Op::Open { slot, at, path, flags, mode } => self.open(*slot, *at, path, *flags, *mode),
            Op::Reopen { slot, of, flags } => self.reopen(*slot, *of, *flags),
            Op::Close(slot) => self.slots.remove(slot).map_or(Outcome::NoSlot, |_| Outcome::Done),
            Op::Read { .. }
            | Op::Write { .. }
            | Op::Seek { .. }
            | Op::Fallocate { .. }
            | Op::CopyRange { .. }
            | Op::Sync { .. }
            | Op::MapWrite { .. }
            | Op::MapRead { .. } => self.on_data(op),
            Op::Lock { slot, lock } => self.with_slot(*slot, |fd| lock_fd(fd, *lock).into()),
            Op::Truncate { on, length } => self.truncate(on, *length),
            Op::Stat(on) => self.stat(on),
            Op::List(on) => self.list(on),
            Op::ListChanging { path, first, changes } => listing::changing(&self.full(path), *first, changes),
            Op::Chmod { .. } | Op::Chown { .. } | Op::Utimens { .. } => self.set_attributes(op),
            Op::SetXattr { .. } | Op::GetXattr { .. } | Op::ListXattr { .. } | Op::RemoveXattr { .. } => {
                self.on_xattrs(op)
            }
            _ => self.on_names(op),
        }
    }

    /// Looks at what `step`, which came to `outcome`, was about, if it is to be looked at.
    pub fn look(&mut self, step: &Step, outcome: Outcome) -> Outcome {
        if !step.probe {
            return outcome;
        }
        let mut all = vec![outcome];
        for path in step.op.paths() {
            all.push(self.stat(&On::Link(path.clone())));
            all.push(self.stat(&On::Link(parent(path))));
        }
        all.extend(step.op.slots().into_iter().map(|slot| self.stat(&On::Fd(slot))));
        Outcome::Several(all)
    }

    /// The absolute path of `path`.
    pub(super) fn full(&self, path: &PathArg) -> PathBuf {
        let joined = [self.base.as_slice(), b"/", path.0.as_slice()].concat();
        PathBuf::from(OsStr::from_bytes(&joined))
    }

    /// Calls with the descriptor in `slot`, if there is one.
    pub(super) fn with_slot(&self, slot: u8, call: impl FnOnce(BorrowedFd<'_>) -> Outcome) -> Outcome {
        self.slots.get(&slot).map_or(Outcome::NoSlot, |slot| call(slot.fd.as_fd()))
    }

    /// The descriptor in `slot`, and whether it is for direct I/O.
    pub(super) fn slot(&self, slot: u8) -> Option<(BorrowedFd<'_>, bool)> {
        self.slots.get(&slot).map(|slot| (slot.fd.as_fd(), slot.direct))
    }

    fn open(&mut self, slot: u8, at: Option<u8>, path: &PathArg, flags: u32, mode: u32) -> Outcome {
        // A FIFO without a peer must not block the test.
        let flags = OFlags::from_bits_retain(flags) | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let mode = Mode::from_raw_mode(mode);
        let opened = match at {
            None => fs::open(self.full(path), flags, mode),
            Some(dir) => match self.slots.get(&dir) {
                None => return Outcome::NoSlot,
                Some(dir) => fs::openat(&dir.fd, OsStr::from_bytes(&path.0), flags, mode),
            },
        };
        self.fill(slot, opened, flags)
    }

    fn reopen(&mut self, slot: u8, of: u8, flags: u32) -> Outcome {
        let Some(of) = self.slots.get(&of) else { return Outcome::NoSlot };
        let flags = OFlags::from_bits_retain(flags) | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let opened = fs::open(by_proc(of.fd.as_fd()), flags, Mode::empty());
        self.fill(slot, opened, flags)
    }

    fn fill(&mut self, slot: u8, opened: Result<OwnedFd, Errno>, flags: OFlags) -> Outcome {
        let stat = opened.and_then(|fd| Ok((fs::fstat(&fd)?, fd)));
        or_failed(stat, |(stat, fd)| {
            let direct = flags.contains(OFlags::DIRECT);
            self.slots.insert(slot, Slot { fd, ino: stat.st_ino, direct });
            Outcome::Done
        })
    }

    /// The link count of each open file.
    pub fn links_of_slots(&self) -> Vec<(u8, u64)> {
        let links = |slot: &Slot| fs::fstat(&slot.fd).map(|stat| link_count(&stat)).ok();
        self.slots.iter().filter_map(|(number, slot)| Some((*number, links(slot)?))).collect()
    }

    /// Empties a slot.
    pub fn close(&mut self, slot: u8) {
        self.slots.remove(&slot);
    }

    fn truncate(&self, on: &On, length: u64) -> Outcome {
        match on {
            On::Fd(slot) => self.with_slot(*slot, |fd| fs::ftruncate(fd, length).into()),
            On::Path(path) | On::Link(path) => {
                let length = i64::try_from(length).unwrap_or(i64::MAX);
                let result = nix::unistd::truncate(&self.full(path), length);
                result.map_err(|errno| Errno::from_raw_os_error(errno as i32)).into()
            }
        }
    }

    /// The attributes of what `on` names.
    pub(super) fn stat(&mut self, on: &On) -> Outcome {
        let (stat, opened) = match on {
            On::Path(path) => (fs::statat(CWD, self.full(path), AtFlags::empty()), None),
            On::Link(path) => (fs::statat(CWD, self.full(path), AtFlags::SYMLINK_NOFOLLOW), None),
            On::Fd(slot) => match self.slots.get(slot) {
                None => return Outcome::NoSlot,
                Some(slot) => (fs::fstat(&slot.fd), Some(slot.ino)),
            },
        };
        let clock = self.clock;
        or_failed(stat, |stat| {
            let kind = FileType::from_raw_mode(stat.st_mode);
            let sized = kind.is_file() || kind.is_symlink();
            let device = kind.is_char_device() || kind.is_block_device();
            Outcome::Stat(Box::new(StatShot {
                mode: stat.st_mode,
                uid: stat.st_uid,
                gid: stat.st_gid,
                nlink: link_count(&stat),
                size: if sized { u64::try_from(stat.st_size).unwrap_or(u64::MAX) } else { 0 },
                rdev: if device { stat.st_rdev } else { 0 },
                times: [
                    clock.stamp(stat.st_atime, stat.st_atime_nsec),
                    clock.stamp(stat.st_mtime, stat.st_mtime_nsec),
                    clock.stamp(stat.st_ctime, stat.st_ctime_nsec),
                ],
                inode: self.inode_class(stat.st_ino),
                as_opened: opened.map(|ino| ino == stat.st_ino),
                same_device: stat.st_dev == self.device,
            }))
        })
    }

    fn inode_class(&mut self, ino: u64) -> Option<usize> {
        let inodes = self.inodes.as_mut()?;
        let next = inodes.len();
        Some(*inodes.entry(ino).or_insert(next))
    }

    fn list(&self, on: &On) -> Outcome {
        match on {
            On::Path(path) | On::Link(path) => listing::whole(&self.full(path)),
            On::Fd(slot) => self.with_slot(*slot, listing::rewound),
        }
    }

    fn set_attributes(&self, op: &Op) -> Outcome {
        match op {
            Op::Chmod { on: On::Fd(slot), mode } => {
                self.with_slot(*slot, |fd| fs::fchmod(fd, Mode::from_raw_mode(*mode)).into())
            }
            Op::Chmod { on: On::Path(path) | On::Link(path), mode } => {
                fs::chmodat(CWD, self.full(path), Mode::from_raw_mode(*mode), AtFlags::empty()).into()
            }
            Op::Chown { on, uid, gid } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                match on {
                    On::Fd(slot) => self.with_slot(*slot, |fd| fs::fchown(fd, uid, gid).into()),
                    On::Path(path) => fs::chownat(CWD, self.full(path), uid, gid, AtFlags::empty()).into(),
                    On::Link(path) => {
                        fs::chownat(CWD, self.full(path), uid, gid, AtFlags::SYMLINK_NOFOLLOW).into()
                    }
                }
            }
            Op::Utimens { on, atime, mtime } => {
                let times = Timestamps { last_access: timespec(*atime), last_modification: timespec(*mtime) };
                match on {
                    On::Fd(slot) => self.with_slot(*slot, |fd| fs::futimens(fd, &times).into()),
                    On::Path(path) => fs::utimensat(CWD, self.full(path), &times, AtFlags::empty()).into(),
                    On::Link(path) => {
                        fs::utimensat(CWD, self.full(path), &times, AtFlags::SYMLINK_NOFOLLOW).into()
                    }
                }
            }
            _ => Outcome::Broken("not an operation on attributes".to_owned()),
        }
    }

    fn on_xattrs(&self, op: &Op) -> Outcome {
        match op {
            Op::SetXattr { on, name, value, flags } => {
                let flags = XattrFlags::from_bits_retain(*flags);
                match on {
                    On::Fd(slot) => self.with_slot(*slot, |fd| fs::fsetxattr(fd, name, value, flags).into()),
                    On::Path(path) => fs::setxattr(self.full(path), name, value, flags).into(),
                    On::Link(path) => fs::lsetxattr(self.full(path), name, value, flags).into(),
                }
            }
            Op::GetXattr { on, name, size } => {
                let mut value = vec![0; *size];
                let read = match on {
                    On::Path(path) => fs::getxattr(self.full(path), name, value.as_mut_slice()),
                    On::Link(path) => fs::lgetxattr(self.full(path), name, value.as_mut_slice()),
                    On::Fd(slot) => match self.slots.get(slot) {
                        None => return Outcome::NoSlot,
                        Some(slot) => fs::fgetxattr(&slot.fd, name, value.as_mut_slice()),
                    },
                };
                or_failed(read, |length| sized_value(value, length))
            }
            Op::ListXattr { on, size } => {
                let mut names = vec![0; *size];
                let read = match on {
                    On::Path(path) => fs::listxattr(self.full(path), names.as_mut_slice()),
                    On::Link(path) => fs::llistxattr(self.full(path), names.as_mut_slice()),
                    On::Fd(slot) => match self.slots.get(slot) {
                        None => return Outcome::NoSlot,
                        Some(slot) => fs::flistxattr(&slot.fd, names.as_mut_slice()),
                    },
                };
                or_failed(read, |length| name_list(names, length))
            }
            Op::RemoveXattr { on, name } => match on {
                On::Fd(slot) => self.with_slot(*slot, |fd| fs::fremovexattr(fd, name).into()),
                On::Path(path) => fs::removexattr(self.full(path), name).into(),
                On::Link(path) => fs::lremovexattr(self.full(path), name).into(),
            },
            _ => Outcome::Broken("not an operation on extended attributes".to_owned()),
        }
    }

    fn on_names(&self, op: &Op) -> Outcome {
        match op {
            Op::Mkdir { path, mode } => fs::mkdirat(CWD, self.full(path), Mode::from_raw_mode(*mode)).into(),
            Op::Rmdir(path) => fs::unlinkat(CWD, self.full(path), AtFlags::REMOVEDIR).into(),
            Op::Unlink(path) => fs::unlinkat(CWD, self.full(path), AtFlags::empty()).into(),
            Op::Rename { from, to, flags } => {
                let flags = RenameFlags::from_bits_retain(*flags);
                fs::renameat_with(CWD, self.full(from), CWD, self.full(to), flags).into()
            }
            Op::Link { from, to, follow } => {
                let flags = if *follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
                fs::linkat(CWD, self.full(from), CWD, self.full(to), flags).into()
            }
            Op::LinkFd { slot, to } => self.with_slot(*slot, |fd| {
                fs::linkat(CWD, by_proc(fd), CWD, self.full(to), AtFlags::SYMLINK_FOLLOW).into()
            }),
            Op::Symlink { target, path } => {
                fs::symlinkat(OsStr::from_bytes(&target.0), CWD, self.full(path)).into()
            }
            Op::Readlink(path) => or_failed(fs::readlinkat(CWD, self.full(path), Vec::new()), |target| {
                Outcome::Text(target.into_bytes())
            }),
            Op::Mknod { path, mode, major, minor } => {
                let kind = FileType::from_raw_mode(*mode);
                let device = fs::makedev(*major, *minor);
                fs::mknodat(CWD, self.full(path), kind, Mode::from_raw_mode(*mode), device).into()
            }
            Op::Statfs(path) => or_failed(fs::statfs(self.full(path)), |statfs| {
                // The free space is shared with the other side; the rest must agree.
                Outcome::Names(vec![
                    format!("namelen {}", statfs.f_namelen),
                    format!("bsize {}", statfs.f_bsize),
                    format!("frsize {}", statfs.f_frsize),
                    format!("blocks {}", statfs.f_blocks),
                ])
            }),
            Op::Access { path, mode, effective } => {
                let flags = if *effective { AtFlags::EACCESS } else { AtFlags::empty() };
                fs::accessat(CWD, self.full(path), Access::from_bits_retain(*mode), flags).into()
            }
            _ => Outcome::Broken("not an operation on names".to_owned()),
        }
    }
}

/// The path less its last component.
pub(super) fn parent(path: &PathArg) -> PathArg {
    let end = path.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    PathArg(path.0.get(..end).unwrap_or_default().to_vec())
}

fn by_proc(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd))
}

fn timespec(time: TimeArg) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        TimeArg::Now => (0, fs::UTIME_NOW),
        TimeArg::Omit => (0, fs::UTIME_OMIT),
        TimeArg::At(sec, nsec) => (sec, nsec),
    };
    Timespec { tv_sec, tv_nsec }
}

fn lock_fd(fd: BorrowedFd<'_>, lock: LockArg) -> Result<(), Errno> {
    match lock {
        LockArg::FlockShared => fs::flock(fd, FlockOperation::NonBlockingLockShared),
        LockArg::FlockExclusive => fs::flock(fd, FlockOperation::NonBlockingLockExclusive),
        LockArg::FlockUnlock => fs::flock(fd, FlockOperation::NonBlockingUnlock),
        LockArg::PosixShared => fs::fcntl_lock(fd, FlockOperation::NonBlockingLockShared),
        LockArg::PosixExclusive => fs::fcntl_lock(fd, FlockOperation::NonBlockingLockExclusive),
        LockArg::PosixUnlock => fs::fcntl_lock(fd, FlockOperation::NonBlockingUnlock),
    }
}

/// With a buffer of no size the length is what was asked for.
fn sized_value(mut value: Vec<u8>, length: usize) -> Outcome {
    if value.is_empty() {
        return Outcome::Number(length as u64);
    }
    value.truncate(length);
    Outcome::Text(value)
}

/// The order of the names is the file system's own.
fn name_list(mut names: Vec<u8>, length: usize) -> Outcome {
    if names.is_empty() {
        return Outcome::Number(length as u64);
    }
    names.truncate(length);
    let mut names: Vec<String> =
        names.split(|byte| *byte == 0).map(|name| name.escape_ascii().to_string()).collect();
    names.sort();
    Outcome::Names(names)
}
