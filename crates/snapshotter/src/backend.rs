//! Which backends can mount an overlay here.
//!
//! Owns the choice and the probe of the kernel's overlay. The probe makes a detached mount, which no path ever shows and
//! which is gone when its descriptor is closed, whatever happens to this process.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use plyfs_sys::Errno;
use plyfs_sys::mount::{Parameter, new_filesystem};
use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Error, Result};

/// What the operator wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// The kernel where it mounts, and FUSE for what it cannot.
    #[default]
    Auto,
    /// The kernel's overlay or nothing.
    Kernel,
    /// plyfs over FUSE for every overlay.
    Fuse,
}

/// How the kernel's overlay mounts here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Private attributes are `user.overlay.*`: in a user namespace.
    pub userxattr: bool,
}

/// The backends in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backends {
    /// The kernel's overlay, if it mounts and is wanted.
    pub kernel: Option<Kernel>,
    /// Whether FUSE may be used.
    pub fuse: bool,
    /// Why, for the log.
    pub reason: String,
}

impl Backends {
    /// Chooses; `scratch` is an empty directory on the file system of the snapshots.
    pub fn choose(wanted: Backend, scratch: &Path) -> Result<Self> {
        if wanted == Backend::Fuse {
            return Ok(Self { kernel: None, fuse: true, reason: "FUSE, as asked".into() });
        }
        let fuse = wanted == Backend::Auto;
        let userxattr = in_user_namespace();
        let with = if userxattr { " with userxattr" } else { "" };
        match probe(scratch, userxattr)? {
            Ok(()) => {
                let reason = format!("the kernel's overlay mounts here{with}");
                Ok(Self { kernel: Some(Kernel { userxattr }), fuse, reason })
            }
            Err(e) if fuse => {
                Ok(Self { kernel: None, fuse, reason: format!("FUSE: the kernel's overlay{with} says {e}") })
            }
            Err(e) => Err(Error::FailedPrecondition(format!(
                "the kernel's overlay{with} does not mount on {}: {e}",
                scratch.display()
            ))),
        }
    }
}

/// Whether ids are mapped, so that `trusted.*` attributes are out of reach.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.is_empty() && map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}

/// Mounts an empty overlay and lets it go: the outer error is about the scratch directories, the inner one the kernel's.
fn probe(scratch: &Path, userxattr: bool) -> Result<std::result::Result<(), Errno>> {
    let mut open = Vec::new();
    for name in ["lower", "upper", "work"] {
        let path = scratch.join(name);
        fs::create_dir_all(&path).at("create", &path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open.push(rustix::fs::open(&path, flags, Mode::empty()).at("open", &path)?);
    }
    Ok(match open.as_slice() {
        [lower, upper, work] => mount_detached(lower, upper, work, userxattr),
        _ => Err(Errno::INVAL),
    })
}

fn mount_detached(
    lower: &OwnedFd,
    upper: &OwnedFd,
    work: &OwnedFd,
    userxattr: bool,
) -> plyfs_sys::Result<()> {
    // By descriptor: a text parameter of the mount API holds 256 bytes only.
    let path =
        |fd: &OwnedFd| CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|_| Errno::INVAL);
    let (lower, upper, work) = (path(lower)?, path(upper)?, path(work)?);
    let mut parameters = vec![
        Parameter::Text(c"lowerdir", &lower),
        Parameter::Text(c"upperdir", &upper),
        Parameter::Text(c"workdir", &work),
        Parameter::Text(c"index", c"off"),
    ];
    if userxattr {
        parameters.push(Parameter::Flag(c"userxattr"));
    }
    new_filesystem(c"overlay", &parameters, 0).map(drop)
}
