//! With whose ids things are created: the file system ids, supplementary groups and umask of the calling thread.
//!
//! Layers are accessed with the mounter's credentials; only while something is created does the thread take the ids of the
//! program that asked (the kernel's overlayfs overrides `fsuid` and `fsgid` in the same place). Which ids those are is
//! decided elsewhere. Nothing here touches another thread: the raw calls are used, not glibc's broadcasting ones.
//!
//! **Lazily restored.** On a thread whose capabilities do not depend on its ids ([`Prepared::keeps_capabilities`]) the ids
//! stay after [`with_creator`] returns, so that a run of creations by one program costs no further system call. Local file
//! systems decide by capability then and do not see the difference; a file system that looks at the ids themselves (NFS,
//! FUSE) does. [`assume_mounter`], which is free if there is nothing to do, restores them.
//!
//! A change of ids makes the kernel clear the process's dumpable flag and the thread's parent-death signal (prctl(2)).

use std::cell::RefCell;

use rustix::fs::{Gid, Mode};
use rustix::process::Pid;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, UnshareFlags};

use crate::{Errno, Result};

/// An id that is none, with which setfsuid(2) changes nothing and tells the present one.
const NO_ID: u32 = u32::MAX;

/// `PROC_USER_INIT_INO`: the inode number of the initial user namespace (include/linux/proc_ns.h).
const INITIAL_USERNS_INO: u64 = 0xEFFF_FFFD;

/// Who creates something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creds {
    /// The owner of what is created, and whose permissions count.
    pub uid: u32,
    /// The group of what is created, unless a set-gid directory names another.
    pub gid: u32,
    /// The permission bits to leave out, where no default ACL decides (umask(2)).
    pub umask: u32,
}

/// What [`prepare_thread`] achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The thread has a umask of its own; it is 0 outside [`with_creator`].
    pub private_umask: bool,
    /// Capabilities stay when the file system ids change, and ids are restored lazily.
    pub keeps_capabilities: bool,
}

/// The file system ids and supplementary groups of a process or thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskIds {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The ids of a process or thread, from `/proc/PID/status` (proc_pid_status(5)); `None` if it is gone or cannot be seen.
#[must_use]
pub fn ids_of(pid: u32) -> Option<TaskIds> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = |key: &str| -> Option<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().map(|number| number.parse().ok()).collect()
    };
    // Real, effective, saved, file system.
    let uid = numbers("Uid:")?.get(3).copied()?;
    let gid = numbers("Gid:")?.get(3).copied()?;
    Some(TaskIds { uid, gid, groups: numbers("Groups:")? })
}

/// What the calling thread has now, and what it had before the first change.
#[derive(Debug)]
struct ThreadCreds {
    prepared: Prepared,
    mounter: Creds,
    current: Creds,
    mounter_groups: Vec<u32>,
    /// The groups set in their place.
    current_groups: Option<Vec<u32>>,
    /// How many [`with_creds`] the thread is inside of.
    depth: u32,
}

thread_local! {
    static THREAD: RefCell<Option<ThreadCreds>> = const { RefCell::new(None) };
}

/// Gives the calling thread a umask of its own (`CLONE_FS` of unshare(2), which also unshares the working directory) and
/// makes its capabilities independent of its ids (`SECBIT_NO_SETUID_FIXUP`, capabilities(7)). The first call on a thread
/// decides; [`with_creator`] makes it if nobody did. Call it before the thread changes its ids by other means. Programs that
/// the thread starts inherit the fixed bits, so start none from it.
pub fn prepare_thread() -> Prepared {
    with_thread(|thread| thread.prepared)
}

/// Runs `f` with the file system ids `uid` and `gid` and with `umask` (setfsuid(2), setfsgid(2), umask(2)), and the mounter's
/// supplementary groups. `EOVERFLOW` if an id is not mapped in this user namespace, `EPERM` if the thread may not take it;
/// `f` does not run then. May be nested: the outer credentials are back when the inner closure has ended.
pub fn with_creator<T, E: From<Errno>>(
    uid: u32,
    gid: u32,
    umask: u32,
    f: impl FnOnce() -> core::result::Result<T, E>,
) -> core::result::Result<T, E> {
    with_creds(Creds { uid, gid, umask }, None, f)
}

/// As [`with_creator`], with these supplementary groups if some are given (setgroups(2), of this thread alone).
pub fn with_creds<T, E: From<Errno>>(
    creds: Creds,
    groups: Option<&[u32]>,
    f: impl FnOnce() -> core::result::Result<T, E>,
) -> core::result::Result<T, E> {
    let changed = with_thread(|thread| thread.enter(creds, groups));
    let _leave = Leave(changed?);
    f()
}

