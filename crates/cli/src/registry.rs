//! The notes that daemons leave about their mounts, so that `plyfs list` and `plyfs umount` can find them: a FUSE mount's
//! own entry in the mount table names neither its layers nor its process.
//!
//! One file for each mount, named by the mount's device number, which no other mount has at the same time. A note is a help, never the truth: the mount table says
//! what is mounted, and a note whose process is gone is removed by whoever sees it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// What is known of a mount beside its entry in the mount table. Paths are for reading: bytes that are not UTF-8 are
/// replaced.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Note {
    /// The daemon's process id, as seen in its own PID namespace.
    pub pid: u32,
    /// Which PID namespace that is: /run may be shared with others, in which the number means nothing.
    pub pid_namespace: String,
    /// When the daemon started, in clock ticks since boot: tells it from a later process of the same id.
    pub started: u64,
    /// The device of the mounted file system, as `MAJOR:MINOR`: what ties the note to the mount table.
    pub device: String,
    /// Where it was mounted at first.
    pub target: String,
    /// The lower directories, topmost first.
    pub lowers: Vec<String>,
    /// The upper directory; none for a read-only mount.
    pub upper: Option<String>,
    /// The work directory.
    pub work: Option<String>,
    /// The mount options as they were given.
    pub options: String,
}

impl Note {
    /// Whether the daemon is known to this process by the same id.
    pub fn is_near(&self) -> bool {
        self.pid_namespace == pid_namespace()
    }

    fn is_of_the_dead(&self) -> bool {
        let lives = plyfs_sys::process::is_alive(self.pid)
            && started(self.pid).is_ok_and(|time| time == self.started);
        self.is_near() && !lives
    }
}

/// Deletes the note when the daemon ends.
#[derive(Debug)]
pub struct Registration {
    path: PathBuf,
    note: Note,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // The mount is gone, and its device number may be that of another one already.
        remove_if(&self.path, |note| *note == self.note);
    }
}

/// Writes a note. It appears at once and whole.
pub fn register(note: &Note) -> io::Result<Registration> {
    let mut last = io::Error::other("no directory for it");
    for directory in writable_directories() {
        match write_note(&directory, note) {
            Ok(path) => return Ok(Registration { path, note: note.clone() }),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// All notes of living daemons that this user may read. Removes those of dead ones where it may.
pub fn notes() -> Vec<Note> {
    readable_directories().iter().flat_map(|directory| notes_in(directory)).collect()
}

/// When a process started, in clock ticks since boot (field 22 of proc_pid_stat(5)). One that has ended but whose parent has
/// not heard of it counts as gone.
pub fn started(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in parentheses that may itself hold spaces and parentheses.
    let after_name = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    if after_name.starts_with(['Z', 'X']) {
        return Err(io::Error::other(format!("process {pid} has ended")));
    }
    let field = after_name.split(' ').nth(19).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood")))
}

fn write_note(directory: &Path, note: &Note) -> io::Result<PathBuf> {
    make_private(directory)?;
    let name = note.device.replace(':', "-");
    let path = directory.join(format!("{name}.json"));
    let temporary = directory.join(format!(".{name}.tmp"));
    let _lock = lock(directory)?;
    fs::write(&temporary, serde_json::to_vec(note)?)?;
    fs::rename(&temporary, &path)?;
    Ok(path)
}

/// Makes the directory, or checks that it is the user's own: in a place like /tmp somebody else may have made it.
fn make_private(directory: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    let found = fs::symlink_metadata(directory)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("{} belongs to somebody else", directory.display())));
    }
    Ok(())
}

fn notes_in(directory: &Path) -> Vec<Note> {
    let Ok(entries) = fs::read_dir(directory) else {
        // Most of the places do not exist.
        return Vec::new();
    };
    let paths = entries.flatten().map(|entry| entry.path());
    paths
        .filter(|path| path.extension() == Some(OsStr::new("json")))
        .filter_map(|path| living(&path))
        .collect()
}

fn living(path: &Path) -> Option<Note> {
    let note = read(path)?;
    if !note.is_of_the_dead() {
        return Some(note);
    }
    remove_if(path, Note::is_of_the_dead);
    None
}

/// Removes a note if it is still the one that is meant, so that the one of a mount that has just been made stays.
fn remove_if(path: &Path, meant: impl FnOnce(&Note) -> bool) {
    let locked = path.parent().map(lock);
    let removed = match read(path) {
        Some(note) if meant(&note) => fs::remove_file(path),
        _ => Ok(()),
    };
    drop(locked);
    if let Err(error) = removed {
        tracing::debug!("{}: {error}", path.display());
    }
}

/// Keeps other processes from changing the notes of a directory.
fn lock(directory: &Path) -> io::Result<File> {
    let lock = File::open(directory)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

fn read(path: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The PID namespace of this process, as the kernel names it; nothing where it is not told.
pub fn pid_namespace() -> String {
    fs::read_link("/proc/self/ns/pid")
        .map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned())
}

fn writable_directories() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if rustix::process::geteuid().is_root() {
        places.push(PathBuf::from("/run/plyfs"));
    }
    places.extend(runtime_directory());
    places.push(fallback());
    places
}

fn readable_directories() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("/run/plyfs"), fallback()];
    places.extend(runtime_directory());
    if let Ok(users) = fs::read_dir("/run/user") {
        places.extend(users.flatten().map(|user| user.path().join("plyfs")));
    }
    places.sort();
    places.dedup();
    places
}

fn runtime_directory() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty())?;
    Some(PathBuf::from(base).join("plyfs"))
}

fn fallback() -> PathBuf {
    PathBuf::from(format!("/tmp/plyfs-{}", rustix::process::geteuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        let pid = std::process::id();
        Note {
            pid,
            pid_namespace: pid_namespace(),
            started: started(pid).unwrap(),
            device: "0:99".to_owned(),
            target: "/m".to_owned(),
            lowers: vec!["/a".to_owned()],
            upper: None,
            work: None,
            options: "lowerdir=/a".to_owned(),
        }
    }

    #[test]
    fn a_note_is_read_back_while_its_process_lives_and_removed_afterwards() {
        let place = tempfile::tempdir().unwrap();
        let path = write_note(place.path(), &note()).unwrap();
        assert_eq!(notes_in(place.path()), [note()]);
        let dead = Note { started: 1, ..note() };
        write_note(place.path(), &dead).unwrap();
        assert_eq!(notes_in(place.path()), []);
        assert!(!path.exists());
        let elsewhere = Note { pid_namespace: "pid:[1]".to_owned(), ..dead };
        write_note(place.path(), &elsewhere).unwrap();
        assert_eq!(
            notes_in(place.path()),
            [elsewhere],
            "nothing is known of the processes of another namespace"
        );
    }

    #[test]
    fn notes_are_not_written_through_a_symbolic_link_that_somebody_left() {
        let place = tempfile::tempdir().unwrap();
        let link = place.path().join("link");
        std::os::unix::fs::symlink(place.path(), &link).unwrap();
        assert!(write_note(&link, &note()).is_err());
    }
}
