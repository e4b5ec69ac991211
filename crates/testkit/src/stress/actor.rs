//! One thread, which creates, renames and deletes names that are its own, in directories that all share.
//!
//! It keeps a model of what its names must be. No name is used twice, except by renaming over it.

use super::ground::{self, DIRS};
use super::meter::{Meter, Pace};
use anyhow::{Context, Result};
use fastrand::Rng;
use rustix::fs::{CWD, RenameFlags, renameat, renameat_with};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
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

pub struct Actor {
    root: PathBuf,
    number: usize,
    rng: Rng,
    made: u64,
    model: Model,
    /// Files of several names: which names are those of one file.
    links: BTreeMap<String, u64>,
    /// Whether files are changed too.
    rewrites: bool,
    /// Whether directories of lowers can be moved.
    redirects: bool,
}

impl Actor {
    pub fn new(root: &Path, number: usize, seed: u64) -> Self {
        let rng = Rng::with_seed(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (root, model) = (root.to_owned(), ground::lower_items(number));
        Self { root, number, rng, made: 0, model, links: BTreeMap::new(), rewrites: false, redirects: true }
    }

    /// Also appends to files, changes their modes and gives them further names; directories can be moved with `redirects`.
    pub fn rewriting(mut self, redirects: bool) -> Self {
        self.rewrites = true;
        self.redirects = redirects;
        self
    }

    /// What this thread's names must be.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Operates until the meter has enough, and returns the pace.
    pub fn act(&mut self, meter: &Meter) -> Result<Pace> {
        let mut pace = Pace::default();
        while meter.goes_on() {
            meter.measure(&mut pace, || self.step())?;
        }
        Ok(pace)
    }

    fn step(&mut self) -> Result<()> {
        let deletes = if self.model.len() < MANY { 3 } else { 7 };
        if self.rewrites && self.rng.u8(0..3) == 0 {
            return self.rewrite();
        }
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
        let renamed = renameat(CWD, self.at(&old), CWD, self.at(&new));
        if self.stays(renamed) {
            return Ok(());
        }
        renamed.with_context(|| format!("rename {old} {new}"))?;
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
        let same_file = self.links.contains_key(&old) && self.links.get(&old) == self.links.get(&new);
        if old == new || !fits || same_file {
            return self.rename();
        }
        let renamed = renameat(CWD, self.at(&old), CWD, self.at(&new));
        if self.stays(renamed) {
            return Ok(());
        }
        renamed.with_context(|| format!("rename {old} over {new}"))?;
        self.moved(&old, new);
        Ok(())
    }

    fn exchange(&mut self) -> Result<()> {
        let (Some(one), Some(other)) = (self.pick(), self.pick()) else { return self.create() };
        if one == other {
            return self.rename();
        }
        let exchanged = renameat_with(CWD, self.at(&one), CWD, self.at(&other), RenameFlags::EXCHANGE);
        if self.stays(exchanged) {
            return Ok(());
        }
        exchanged.with_context(|| format!("exchange {one} {other}"))?;
        if let (Some(first), Some(second)) = (self.model.remove(&one), self.model.remove(&other)) {
            self.model.insert(one.clone(), second);
            self.model.insert(other.clone(), first);
        }
        let groups = (self.links.remove(&one), self.links.remove(&other));
        self.links.extend(groups.0.map(|group| (other, group)));
        self.links.extend(groups.1.map(|group| (one, group)));
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
        self.links.remove(&path);
        self.model.remove(&path);
        Ok(())
    }

    /// Whether a directory of a lower could not be moved, as it is where no redirects are made.
    fn stays(&self, renamed: rustix::io::Result<()>) -> bool {
        self.rewrites && !self.redirects && renamed == Err(Errno::XDEV)
    }

    /// Changes a file, in one of the ways that copy it up by its data, by its attributes or by its names.
    fn rewrite(&mut self) -> Result<()> {
        let Some(path) = self.pick() else { return self.create() };
        if !matches!(self.model.get(&path), Some(Item::File(_))) {
            return self.create();
        }
        match self.rng.u8(0..4) {
            0 => fs::set_permissions(self.at(&path), PermissionsExt::from_mode(0o640))
                .with_context(|| format!("chmod {path}")),
            1 => self.further_name(path),
            _ => self.append(&path),
        }
    }

    fn append(&mut self, path: &str) -> Result<()> {
        let more = format!(" and {}", self.rng.u16(..));
        let file = fs::File::options().append(true).open(self.at(path));
        file.and_then(|mut file| file.write_all(more.as_bytes()))
            .with_context(|| format!("appending to {path}"))?;
        let group = self.links.get(path).copied();
        for (name, item) in &mut self.model {
            let same = name == path || group.is_some() && self.links.get(name).copied() == group;
            if let (true, Item::File(text)) = (same, item) {
                text.push_str(&more);
            }
        }
        Ok(())
    }

    fn further_name(&mut self, path: String) -> Result<()> {
        let new = self.fresh();
        fs::hard_link(self.at(&path), self.at(&new)).with_context(|| format!("link {path} {new}"))?;
        if let Some(item) = self.model.get(&path).cloned() {
            self.model.insert(new.clone(), item);
        }
        let group = *self.links.entry(path).or_insert(self.made);
        self.links.insert(new, group);
        Ok(())
    }

    fn moved(&mut self, old: &str, new: String) {
        self.links.remove(&new);
        if let Some(group) = self.links.remove(old) {
            self.links.insert(new.clone(), group);
        }
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
