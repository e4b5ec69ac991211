//! The daemon of a mount: how it is started, how it tells that it is ready, how it leaves the terminal.
//!
//! The process forks while it has one thread. The child assembles, mounts and serves; the parent waits to hear from it
//! by a pipe, and returns when the mount answers. Until then the child's standard error is the parent's, so that what goes
//! wrong is read by whoever asked for the mount.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use plyfs_core::Settings;
use plyfs_fuse::{Session, Signals};
use plyfs_sys::{mountinfo, process};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions};

use crate::failure::{Context, Failure, Outcome};
use crate::list::{self, FSTYPE};
use crate::mount::Request;
use crate::mount::log::{self, Role};
use crate::registry::{self, Note, Registration};
use crate::union;

/// What the daemon says when it is mounted.
const READY: &[u8] = b"mounted\n";

/// What statfs(2) answers for a FUSE file system (include/uapi/linux/magic.h).
const FUSE_SUPER_MAGIC: rustix::fs::FsWord = 0x6573_5546;

/// Mounts by a daemon, and returns when the mount is usable. In the daemon itself it does not return before the mount is
/// gone.
pub fn start(request: &Request<'_>) -> Outcome<()> {
    let (hear, say) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(|| "cannot make a pipe")?;
    match process::fork().context(|| "cannot start the daemon")? {
        Some(child) => {
            drop(say);
            wait_until_usable(hear, child, request.target)
        }
        None => {
            drop(hear);
            become_daemon(request, say.into())
        }
    }
}

/// Mounts and serves in the foreground, until the mount is gone.
pub fn serve_here(request: &Request<'_>) -> Outcome<()> {
    log::start(request.args, Role::Foreground)?;
    Mounted::new(request)?.serve()
}

fn wait_until_usable(hear: OwnedFd, child: u32, target: &Path) -> Outcome<()> {
    let mut said = Vec::new();
    File::from(hear).take(READY.len() as u64).read_to_end(&mut said).context(|| "cannot hear the daemon")?;
    if said != READY {
        return Err(died(child));
    }
    // Answered by the daemon's threads: from here on every program will be.
    let answered = rustix::fs::statfs(target);
    match answered.context(|| format!("{}: the mount does not answer", target.display()))?.f_type {
        FUSE_SUPER_MAGIC => Ok(()),
        _ => Err(Failure::new(format!("{}: the mount is gone already", target.display()))),
    }
}

/// The daemon ended without a mount: it has said why, unless it was killed.
fn died(child: u32) -> Failure {
    let pid = i32::try_from(child).ok().and_then(Pid::from_raw);
    match rustix::process::waitpid(pid, WaitOptions::empty()) {
        Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
            (_, Some(signal)) => {
                Failure::new(format!("the daemon was ended by signal {signal} before it mounted"))
            }
            (code, None) => {
                Failure::silent(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1).max(1))
            }
        },
        Ok(None) => Failure::silent(1),
        Err(error) => Failure::new(format!("cannot wait for the daemon: {error}")),
    }
}

/// What the child does. It never returns: the rest of the caller's work is the parent's.
fn become_daemon(request: &Request<'_>, say: File) -> ! {
    let result = process::new_session()
        .context(|| "cannot leave the terminal")
        .and_then(|()| log::start(request.args, Role::Daemon))
        .and_then(|()| Mounted::new(request))
        .and_then(|mounted| leave_terminal(say).map(|()| mounted))
        .and_then(Mounted::serve);
    let code = match result {
        Ok(()) => 0,
        Err(failure) => {
            tracing::error!("{failure}");
            failure.print();
            failure.code()
        }
    };
    std::process::exit(code.into())
}

/// Says that the mount is there, and keeps nothing of the place where it was asked for.
fn leave_terminal(mut say: File) -> Outcome<()> {
    std::env::set_current_dir("/").context(|| "cannot leave the working directory")?;
    process::detach_standard_descriptors().context(|| "cannot let go of the terminal")?;
    // A parent that was killed meanwhile does not matter to the mount.
    if let Err(error) = say.write_all(READY) {
        tracing::info!("nobody waits for the mount: {error}");
    }
    Ok(())
}

/// A mount and the note about it.
struct Mounted {
    /// Received since before the mount was made: a signal never leaves it behind.
    signals: Signals,
    session: Session,
    note: Option<Registration>,
}

impl Mounted {
    fn new(request: &Request<'_>) -> Outcome<Self> {
        process::fill_standard_descriptors().context(|| "cannot open /dev/null")?;
        plyfs_sys::malloc::share_one_heap();
        process::raise_descriptor_limit().context(|| "cannot raise the limit of open files")?;
        let signals = Signals::new().context(|| "cannot receive signals")?;
        // Now: what is mounted there cannot be looked at before it is served. A target that is not there the mount refuses.
        let target = request.target.canonicalize().unwrap_or_else(|_| request.target.to_owned());
        let session = union::mount(&request.spec, &Settings::default(), request.target, request.source)?;
        let note = leave_note(request, &target).unwrap_or_else(|error| {
            tracing::warn!("plyfs list will not know the layers: {error}");
            None
        });
        Ok(Self { signals, session, note })
    }

    /// Serves until the mount is gone.
    fn serve(self) -> Outcome<()> {
        let result = self.session.run_until(&self.signals).map_err(|error| Failure::new(error.to_string()));
        drop(self.note);
        result
    }
}

/// Leaves a note for `plyfs list`. The mount itself is not asked: nobody serves it yet.
/// `target`: its path in the mount table.
fn leave_note(request: &Request<'_>, target: &Path) -> io::Result<Option<Registration>> {
    let mounts = mountinfo::read()?;
    let ours = |mount: &&mountinfo::MountInfo| mount.fstype == FSTYPE && mount.target == target;
    let Some(mount) = mounts.iter().rfind(ours) else {
        return Ok(None);
    };
    let pid = std::process::id();
    let absolute = |path: &Path| std::path::absolute(path).map(|path| path.to_string_lossy().into_owned());
    let upper = request.spec.upper.as_ref();
    let note = Note {
        pid,
        pid_namespace: registry::pid_namespace(),
        started: registry::started(pid)?,
        device: list::device(mount),
        target: target.to_string_lossy().into_owned(),
        lowers: request.spec.lowers.iter().map(|path| absolute(path)).collect::<io::Result<_>>()?,
        upper: upper.map(|paths| absolute(&paths.upper)).transpose()?,
        work: upper.map(|paths| absolute(&paths.work)).transpose()?,
        options: request.spec.to_option_string().to_string_lossy().into_owned(),
    };
    registry::register(&note).map(Some)
}
