//! The upper layer: every change of what lies on disk is a verb here (invariant 3), with one trace event and one
//! fault point each.
//!
//! Owns the upper's and the work directory's roots (`work.rs` makes and removes temporaries by these verbs). It never
//! decides what to do. The kernel's counterpart are the `ovl_do_*` inlines of `overlayfs.h`.

use std::ffi::CStr;
use std::path::PathBuf;
use std::sync::Arc;

use plyfs_format::Name;
use plyfs_sys::{
    DirMut, FallocateFlags, Faults, File, InodeFlags, OFlags, RenameFlags, Stat, Times, XattrFlags, creds,
};

use crate::Result;
use crate::lock;
use crate::object::Caller;
use crate::work::Temporaries;

/// The writable layer.
#[derive(Debug)]
pub(crate) struct Upper {
    pub root: DirMut,
    /// `workdir/work`: temporaries live here until one rename or link publishes them.
    pub work: DirMut,
    /// As the user wrote it, for messages.
    pub path: PathBuf,
    /// `workdir/index`, with `index=on`.
    pub index: Option<DirMut>,
    /// Held while a name of an indexed file is made or taken away: its link count is read and written meanwhile. Taken
    /// after the parents' change locks.
    pub index_changes: parking_lot::Mutex<()>,
    /// What its file system can do.
    pub abilities: Abilities,
    pub temporaries: Temporaries,
    faults: Faults,
}

/// What the upper's file system can do, probed at assembly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    /// O_TMPFILE works, and its file can be linked.
    pub tmpfile: bool,
    /// RENAME_WHITEOUT works.
    pub rename_whiteout: bool,
    /// The private attributes can be written.
    pub xattr: bool,
    /// What stands for a deleted name.
    pub whiteouts: WhiteoutForm,
}

/// What stands for a deleted name in upper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WhiteoutForm {
    /// A character device 0:0 of that name, as the kernel makes it.
    Device,
    /// A file `.wh.NAME` beside it, where no device can be made. The kernel's overlayfs does not know it.
    Named,
}

/// An upper object whose metadata is to be changed.
#[derive(Debug)]
pub(crate) enum UpperObject {
    Dir(Arc<DirMut>),
    Leaf(Arc<File>),
}

/// What a new object is, beside its name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum New<'a> {
    File,
    Dir,
    Symlink(&'a [u8]),
    Node { rdev: (u32, u32) },
}

impl Upper {
    pub fn new(root: DirMut, work: DirMut, path: PathBuf, abilities: Abilities, faults: Faults) -> Self {
        let index_changes = parking_lot::Mutex::new(());
        Self {
            root,
            work,
            path,
            index: None,
            index_changes,
            abilities,
            temporaries: Temporaries::default(),
            faults,
        }
    }

    /// Creates an object owned by the caller; a file is returned open for reading and writing.
    pub fn create(
        &self,
        caller: &Caller,
        dir: &DirMut,
        name: Name<'_>,
        mode: u32,
        new: New<'_>,
    ) -> Result<Option<File>> {
        self.step("create", dir, name)?;
        creds::with_creator(caller.uid, caller.gid, caller.umask, || make(dir, name, mode, new))
    }

    /// Creates an object owned by the mounter, to be finished before anyone sees it.
    pub fn create_as_mounter(
        &self,
        dir: &DirMut,
        name: Name<'_>,
        mode: u32,
        new: New<'_>,
    ) -> Result<Option<File>> {
        self.step("create", dir, name)?;
        creds::assume_mounter()?;
        make(dir, name, mode, new)
    }

    /// Creates an unnamed file owned by the caller.
    pub fn create_unnamed(&self, caller: &Caller, dir: &DirMut, mode: u32) -> Result<File> {
        self.point("tmpfile")?;
        creds::with_creator(caller.uid, caller.gid, caller.umask, || dir.tmpfile(mode, OFlags::RDWR))
    }

    /// Creates an unnamed file owned by the mounter, to be filled and then linked.
    pub fn stage_unnamed(&self) -> Result<File> {
        self.point("stage")?;
        creds::assume_mounter()?;
        self.work.tmpfile(0o600, OFlags::RDWR)
    }

    /// Gives an unnamed (or any) file a name.
    pub fn link_file(&self, file: &File, dir: &DirMut, name: Name<'_>) -> Result<()> {
        self.step("link_file", dir, name)?;
        dir.link_file(file, name)
    }

    /// A further name for an entry of another directory.
    pub fn hard_link(&self, from: &DirMut, old: Name<'_>, dir: &DirMut, name: Name<'_>) -> Result<()> {
        self.step("hard_link", dir, name)?;
        dir.hard_link(from, old, name)
    }

    pub fn unlink(&self, dir: &DirMut, name: Name<'_>) -> Result<()> {
        self.step("unlink", dir, name)?;
        dir.unlink(name)
    }

    pub fn rmdir(&self, dir: &DirMut, name: Name<'_>) -> Result<()> {
        self.step("rmdir", dir, name)?;
        dir.rmdir(name)
    }