/// Runs `f` with the mounter's credentials, also inside [`with_creator`], whose ids are back afterwards.
pub fn with_mounter<T, E: From<Errno>>(
    f: impl FnOnce() -> core::result::Result<T, E>,
) -> core::result::Result<T, E> {
    with_creds(with_thread(|thread| thread.mounter), None, f)
}

/// Gives the calling thread the mounter's ids, groups and umask back, where [`with_creator`] left others. Without a system
/// call if it has them. Not for use inside the closure of [`with_creator`]: [`with_mounter`] is.
pub fn assume_mounter() -> Result<()> {
    THREAD.with_borrow_mut(|slot| slot.as_mut().map_or(Ok(()), ThreadCreds::restore))
}

/// Credentials to go back to: ids, and groups if other than the mounter's.
type Saved = (Creds, Option<Vec<u32>>);

/// Ends a [`with_creds`], also when the closure panics: back to the outer one's credentials, or, outside all, to the
/// mounter's where changed ids mean lost capabilities.
struct Leave(Option<Saved>);

impl Drop for Leave {
    fn drop(&mut self) {
        // A thread may always return to ids it had; should the kernel refuse all the same, `current` says what it has,
        // and the next change starts from there.
        let left = with_thread(|thread| thread.leave(self.0.take()));
        debug_assert_eq!(left, Ok(()), "a thread could not return to ids that it had");
    }
}

fn with_thread<T>(f: impl FnOnce(&mut ThreadCreds) -> T) -> T {
    THREAD.with_borrow_mut(|slot| f(slot.get_or_insert_with(ThreadCreds::prepare)))
}

impl ThreadCreds {
    fn prepare() -> Self {
        let private_umask = unshare_fs().is_ok();
        let keeps_capabilities = keep_capabilities().is_ok();
        if private_umask {
            set_umask(0);
        }
        let mounter = Creds { uid: set_fsuid(NO_ID), gid: set_fsgid(NO_ID), umask: 0 };
        let groups = rustix::process::getgroups().unwrap_or_default();
        Self {
            prepared: Prepared { private_umask, keeps_capabilities },
            mounter,
            current: mounter,
            mounter_groups: groups.into_iter().map(Gid::as_raw).collect(),
            current_groups: None,
            depth: 0,
        }
    }

    /// Takes credentials, and returns those to go back to if this is inside another [`with_creds`].
    fn enter(&mut self, wanted: Creds, groups: Option<&[u32]>) -> Result<Option<Saved>> {
        let outer = (self.depth > 0).then(|| (self.current, self.current_groups.clone()));
        let changed = self.assume(wanted, groups);
        if let Err(error) = changed {
            self.leave_to(outer)?;
            return Err(error);
        }
        self.depth += 1;
        Ok(outer)
    }

    fn leave(&mut self, outer: Option<Saved>) -> Result<()> {
        self.depth -= 1;
        self.leave_to(outer)
    }

    fn leave_to(&mut self, outer: Option<Saved>) -> Result<()> {
        match outer {
            Some((creds, groups)) => self.assume(creds, groups.as_deref()),
            None if self.prepared.keeps_capabilities => Ok(()),
            None => self.restore(),
        }
    }

    /// Groups first and the user last: without the fixed bits it is the user that carries the permission for the rest.
    fn assume(&mut self, wanted: Creds, groups: Option<&[u32]>) -> Result<()> {
        if self.current_groups.as_deref() != groups {
            self.set_groups(groups)?;
        }
        if self.current.gid != wanted.gid {
            self.change_gid(wanted.gid)?;
        }
        if self.current.uid != wanted.uid {
            self.change_uid(wanted.uid)?;
        }
        if self.current.umask != wanted.umask {
            self.change_umask(wanted.umask)?;
        }
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        if self.current.uid != self.mounter.uid {
            self.change_uid(self.mounter.uid)?;
        }
        if self.current.gid != self.mounter.gid {
            self.change_gid(self.mounter.gid)?;
        }
        if self.current_groups.is_some() {
            self.set_groups(None)?;
        }
        if self.current.umask != self.mounter.umask {
            self.change_umask(self.mounter.umask)?;
        }
        Ok(())
    }

    /// The call tells no error, so what it did is read back.
    fn change_uid(&mut self, uid: u32) -> Result<()> {
        set_fsuid(uid);
        self.current.uid = set_fsuid(NO_ID);
        if self.current.uid == uid { Ok(()) } else { Err(refusal("/proc/self/uid_map", uid)) }
    }

    fn change_gid(&mut self, gid: u32) -> Result<()> {
        set_fsgid(gid);
        self.current.gid = set_fsgid(NO_ID);
        if self.current.gid == gid { Ok(()) } else { Err(refusal("/proc/self/gid_map", gid)) }
    }

