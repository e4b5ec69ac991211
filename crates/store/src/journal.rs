//! One command's work in progress: a directory under `staging/`, locked while its owner lives.
//!
//! Owns staging directories, the journal in them, pins, and the removal of what dead owners left. What is
//! finished is published from here by renames (publish.rs); before the first rename the journal names
//! everything that may have to be taken back. The kernel's counterpart is overlayfs' work directory.
//!
//! Rules, which recovery relies on:
//! 1. What the journal names and the database does not know is garbage once the owner is dead.
//! 2. A pin is written inside a database write transaction, so that a deleter sees it or comes first.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::error::{Context, Result};
use crate::layout::Layout;

const JOURNAL: &str = "journal";
const PINS: &str = "pins";
const LOCK: &str = "lock";
const GUARD: &str = ".guard";

/// What a command is about to make visible, or to delete.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Layers: directory name and short link.
    pub layers: Vec<(String, String)>,
    /// Blobs: hexadecimal digests.
    pub blobs: Vec<String>,
    /// Containers' directories.
    pub containers: Vec<String>,
    /// Short links to nothing.
    #[serde(default)]
    pub links: Vec<String>,
}

/// A staging directory and the lock that says its owner is alive.
pub struct Work {
    dir: PathBuf,
    // Held, not read: closing it releases the lock.
    _lock: File,
    journalled: bool,
}

impl Work {
    /// Makes a staging directory.
    pub fn begin(layout: &Layout) -> Result<Work> {
        // The guard keeps a cleaner away between mkdir and flock.
        let _guard = guard(layout, FlockOperation::LockShared)?;
        let dir = layout.staging().join(durable::random_hex(8)?);
        durable::new_dir(&dir, 0o700)?;
        let lock = durable::new_file(&dir.join(LOCK), 0o600)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).at("lock", &dir)?;
        Ok(Work { dir, _lock: lock, journalled: false })
    }

    /// A path in the staging directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes the journal, durably: from now on a crash is undone by the next command.
    pub fn journal(&mut self, plan: &Plan) -> Result<()> {
        let text = serde_json::to_vec(plan).at("encode", &self.dir)?;
        durable::replace(&self.dir.join(JOURNAL), &text, 0o600)?;
        durable::sync_dir(self.dir.parent().unwrap_or(&self.dir))?;
        self.journalled = true;
        Ok(())
    }

    /// Protects something that exists from deletion as long as this work goes on.
    /// Call it inside a database write transaction.
    pub fn pin(&self, key: &str) -> Result<()> {
        let p = self.dir.join(PINS);
        let mut f = fs::OpenOptions::new().create(true).append(true).open(&p).at("open", &p)?;
        f.write_all(format!("{key}\n").as_bytes()).at("write", &p)
    }

    /// Ends the work: everything is where it belongs, the rest goes.
    pub fn finish(mut self) -> Result<()> {
        self.journalled = false;
        durable::remove_tree(&self.dir)
    }
}

impl Drop for Work {
    /// A failed command takes its leftovers along; journalled ones are for recovery, which asks the database.
    fn drop(&mut self) {
        if self.journalled {
            return;
        }
        if let Err(e) = durable::remove_tree(&self.dir) {
            tracing::warn!("{e}: left for the next command");
        }
    }
}

fn guard(layout: &Layout, how: FlockOperation) -> Result<File> {
    let p = layout.staging().join(GUARD);
    let f = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&p).at("open", &p)?;
    flock(&f, how).at("lock", &p)?;
    Ok(f)
}

/// The staging directory of a dead owner, locked so that only one command clears it.
pub struct Dead {
    dir: PathBuf,
    _lock: Option<File>,
    /// What has to be taken back; none if it never began to publish.
    pub plan: Option<Plan>,
}

impl Dead {
    /// Where recovery may move what it takes back, to delete it with the rest.
    pub fn trash(&self, name: &str) -> PathBuf {
        self.dir.join(format!("trash-{name}"))
    }