    pub fn rename(
        &self,
        from: &DirMut,
        old: Name<'_>,
        to: &DirMut,
        new: Name<'_>,
        flags: RenameFlags,
    ) -> Result<()> {
        self.step("rename", from, old)?;
        if flags.contains(RenameFlags::WHITEOUT) {
            creds::assume_mounter()?;
        }
        from.rename(old, to, new, flags)
    }

    pub fn set_xattr(
        &self,
        object: &UpperObject,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        self.point("set_xattr")?;
        match object {
            UpperObject::Dir(dir) => dir.set_own_xattr(name, value, flags),
            UpperObject::Leaf(file) => file.set_xattr(name, value, flags),
        }
    }

    pub fn remove_xattr(&self, object: &UpperObject, name: &CStr) -> Result<()> {
        self.point("remove_xattr")?;
        match object {
            UpperObject::Dir(dir) => dir.remove_own_xattr(name),
            UpperObject::Leaf(file) => file.remove_xattr(name),
        }
    }

    pub fn chmod(&self, object: &UpperObject, mode: u32) -> Result<()> {
        self.point("chmod")?;
        match object {
            UpperObject::Dir(dir) => dir.chmod_self(mode),
            UpperObject::Leaf(file) => file.chmod(mode),
        }
    }

    pub fn chown(&self, object: &UpperObject, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.point("chown")?;
        match object {
            UpperObject::Dir(dir) => dir.chown_self(uid, gid),
            UpperObject::Leaf(file) => file.chown(uid, gid),
        }
    }

    pub fn utimens(&self, object: &UpperObject, times: Times) -> Result<()> {
        self.point("utimens")?;
        creds::assume_mounter()?;
        match object {
            UpperObject::Dir(dir) => dir.utimens_self(times),
            UpperObject::Leaf(file) => file.utimens(times),
        }
    }

    pub fn truncate(&self, file: &File, size: u64) -> Result<()> {
        self.point("truncate")?;
        file.truncate(size)
    }

    /// As [`truncate`](Self::truncate), by truncate(2).
    pub fn truncate_by_name(&self, file: &File, size: u64) -> Result<()> {
        self.point("truncate")?;
        file.truncate_by_name(size)
    }

    pub fn write(&self, file: &File, data: &[u8], offset: u64) -> Result<usize> {
        self.point("write")?;
        file.pwrite(data, offset)
    }

    pub fn fallocate(&self, file: &File, mode: FallocateFlags, offset: u64, len: u64) -> Result<()> {
        self.point("fallocate")?;
        file.fallocate(mode, offset, len)
    }

    pub fn copy_data(&self, from: &File, to: &File, len: u64) -> Result<()> {
        self.point("copy_data")?;
        File::copy_data(from, to, len).map(drop)
    }

    /// Copies a range of one file to another; returns how many bytes.
    pub fn copy_range(&self, from: (&File, u64), to: (&File, u64), len: u64) -> Result<u64> {
        self.point("copy_range")?;
        from.0.copy_range(from.1, to.0, to.1, len)
    }

    pub fn set_inode_flags(&self, object: &UpperObject, flags: InodeFlags) -> Result<()> {
        self.point("set_inode_flags")?;
        match object {
            UpperObject::Dir(dir) => dir.set_own_inode_flags(flags),
            UpperObject::Leaf(file) => file.set_inode_flags(flags),
        }
    }

    pub fn sync(&self, file: &File, datasync: bool) -> Result<()> {
        self.point("sync")?;
        file.sync(datasync)
    }

    pub fn sync_dir(&self, dir: &DirMut) -> Result<()> {
        self.point("sync_dir")?;
        dir.sync()
    }

    fn step(&self, verb: &'static str, dir: &DirMut, name: Name<'_>) -> Result<()> {
        tracing::trace!(verb, dir = dir.raw_fd(), name = %name.as_os_str().display(), "upper");
        self.point(verb)
    }

    /// Every verb passes here, once, before its system call.
    fn point(&self, verb: &'static str) -> Result<()> {
        lock::assert_may_block();
        self.faults.point(verb)
    }
}

impl UpperObject {
    pub fn stat(&self) -> Result<Stat> {
        match self {
            Self::Dir(dir) => dir.stat(),
            Self::Leaf(file) => file.stat(),
        }
    }

    pub fn get_xattr(&self, name: &CStr) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Dir(dir) => dir.get_own_xattr(name),
            Self::Leaf(file) => file.get_xattr(name),
        }
    }
}

fn make(dir: &DirMut, name: Name<'_>, mode: u32, new: New<'_>) -> Result<Option<File>> {
    match new {
        New::File => dir.create_file(name, OFlags::RDWR, mode).map(Some),
        New::Dir => dir.create_dir(name, mode).map(|()| None),
        New::Symlink(target) => dir.symlink(target, name).map(|()| None),
        New::Node { rdev } => dir.mknod(name, mode, make_device(rdev)).map(|()| None),
    }
}

/// A device number as mknod(2) takes it.
fn make_device((major, minor): (u32, u32)) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    ((major & 0xffff_f000) << 32) | ((major & 0xfff) << 8) | ((minor & 0xffff_ff00) << 12) | (minor & 0xff)
}
