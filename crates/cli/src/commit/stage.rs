//! The place on the target's file system where things are prepared, and from where they are moved to their names.
//!
//! It is a directory in the target's root. What was renamed waits here under a name that depends on the upper alone, so
//! that a commit that was interrupted finds it again; beside it two symbolic links that lead nowhere say whose commit it
//! is and how far it came. Every change of the target goes through here or passes a fault point of [`Stage::point`].

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use plyfs_format::{Name, NameBuf};
use plyfs_sys::{Dir, DirMut, Errno, Faults, File, OFlags, RenameFlags};
use rustix::fs::FlockOperation;

use crate::failure::{Context, Failure, Outcome};

/// Its name in the target's root.
pub const NAME: &[u8] = b".plyfs-commit";

/// What waits for its new name begins with this.
const MOVED: &[u8] = b"moved-";
/// Says whose commit this is.
const OWNER: &[u8] = b"upper";
/// Says that all that was renamed has been taken from its old name.
const TAKEN: &[u8] = b"taken";
/// How much of the path of the upper is kept, for people: a symbolic link holds no more than a path.
const PATH_SHOWN: usize = 3000;

/// Whose commit it is.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// What tells the upper from others ([`identity`](crate::changes::applied::identity)).
    pub identity: &'a str,
    /// Where it is, for people.
    pub path: &'a Path,
}

/// The place; only one commit at a time has it.
#[derive(Debug)]
pub struct Stage {
    dir: DirMut,
    #[expect(dead_code, reason = "held for its lock")]
    lock: std::os::fd::OwnedFd,
    next: u64,
    faults: Faults,
}

