//! Putting a connection into the tree and taking it out again.
//!
//! Owns mount(2) for whoever may call it (root, or CAP_SYS_ADMIN of a user namespace), fusermount3(1) for everybody
//! else, and the identity of what was mounted: only that is ever unmounted, never what somebody mounted over it since.

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use plyfs_sys::mount::{self, HeldMount};
use plyfs_sys::{Errno, device};

use crate::options::{Flags, MountOptions};

/// Why mounting failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum MountError {
    #[error("cannot open /dev/fuse: {0}")]
    Device(#[source] Errno),
    #[error("cannot mount on {target}: {source}")]
    Mount { target: PathBuf, source: Errno },
    #[error("{path}: no directory to mount on: {source}")]
    Target { path: PathBuf, source: io::Error },
    #[error(
        "cannot mount on {target}: this user may not, and neither fusermount3 nor fusermount can be run ({source})"
    )]
    NoFusermount { target: PathBuf, source: io::Error },
    #[error("cannot mount on {target}: {message}")]
    Fusermount { target: PathBuf, message: String },
    #[error(transparent)]
    TooOld(#[from] crate::init::TooOld),
    #[error("the kernel closed the connection before it was set up")]
    Closed,
    #[error("the connection could not be set up: {0}")]
    Handshake(#[source] Errno),
}

/// What is mounted where.
#[derive(Clone, Debug)]
pub struct Mounted {
    target: PathBuf,
    /// The number of the mount; `None` if the kernel does not tell.
    id: Option<u64>,
    by_fusermount: bool,
}

/// What became of an attempt to unmount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmounted {
    /// It is out of the tree now.
    Now,
    /// It was not there any more, or something else lies on it: nothing was done.
    NotOurs,
}

/// Opens a connection and mounts it on the directory `target`.
///
/// # Errors
/// [`MountError`].
pub fn mount(target: &Path, options: &MountOptions) -> Result<(OwnedFd, Mounted), MountError> {
    let as_target = |source| MountError::Target { path: target.to_owned(), source };
    let target = target.canonicalize().map_err(as_target)?;
    if !target.is_dir() {
        return Err(as_target(io::Error::from(Errno::NOTDIR)));
    }
    let (device, by_fusermount) = match mount_directly(&target, options) {
        Ok(device) => (device, false),
        Err(MountError::Mount { source: Errno::PERM, .. } | MountError::Device(Errno::ACCESS)) => {
            (mount_by_fusermount(&target, options)?, true)
        }
        Err(error) => return Err(error),
    };
    let id = mount::mount_id(&target).ok();
    Ok((device, Mounted { target, id, by_fusermount }))
}

