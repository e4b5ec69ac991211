//! The place on the target's file system where things are prepared, and from where they are moved to their names.
//!
//! It is a directory in the target's root. What was renamed waits here under a name that depends on the upper alone, so
//! that a commit that was interrupted finds it again.

use std::ops::ControlFlow;

use plyfs_format::{Name, NameBuf};
use plyfs_sys::{DirMut, Errno, File, OFlags, RenameFlags};
use rustix::fs::FlockOperation;

use crate::failure::{Context, Failure, Outcome};

/// Its name in the target's root.
pub const NAME: &[u8] = b".plyfs-commit";

/// What waits for its new name begins with this.
const MOVED: &[u8] = b"moved-";

/// The place; only one commit at a time has it.
#[derive(Debug)]
pub struct Stage {
    dir: DirMut,
    lock: std::os::fd::OwnedFd,
    next: u64,
}

impl Stage {
    /// Makes the place, or takes over that of a commit that was interrupted.
    pub fn open(target: &DirMut) -> Outcome<Self> {
        let name = constant(NAME)?;
        match target.create_dir(name, 0o700) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Failure::new(format!("cannot write to the target: {error}"))),
        }
        let describe = || String::from_utf8_lossy(NAME).into_owned();
        let dir = target.child_mut(name).context(describe)?;
        let lock = dir.reopen().context(describe)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Failure::new("another plyfs commit is working on this directory; wait until it is done")
        })?;
        let stage = Self { dir, lock, next: 0 };
        stage.sweep().context(describe)?;
        Ok(stage)
    }

    /// Removes what an interrupted commit had not finished; what it had taken away from its old name stays.
    fn sweep(&self) -> plyfs_sys::Result<()> {
        for name in names(&self.dir)? {
            if !name.as_bytes().starts_with(MOVED) {
                remove(&self.dir, name.as_name())?;
            }
        }
        Ok(())
    }

    /// A name that nothing has.
    fn fresh(&mut self) -> Outcome<NameBuf> {
        self.next += 1;
        owned(format!("new-{}", self.next).into_bytes())
    }

    /// Makes something under a name of its own.
    pub fn make(
        &mut self,
        make: impl FnOnce(&DirMut, Name<'_>) -> plyfs_sys::Result<()>,
    ) -> Outcome<NameBuf> {
        let name = self.fresh()?;
        make(&self.dir, name.as_name()).context(|| "cannot prepare it")?;
        Ok(name)
    }

    /// Makes a regular file.
    pub fn make_file(&mut self) -> Outcome<(NameBuf, File)> {
        let name = self.fresh()?;
        let file =
            self.dir.create_file(name.as_name(), OFlags::RDWR, 0o600).context(|| "cannot prepare it")?;
        Ok((name, file))
    }

    /// Does something with what was made here.
    pub fn with(
        &self,
        made: &NameBuf,
        act: impl FnOnce(&DirMut, Name<'_>) -> plyfs_sys::Result<()>,
    ) -> Outcome<()> {
        act(&self.dir, made.as_name()).context(|| "cannot set its attributes")
    }

    /// Writes a regular file that was made here to the medium.
    pub fn sync_file(&self, made: &NameBuf) -> Outcome<()> {
        let file = self.dir.open_writable(made.as_name(), OFlags::RDONLY).context(|| "cannot open it")?;
        file.sync(false).context(|| "cannot write it to the medium")
    }

    /// Moves what was made here to its name, in place of what has it.
    pub fn publish(&self, made: &NameBuf, to: &DirMut, name: Name<'_>) -> plyfs_sys::Result<()> {
        match self.dir.rename(made.as_name(), to, name, RenameFlags::empty()) {
            Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {
                self.take_away(to, name)?;
                self.dir.rename(made.as_name(), to, name, RenameFlags::empty())
            }
            other => other,
        }
    }

    /// Removes a name and all below it: first the name, at once, then what had it.
    pub fn take_away(&self, from: &DirMut, name: Name<'_>) -> plyfs_sys::Result<()> {
        let away = Name::new(b"away").map_err(|_| Errno::INVAL)?;
        match from.rename(name, &self.dir, away, RenameFlags::empty()) {
            Ok(()) => remove(&self.dir, away),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes the `number`th of the renamed things from its old name; one that is not there was taken by the commit before.
    pub fn take(&self, number: usize, from: &DirMut, name: Name<'_>) -> plyfs_sys::Result<()> {
        let waiting = moved(number).map_err(|_| Errno::INVAL)?;
        if self.dir.stat_at(waiting.as_name()).is_ok() {
            return Ok(());
        }
        match from.rename(name, &self.dir, waiting.as_name(), RenameFlags::NOREPLACE) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Gives the `number`th of the renamed things its new name. Returns whether it was waiting: else it has it already.
    pub fn give(&self, number: usize, to: &DirMut, name: Name<'_>) -> plyfs_sys::Result<bool> {
        let waiting = moved(number).map_err(|_| Errno::INVAL)?;
        match self.dir.stat_at(waiting.as_name()) {
            Ok(_) => self.publish(&waiting, to, name).map(|()| true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A further name here for something that was published, so that more names can be linked to it later.
    pub fn remember(&mut self, of: &DirMut, name: Name<'_>) -> Outcome<NameBuf> {
        let kept = self.fresh()?;
        self.dir.hard_link(of, name, kept.as_name()).context(|| "cannot link it")?;
        Ok(kept)
    }

    /// Makes another link here of something remembered.
    pub fn link_again(&mut self, remembered: &NameBuf) -> Outcome<NameBuf> {
        let name = self.fresh()?;
        self.dir.hard_link(&self.dir, remembered.as_name(), name.as_name()).context(|| "cannot link it")?;
        Ok(name)
    }

    /// Removes the place, when everything has its name.
    pub fn finish(self, target: &DirMut) -> Outcome<()> {
        drop(self.lock);
        remove(target, constant(NAME)?).context(|| "cannot remove what was prepared")
    }
}

/// Removes an entry and all below it, following no symbolic link.
fn remove(dir: &DirMut, name: Name<'_>) -> plyfs_sys::Result<()> {
    match dir.unlink(name) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    let child = dir.child_mut(name)?;
    for inside in names(&child)? {
        remove(&child, inside.as_name())?;
    }
    dir.rmdir(name)
}

/// The names in a directory.
pub fn names(dir: &DirMut) -> plyfs_sys::Result<Vec<NameBuf>> {
    let mut names = Vec::new();
    dir.list()?.for_each(|entry| {
        if let Ok(name) = Name::new(entry.name) {
            names.push(name.to_owned());
        }
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

fn moved(number: usize) -> Outcome<NameBuf> {
    owned([MOVED, number.to_string().as_bytes()].concat())
}

fn owned(bytes: Vec<u8>) -> Outcome<NameBuf> {
    NameBuf::new(bytes).map_err(|error| Failure::new(error.to_string()))
}

fn constant(bytes: &'static [u8]) -> Outcome<Name<'static>> {
    Name::new(bytes).map_err(|error| Failure::new(error.to_string()))
}
