//! Project quotas (quotactl_fd(2), Linux 5.14; XFS, and ext4 with the features `quota` and `project`): what the files of one
//! tree take together. Which tree has which number is the caller's.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::{Errno, Result, inode_flags, raw};

/// `FS_XFLAG_PROJINHERIT` (include/uapi/linux/fs.h): what is made in the directory belongs to its project.
const INHERIT: u32 = 0x200;
/// `PRJQUOTA` (include/uapi/linux/quota.h).
const PROJECTS: u32 = 2;
/// `Q_GETQUOTA`
const GET: u32 = 0x80_0007;
/// `Q_SETQUOTA`
const SET: u32 = 0x80_0008;
/// `Q_XGETQSTAT` (include/uapi/linux/dqblk_xfs.h): `XQM_CMD(5)`.
const STATE: u32 = ((b'X' as u32) << 8) + 5;
/// `FS_QUOTA_PDQ_ENFD`: project limits are enforced.
const ENFORCED: u16 = 1 << 5;
/// `QIF_BLIMITS`: the limits of space are set.
const SPACE_LIMITS: u32 = 1;
/// Limits are counted in these many bytes (`QIF_DQBLKSIZE`).
const UNIT: u64 = 1024;

/// `struct if_dqblk` (include/uapi/linux/quota.h).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Record {
    hard: u64,
    soft: u64,
    space: u64,
    inode_hard: u64,
    inode_soft: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// Whether the file system of `fd` enforces limits of projects.
///
/// # Errors
/// `ENOSYS`, `EINVAL`, `EOPNOTSUPP` or `ESRCH` where it knows none.
pub fn enforces_projects(fd: impl AsFd) -> Result<bool> {
    // `struct fs_quota_stat` has 80 bytes; its flags are the u16 at offset 2.
    let mut state = [0u16; 64];
    // SAFETY: the call writes a `struct fs_quota_stat`, for which there is room, at an even address (it has 8-byte members
    // only for reading; the kernel copies bytes).
    unsafe { call(fd.as_fd(), STATE, 0, state.as_mut_ptr().cast()) }?;
    Ok(state.get(1).is_some_and(|flags| flags & ENFORCED != 0))
}

/// Whether nothing belongs to `project` and no limit is set for it.
///
/// # Errors
/// As [`enforces_projects`].
pub fn is_unused(fd: impl AsFd, project: u32) -> Result<bool> {
    let mut record = Record::default();
    // SAFETY: `record` has the layout of `struct if_dqblk`, which the call writes.
    match unsafe { call(fd.as_fd(), GET, project, (&raw mut record).cast()) } {
        Err(Errno::NOENT) => Ok(true),
        done => done.map(|()| record.space == 0 && record.inodes == 0 && record.hard == 0),
    }
}

/// Limits what the files of `project` take, in bytes; 0 for no limit.
///
/// # Errors
/// As [`enforces_projects`]; `EPERM` without CAP_SYS_ADMIN in the initial user namespace.
pub fn limit(fd: impl AsFd, project: u32, bytes: u64) -> Result<()> {
    let hard = bytes.div_ceil(UNIT);
    let mut record = Record { hard, soft: hard, valid: SPACE_LIMITS, ..Record::default() };
    // SAFETY: `record` has the layout of `struct if_dqblk`, which the call reads.
    unsafe { call(fd.as_fd(), SET, project, (&raw mut record).cast()) }
}

/// Gives an empty directory to a project, and with it what will be made in it.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` where the file system has no projects.
pub fn assign(dir: impl AsFd, project: u32) -> Result<()> {
    let mut attr = inode_flags::get_fsx(dir.as_fd())?;
    attr.projid = project;
    attr.xflags |= INHERIT;
    inode_flags::set_fsx(dir.as_fd(), &attr)
}

/// # Safety
/// `data` must point to what the command reads or writes.
unsafe fn call(fd: BorrowedFd<'_>, command: u32, project: u32, data: *mut libc::c_void) -> Result<()> {
    let command = command << 8 | PROJECTS;
    // SAFETY: the caller's `data` fits the command; the rest are numbers.
    let done = unsafe { libc::syscall(libc::SYS_quotactl_fd, fd.as_raw_fd(), command, project, data) };
    raw::check(done).map(drop)
}
