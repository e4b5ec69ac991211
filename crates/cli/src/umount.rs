//! `plyfs umount`: takes a mount away and waits until its process is gone, so that the upper is free when it returns.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use plyfs_sys::{Errno, mount, mountinfo};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::args::UmountArgs;
use crate::failure::{Context, Failure, Outcome};
use crate::list::{self, Mounted};

/// How long a daemon may take to write back what is dirty and end, after its mount is gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// `plyfs umount`. Every target is tried; the last failure is returned, those before it are printed.
pub fn umount(args: &UmountArgs) -> Outcome<()> {
    let mut failed: Option<Failure> = None;
    for target in &args.targets {
        if let Err(failure) = umount_one(target, args.lazy)
            && let Some(earlier) = failed.replace(failure)
        {
            earlier.print();
        }
    }
    failed.map_or(Ok(()), Err)
}

fn umount_one(target: &Path, lazy: bool) -> Outcome<()> {
    let path = resolve(target)?;
    let shown = target.display();
    let table = mountinfo::read().context(|| "/proc/self/mountinfo")?;
    let Some(top) = list::top(table, &path) else {
        return Err(Failure::new(format!(
            "{shown}: no plyfs is mounted here; plyfs list shows where one is"
        )));
    };
    if top.fstype != list::FSTYPE {
        let other = top.fstype;
        return Err(Failure::new(format!(
            "{shown}: what is mounted here is {other}, no plyfs; umount(8) unmounts it, plyfs list shows where a plyfs is"
        )));
    }
    let daemon = daemon_of(&list::with_note(top));
    detach(&path, lazy)?;
    match daemon {
        Some(daemon) if !lazy => wait_for(&daemon, target),
        _ => Ok(()),
    }
}

/// The path as the mount table names it. The mount point itself is not looked at: its daemon may be dead.
fn resolve(target: &Path) -> Outcome<PathBuf> {
    let describe = || format!("{}: cannot find it", target.display());
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return std::fs::canonicalize(target).context(describe);
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let path = std::fs::canonicalize(parent).context(describe)?.join(name);
    match std::fs::read_link(&path) {
        Ok(_) => std::fs::canonicalize(&path).context(describe),
        Err(_) => Ok(path),
    }
}

/// A descriptor of the daemon, taken before the unmounting makes it end.
fn daemon_of(found: &Mounted) -> Option<OwnedFd> {
    let note = found.note.as_ref().filter(|note| note.is_near())?;
    let pid = i32::try_from(note.pid).ok().and_then(Pid::from_raw)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

fn detach(path: &Path, lazy: bool) -> Outcome<()> {
    let answer = if lazy { mount::unmount_detached(path) } else { mount::unmount(path) };
    let shown = path.display();
    match answer {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => fusermount(path, lazy),
        Err(Errno::BUSY) => Err(busy(path)),
        Err(error) => Err(Failure::new(format!("{shown}: cannot unmount: {error}"))),
    }
}

fn busy(path: &Path) -> Failure {
    Failure::new(format!(
        "{0}: in use; end what uses it (fuser -vm {0} names it), or detach it with plyfs umount --lazy",
        path.display()
    ))
}

/// Without root the set-user-id helper of the FUSE package unmounts what this user has mounted.
fn fusermount(path: &Path, lazy: bool) -> Outcome<()> {
    let flags = if lazy { "-uz" } else { "-u" };
    for program in ["fusermount3", "fusermount"] {
        let output = match Command::new(program).arg(flags).arg("--").arg(path).output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Failure::new(format!("{program}: {error}"))),
        };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("busy") {
            return Err(busy(path));
        }
        return Err(Failure::new(format!("{}: {}", path.display(), said.trim())));
    }
    let shown = path.display();
    Err(Failure::new(format!("{shown}: not permitted; become root, or install fuse3 for its fusermount3")))
}

fn wait_for(daemon: &OwnedFd, target: &Path) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(0), tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(daemon, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(Failure::new(format!("cannot wait for the daemon: {error}"))),
            Ok(0) => {
                let shown = target.display();
                let seconds = PATIENCE.as_secs();
                return Err(Failure::new(format!(
                    "{shown}: unmounted, but its daemon is still running after {seconds} seconds"
                )));
            }
            Ok(_) => return Ok(()),
        }
    }
}
