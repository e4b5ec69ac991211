//! A mounted overlay being served: from mount to unmount.
//!
//! Owns the order of things: mount, agree with the kernel, start threads, wait for signals or the end of the connection,
//! unmount what is still ours. The kernel's counterpart is `fs/overlayfs/super.c`.

use std::path::Path;
use std::sync::Arc;

use plyfs_core::{Overlay, Shareable};
use plyfs_sys::{Errno, creds};

pub use crate::crew::SessionError;
pub use crate::mounting::MountError;

use crate::backing::{KernelRegistry, Registry};
use crate::channel::{Channel, Memory, Received};
use crate::crew::Crew;
use crate::encode;
use crate::executing::Executing;
use crate::init::{self, Agreed};
use crate::iomode::IoModes;
use crate::mounting::{self, Mounted};
use crate::notify;
use crate::ops::Operations;
use crate::options::MountOptions;
use crate::replaced::Replaced;
use crate::request::{Dialect, Header, InitIn, Request};
use crate::signals::{Signals, Woken};
use crate::wire::Output;
use crate::worker::Server;

/// A mounted overlay. Its mount is usable, and waits for [`run`](Self::run) or [`spawn`](Self::spawn) to answer.
/// Dropping it before unmounts it.
pub struct Session {
    server: Arc<Server>,
    mount: Guard,
    threads: Option<usize>,
}

/// Unmounts when it is dropped with its mount.
struct Guard(Option<Mounted>);

/// Takes a session's mount out of the tree; usable from any thread.
#[derive(Clone, Debug)]
pub struct Unmounter(Option<Mounted>);

/// A session that is served by threads of its own. Dropping it unmounts and waits for the threads.
pub struct Running {
    crew: Option<Crew>,
    unmounter: Unmounter,
}

impl Session {
    /// Mounts `overlay` on the directory `target` and agrees with the kernel on how to speak. No thread is started: a
    /// process may still fork before, not after.
    ///
    /// # Errors
    /// [`MountError`]; nothing is left mounted.
    pub fn mount(overlay: Overlay, target: &Path, options: &MountOptions) -> Result<Self, MountError> {
        let mut options = options.clone();
        options.flags.read_only |= !overlay.writable();
        let (device, mounted) = mounting::mount(target, &options)?;
        let mount = Guard(Some(mounted));
        let channel = Arc::new(Channel::new(device));
        let agreed = agree(&channel, &options)?;
        tracing::debug!(flags = ?agreed.answer.flags, minor = agreed.answer.minor, "connected");
        let registry = agreed
            .passthrough()
            .then(|| Box::new(KernelRegistry::new(Arc::clone(&channel))) as Box<dyn Registry<Shareable>>);
        let replaced = Arc::new(Replaced::default());
        let (told, known) = (Arc::clone(&channel), Arc::clone(&replaced));
        overlay.observe(move |stale| notify::stale(&told, &known, stale));
        let operations = Operations {
            overlay,
            modes: IoModes::new(registry),
            executing: Executing::default(),
            replaced,
            timeouts: options.timeouts(),
            writeback: agreed.writeback(),
            fsync: options.fsync,
        };
        let max_write = usize::try_from(agreed.answer.max_write).unwrap_or(usize::MAX);
        let server = Server { channel, operations, dialect: agreed.dialect, max_write };
        Ok(Self { server: Arc::new(server), mount, threads: options.threads })
    }

    /// Serves until the mount is gone. SIGTERM, SIGINT and SIGHUP unmount it: at once if nobody uses it, otherwise it
    /// leaves the tree and its users are served to their end; a second signal ends the session at once.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn run(self) -> Result<(), SessionError> {
        let signals = Signals::new().map_err(SessionError::Signals)?;
        self.run_until(&signals)
    }

    /// As [`run`](Self::run), with signals that are received since before the mount was made: none can come between.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn run_until(self, signals: &Signals) -> Result<(), SessionError> {
        let waker = signals.waker();
        let running = self.start(move || waker.wake())?;
        let mut asked = false;
        loop {
            match signals.wait() {
                Woken::Ended => return running.join(),
                Woken::Signal if asked => {
                    // Users are left with ENOTCONN, as they would be by SIGKILL.
                    std::mem::forget(running);
                    return Ok(());
                }
                Woken::Signal => {
                    asked = true;
                    running.unmounter.unmount_or_detach();
                }
            }
        }
    }

    /// Serves by threads of its own and returns.
    ///
    /// # Errors
    /// [`SessionError::Thread`].
    pub fn spawn(self) -> Result<Running, SessionError> {
        self.start(|| ())
    }

    fn start(self, ended: impl FnOnce() + Send + 'static) -> Result<Running, SessionError> {
        let Self { server, mut mount, threads } = self;
        let crew = Crew::start(server, threads, ended)?;
        // From here on the mount's end is that of the threads.
        let unmounter = Unmounter(mount.0.take());
        Ok(Running { crew: Some(crew), unmounter })
    }
}

impl Running {
    /// What unmounts the session.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Waits until the mount is gone and every thread has ended.
    ///
    /// # Errors
    /// [`SessionError`], the first one.
    pub fn join(mut self) -> Result<(), SessionError> {
        self.crew.take().map_or(Ok(()), |crew| crew.join())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(crew) = self.crew.take() else { return };
        self.unmounter.unmount_or_detach();
        if let Err(error) = crew.join() {
            tracing::error!(%error, "serving ended");
        }
    }
}

impl Unmounter {
    /// Takes the mount out of the tree if it is still there and nothing lies on it, even if it is in use.
    pub fn unmount_or_detach(&self) {
        self.0.iter().for_each(unmount_or_log);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.iter().for_each(unmount_or_log);
    }
}

fn unmount_or_log(mounted: &Mounted) {
    match mounted.unmount() {
        Ok(how) => tracing::debug!(target = %mounted.target().display(), ?how, "unmounted"),
        Err(error) => tracing::error!(target = %mounted.target().display(), %error, "cannot unmount"),
    }
}

/// Reads INIT and answers it.
fn agree(channel: &Channel, options: &MountOptions) -> Result<Agreed, MountError> {
    let mut memory = Memory::new(0);
    loop {
        let Received::Message(length) = channel.receive(memory.request()).map_err(MountError::Handshake)?
        else {
            return Err(MountError::Closed);
        };
        let (header, offer) = read_init(memory.request().get(..length).unwrap_or_default())?;
        let mut out = Output::default();
        if init::asks_again(&offer) {
            encode::version(&mut out);
            send(channel, header.unique, &mut out)?;
            continue;
        }
        let decided = init::negotiate(&offer, options, creds::has_cap_sys_admin_init());
        if decided.is_err() {
            channel.answer_error(header.unique, Errno::PROTO).map(drop).map_err(MountError::Handshake)?;
        }
        let agreed = decided?;
        encode::init(&mut out, &agreed.answer);
        send(channel, header.unique, &mut out)?;
        return Ok(agreed);
    }
}

fn send(channel: &Channel, unique: u64, out: &mut Output) -> Result<(), MountError> {
    channel.answer(unique, out).map(drop).map_err(MountError::Handshake)
}

fn read_init(message: &[u8]) -> Result<(Header, InitIn), MountError> {
    let (header, arguments) = Header::decode(message).map_err(|_| MountError::Handshake(Errno::PROTO))?;
    match Request::decode(&header, arguments, Dialect::default()) {
        Ok(Request::Init(offer)) => Ok((header, offer)),
        _ => Err(MountError::Handshake(Errno::PROTO)),
    }
}