    /// Deletes what is left.
    pub fn bury(self) -> Result<()> {
        durable::remove_tree(&self.dir)
    }
}

/// All staging directories whose owners died.
pub fn dead(layout: &Layout) -> Result<Vec<Dead>> {
    let names = others(layout)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let _guard = guard(layout, FlockOperation::LockExclusive)?;
    let mut found = Vec::new();
    for dir in names {
        let lock = match fs::OpenOptions::new().write(true).open(dir.join(LOCK)) {
            Ok(f) => match flock(&f, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Some(f),
                Err(rustix::io::Errno::WOULDBLOCK) => continue,
                Err(e) => return Err(e).at("lock", &dir),
            },
            // No lock file: its owner died before making it, or after removing it.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).at("open", &dir),
        };
        let plan = read_plan(&dir)?;
        found.push(Dead { dir, _lock: lock, plan });
    }
    Ok(found)
}

fn read_plan(dir: &Path) -> Result<Option<Plan>> {
    let p = dir.join(JOURNAL);
    match durable::read_small(&p, 64 << 20) {
        Ok(b) => Ok(Some(serde_json::from_slice(&b).at("read", &p)?)),
        Err(crate::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// What commands at work rely on and nobody may delete.
pub fn pins(layout: &Layout) -> Result<std::collections::BTreeSet<String>> {
    let mut set = std::collections::BTreeSet::new();
    for dir in others(layout)? {
        match fs::read_to_string(dir.join(PINS)) {
            Ok(text) => set.extend(text.lines().map(str::to_owned)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).at("read", &dir),
        }
    }
    Ok(set)
}

fn others(layout: &Layout) -> Result<Vec<PathBuf>> {
    let dir = layout.staging();
    let mut v = Vec::new();
    for e in fs::read_dir(&dir).at("open", &dir)? {
        let e = e.at("read", &dir)?;
        // Hidden names are the store's own: the guard, and downloads to be resumed.
        if !std::os::unix::ffi::OsStrExt::as_bytes(e.file_name().as_os_str()).starts_with(b".") {
            v.push(e.path());
        }
    }
    Ok(v)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Layout) {
        let t = tempfile::tempdir().unwrap();
        let l = Layout::open(&t.path().join("s")).unwrap();
        (t, l)
    }

    #[test]
    fn work_of_a_living_owner_is_left_alone_and_its_pins_are_seen() {
        let (_t, l) = store();
        let w = Work::begin(&l).unwrap();
        w.pin("abc").unwrap();
        assert!(dead(&l).unwrap().is_empty());
        assert!(pins(&l).unwrap().contains("abc"));
        w.finish().unwrap();
        assert!(pins(&l).unwrap().is_empty());
    }

    #[test]
    fn failed_work_takes_its_leftovers_along_unless_it_began_to_publish() {
        let (_t, l) = store();
        let w = Work::begin(&l).unwrap();
        let dir = w.path("half").parent().unwrap().to_owned();
        fs::write(w.path("half"), "x").unwrap();
        drop(w);
        assert!(!dir.exists());

        let mut w = Work::begin(&l).unwrap();
        w.journal(&Plan { blobs: vec!["b".into()], ..Plan::default() }).unwrap();
        drop(w);
        let d = dead(&l).unwrap();
        assert_eq!(d.len(), 1);
        assert_eq!(d[0].plan.as_ref().unwrap().blobs, ["b"]);
    }

    #[test]
    fn a_directory_whose_owner_died_before_locking_is_found() {
        let (_t, l) = store();
        fs::create_dir(l.staging().join("x")).unwrap();
        let d = dead(&l).unwrap();
        assert!(d[0].plan.is_none());
        for x in d {
            x.bury().unwrap();
        }
        assert!(others(&l).unwrap().is_empty());
    }
}
