//! The seam between `libc`'s C conventions and [`Result`]: how a return value and `errno` become one value, and
//! how bytes become the C string a raw system call wants. It makes no system call itself.

use std::ffi::CStr;
use std::io::Error;

use rustix::path::Arg;

use crate::{Errno, Result};

/// Turns the return value of a `libc` function or of `syscall(2)` into a [`Result`], reading `errno` on -1.
pub(crate) fn check(value: libc::c_long) -> Result<usize> {
    usize::try_from(value).map_err(|_| last_errno())
}

/// [`check`] for functions that return an `int`.
pub(crate) fn check_int(value: libc::c_int) -> Result<usize> {
    check(libc::c_long::from(value))
}

/// The calling thread's `errno`.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Calls `f` with `bytes` as a C string, on the stack where it is short. `EINVAL` if there is a NUL inside.
pub(crate) fn with_c_str<T>(bytes: &[u8], f: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
    bytes.into_with_c_str(f)
}

/// Repeats `f` while a signal interrupts it.
pub(crate) fn retry<T>(mut f: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match f() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// `_IOR(group, number, T)`: the number of an ioctl that hands out a `T` (include/uapi/asm-generic/ioctl.h).
pub(crate) const fn ior<T>(group: u8, number: u8) -> libc::Ioctl {
    rustix::ioctl::opcode::read::<T>(group, number) as libc::Ioctl
}

/// `_IOW(group, number, T)`: the number of an ioctl that takes a `T`.
pub(crate) const fn iow<T>(group: u8, number: u8) -> libc::Ioctl {
    rustix::ioctl::opcode::write::<T>(group, number) as libc::Ioctl
}

/// `_IOWR(group, number, T)`: the number of an ioctl that takes a `T` and hands one out.
pub(crate) const fn iowr<T>(group: u8, number: u8) -> libc::Ioctl {
    rustix::ioctl::opcode::read_write::<T>(group, number) as libc::Ioctl
}
