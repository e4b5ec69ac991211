//! Why a stack could not be assembled, one clear line each.
//!
//! Operations answer a plain errno instead: it is what the kernel's overlayfs would answer.

use std::path::PathBuf;

use plyfs_sys::Errno;

/// Why [`Overlay::assemble`](crate::Overlay::assemble) refused.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// A directory cannot be used.
    #[error("{role} {path:?}: {}", explain(*.errno))]
    Directory {
        /// Which option named it.
        role: &'static str,
        /// As it was given.
        path: PathBuf,
        /// What the system answered.
        errno: Errno,
    },
    /// There is no lower layer.
    #[error("no lowerdir was given; name at least one, topmost first: lowerdir=A:B")]
    NoLower,
    /// More layers than can be numbered.
    #[error("{0} lower layers are more than the 65,000 that are supported")]
    TooManyLowers(usize),
    /// Upper and work must be able to exchange files by rename.
    #[error(
        "workdir {work:?} is not on the same mount as upperdir {upper:?}; choose an empty directory beside it"
    )]
    WorkElsewhere {
        /// The upper directory.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },
    /// One contains the other.
    #[error("workdir {work:?} and upperdir {upper:?} must not lie inside each other")]
    WorkOverlapsUpper {
        /// The upper directory.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },
    /// A directory is named twice.
    #[error("{role} {path:?} and {other_role} {other:?} are the same directory; name each directory once")]
    SameDirectory {
        /// Which option named it.
        role: &'static str,
        /// As it was given.
        path: PathBuf,
        /// Which option had named it before.
        other_role: &'static str,
        /// As it was given there.
        other: PathBuf,
    },
    /// A lower lies within another directory of the stack.
    #[error("lowerdir {path:?} lies inside {outer_role} {outer:?}; choose directories beside each other")]
    LowerInside {
        /// The lower.
        path: PathBuf,
        /// Which option named what it lies in.
        outer_role: &'static str,
        /// As it was given.
        outer: PathBuf,
    },
    /// Another mount uses the directory.
    #[error("{role} {path:?} is in use by another mount; unmount that first or choose another directory")]
    InUse {
        /// Which option named it.
        role: &'static str,
        /// As it was given.
        path: PathBuf,
    },
    /// The upper's file system lacks something.
    #[error(
        "upperdir {path:?}: its file system cannot {what}; choose a directory on ext4, xfs, btrfs or tmpfs"
    )]
    Unsuitable {
        /// The upper directory.
        path: PathBuf,
        /// What it cannot do.
        what: &'static str,
    },
    /// The previous mount was volatile and did not end cleanly.
    #[error(
        "workdir {path:?}: the last mount was volatile and upper may be inconsistent; discard upper and work, or remove {path:?}/work/incompat to accept that"
    )]
    Volatile {
        /// The work directory.
        path: PathBuf,
    },
    /// The upper belongs to other layers.
    #[error(
        "upperdir {upper:?} and workdir {work:?} were used with another lowerdir or with each other's copies, which index=on forbids; use the original layers, or mount with index=off"
    )]
    Stale {
        /// The upper directory.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },
    /// Options that exclude each other, or that need a privilege.
    #[error("{0}")]
    Options(String),
}

fn explain(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "no such directory".to_owned(),
        Errno::NOTDIR => "is not a directory".to_owned(),
        Errno::ACCESS => "permission denied".to_owned(),
        Errno::ROFS => "lies on a read-only mount".to_owned(),
        other => std::io::Error::from(other).to_string(),
    }
}
