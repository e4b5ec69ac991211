//! Who a thread acts as, and with which umask.
//!
//! The change is made with the plain per-thread system calls, so that several threads of one process can
//! act as different users. Only the effective ids change: the real uid stays 0, so root can be had back.

use anyhow::{Context, Result};
use rustix::fs::{Gid, Mode, Uid};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// A user that tests act as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum User {
    /// uid 0 with all capabilities of the namespace.
    Root,
    /// uid 1000, gid 1000, no supplementary group.
    Alice,
    /// uid 1001, gid 1001, and the supplementary groups 1000 and 2000.
    Bob,
}

impl User {
    /// Effective uid, effective gid and supplementary groups.
    pub fn ids(self) -> (u32, u32, &'static [u32]) {
        match self {
            User::Root => (0, 0, &[]),
            User::Alice => (1000, 1000, &[]),
            User::Bob => (1001, 1001, &[1000, 2000]),
        }
    }
}

/// The calling thread's identity, and the knowledge of what it is now.
#[derive(Debug)]
pub struct Identity {
    now: User,
}

impl Identity {
    /// Takes the calling thread, which must be root. Its umask becomes its own, and 022.
    pub fn of_this_thread() -> Result<Self> {
        // Deprecated for the sake of other flags: FS only gives this thread an umask and cwd of its own.
        #[expect(deprecated, reason = "the FS flag cannot close anybody's descriptors")]
        rustix::thread::unshare(UnshareFlags::FS).context("unshare(CLONE_FS)")?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        Ok(Self { now: User::Root })
    }

    /// Makes the calling thread act as `user` from now on.
    pub fn become_user(&mut self, user: User) -> Result<()> {
        if self.now == user {
            return Ok(());
        }
        // Back to root first: only root may take another user's ids.
        if self.now != User::Root {
            set_effective(User::Root).context("becoming root again")?;
            self.now = User::Root;
        }
        if user != User::Root {
            set_effective(user).with_context(|| format!("becoming {user:?}"))?;
            self.now = user;
        }
        Ok(())
    }

    /// Sets the thread's umask.
    pub fn set_umask(&mut self, mask: u32) {
        rustix::process::umask(Mode::from_raw_mode(mask & 0o777));
    }
}

/// True if the users other than root exist in this user namespace, so that a thread can become them.
pub fn users_are_mapped() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let count: u64 = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum();
    count > 1001
}

fn set_effective(user: User) -> Result<()> {
    let (uid, gid, groups) = user.ids();
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let keep_gid = None::<Gid>;
    let keep_uid = None::<Uid>;
    if user == User::Root {
        set_thread_res_uid(keep_uid, Uid::from_raw(uid), keep_uid)?;
    }
    set_thread_groups(&groups)?;
    set_thread_res_gid(keep_gid, Gid::from_raw(gid), keep_gid)?;
    if user != User::Root {
        set_thread_res_uid(keep_uid, Uid::from_raw(uid), keep_uid)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need::{self, Need};

    #[test]
    fn a_thread_becomes_another_user_and_root_again() {
        if !need::met(&[Need::Root]) {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let path = dir.path();
            scope.spawn(move || {
                let mut identity = Identity::of_this_thread().unwrap();
                identity.become_user(User::Alice).unwrap();
                assert!(std::fs::write(path.join("x"), "").is_err());
                identity.become_user(User::Bob).unwrap();
                identity.become_user(User::Root).unwrap();
                std::fs::write(path.join("x"), "").unwrap();
            });
        });
        assert!(rustix::process::geteuid().is_root());
    }
}
