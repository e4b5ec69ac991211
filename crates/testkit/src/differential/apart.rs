//! What keeps the sides together where one operation would lead them apart for good: operations that are not asked in a
//! user namespace, and a time that is made alike again.
//!
//! Owns the decisions, which are made by a look at the sides and the left upper. The reasons are in [`crate::known`].

use super::apply::{Side, parent};
use super::data::ALIGNMENT;
use super::op::{On, Op, PathArg};
use super::outcome::Outcome;
use crate::identity::{Identity, User};
use crate::sandbox::Space;
use crate::snapshot::Stamp;
use anyhow::Result;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{
    self, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The left side's mount, and the upper that it writes to.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// The root of the mount.
    pub mount: &'a Path,
    /// Its upper directory.
    pub upper: &'a Path,
    /// Where both sides are mounted.
    pub space: Space,
    /// Whether private attributes are such as only files and directories can have.
    pub user_xattrs: bool,
}

impl Ground<'_> {
    /// Whether the sides could not be compared any more after `op`. To be called as root.
    pub fn leads_apart(&self, left: &Side, op: &Op) -> bool {
        if let Op::Read { slot, offset: None, .. } = op {
            return left.slot(*slot).is_some_and(|(fd, direct)| {
                direct && is_odd(fd, op) && (self.space == Space::User || only_reads(fd))
            });
        }
        if let Op::MapWrite { slot, page, length, .. } = op {
            return self.is_on_tmpfs()
                && left.slot(*slot).is_some_and(|(fd, _)| runs_over_the_end(fd, *page, *length));
        }
        match op {
            Op::Link { from, follow, .. } => self.splits_path(left, from, *follow),
            Op::LinkFd { slot, .. } => left.slot(*slot).is_some_and(|(fd, _)| self.splits(fd)),
            _ => self.space == Space::User && self.writes_otherwise(left, op),
        }
    }

    /// Whether the kernel's FUSE, which collects writes in a user namespace, makes something else of it.
    fn writes_otherwise(&self, left: &Side, op: &Op) -> bool {
        match op {
            Op::Write { slot, .. } => left.slot(*slot).is_some_and(|(fd, direct)| direct && is_odd(fd, op)),
            Op::Truncate { on: On::Path(path) | On::Link(path), length } => {
                fs::stat(left.full(path)).is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(*length))
            }
            // The file system will refuse.
            Op::Fallocate { mode, .. } => {
                FallocateFlags::from_bits_retain(*mode).contains(FallocateFlags::ZERO_RANGE)
                    && self.is_on_tmpfs()
            }
            _ => false,
        }
    }

    fn splits_path(&self, left: &Side, from: &PathArg, follow: bool) -> bool {
        let nofollow = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let flags = OFlags::PATH | OFlags::CLOEXEC | nofollow;
        fs::open(left.full(from), flags, Mode::empty()).is_ok_and(|fd| self.splits(fd.as_fd()))
    }

    /// Whether a further name would make the kernel take one file for two: it looks a new name up again, and there finds
    /// no record of the lower file whose number the other names bear.
    fn splits(&self, fd: BorrowedFd<'_>) -> bool {
        let Ok(shown) = fs::fstat(fd) else { return false };
        let kind = FileType::from_raw_mode(shown.st_mode);
        let unrecorded = self.space == Space::User || self.user_xattrs && !kind.is_file();
        if kind.is_dir() || shown.st_nlink == 0 || !unrecorded {
            return false;
        }
        let Some(real) = self.in_upper(fd) else { return false };
        match fs::statat(CWD, real, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(real) => real.st_ino != shown.st_ino,
            // Still below; of several links each copy gets a number of its own, which is recorded.
            Err(_) => shown.st_nlink == 1,
        }
    }

    /// Where an open file of the mount lies, or would lie, in upper: without redirects the paths are the same.
    fn in_upper(&self, fd: BorrowedFd<'_>) -> Option<PathBuf> {
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let target = fs::readlinkat(CWD, link, Vec::new()).ok()?.into_bytes();
        let path = Path::new(OsStr::from_bytes(&target)).strip_prefix(self.mount).ok()?;
        Some(self.upper.join(path))
    }

    fn is_on_tmpfs(&self) -> bool {
        const TMPFS: u64 = 0x0102_1994;
        fs::statfs(self.upper).is_ok_and(|upper| u64::try_from(upper.f_type).is_ok_and(|kind| kind == TMPFS))
    }
}

/// Whether direct I/O would start where a disk does not: only a file system on a disk minds.
fn is_odd(fd: BorrowedFd<'_>, op: &Op) -> bool {
    let appends = matches!(op, Op::Write { .. })
        && fs::fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::APPEND));
    let size = || fs::fstat(fd).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
    let end = if appends { size() } else { None };
    // The kernel overlay minds an odd position also where it is the end that counts.
    let position = if matches!(op, Op::Write { offset: Some(_), .. }) { None } else { fs::tell(fd).ok() };
    [end, position].into_iter().flatten().any(|start| start % ALIGNMENT as u64 != 0)
}

/// Lower files are only read, and never by the kernel itself.
fn only_reads(fd: BorrowedFd<'_>) -> bool {
    fs::fcntl_getfl(fd).is_ok_and(|flags| flags & OFlags::ACCMODE == OFlags::RDONLY)
}

/// Whether bytes of a file's last page are mapped and written that are not in the file: tmpfs shows them when it grows.
fn runs_over_the_end(fd: BorrowedFd<'_>, page: u64, length: usize) -> bool {
    let start = page * ALIGNMENT as u64;
    let size = fs::fstat(fd).ok().and_then(|stat| u64::try_from(stat.st_size).ok()).unwrap_or(0);
    start < size && start + length.max(1) as u64 > size
}

/// After a rename that failed on both sides: the kernel overlay asks its file system for a whiteout in the same call, and
/// ext4 stamps the directory when it takes that back. The sides then get the same time.
pub fn level(
    op: &Op,
    left: (&Side, &Outcome),
    right: (&Side, &Outcome),
    identity: &mut Identity,
) -> Result<()> {
    let Op::Rename { from, .. } = op else { return Ok(()) };
    if left.1.succeeded() || right.1.succeeded() {
        return Ok(());
    }
    identity.become_user(User::Root)?;
    let dirs = [left.0, right.0].map(|side| (side, side.full(&parent(from))));
    let stamps = dirs.each_ref().map(|(side, dir)| {
        let stat = fs::stat(dir).ok()?;
        Some(side.clock.stamp(stat.st_mtime, stat.st_mtime_nsec))
    });
    if let [Some(Stamp::Recent), Some(Stamp::Exact(..))] = stamps {
        let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let now = Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) };
        for (_, dir) in &dirs {
            fs::utimensat(CWD, dir, &now, AtFlags::empty())?;
        }
    }
    Ok(())
}
