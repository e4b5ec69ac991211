//! File handles and file system identities: what an overlay's origin attribute is made of.
//!
//! The packed on-disk form is `plyfs_format`'s; here are the system calls only.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub use plyfs_format::FileHandle;
use plyfs_format::Name;
use plyfs_format::origin::HANDLE_MAX;
use rustix::fs::OFlags;

use crate::{Errno, Result, raw};

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    data: [u8; HANDLE_MAX],
}

/// The handle of an entry, not following a symbolic link (name_to_handle_at(2)); `None` where the file system has none.
pub(crate) fn of_entry(dir: BorrowedFd<'_>, name: Name<'_>) -> Result<Option<FileHandle>> {
    raw::with_c_str(name.as_bytes(), |path| encode(dir, path, 0))
}

/// The handle of what a descriptor of any kind refers to; `None` where the file system has none.
///
/// # Errors
/// What name_to_handle_at(2) answers.
pub fn of_descriptor(fd: BorrowedFd<'_>) -> Result<Option<FileHandle>> {
    encode(fd, c"", libc::AT_EMPTY_PATH)
}

fn encode(dir: BorrowedFd<'_>, path: &CStr, flags: libc::c_int) -> Result<Option<FileHandle>> {
    let mut handle = RawHandle { bytes: HANDLE_MAX as libc::c_uint, kind: 0, data: [0; HANDLE_MAX] };
    let mut mount_id: libc::c_int = 0;
    // SAFETY: `handle` has the layout of `struct file_handle`, followed by as many bytes as its first field says; the
    // path is NUL-terminated; `mount_id` is writable.
    let answer = raw::check(unsafe {
        let (path, out) = (path.as_ptr(), &raw mut handle);
        libc::syscall(libc::SYS_name_to_handle_at, dir.as_raw_fd(), path, out, &raw mut mount_id, flags)
    });
    match answer {
        Ok(_) => {
            let bytes = handle.data.get(..handle.bytes as usize).ok_or(Errno::IO)?;
            // A type that does not fit the overlay's format is as good as none.
            Ok(u8::try_from(handle.kind).ok().and_then(|kind| FileHandle::new(kind, bytes).ok()))
        }
        // EOVERFLOW: the file system wants more than the longest handle, so it has none that could be stored.
        Err(Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the inode that `handle` names in the file system that holds `mount` (open_by_handle_at(2)). Needs
/// CAP_DAC_READ_SEARCH (in the user namespace of the file system's mount, since Linux 6.12). `ESTALE` if it is gone;
/// `EINVAL` if the handle cannot be one of this file system.
pub fn open_by_handle(mount: BorrowedFd<'_>, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd> {
    let mut raw_handle = RawHandle { bytes: 0, kind: handle.kind().into(), data: [0; HANDLE_MAX] };
    raw_handle.data.get_mut(..handle.bytes().len()).ok_or(Errno::INVAL)?.copy_from_slice(handle.bytes());
    raw_handle.bytes = libc::c_uint::try_from(handle.bytes().len()).map_err(|_| Errno::INVAL)?;
    let flags = (flags | OFlags::CLOEXEC).bits();
    let fd = raw::retry(|| {
        // SAFETY: `raw_handle` has the layout of `struct file_handle`; the call only reads it.
        raw::check(unsafe {
            libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut raw_handle, flags)
        })
    })?;
    let fd = libc::c_int::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the call has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct fsuuid2` (include/uapi/linux/fs.h).
#[repr(C)]
struct FsUuid {
    length: u8,
    uuid: [u8; 16],
}

/// `FS_IOC_GETFSUUID`: `_IOR(0x15, 0, struct fsuuid2)`, Linux 6.9.
const GETFSUUID: libc::Ioctl = raw::ior::<FsUuid>(0x15, 0);

/// The UUID of the file system that a descriptor (not an `O_PATH` one) lies in, as the kernel's overlayfs puts it in an
/// origin; `None` if it has none, or before Linux 6.9, which does not tell it. The identifier of statfs(2)
/// ([`crate::FsStat::fsid`]) tells file systems apart in that case, but is not the UUID.
pub fn filesystem_uuid(fd: BorrowedFd<'_>) -> Result<Option<[u8; 16]>> {
    let mut answer = FsUuid { length: 0, uuid: [0; 16] };
    // SAFETY: `answer` has the layout of `struct fsuuid2`, and the call may write it.
    match raw::check_int(unsafe { libc::ioctl(fd.as_raw_fd(), GETFSUUID, &raw mut answer) }) {
        // All zeros is the kernel's "null" UUID, which file systems without one have.
        Ok(_) => Ok((answer.length == 16 && answer.uuid != [0; 16]).then_some(answer.uuid)),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(None),
        Err(error) => Err(error),
    }
}
