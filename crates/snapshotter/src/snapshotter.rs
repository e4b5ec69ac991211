//! The snapshotter: containerd's operations on one root.
//!
//! Owns the order of steps between the database and the directories, which is what a crash relies on:
//!
//! - A directory appears before the record that names it is committed, and vanishes after the record is gone. So a
//!   directory without a record is garbage, whoever finds it, and a record without a directory is damage.
//! - What is committed was synced before its record says so.
//! - Ids are never used twice, so garbage is never mistaken for a new snapshot.
//!
//! Blocking; the service calls it from threads of its own.

use std::collections::HashSet;

use plyfs_sys::Dir;

use crate::backend::{Backend, Backends};
use crate::db::{Db, Lookup};
use crate::error::{Context, Error, Result};
use crate::filter::Filters;
use crate::home::{Home, RootAttributes};
use crate::idmap::Mapping;
use crate::info::{Info, Kind, Labels, Usage};
use crate::ledger::{self, Chain, Commit};
use crate::mounts::{self, Mount};
use crate::reaper::Reaper;
use crate::tree;

/// How a root is served.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The backends that may mount.
    pub backend: Backend,
    /// Sync a snapshot's data before it is committed. Without, a power cut can leave committed layers with empty files.
    pub sync: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { backend: Backend::Auto, sync: true }
    }
}

/// The snapshots of one root.
#[derive(Debug)]
pub struct Snapshotter {
    // The reaper first: it ends before the lock on the database is let go.
    reaper: Reaper,
    db: Db,
    home: Home,
    backends: Backends,
    options: Options,
}

impl Snapshotter {
    /// Opens the root, or makes an empty one; what a dead process left is swept.
    pub fn open(root: &std::path::Path, options: Options) -> Result<Self> {
        let home = Home::open(root)?;
        let db = Db::open(&home.database())?;
        home.sweep_staging()?;
        let scratch = home.root().join("staging/probe");
        std::fs::create_dir_all(&scratch).at("create", &scratch)?;
        let backends = Backends::choose(options.backend, &scratch)?;
        home.sweep_staging()?;
        let reaper = Reaper::start(&home.trash())?;
        let snapshotter = Self { reaper, db, home, backends, options };
        snapshotter.sweep()?;
        snapshotter.report_missing()?;
        tracing::info!("serving {}: {}", snapshotter.home.root().display(), snapshotter.backends.reason);
        Ok(snapshotter)
    }

    /// What is known of a snapshot.
    pub fn stat(&self, key: &str) -> Result<Info> {
        let record = self.db.read(|tx| tx.require(key))?;
        Ok(Info { name: key.to_owned(), record })
    }

    /// Changes labels; see `ledger::update`.
    pub fn update(&self, name: &str, labels: &Labels, paths: &[String]) -> Result<Info> {
        self.db.write(|tx| ledger::update(tx, name, labels, paths))
    }

