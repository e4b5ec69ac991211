//! Layers unpacked ahead: while their blobs come in, before anybody knows that they are an image's layers.
//!
//! Owns which files of an archive are tried, how many at a time, and where the trees wait. Whether one is what an image
//! promises is ingest.rs's to say; what no image asks for goes with the staging directory, and so does a failure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::apply::Applied;
use crate::blob::{self, Staged};
use crate::db::{Blob, Layer};
use crate::digest::Digest;
use crate::durable;
use crate::error::Result;
use crate::journal::Work;
use crate::store::Store;
use crate::unpack::{Order, Unpacking};

/// A layer that was unpacked before its turn.
pub(crate) struct Unpacked {
    /// Its tree.
    pub dir: PathBuf,
    /// What was unpacked and its DiffID; or the failure, if it turns out to be a layer.
    pub done: Result<(Applied, Digest)>,
}

/// Trees by the digests of their blobs.
pub(crate) type Trees = BTreeMap<Digest, Unpacked>;

/// The layers of one archive on their way.
pub(crate) struct Ahead<'a> {
    store: &'a Store,
    work: &'a Work,
    /// Hexadecimal digits of blobs and DiffIDs that the store has.
    known: BTreeSet<String>,
    started: usize,
    running: VecDeque<(Digest, PathBuf, Unpacking)>,
    trees: Trees,
}

impl<'a> Ahead<'a> {
    /// Begins with nothing.
    pub fn new(store: &'a Store, work: &'a Work) -> Result<Ahead<'a>> {
        let known = store.read(|tx| {
            let blobs = tx.all::<Blob>()?.into_iter().map(|b| b.digest.hex());
            let layers = tx.all::<Layer>()?.into_iter().map(|l| l.diff_id.hex());
            Ok(blobs.chain(layers).collect())
        })?;
        Ok(Ahead { store, work, known, started: 0, running: VecDeque::new(), trees: Trees::new() })
    }

    /// Stages a file of `size` bytes, whose name in the archive is `name`; unpacks it at once if it may be a layer that is
    /// not here yet.
    pub fn stage(&mut self, name: &str, size: u64, from: impl Read) -> Result<Staged> {
        self.started += 1;
        let path = self.work.path(&format!("file-{}", self.started));
        let wanted = !self.knows(name);
        let (mut first, mut tree) = (true, None);
        let limit = self.store.options.limits.bytes;
        let staged = blob::stage(from, path, limit, &mut |part| {
            if std::mem::take(&mut first) && wanted && blob::may_be_layer(part) {
                tree = Some(self.start(name, size)?);
            }
            if let Some((_, u)) = &mut tree {
                // A failure is told when it is known to be a layer's.
                u.feed(part);
            }
            Ok(())
        })?;
        if let Some((dir, u)) = tree {
            self.running.push_back((staged.digest, dir, u));
        }
        Ok(staged)
    }

    /// All trees, when their threads are through.
    pub fn finish(mut self) -> Trees {
        self.leave(0);
        self.trees
    }

    /// Blobs are named by their digests in one format, by their DiffIDs in another (`HEX.tar`).
    fn knows(&self, name: &str) -> bool {
        Path::new(name).file_stem().is_some_and(|s| self.known.contains(&*s.to_string_lossy()))
    }

    fn start(&mut self, name: &str, size: u64) -> Result<(PathBuf, Unpacking)> {
        self.leave(workers() - 1);
        let dir = self.work.path(&format!("ahead-{}", self.started));
        durable::new_dir(&dir, 0o755)?;
        let what = format!("layer {}", name.escape_default());
        Ok((dir.clone(), Unpacking::start(self.store.order(what, dir, Some(size), true))?))
    }

    /// Waits until no more than `most` are at work.
    fn leave(&mut self, most: usize) {
        while self.running.len() > most
            && let Some((digest, dir, u)) = self.running.pop_front()
        {
            self.trees.insert(digest, Unpacked { dir, done: u.finish() });
        }
    }
}

impl Store {
    /// An order to unpack with this store's bounds and owners.
    pub(crate) fn order(&self, what: String, into: PathBuf, compressed: Option<u64>, vouched: bool) -> Order {
        Order { what, into, compressed, vouched, limits: self.options.limits, ownership: self.ownership }
    }
}

/// How many layers are unpacked at a time: as many as there are cores, but four at most.
pub(crate) fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}
