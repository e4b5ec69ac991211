//! Extended attributes of an object named by a directory and a name, or by a descriptor of any kind.
//!
//! Linux 6.13 has `getxattrat(2)` and its kin. Before it, and for a descriptor opened with `O_PATH` (which the new
//! calls refuse with `EBADF` when the path is empty, as of 6.18), the object is named by `/proc/self/fd/N` or, for a
//! name in a directory, `/proc/self/fd/N/NAME`. Attribute names are never interpreted here.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use plyfs_format::Name;
use rustix::fs::XattrFlags;

use crate::{Errno, Result, raw};

/// Longest path this module builds: `/proc/self/fd/`, a number, `/`, a name of 255 bytes and NUL.
const PATH_BYTES: usize = 14 + 11 + 1 + 255 + 1;

/// Size of the buffer on the stack that a value is read into before one is allocated: enough for every overlay
/// attribute and for ordinary ACLs.
const SMALL_VALUE: usize = 256;

/// The object whose attributes are meant.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// The entry of a directory; a symbolic link is not followed.
    Child(BorrowedFd<'a>, Name<'a>),
    /// The directory that an `O_PATH` descriptor refers to.
    OwnDir(BorrowedFd<'a>),
    /// What a descriptor opened for reading or writing refers to.
    Open(BorrowedFd<'a>),
    /// What an `O_PATH` descriptor refers to, also a symbolic link.
    PathOnly(BorrowedFd<'a>),
}

/// Which system calls reach the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// `*xattrat(2)` relative to the descriptor.
    At,
    /// A path below `/proc/self/fd`.
    Proc,
}

/// One access to the attributes of an object, apart from how the object is named.
enum Access<'a> {
    Get(&'a CStr, &'a mut [u8]),
    List(&'a mut [u8]),
    Set(&'a CStr, &'a [u8], XattrFlags),
    Remove(&'a CStr),
}

/// Reads an attribute into `buf` and returns its length; an empty `buf` asks for the length only (getxattr(2)).
/// `ERANGE` if `buf` is too small, `ENODATA` if there is no such attribute.
pub(crate) fn get_raw(target: Target<'_>, name: &CStr, buf: &mut [u8]) -> Result<usize> {
    perform(target, &mut Access::Get(name, buf))
}

/// The value of an attribute; `None` if there is none, or if the file system has no such attributes at all.
pub(crate) fn get(target: Target<'_>, name: &CStr) -> Result<Option<Vec<u8>>> {
    match read_growing(|buf| get_raw(target, name, buf)) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names of all attributes, each with a NUL behind it (listxattr(2)); empty where there are none or the file
/// system has no attributes.
pub(crate) fn list(target: Target<'_>) -> Result<Vec<u8>> {
    match read_growing(|buf| perform(target, &mut Access::List(buf))) {
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        other => other,
    }
}

/// Sets an attribute (setxattr(2)).
pub(crate) fn set(target: Target<'_>, name: &CStr, value: &[u8], flags: XattrFlags) -> Result<()> {
    perform(target, &mut Access::Set(name, value, flags)).map(drop)
}

/// Removes an attribute (removexattr(2)); `ENODATA` if there is none.
pub(crate) fn remove(target: Target<'_>, name: &CStr) -> Result<()> {
    perform(target, &mut Access::Remove(name)).map(drop)
}

/// Reads into a small buffer first, then into one of the size that the kernel names, again if the value grew.
fn read_growing(mut read: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut small = [0_u8; SMALL_VALUE];
    match read(&mut small) {
        Ok(length) => return Ok(small.get(..length).ok_or(Errno::IO)?.to_vec()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    loop {
        let mut value = vec![0; read(&mut [])?];
        match read(&mut value) {
            Ok(length) => {
                value.truncate(length);
                return Ok(value);
            }
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error),
        }
    }
}

fn perform(target: Target<'_>, access: &mut Access<'_>) -> Result<usize> {
    match target {
        Target::Child(dir, name) => child(best_route(), dir, name, access),
        Target::OwnDir(dir) => own_dir(best_route(), dir, access),
        Target::Open(fd) => by_descriptor(fd, access),
        Target::PathOnly(fd) => by_proc_path(fd, None, access),
    }
}

fn child(route: Route, dir: BorrowedFd<'_>, name: Name<'_>, access: &mut Access<'_>) -> Result<usize> {
    match route {
        Route::At => raw::with_c_str(name.as_bytes(), |path| at(dir, path, access)),
        Route::Proc => by_proc_path(dir, Some(name), access),
    }
}

/// By the path `.`, which needs search permission on the directory; where that is missing by `/proc`, which does not.
fn own_dir(route: Route, dir: BorrowedFd<'_>, access: &mut Access<'_>) -> Result<usize> {
    match route {
        Route::At => match at(dir, c".", access) {
            Err(Errno::ACCESS) => by_proc_path(dir, None, access),
            other => other,
        },
        Route::Proc => by_proc_path(dir, None, access),
    }
}

fn by_descriptor(fd: BorrowedFd<'_>, access: &mut Access<'_>) -> Result<usize> {
    match access {
        Access::Get(name, buf) => match buf.len() {
            0 => rustix::fs::fgetxattr_query(fd, *name),
            _ => rustix::fs::fgetxattr(fd, *name, &mut **buf),
        },
        Access::List(buf) => match buf.len() {
            0 => rustix::fs::flistxattr_query(fd),
            _ => rustix::fs::flistxattr(fd, &mut **buf),
        },
        Access::Set(name, value, flags) => rustix::fs::fsetxattr(fd, *name, value, *flags).map(|()| 0),
        Access::Remove(name) => rustix::fs::fremovexattr(fd, *name).map(|()| 0),
    }
}

/// Through `/proc/self/fd`: the magic link itself is followed and leads to the object, be it a symbolic link; a name
/// behind it is not followed.
fn by_proc_path(fd: BorrowedFd<'_>, name: Option<Name<'_>>, access: &mut Access<'_>) -> Result<usize> {
    let mut storage = [0_u8; PATH_BYTES];
    let path = proc_path(&mut storage, fd, name)?;
    if name.is_some() { by_path_nofollow(path, access) } else { by_path(path, access) }
}

// rustix takes an empty buffer for one that nothing fits into, hence its calls that ask for the length.

fn by_path_nofollow(path: &CStr, access: &mut Access<'_>) -> Result<usize> {
    match access {
        Access::Get(attr, buf) => match buf.len() {
            0 => rustix::fs::lgetxattr_query(path, *attr),
            _ => rustix::fs::lgetxattr(path, *attr, &mut **buf),
        },
        Access::List(buf) => match buf.len() {
            0 => rustix::fs::llistxattr_query(path),
            _ => rustix::fs::llistxattr(path, &mut **buf),
        },
        Access::Set(attr, value, flags) => rustix::fs::lsetxattr(path, *attr, value, *flags).map(|()| 0),
        Access::Remove(attr) => rustix::fs::lremovexattr(path, *attr).map(|()| 0),
    }
}

fn by_path(path: &CStr, access: &mut Access<'_>) -> Result<usize> {
    match access {
        Access::Get(attr, buf) => match buf.len() {
            0 => rustix::fs::getxattr_query(path, *attr),
            _ => rustix::fs::getxattr(path, *attr, &mut **buf),
        },
        Access::List(buf) => match buf.len() {
            0 => rustix::fs::listxattr_query(path),
            _ => rustix::fs::listxattr(path, &mut **buf),
        },
        Access::Set(attr, value, flags) => rustix::fs::setxattr(path, *attr, value, *flags).map(|()| 0),
        Access::Remove(attr) => rustix::fs::removexattr(path, *attr).map(|()| 0),
    }
}

fn proc_path<'s>(storage: &'s mut [u8], fd: BorrowedFd<'_>, name: Option<Name<'_>>) -> Result<&'s CStr> {
    let mut rest = &mut *storage;
    write!(rest, "/proc/self/fd/{}", fd.as_raw_fd()).map_err(|_| Errno::NAMETOOLONG)?;
    if let Some(name) = name {
        rest.write_all(b"/")
            .and_then(|()| rest.write_all(name.as_bytes()))
            .map_err(|_| Errno::NAMETOOLONG)?;
    }
    rest.write_all(&[0]).map_err(|_| Errno::NAMETOOLONG)?;
    CStr::from_bytes_until_nul(storage).map_err(|_| Errno::INVAL)
}

/// `struct xattr_args` of the `*xattrat` calls (include/uapi/linux/xattr.h).
#[repr(C, align(8))]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

impl XattrArgs {
    const SIZE: usize = size_of::<Self>();
}

/// The numbers of the `*xattrat` calls, the same on every architecture of the common table.
mod number {
    pub(super) const SETXATTRAT: libc::c_long = 463;
    pub(super) const GETXATTRAT: libc::c_long = 464;
    pub(super) const LISTXATTRAT: libc::c_long = 465;
    pub(super) const REMOVEXATTRAT: libc::c_long = 466;
}

/// Whether this architecture numbers its system calls by the common table.
const COMMON_TABLE: bool = cfg!(any(
    target_arch = "aarch64",
    target_arch = "riscv64",
    target_arch = "loongarch64",
    target_arch = "powerpc64",
    target_arch = "s390x",
    all(target_arch = "x86_64", target_pointer_width = "64"),
));

fn at(dir: BorrowedFd<'_>, path: &CStr, access: &mut Access<'_>) -> Result<usize> {
    const NOFOLLOW: libc::c_int = libc::AT_SYMLINK_NOFOLLOW;
    let fd = dir.as_raw_fd();
    match access {
        Access::Get(name, buf) => {
            let mut args = args(buf.as_mut_ptr().cast(), buf.len(), 0)?;
            // SAFETY: the strings are NUL-terminated, `args` points to `buf.len()` writable bytes, and all of them
            // outlive the call; the last argument is the size of `args`.
            raw::check(unsafe {
                let (path, name) = (path.as_ptr(), name.as_ptr());
                libc::syscall(number::GETXATTRAT, fd, path, NOFOLLOW, name, &raw mut args, XattrArgs::SIZE)
            })
        }
        Access::List(buf) => {
            // SAFETY: the path is NUL-terminated and `buf` is writable for the length given.
            raw::check(unsafe {
                let (path, list) = (path.as_ptr(), buf.as_mut_ptr());
                libc::syscall(number::LISTXATTRAT, fd, path, NOFOLLOW, list, buf.len())
            })
        }
        Access::Set(name, value, flags) => {
            let mut args = args(value.as_ptr(), value.len(), flags.bits())?;
            // SAFETY: as for reading; the kernel only reads the value.
            raw::check(unsafe {
                let (path, name) = (path.as_ptr(), name.as_ptr());
                libc::syscall(number::SETXATTRAT, fd, path, NOFOLLOW, name, &raw mut args, XattrArgs::SIZE)
            })
        }
        Access::Remove(name) => {
            // SAFETY: both strings are NUL-terminated.
            raw::check(unsafe {
                libc::syscall(number::REMOVEXATTRAT, fd, path.as_ptr(), NOFOLLOW, name.as_ptr())
            })
        }
    }
}

fn args(value: *const u8, length: usize, flags: u32) -> Result<XattrArgs> {
    let size = u32::try_from(length).map_err(|_| Errno::TOOBIG)?;
    // The kernel wants a null pointer or a valid one; an empty slice's pointer is valid but dangling, and with size 0
    // it is never read.
    Ok(XattrArgs { value: value.expose_provenance() as u64, size, flags })
}

/// Whether the kernel has the `*xattrat` calls; asked once.
fn best_route() -> Route {
    const UNKNOWN: u8 = 0;
    const AT: u8 = 1;
    const PROC: u8 = 2;
    static KNOWN: AtomicU8 = AtomicU8::new(UNKNOWN);
    match KNOWN.load(Ordering::Relaxed) {
        AT => Route::At,
        PROC => Route::Proc,
        _ => {
            let present = COMMON_TABLE && kernel_has_xattrat();
            KNOWN.store(if present { AT } else { PROC }, Ordering::Relaxed);
            if present { Route::At } else { Route::Proc }
        }
    }
}

/// Asks with a descriptor that cannot exist: a kernel that has the call says `EBADF`, one that has not `ENOSYS`, and
/// a sandbox that forbids it `EPERM`.
fn kernel_has_xattrat() -> bool {
    // SAFETY: the path is NUL-terminated, and a null list of size 0 is allowed.
    let answer = raw::check(unsafe {
        libc::syscall(number::LISTXATTRAT, -1, c"x".as_ptr(), 0, std::ptr::null_mut::<u8>(), 0_usize)
    });
    answer == Err(Errno::BADF)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::Dir;

    const ROUTES: [Route; 2] = [Route::At, Route::Proc];

    fn set_by(route: Route, dir: &Dir, name: Name<'_>, attr: &CStr, value: &[u8]) -> Result<()> {
        child(route, dir.as_fd(), name, &mut Access::Set(attr, value, XattrFlags::empty())).map(drop)
    }

    fn get_by(route: Route, dir: &Dir, name: Name<'_>, attr: &CStr) -> Result<Vec<u8>> {
        read_growing(|buf| child(route, dir.as_fd(), name, &mut Access::Get(attr, buf)))
    }

    fn list_by(route: Route, dir: &Dir, name: Name<'_>) -> Result<Vec<u8>> {
        read_growing(|buf| child(route, dir.as_fd(), name, &mut Access::List(buf)))
    }

    /// A directory with a file `f`, a link `l` to it and a directory `d`; `None` with the reason said if the new calls are
    /// missing.
    fn scene() -> Option<(tempfile::TempDir, Dir)> {
        if best_route() == Route::Proc {
            eprintln!("skipped: this kernel has no getxattrat(2)");
            return None;
        }
        let temp = tempfile::tempdir().expect("tempdir");
        std::fs::write(temp.path().join("f"), b"x").expect("write");
        std::fs::create_dir(temp.path().join("d")).expect("mkdir");
        symlink("f", temp.path().join("l")).expect("symlink");
        let dir = Dir::open_root(temp.path()).expect("open");
        Some((temp, dir))
    }

    #[test]
    fn the_new_calls_and_the_proc_paths_agree_on_entries() {
        let Some((_temp, dir)) = scene() else { return };
        let long = vec![7_u8; 2000];
        for entry in [&b"f"[..], b"d"] {
            let name = Name::new(entry).expect("name");
            for (writer, reader) in [(Route::At, Route::Proc), (Route::Proc, Route::At)] {
                for value in [&b""[..], b"short", &long] {
                    set_by(writer, &dir, name, c"user.a", value).expect("set");
                    let back = get_by(reader, &dir, name, c"user.a");
                    assert!(back.as_deref() == Ok(value), "{} bytes by {writer:?}", value.len());
                }
                assert_eq!(list_by(reader, &dir, name).as_deref(), Ok(&b"user.a\0"[..]));
                child(writer, dir.as_fd(), name, &mut Access::Remove(c"user.a")).expect("remove");
                assert_eq!(get_by(reader, &dir, name, c"user.a"), Err(Errno::NODATA));
                assert_eq!(list_by(reader, &dir, name).as_deref(), Ok(&b""[..]));
            }
        }
    }

    #[test]
    fn neither_route_follows_a_symlink() {
        let Some((_temp, dir)) = scene() else { return };
        let (file, link) = (Name::new(b"f").expect("name"), Name::new(b"l").expect("name"));
        set_by(Route::At, &dir, file, c"user.a", b"of the file").expect("set");
        for route in ROUTES {
            assert_eq!(get_by(route, &dir, link, c"user.a"), Err(Errno::NODATA), "{route:?}");
            assert_eq!(set_by(route, &dir, link, c"user.a", b"!"), Err(Errno::PERM), "{route:?}");
        }
        assert_eq!(get_by(Route::Proc, &dir, file, c"user.a").as_deref(), Ok(&b"of the file"[..]));
    }

    #[test]
    fn both_routes_reach_the_directory_itself() {
        let Some((_temp, dir)) = scene() else { return };
        for (writer, reader) in [(Route::At, Route::Proc), (Route::Proc, Route::At)] {
            let mut set = Access::Set(c"user.own", b"value", XattrFlags::empty());
            own_dir(writer, dir.as_fd(), &mut set).expect("set");
            let mut buf = [0; 16];
            assert_eq!(own_dir(reader, dir.as_fd(), &mut Access::Get(c"user.own", &mut buf)), Ok(5));
            own_dir(writer, dir.as_fd(), &mut Access::Remove(c"user.own")).expect("remove");
        }
    }

    #[test]
    fn the_longest_name_fits_the_proc_path() {
        let Some((temp, dir)) = scene() else { return };
        let longest = "n".repeat(255);
        std::fs::write(temp.path().join(&longest), b"").expect("write");
        let name = Name::new(longest.as_bytes()).expect("name");
        for route in ROUTES {
            set_by(route, &dir, name, c"user.a", b"v").expect("set");
            assert_eq!(get_by(route, &dir, name, c"user.a").as_deref(), Ok(&b"v"[..]), "{route:?}");
        }
    }
}
