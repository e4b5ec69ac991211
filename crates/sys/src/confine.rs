//! What a process takes from itself and from all it starts, before it runs a command that is not trusted with it.
//!
//! Which commands those are is the caller's. Beside namespaces ([`crate::mount::unshare`]) this is seccomp(2), and only
//! for what no namespace has: a terminal's input queue.

use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::{Errno, Result, raw};

/// ioctl(2) on this architecture and on the others whose programs it runs: x86-64 and its x32, i386; arm64, arm.
#[cfg(target_arch = "x86_64")]
const IOCTLS: [u32; 3] = [16, 0x4000_0202, 54];
#[cfg(target_arch = "aarch64")]
const IOCTLS: [u32; 2] = [29, 54];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const IOCTLS: [u32; 1] = [libc::SYS_ioctl as u32];

/// Offset of the number in `struct seccomp_data` (include/uapi/linux/seccomp.h).
const NUMBER: u32 = 0;
/// Offset of the lower half of the second argument.
const SECOND: u32 = if cfg!(target_endian = "big") { 28 } else { 24 };

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The requests that are refused; the kernel looks at 32 bits of them.
const REFUSED: [u32; 2] = [libc::TIOCSTI as u32, libc::TIOCLINUX as u32];

/// Makes ioctl(2) refuse, with `EPERM`, to put characters into a terminal's input (`TIOCSTI`, and `TIOCLINUX` of virtual
/// consoles, ioctl_tty(2)), for the calling thread and all that it starts. Job control stays. Needs CAP_SYS_ADMIN in the
/// user namespace (seccomp(2)); `EINVAL` or `ENOSYS` where the kernel cannot.
pub fn refuse_terminal_input() -> Result<()> {
    let mut program = terminal_filter();
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: `filter` points to `len` valid instructions, which the kernel copies.
    raw::check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter)
    })
    .map(drop)
}

/// The program: if it is ioctl, and one of the two, it fails.
fn terminal_filter() -> Vec<libc::sock_filter> {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = vec![step(LOAD, 0, 0, NUMBER)];
    for (at, number) in IOCTLS.iter().enumerate() {
        // To the second load, over those that follow and the return.
        let left = u8::try_from(IOCTLS.len() - at).unwrap_or(u8::MAX);
        program.push(step(JUMP_IF, left, 0, *number));
    }
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(step(LOAD, 0, 0, SECOND));
    for (at, request) in REFUSED.iter().enumerate() {
        let left = u8::try_from(REFUSED.len() - at).unwrap_or(u8::MAX);
        program.push(step(JUMP_IF, left, 0, *request));
    }
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    program
}

/// Starts the loopback interface of a network namespace that was just made (netdevice(7)).
pub fn start_loopback() -> Result<()> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = Request { name: [0; 16], flags: 0, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: `request` has the layout and size of `struct ifreq`, which both calls read and the first writes.
    raw::check_int(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    request.flags |= UP;
    // SAFETY: as above.
    raw::check_int(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
        .map(drop)
}

/// `struct ifreq` with its flags.
#[repr(C, align(8))]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// `IFF_UP`.
const UP: u16 = 0x1;

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers to a system call, by interpreting it as classic BPF (the kernel's net/core/filter.c).
    fn verdict(number: u32, second: u64) -> u32 {
        let (mut at, mut loaded) = (0_usize, 0_u32);
        let program = terminal_filter();
        loop {
            let step = program.get(at).expect("an instruction");
            at += 1;
            match step.code {
                LOAD if step.k == NUMBER => loaded = number,
                LOAD => loaded = second as u32,
                JUMP_IF => at += usize::from(if loaded == step.k { step.jt } else { step.jf }),
                _ => return step.k,
            }
        }
    }

    #[test]
    fn only_ioctls_that_type_into_a_terminal_are_refused() {
        let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        for ioctl in IOCTLS {
            assert_eq!(verdict(ioctl, u64::from(REFUSED[0])), refused);
            assert_eq!(
                verdict(ioctl, u64::from(REFUSED[0]) | 1 << 40),
                refused,
                "the kernel looks at 32 bits"
            );
            assert_eq!(verdict(ioctl, u64::from(REFUSED[1])), refused);
            assert_eq!(verdict(ioctl, u64::from(libc::TIOCGWINSZ as u32)), libc::SECCOMP_RET_ALLOW);
        }
        assert_eq!(verdict(libc::SYS_write as u32, u64::from(REFUSED[0])), libc::SECCOMP_RET_ALLOW);
        assert_eq!(IOCTLS.first(), Some(&(libc::SYS_ioctl as u32)));
    }

    #[test]
    fn the_request_has_the_size_of_the_kernels() {
        assert_eq!(size_of::<Request>(), size_of::<libc::ifreq>());
    }
}