impl Mounted {
    /// The directory.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Takes it out of the tree if it is still there and on top, even while it is in use: its users are served to the end.
    ///
    /// The mount is held by a descriptor while it is looked at and unmounted, so that one that is mounted in its place
    /// meanwhile stays. Only what is mounted *over* it between the look and the unmounting would be taken. fusermount3
    /// knows paths alone: there a mount of the same user that takes the place in that moment would be as well.
    ///
    /// # Errors
    /// The reason why it could not be unmounted.
    pub fn unmount(&self) -> io::Result<Unmounted> {
        let Some(held) = self.hold()? else { return Ok(Unmounted::NotOurs) };
        if self.by_fusermount {
            return unmount_by_fusermount(&self.target);
        }
        match held.detach() {
            Ok(()) => Ok(Unmounted::Now),
            Err(Errno::INVAL) => Ok(Unmounted::NotOurs),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Holds the mount; `None` if something else, or nothing, is at its place.
    fn hold(&self) -> io::Result<Option<HeldMount>> {
        let held = match HeldMount::at(&self.target) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            held => held?,
        };
        let ours = self.id.is_some() && held.id().ok() == self.id;
        Ok(ours.then_some(held))
    }
}

fn mount_directly(target: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = device::open_dev_fuse().map_err(MountError::Device)?;
    let source = CString::new(options.source.as_str()).unwrap_or_else(|_| c"plyfs".to_owned());
    let data = kernel_options(options);
    mount::mount_fuse(
        device.as_fd(),
        &source,
        target,
        &options.subtype,
        mount_flags(options.flags),
        data.as_bytes(),
    )
    .map_err(|source| MountError::Mount { target: target.to_owned(), source })?;
    Ok(device)
}

/// The options of a FUSE file system, and of the security module, as the kernel reads them.
fn kernel_options(options: &MountOptions) -> String {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let mut data = format!("rootmode=40000,user_id={uid},group_id={gid},default_permissions");
    if options.allow_other {
        data.push_str(",allow_other");
    }
    for (name, label) in options.labels.iter().filter_map(|label| label.split_once('=')) {
        // In quotes: categories have commas between them.
        data.push_str(&format!(",{name}=\"{label}\""));
    }
    data
}

fn mount_flags(flags: Flags) -> mount::MountFlags {
    use mount::MountFlags as M;
    let mut all = M::empty();
    all.set(M::RDONLY, flags.read_only);
    all.set(M::NOSUID, flags.nosuid);
    all.set(M::NODEV, flags.nodev);
    all.set(M::NOEXEC, flags.noexec);
    all.set(M::NOSYMFOLLOW, flags.nosymfollow);
    all.set(M::NOATIME, flags.noatime);
    all.set(M::NODIRATIME, flags.nodiratime);
    all.set(M::RELATIME, flags.relatime);
    all.set(M::STRICTATIME, flags.strictatime);
    all.set(M::SYNCHRONOUS, flags.sync);
    all.set(M::DIRSYNC, flags.dirsync);
    all.set(M::LAZYTIME, flags.lazytime);
    all
}

/// The protocol of libfuse's helper: it mounts, and sends the connection over the socket whose number the environment
/// names. It gets the socket as its standard input, which needs no change of descriptor flags.
fn mount_by_fusermount(target: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let io = |source| MountError::NoFusermount { target: target.to_owned(), source };
    let (ours, theirs) = plyfs_sys::process::socket_pair().map_err(|errno| io(errno.into()))?;
    let mut child = spawn_fusermount(|command| {
        let socket = theirs.try_clone()?;
        command.arg("-o").arg(fusermount_options(options)).arg("--").arg(target);
        command.env("_FUSE_COMMFD", "0").stdin(Stdio::from(socket)).stderr(Stdio::piped());
        Ok(())
    })
    .map_err(io)?;
    drop(theirs);
    let device = plyfs_sys::process::receive_descriptor(ours.as_fd());
    let mut message = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut message).map_err(io)?;
    }
    let status = child.wait().map_err(io)?;
    match device {
        Ok(Some(device)) if status.success() => Ok(device),
        _ => {
            let message = message.trim().to_owned();
            let message = if message.is_empty() { format!("fusermount3 failed ({status})") } else { message };
            Err(MountError::Fusermount { target: target.to_owned(), message })
        }
    }
}

fn unmount_by_fusermount(target: &Path) -> io::Result<Unmounted> {
    let child = spawn_fusermount(|command| {
        command.args(["-u", "-z", "--"]).arg(target);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        Ok(())
    })?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(Unmounted::Now);
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// fusermount3, or where there is none, fusermount.
fn spawn_fusermount(prepare: impl Fn(&mut Command) -> io::Result<()>) -> io::Result<std::process::Child> {
    let spawn = |program| {
        let mut command = Command::new(program);
        prepare(&mut command)?;
        command.spawn()
    };
    match spawn("fusermount3") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => spawn("fusermount"),
        other => other,
    }
}

fn fusermount_options(options: &MountOptions) -> String {
    let flags = options.flags;
    if !options.labels.is_empty() {
        tracing::warn!("fusermount3 passes no security labels on: the mount gets the system's own");
    }
    let escape = |text: &str| text.replace('\\', "\\\\").replace(',', "\\,");
    let mut all = format!(
        "default_permissions,fsname={},subtype={}",
        escape(&options.source),
        escape(&options.subtype)
    );
    let words = [
        (options.allow_other, "allow_other"),
        (flags.read_only, "ro"),
        // Set by fusermount for everybody but root anyway.
        (flags.nosuid, "nosuid"),
        (flags.nodev, "nodev"),
        (flags.noexec, "noexec"),
        // Unknown to fusermount before 3.17, which then refuses: better than to follow what shall not be followed.
        (flags.nosymfollow, "nosymfollow"),
        (flags.noatime, "noatime"),
        (flags.nodiratime, "nodiratime"),
        (flags.sync, "sync"),
        (flags.dirsync, "dirsync"),
    ];
    for (_, word) in words.into_iter().filter(|(chosen, _)| *chosen) {
        all.push(',');
        all.push_str(word);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_quoted_for_the_kernel_because_they_may_have_commas() {
        let labels = vec!["context=system_u:object_r:container_file_t:s0:c1,c2".to_owned()];
        let data = kernel_options(&MountOptions { labels, ..MountOptions::default() });
        assert!(data.ends_with(",context=\"system_u:object_r:container_file_t:s0:c1,c2\""), "{data}");
        assert!(!kernel_options(&MountOptions::default()).contains("context"));
    }
}
