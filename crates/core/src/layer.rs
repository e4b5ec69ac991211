//! The layers of a stack: read-only lower layers with their directories, and which file system each is on.
//!
//! Owns the roots. A [`LowerLayer`] holds a `Dir`, which has no mutating verb (invariant 1); the upper is in
//! `upper.rs`. The kernel's counterparts are `struct ovl_layer` and `struct ovl_path`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use plyfs_format::{Name, RelPath};
use plyfs_sys::Dir;

use crate::Result;
use crate::fd_cache::{FdCache, Slot};
use crate::ino::FsIndex;
use crate::show::Record;

/// A read-only layer.
#[derive(Debug)]
pub(crate) struct LowerLayer {
    pub root: Dir,
    pub fs: FsIndex,
    /// The UUID of its file system as `origin` records it; zeros where there is none.
    pub uuid: [u8; 16],
    /// The mount that it was opened through.
    pub mount_id: u64,
    /// As the user wrote it, for messages.
    pub path: PathBuf,
    /// The layer lies on a mount without set-id programs: neither set-id bits nor capabilities are copied up from it.
    pub nosuid: bool,
    /// It keeps owners and modes in this attribute.
    pub record: Option<Record>,
}

/// A directory of a lower layer, named by its path beneath the layer's root.
#[derive(Debug)]
pub(crate) struct LayerDir {
    /// Position in the stack's lower layers, 0 is the topmost.
    pub layer: u16,
    pub path: RelPath,
    /// Zero-size files with the whiteout attribute are whiteouts here (`opaque` is `x`).
    pub xwhiteouts: bool,
    /// Whether it holds `.wh.` names, once a listing told. Only ever set.
    pub oci_marks: OciMarks,
    slot: Slot<Dir>,
}

/// Whether a directory may hold names that start with `.wh.`: such a name hides another one from the layers below.
#[derive(Debug, Default)]
pub(crate) struct OciMarks(AtomicU8);

const UNKNOWN: u8 = 0;
const NONE: u8 = 1;
const SOME: u8 = 2;

impl OciMarks {
    /// A directory that is known to hold none.
    pub fn none() -> Self {
        Self(AtomicU8::new(NONE))
    }

    /// Whether each name has to be asked for its mark.
    pub fn possible(&self) -> bool {
        self.0.load(Ordering::Acquire) != NONE
    }

    /// Whether there are any, if that is known.
    pub fn known(&self) -> Option<bool> {
        match self.0.load(Ordering::Acquire) {
            NONE => Some(false),
            SOME => Some(true),
            _ => None,
        }
    }

    /// Notes what a complete listing of the directory showed.
    pub fn learn(&self, any: bool) {
        let known = if any { SOME } else { NONE };
        // Whoever expects one meanwhile knows better.
        self.0.compare_exchange(UNKNOWN, known, Ordering::AcqRel, Ordering::Relaxed).map_or_else(drop, drop);
    }

    /// Notes that this mount is about to make one.
    pub fn expect(&self) {
        self.0.store(SOME, Ordering::Release);
    }
}

impl LayerDir {
    pub fn new(layer: u16, path: RelPath, xwhiteouts: bool) -> Self {
        Self { layer, path, xwhiteouts, oci_marks: OciMarks::default(), slot: Slot::empty() }
    }

    /// The directory's descriptor; resolved beneath the layer, through no symlink.
    pub fn open(&self, lowers: &[LowerLayer], cache: &FdCache) -> Result<Arc<Dir>> {
        self.slot.get(cache, || {
            let layer = lowers.get(usize::from(self.layer)).ok_or(plyfs_sys::Errno::IO)?;
            layer.root.open_dir(&self.path)
        })
    }

    /// The path of an entry of this directory.
    pub fn join(&self, name: Name<'_>) -> RelPath {
        self.path.join(name)
    }
}
