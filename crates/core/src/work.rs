//! The work directory: names of temporaries, the shared whiteout, and the removal of what is no longer needed.
//!
//! Changes the disk by the verbs of `upper.rs` only. A temporary that cannot be removed is tried again before the next
//! one is made; what is left at the end goes at the next assembly. The kernel's counterparts are `ovl_whiteout`,
//! `ovl_cleanup` and `ovl_workdir_cleanup`.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use plyfs_format::{Name, NameBuf};
use plyfs_sys::{DirMut, Errno, RenameFlags};

use crate::Result;
use crate::upper::{New, Upper, WhiteoutForm};

const S_IFCHR: u32 = 0o020_000;

/// What is remembered of the work directory's content.
#[derive(Debug, Default)]
pub(crate) struct Temporaries {
    next: AtomicU64,
    /// A whiteout in work that further ones are hard links of. Held over system calls; only `leftovers` is locked below.
    shared_whiteout: Mutex<Option<NameBuf>>,
    /// Temporaries that could not be removed.
    leftovers: Mutex<Vec<NameBuf>>,
}

impl Upper {
    /// A name for a temporary in work, as the kernel names them.
    pub fn temporary_name(&self) -> Result<NameBuf> {
        self.sweep();
        let number = self.temporaries.next.fetch_add(1, Ordering::Relaxed) + 1;
        NameBuf::new(format!("#{number:x}").into_bytes()).map_err(|_| Errno::IO)
    }

    /// Hides a name that upper does not have.
    pub fn whiteout(&self, dir: &DirMut, name: Name<'_>) -> Result<()> {
        match self.abilities.whiteouts {
            WhiteoutForm::Device => self.whiteout_device(dir, name),
            WhiteoutForm::Named => self.whiteout_mark(dir, name),
        }
    }

    /// Hides a name in the layers below by a `.wh.` file; what upper has of that name still shows.
    pub fn whiteout_mark(&self, dir: &DirMut, name: Name<'_>) -> Result<()> {
        let mark = plyfs_format::whiteout_name(name).map_err(|_| Errno::NAMETOOLONG)?;
        match self.create_as_mounter(dir, mark.as_name(), 0, New::File) {
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Marks a directory as hiding what is below by a `.wh..wh..opq` file.
    pub fn mark_opaque(&self, dir: &DirMut) -> Result<()> {
        let marker = Name::new(plyfs_format::whiteout::OPAQUE_MARKER).map_err(|_| Errno::IO)?;
        match self.create_as_mounter(dir, marker, 0, New::File) {
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Puts a whiteout where there is nothing: one hard link.
    fn whiteout_device(&self, dir: &DirMut, name: Name<'_>) -> Result<()> {
        let mut shared = self.temporaries.shared_whiteout.lock();
        if let Some(existing) = shared.as_ref() {
            match self.hard_link(&self.work, existing.as_name(), dir, name) {
                Err(Errno::MLINK | Errno::NOENT | Errno::XDEV | Errno::PERM) => {}
                done => return done,
            }
        }
        let fresh = self.temporary_name()?;
        self.create_as_mounter(&self.work, fresh.as_name(), S_IFCHR, New::Node { rdev: (0, 0) })?;
        let linked = self.hard_link(&self.work, fresh.as_name(), dir, name);
        if let Err(Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP) = linked {
            let moved = self.rename(&self.work, fresh.as_name(), dir, name, RenameFlags::NOREPLACE);
            if moved.is_err() {
                self.discard(fresh.as_name());
            }
            return moved;
        }
        if let Some(worn_out) = shared.replace(fresh) {
            self.discard(worn_out.as_name());
        }
        linked
    }

    /// A whiteout in work, to be renamed over something.
    pub fn staged_whiteout(&self) -> Result<NameBuf> {
        let temporary = self.temporary_name()?;
        self.whiteout_device(&self.work, temporary.as_name())?;
        Ok(temporary)
    }

    /// As [`staged_whiteout`](Self::staged_whiteout), of an inode of its own: nothing else is left in work.
    pub fn single_whiteout(&self) -> Result<NameBuf> {
        let temporary = self.temporary_name()?;
        self.create_as_mounter(&self.work, temporary.as_name(), S_IFCHR, New::Node { rdev: (0, 0) })?;
        Ok(temporary)
    }

    /// Removes a temporary with all it holds. It is out of sight, so a failure only leaves work for later.
    pub fn discard(&self, name: Name<'_>) {
        if let Err(error) = self.remove_temporary(name) {
            tracing::warn!(name = %name.as_os_str().display(), %error, "a temporary stays in work for now");
            self.temporaries.leftovers.lock().push(name.to_owned());
        }
    }

    /// Removes what could not be removed before.
    fn sweep(&self) {
        let leftovers = std::mem::take(&mut *self.temporaries.leftovers.lock());
        for name in leftovers {
            self.discard(name.as_name());
        }
    }

    fn remove_temporary(&self, name: Name<'_>) -> Result<()> {
        match self.unlink(&self.work, name) {
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                self.clear(&self.work.child_mut(name)?)?;
                self.rmdir(&self.work, name)
            }
            done => done,
        }
    }

    /// Removes everything in a directory of work. A directory that shows nothing holds only whiteouts, so there is no
    /// tree to descend: one that is found all the same is `ENOTEMPTY`.
    fn clear(&self, dir: &DirMut) -> Result<()> {
        for name in names(dir)? {
            match self.unlink(dir, name.as_name()) {
                Err(Errno::ISDIR | Errno::PERM) => self.rmdir(dir, name.as_name())?,
                done => done?,
            }
        }
        Ok(())
    }
}

/// The names in a directory.
pub(crate) fn names(dir: &DirMut) -> Result<Vec<NameBuf>> {
    let mut names = Vec::new();
    let mut malformed = false;
    dir.list()?.for_each(|entry| {
        match Name::new(entry.name) {
            Ok(name) => names.push(name.to_owned()),
            Err(_) => malformed = true,
        }
        ControlFlow::Continue(())
    })?;
    if malformed { Err(Errno::IO) } else { Ok(names) }
}
