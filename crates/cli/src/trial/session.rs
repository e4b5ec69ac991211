//! The directory in which a `plyfs try` keeps what its command writes, from making it to removing it.
//!
//! It lies on a disk (uppers can grow), belongs to the user alone, and is locked while its process lives: a directory
//! whose lock is free was left by a process that was killed, and the next `plyfs try` removes it.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;

use crate::failure::{Context, Failure, Outcome};

/// How the directories are called, so that left ones are recognised.
const PREFIX: &str = "plyfs-try-";
/// The file whose lock says that the process lives.
const LOCK: &str = "lock";

/// The directory of one `plyfs try`. It is removed by [`Session::remove`], not by dropping: what removes it must have
/// unmounted the view first.
#[derive(Debug)]
pub struct Session {
    path: PathBuf,
    _lock: File,
}

impl Session {
    /// Makes a directory in the first place that can hold one, and removes those that dead processes left there.
    pub fn create() -> Outcome<Self> {
        let mut last = None;
        for base in places() {
            sweep(&base);
            match Self::create_in(&base) {
                Ok(session) => return Ok(session),
                Err(error) => last = Some(format!("{}: {error}", base.display())),
            }
        }
        let last = last.unwrap_or_default();
        Err(Failure::new(format!(
            "no directory for what the command writes ({last}); set XDG_STATE_HOME to one"
        )))
    }

    fn create_in(base: &Path) -> io::Result<Self> {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
        let path = fs::canonicalize(base)?.join(format!("{PREFIX}{}-{nanos:08x}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        if !holds_deletions(&path) {
            fs::remove_dir(&path)?;
            return Err(io::Error::other("its file system cannot record deletions"));
        }
        let lock = File::create_new(path.join(LOCK))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory in it, for the process alone.
    pub fn make(&self, name: impl AsRef<Path>) -> Outcome<PathBuf> {
        let path = self.path.join(name);
        DirBuilder::new().mode(0o700).recursive(true).create(&path).context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Removes the directory and all in it. Nothing may be mounted in it any more; if something is, it is left.
    pub fn remove(self) -> Outcome<()> {
        remove_tree(&self.path).context(|| format!("{}: cannot remove it", self.path.display()))
    }
}

/// Whether an upper in this directory can say that something is deleted, by a device or by a name. In a view of plyfs it
/// cannot.
fn holds_deletions(directory: &Path) -> bool {
    let device = directory.join("probe");
    let named = directory.join(".wh.probe");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &device,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    );
    let works = made.is_ok() || File::create_new(&named).is_ok();
    // What was not made cannot be removed, and what is left goes with the directory.
    [device, named]
        .iter()
        .filter(|path| path.symlink_metadata().is_ok())
        .all(|path| fs::remove_file(path).is_ok())
        && works
}

/// Removes a directory tree without following a symbolic link or entering another file system. Directories that refuse
/// their owner (an overlay's work directory has mode 000) are opened up first.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let device = fs::symlink_metadata(path)?.dev();
    remove_within(path, device)
}

fn remove_within(path: &Path, device: u64) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return fs::remove_file(path);
    }
    if found.dev() != device {
        return Err(io::Error::other(format!("something is still mounted on {}", path.display())));
    }
    if found.permissions().mode() & 0o700 != 0o700 {
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
    }
    for entry in fs::read_dir(path)? {
        remove_within(&entry?.path(), device)?;
    }
    fs::remove_dir(path)
}

/// Removes the directories of processes that are gone. What cannot be removed is for its owner to remove.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    let own = rustix::process::geteuid().as_raw();
    for entry in entries.flatten() {
        let ours = entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == own);
        let left = ours && is_session(&entry.file_name()) && is_abandoned(&entry.path());
        if left && let Err(error) = remove_tree(&entry.path()) {
            tracing::debug!("{}: {error}", entry.path().display());
        }
    }
}

fn is_session(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(PREFIX))
}

/// Whether the lock is free. A directory without a lock file is one that is just being made.
fn is_abandoned(path: &Path) -> bool {
    File::open(path.join(LOCK))
        .is_ok_and(|lock| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok())
}

/// Where uppers may lie: a place for state, then the places for large temporary files, and memory, which a view within a
/// view needs: all else is a union there.
fn places() -> Vec<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    state.into_iter().chain(["/var/tmp", "/tmp", "/dev/shm"].map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_lost_its_process_is_swept_and_a_living_one_is_not() {
        let base = tempfile::tempdir().unwrap();
        let living = Session::create_in(base.path()).unwrap();
        let dead = base.path().join("plyfs-try-1-0");
        fs::create_dir_all(dead.join("work/work")).unwrap();
        fs::write(dead.join("lock"), "").unwrap();
        fs::set_permissions(dead.join("work/work"), Permissions::from_mode(0o0)).unwrap();
        sweep(base.path());
        assert!(living.path().exists());
        assert!(!dead.exists());
    }

    #[test]
    fn removing_a_tree_does_not_follow_symbolic_links() {
        let base = tempfile::tempdir().unwrap();
        let outside = base.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let tree = base.path().join("tree");
        fs::create_dir(&tree).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.join("kept").exists());
    }
}