    fn change_umask(&mut self, umask: u32) -> Result<()> {
        if !self.prepared.private_umask {
            return Err(Errno::OPNOTSUPP);
        }
        set_umask(umask);
        self.current.umask = umask & 0o777;
        Ok(())
    }

    /// rustix makes the raw call, which is of one thread; `EINVAL` from it means an id that is not mapped.
    fn set_groups(&mut self, groups: Option<&[u32]>) -> Result<()> {
        let list: Vec<Gid> =
            groups.unwrap_or(&self.mounter_groups).iter().copied().map(Gid::from_raw).collect();
        match rustix::thread::set_thread_groups(&list) {
            Ok(()) => {
                self.current_groups = groups.map(<[u32]>::to_vec);
                Ok(())
            }
            Err(Errno::INVAL) => Err(Errno::OVERFLOW),
            Err(error) => Err(error),
        }
    }
}

/// Whether the calling thread has CAP_SYS_ADMIN in the initial user namespace, which FUSE passthrough and `trusted.*`
/// attributes need (capabilities(7)).
#[must_use]
pub fn has_cap_sys_admin_init() -> bool {
    in_initial_userns() && has_capability(CapabilitySet::SYS_ADMIN)
}

/// As [`has_cap_sys_admin_init`], of another thread; false where that cannot be found out.
#[must_use]
pub fn task_has_cap_sys_admin_init(tid: u32) -> bool {
    let namespace = rustix::fs::stat(format!("/proc/{tid}/ns/user"));
    let pid = i32::try_from(tid).ok().and_then(Pid::from_raw);
    pid.is_some()
        && namespace.is_ok_and(|stat| stat.st_ino == INITIAL_USERNS_INO)
        && rustix::thread::capabilities(pid)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Whether the process is in the initial user namespace (user_namespaces(7)); false where `/proc` does not tell.
#[must_use]
pub fn in_initial_userns() -> bool {
    rustix::fs::stat(c"/proc/self/ns/user").is_ok_and(|stat| stat.st_ino == INITIAL_USERNS_INO)
}

/// Whether the calling thread has CAP_SYS_ADMIN in its own user namespace: enough to mount what namespaces allow.
#[must_use]
pub fn has_cap_sys_admin() -> bool {
    has_capability(CapabilitySet::SYS_ADMIN)
}

/// Whether the calling thread may create device nodes: CAP_MKNOD (mknod(2); whiteouts need none since Linux 5.8).
#[must_use]
pub fn has_cap_mknod() -> bool {
    has_capability(CapabilitySet::MKNOD)
}

fn has_capability(capability: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// Why a thread could not take an id: it has no meaning in this user namespace, or it may not.
fn refusal(map: &str, id: u32) -> Errno {
    let mapped = std::fs::read_to_string(map).is_ok_and(|text| is_mapped(&text, id));
    if mapped { Errno::PERM } else { Errno::OVERFLOW }
}

/// Whether `id` is in a range of a map (inside, outside, count; user_namespaces(7)).
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => u64::from(id) >= first && u64::from(id) - first < count,
            _ => false,
        }
    })
}

fn keep_capabilities() -> Result<()> {
    let bits = rustix::thread::capabilities_secure_bits()?;
    if bits.contains(CapabilitiesSecureBits::NO_SETUID_FIXUP) {
        return Ok(());
    }
    rustix::thread::set_capabilities_secure_bits(bits | CapabilitiesSecureBits::NO_SETUID_FIXUP)
}

fn unshare_fs() -> Result<()> {
    // SAFETY: only the working directory, root and umask are unshared, on which no memory or descriptor safety rests.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }
}

/// umask(2), which cannot fail.
fn set_umask(umask: u32) {
    rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
}

/// setfsuid(2): tries to set the id and returns the one before. glibc and musl make the raw call of one thread.
fn set_fsuid(uid: u32) -> u32 {
    // SAFETY: the call takes a number and touches no memory.
    unsafe { libc::setfsuid(uid) }.cast_unsigned()
}

/// setfsgid(2): tries to set the id and returns the one before.
fn set_fsgid(gid: u32) -> u32 {
    // SAFETY: the call takes a number and touches no memory.
    unsafe { libc::setfsgid(gid) }.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_mapped_if_a_range_holds_it() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        for (id, expected) in [(0, true), (1, true), (65536, true), (65537, false), (u32::MAX, false)] {
            assert_eq!(is_mapped(map, id), expected, "{id}");
        }
        assert!(!is_mapped("", 0));
        assert!(!is_mapped("0 0\nx y z\n", 0));
    }
}