impl Stage {
    /// Makes the place, or takes over that of a commit that was interrupted.
    pub fn open(target: &DirMut, owner: Owner<'_>, faults: &Faults) -> Outcome<Self> {
        let name = constant(NAME)?;
        faults.point("stage").context(|| "cannot write to the target")?;
        let made = match target.create_dir(name, 0o700) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(Failure::new(format!("cannot write to the target: {error}"))),
        };
        let describe = || String::from_utf8_lossy(NAME).into_owned();
        let dir = match target.child_mut(name) {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(foreign("no directory")),
            other => other.context(describe)?,
        };
        // What waits in it would be moved to the names that the upper gives: nobody else may have put it there.
        if !made && dir.stat().context(describe)?.uid != rustix::process::geteuid().as_raw() {
            return Err(foreign("another user's"));
        }
        let lock = dir.reopen().context(describe)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Failure::new("another plyfs commit is working on this directory; wait until it is done")
        })?;
        let stage = Self { dir, lock, next: 0, faults: faults.clone() };
        stage.belong_to(owner)?;
        stage.sweep().context(describe)?;
        Ok(stage)
    }

    /// Passes a fault point, before a change of the target.
    pub fn point(&self, name: &'static str) -> plyfs_sys::Result<()> {
        self.faults.point(name)
    }

    /// Refuses a place that another upper's commit has left, and says that it is this one's.
    fn belong_to(&self, owner: Owner<'_>) -> Outcome<()> {
        let describe = || "cannot prepare the commit";
        let path = std::path::absolute(owner.path).context(describe)?;
        let shown = path.as_os_str().as_encoded_bytes();
        let shown = shown.get(..PATH_SHOWN).unwrap_or(shown);
        let text = [owner.identity.as_bytes(), b" ", shown].concat();
        let found = match self.dir.readlink(constant(OWNER)?) {
            // The mark is the first thing made here, and the last that goes.
            Err(Errno::NOENT) if names(&self.dir).context(describe)?.is_empty() => {
                self.say(OWNER, &text).context(describe)?;
                return Ok(());
            }
            Err(Errno::NOENT | Errno::INVAL) => return Err(foreign("not made by a commit")),
            found => found.context(describe)?,
        };
        let mut words = found.splitn(2, |byte| *byte == b' ');
        match (words.next(), words.next()) {
            (Some(identity), _) if identity == owner.identity.as_bytes() => Ok(()),
            (Some(_), Some(other)) => Err(interrupted(Path::new(OsStr::from_bytes(other)))),
            _ => Err(foreign("not made by a commit")),
        }
    }

    /// Makes a mark, on the medium when it returns.
    fn say(&self, mark: &'static [u8], text: &[u8]) -> plyfs_sys::Result<()> {
        self.point("mark")?;
        self.dir.symlink(text, Name::new(mark).map_err(|_| Errno::INVAL)?)?;
        self.dir.sync()
    }

    /// Whether all that was renamed has been taken.
    pub fn has_taken(&self) -> plyfs_sys::Result<bool> {
        match self.dir.stat_at(Name::new(TAKEN).map_err(|_| Errno::INVAL)?) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Says that all that was renamed has been taken, and is on the medium.
    pub fn mark_taken(&self) -> plyfs_sys::Result<()> {
        self.dir.sync_filesystem()?;
        self.say(TAKEN, b"all")
    }

    /// Removes what an interrupted commit had not finished; what it had taken away from its old name stays.
    fn sweep(&self) -> plyfs_sys::Result<()> {
        for name in names(&self.dir)? {
            let mark = [OWNER, TAKEN].contains(&name.as_bytes());
            if !mark && !name.as_bytes().starts_with(MOVED) {
                self.point("sweep")?;
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
        self.point("make").context(|| "cannot prepare it")?;
        make(&self.dir, name.as_name()).context(|| "cannot prepare it")?;
        Ok(name)
    }

    /// Makes a regular file.
    pub fn make_file(&mut self) -> Outcome<(NameBuf, File)> {
        let name = self.fresh()?;
        self.point("make").context(|| "cannot prepare it")?;
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
        self.point("publish")?;
        match self.dir.rename(made.as_name(), to, name, RenameFlags::empty()) {
            Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {
                self.take_away(to, name)?;
                self.point("publish")?;
                self.dir.rename(made.as_name(), to, name, RenameFlags::empty())
            }
            other => other,
        }
    }

    /// Removes a name and all below it: first the name, at once, then what had it.
    pub fn take_away(&self, from: &DirMut, name: Name<'_>) -> plyfs_sys::Result<()> {
        let away = Name::new(b"away").map_err(|_| Errno::INVAL)?;
        if holds_mount(from, name)? {
            // What is mounted below is no part of what was deleted, and would be in the way for ever.
            return Err(Errno::BUSY);
        }
        self.point("take away")?;
        match from.rename(name, &self.dir, away, RenameFlags::empty()) {
            Ok(()) => self.point("remove").and_then(|()| remove(&self.dir, away)),
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
        self.point("take")?;
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
        self.point("link").context(|| "cannot link it")?;
        self.dir.hard_link(of, name, kept.as_name()).context(|| "cannot link it")?;
        Ok(kept)
    }

    /// Makes another link here of something remembered.
    pub fn link_again(&mut self, remembered: &NameBuf) -> Outcome<NameBuf> {
        let name = self.fresh()?;
        self.point("link").context(|| "cannot link it")?;
        self.dir.hard_link(&self.dir, remembered.as_name(), name.as_name()).context(|| "cannot link it")?;
        Ok(name)
    }

    /// Removes the place, when everything has its name: the marks last.
    pub fn finish(self, target: &DirMut) -> Outcome<()> {
        let describe = || "cannot remove what was prepared";
        self.sweep().context(describe)?;
        for mark in [TAKEN, OWNER] {
            self.point("finish").context(describe)?;
            match self.dir.unlink(constant(mark)?) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error).context(describe),
            }
        }
        self.point("finish").context(describe)?;
        remove(target, constant(NAME)?).context(describe)
    }
}

/// The refusal of a place that is somebody's own.
fn foreign(why: &str) -> Failure {
    let name = String::from_utf8_lossy(NAME);
    Failure::new(format!("{name} in the target is {why}, but a commit needs that name; rename it first"))
}

/// The refusal of a place that another upper's commit has left.
fn interrupted(other: &Path) -> Failure {
    let begun = format!("a commit of {} to this directory was interrupted", other.display());
    if other.symlink_metadata().is_ok() {
        let other = other.display();
        return Failure::new(format!("{begun}; finish that one first: plyfs commit {other} --onto …"));
    }
    let name = String::from_utf8_lossy(NAME);
    Failure::new(format!(
        "{begun}, and that upper is gone; take out of {name} in the target what you need ({moved}*: what waits for its \
         new name), then remove it",
        moved = String::from_utf8_lossy(MOVED)
    ))
}

/// Whether a commit has left its place in this directory.
pub fn is_left(target: &Dir) -> Outcome<bool> {
    Ok(target.stat_at(constant(NAME)?).is_ok())
}

/// Whether something is mounted on an entry or below it.
fn holds_mount(dir: &DirMut, name: Name<'_>) -> plyfs_sys::Result<bool> {
    let child = match dir.stat_at(name) {
        Ok(stat) if stat.is_dir() => dir.child_mut(name)?,
        Ok(_) | Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error),
    };
    if is_mounted(dir, &child)? {
        return Ok(true);
    }
    for inside in names(&child)? {
        if holds_mount(&child, inside.as_name())? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_mounted(parent: &DirMut, child: &DirMut) -> plyfs_sys::Result<bool> {
    Ok(child.mount_id()? != parent.mount_id()?)
}

/// Removes an entry and all below it, following no symbolic link and entering no other mount (`EBUSY`).
fn remove(dir: &DirMut, name: Name<'_>) -> plyfs_sys::Result<()> {
    match dir.unlink(name) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    let child = dir.child_mut(name)?;
    if is_mounted(dir, &child)? {
        return Err(Errno::BUSY);
    }
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