    /// What a snapshot takes on disk: measured now if it is active, else as it was when it was committed.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        let record = self.db.read(|tx| tx.require(key))?;
        if record.kind == Kind::Active { self.measure(record.id) } else { Ok(record.usage) }
    }

    /// The mount of an active snapshot or a view.
    pub fn mount(&self, key: &str) -> Result<Mount> {
        let chain = self.db.read(|tx| ledger::chain(tx, key))?;
        mounts::mount(&self.home, &self.backends, &chain)
    }

    /// Makes a writable snapshot on a committed parent, or on nothing.
    pub fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Mount> {
        self.create(Kind::Active, key, parent, labels)
    }

    /// Makes a read-only view of a committed parent, or of nothing.
    pub fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Mount> {
        self.create(Kind::View, key, parent, labels)
    }

    /// Turns the active snapshot `key` into the committed one `name`.
    pub fn commit(&self, name: &str, key: &str, parent: Option<&str>, labels: Labels) -> Result<()> {
        let id = self.db.read(|tx| {
            if tx.get(name)?.is_some() {
                return Err(Error::AlreadyExists(name.to_owned()));
            }
            Ok(ledger::require_active(tx, key)?.id)
        })?;
        let usage = self.measure(id)?;
        if self.options.sync {
            self.home.sync()?;
        }
        self.db.write(|tx| ledger::commit(tx, Commit { name, key, id, parent, labels, usage }))
    }

    /// Removes a snapshot that nothing stands on. Its key is free at once; its space a little later.
    pub fn remove(&self, key: &str) -> Result<()> {
        let record = self.db.write(|tx| ledger::remove(tx, key))?;
        if let Err(e) = self.home.discard(record.id) {
            tracing::warn!("snapshot {key:?} is removed, but not its directory: {e}; swept later");
        }
        self.reaper.wake();
        Ok(())
    }

    /// All snapshots that match, ordered by name.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Info>> {
        self.db.read(|tx| {
            let mut found = Vec::new();
            tx.each(|info| {
                if filters.matches(&info) {
                    found.push(info);
                }
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// Sweeps directories that no snapshot has, and waits until all that was removed is deleted.
    pub fn cleanup(&self) -> Result<()> {
        self.sweep()?;
        self.reaper.flush();
        Ok(())
    }

    fn create(&self, kind: Kind, key: &str, parent: Option<&str>, labels: Labels) -> Result<Mount> {
        let mapping = Mapping::from_labels(&labels)?;
        let created = self.db.write(|tx| {
            let chain = ledger::create(tx, kind, key, parent, labels)?;
            let mount = mounts::mount(&self.home, &self.backends, &chain)?;
            if has_layer(kind, parent) {
                let attributes = self.root_attributes(&chain, mapping.as_ref(), &mount)?;
                self.home.create(chain.record.id, attributes, kind == Kind::Active)?;
            }
            Ok(mount)
        });
        if created.is_err() {
            // What was staged lies in the trash; what was published is an orphan for the next sweep.
            self.reaper.wake();
        }
        created
    }

    /// A snapshot's root looks like its parent's, so that the merged root does; a mapped one belongs to the mapped root,
    /// unless plyfs maps all layers alike.
    fn root_attributes(
        &self,
        chain: &Chain,
        mapping: Option<&Mapping>,
        mount: &Mount,
    ) -> Result<RootAttributes> {
        let mut attributes = match chain.parents.first() {
            Some(parent) => self.home.root_attributes(*parent)?,
            None => RootAttributes::default(),
        };
        if let Some(mapping) = mapping.filter(|_| !mount.is_fuse()) {
            attributes.owner = Some(mapping.root()?);
        }
        Ok(attributes)
    }

    fn measure(&self, id: u64) -> Result<Usage> {
        let path = self.home.diff(id);
        Dir::open_root(&path).and_then(tree::usage).at("measure", &path)
    }

    /// In a write transaction, so that no directory is just being made.
    fn sweep(&self) -> Result<()> {
        let swept = self.db.write(|tx| {
            let mut known = HashSet::new();
            tx.each(|info| {
                known.insert(info.record.id);
                Ok(())
            })?;
            self.home.sweep_layers(|id| known.contains(&id))
        })?;
        if swept > 0 {
            tracing::info!("swept {swept} directories that no snapshot has");
        }
        self.reaper.wake();
        Ok(())
    }

    fn report_missing(&self) -> Result<()> {
        for info in self.list(&Filters::default())? {
            let record = &info.record;
            if has_layer(record.kind, record.parent.as_deref()) && !self.home.exists(record.id) {
                let path = self.home.diff(record.id);
                tracing::error!("snapshot {:?} lacks its directory {}", info.name, path.display());
            }
        }
        Ok(())
    }
}

/// A view of something shows its parents only, and has no directory of its own.
fn has_layer(kind: Kind, parent: Option<&str>) -> bool {
    kind != Kind::View || parent.is_none()
}
