//! One thread, which creates, renames and deletes names that are its own, in directories that all share.
//!
//! It keeps a model of what its names must be. No name is used twice, except by renaming over it.

use super::ground::{self, DIRS};
use super::meter::{Meter, Pace};
use anyhow::{Context, Result};
use fastrand::Rng;
use rustix::fs::{CWD, RenameFlags, renameat, renameat_with};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// How many names a thread has before it deletes more than it creates.
const MANY: usize = 400;

/// What a name of a thread is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// A file with this text.
    File(String),
    /// A symbolic link to this.
    Link(String),
    /// A directory, with a file [`ground::INSIDE`] of this text or with nothing.
    Dir(Option<String>),
}

/// The names of one thread, relative to the root.
pub type Model = BTreeMap<String, Item>;

pub struct Actor<'a> {
    root: &'a Path,
    number: usize,
    rng: Rng,
    made: u64,
    model: Model,
}

impl<'a> Actor<'a> {
    pub fn new(root: &'a Path, number: usize, seed: u64) -> Self {
        let rng = Rng::with_seed(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { root, number, rng, made: 0, model: ground::lower_items(number) }
    }

    /// Operates until the meter has enough, and returns the model and the pace.
    pub fn act(mut self, meter: &Meter) -> Result<(Model, Pace)> {
        let mut pace = Pace::default();
        while meter.goes_on() {
            meter.measure(&mut pace, || self.step())?;
        }
        Ok((self.model, pace))
    }

    fn step(&mut self) -> Result<()> {
        let deletes = if self.model.len() < MANY { 3 } else { 7 };
        match self.rng.u8(0..12 + deletes) {
            0..4 => self.create(),
            4 => self.make_dir(),
            5 => self.make_link(),
            6..9 => self.rename(),
            9 | 10 => self.rename_over(),
            11 => self.exchange(),
            _ => self.delete(),
        }
    }

    fn create(&mut self) -> Result<()> {
        let path = self.fresh();
        let text = format!("{path} of {}", self.number);
        fs::write(self.at(&path), &text).with_context(|| format!("creating {path}"))?;
        self.model.insert(path, Item::File(text));
        Ok(())
    }

    fn make_dir(&mut self) -> Result<()> {
        let path = self.fresh();
        fs::create_dir(self.at(&path)).with_context(|| format!("mkdir {path}"))?;
        self.model.insert(path, Item::Dir(None));
        Ok(())
    }

    fn make_link(&mut self) -> Result<()> {
        let path = self.fresh();
        symlink(&path, self.at(&path)).with_context(|| format!("symlink {path}"))?;
        self.model.insert(path.clone(), Item::Link(path));
        Ok(())
    }

    fn rename(&mut self) -> Result<()> {
        let Some(old) = self.pick() else { return self.create() };
        let new = self.fresh();
        renameat(CWD, self.at(&old), CWD, self.at(&new)).with_context(|| format!("rename {old} {new}"))?;
        self.moved(&old, new);
        Ok(())
    }

    /// A directory can only replace an empty directory, and nothing else can.
    fn rename_over(&mut self) -> Result<()> {
        let (Some(old), Some(new)) = (self.pick(), self.pick()) else { return self.create() };
        let fits = match (self.model.get(&old), self.model.get(&new)) {
            (Some(Item::Dir(_)), Some(over)) => *over == Item::Dir(None),
            (_, over) => !matches!(over, Some(Item::Dir(_))),
        };
        if old == new || !fits {
            return self.rename();
        }
        renameat(CWD, self.at(&old), CWD, self.at(&new))
            .with_context(|| format!("rename {old} over {new}"))?;
        self.moved(&old, new);
        Ok(())
    }

    fn exchange(&mut self) -> Result<()> {
        let (Some(one), Some(other)) = (self.pick(), self.pick()) else { return self.create() };
        if one == other {
            return self.rename();
        }
        renameat_with(CWD, self.at(&one), CWD, self.at(&other), RenameFlags::EXCHANGE)
            .with_context(|| format!("exchange {one} {other}"))?;
        if let (Some(first), Some(second)) = (self.model.remove(&one), self.model.remove(&other)) {
            self.model.insert(one, second);
            self.model.insert(other, first);
        }
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        let Some(path) = self.pick() else { return self.create() };
        let at = self.at(&path);
        match self.model.get_mut(&path) {
            // Two operations: the directory goes the next time it is met.
            Some(Item::Dir(inside @ Some(_))) => {
                *inside = None;
                return fs::remove_file(at.join(ground::INSIDE)).with_context(|| format!("unlink in {path}"));
            }
            Some(Item::Dir(None)) => fs::remove_dir(at).with_context(|| format!("rmdir {path}"))?,
            _ => fs::remove_file(at).with_context(|| format!("unlink {path}"))?,
        }
        self.model.remove(&path);
        Ok(())
    }

    fn moved(&mut self, old: &str, new: String) {
        if let Some(item) = self.model.remove(old) {
            self.model.insert(new, item);
        }
    }

    fn pick(&mut self) -> Option<String> {
        let count = self.model.len();
        (count > 0).then(|| self.model.keys().nth(self.rng.usize(..count)).cloned()).flatten()
    }

    /// A name that was never used, in any of the shared directories.
    fn fresh(&mut self) -> String {
        self.made += 1;
        format!("{}/t{}-{}", ground::dir(self.rng.usize(..DIRS)), self.number, self.made)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}
