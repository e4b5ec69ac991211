//! The walk over an upper that reports each difference once, a directory before what is in it, in the order of names.

use plyfs_format::{Name, NameBuf, RelPath};
use plyfs_sys::{Dir, FileKind, Stat};

use crate::changes::compare::Pair;
use crate::changes::lower::{Found, Lower};
use crate::changes::renames::{self, Renames};
use crate::changes::upper::{Item, UpperDir};
use crate::changes::{Aspect, Change, Comparison, Kind};
use crate::failure::{Context, Outcome};

/// Receives the differences.
pub type Sink<'a> = dyn FnMut(Change) -> Outcome<()> + 'a;

/// Reports every difference. The upper's own root directory is not compared: it is made by whoever mounts.
pub fn walk(comparison: &Comparison, sink: &mut Sink<'_>) -> Outcome<()> {
    let mut upper = UpperDir::open_root(&comparison.upper)?;
    let lower = Lower::open(&comparison.lowers, upper.namespace)?;
    // To one directory it may have been applied.
    if let [only] = comparison.lowers.as_slice() {
        let target = Dir::open_root(only).context(|| only.display().to_string())?;
        upper = UpperDir::open_over(&comparison.upper, &target)?;
    }
    let renames = renames::find(&upper, &lower)?;
    let root = lower.root()?;
    let mut walk = Walk { lower: &lower, renames: &renames, ignore_owner: comparison.ignore_owner, sink };
    walk.directory(&upper, Some(&root), false)
}

struct Walk<'a, 'b> {
    lower: &'a Lower,
    renames: &'a Renames,
    ignore_owner: bool,
    sink: &'a mut Sink<'b>,
}

impl Walk<'_, '_> {
    /// `replaced`: what lies under it does not shine through, as this directory or one above it is opaque.
    fn directory(&mut self, upper: &UpperDir, below: Option<&Found>, replaced: bool) -> Outcome<()> {
        let replaced = replaced || upper.is_opaque()?;
        let items = upper.items()?;
        if let Some(below) = below.filter(|_| replaced) {
            self.hidden(upper, below, &items)?;
        }
        for item in items {
            match item {
                Item::Whiteout(name) => self.whiteout(upper, name.as_name(), below)?,
                Item::Plain(name, stat) => self.entry(upper, name.as_name(), &stat, below, replaced)?,
            }
        }
        Ok(())
    }

    /// What an opaque directory hides and does not replace.
    fn hidden(&mut self, upper: &UpperDir, below: &Found, items: &[Item]) -> Outcome<()> {
        let mut names = self.lower.names(below)?;
        names.sort();
        let there = |name: &NameBuf| items.binary_search_by(|item| item.name().cmp(name)).is_ok();
        for name in names.iter().filter(|name| !there(name)) {
            self.whiteout(upper, name.as_name(), Some(below))?;
        }
        Ok(())
    }

    fn whiteout(&mut self, upper: &UpperDir, name: Name<'_>, below: Option<&Found>) -> Outcome<()> {
        let Some(found) = self.below(below, name)? else {
            return Ok(());
        };
        self.lower.forget(&found);
        self.deleted(upper.path.join(name), &found)
    }

    fn entry(
        &mut self,
        upper: &UpperDir,
        name: Name<'_>,
        stat: &Stat,
        below: Option<&Found>,
        replaced: bool,
    ) -> Outcome<()> {
        let path = upper.path.join(name);
        let source = self.renames.source_of(&path);
        let found = match source {
            Some(source) => self.lower.find(source)?,
            None => self.below(below, name)?,
        };
        let same = found.as_ref().filter(|found| found.kind() == stat.kind());
        match (same, source) {
            (Some(_), Some(source)) => {
                self.report(Kind::Renamed, &path, stat, Some(source.clone()), Vec::new())?
            }
            (Some(_), None) => {}
            (None, _) => {
                if let Some(other) = &found {
                    self.deleted(path.clone(), other)?;
                }
                self.report(Kind::Added, &path, stat, None, Vec::new())?;
            }
        }
        if let Some(found) = same {
            let pair = Pair { upper, name, stat, lower: self.lower, found };
            let aspects = pair.aspects(self.ignore_owner)?;
            if !aspects.is_empty() {
                self.report(Kind::Modified, &path, stat, None, aspects)?;
            }
        }
        if stat.is_dir() {
            let replaced = replaced && source.is_none();
            self.directory(&upper.child(name)?, same, replaced)?;
        }
        found.iter().for_each(|found| self.lower.forget(found));
        Ok(())
    }

    /// What lies under a name, unless it was renamed away from there.
    fn below(&self, below: Option<&Found>, name: Name<'_>) -> Outcome<Option<Found>> {
        let Some(below) = below else {
            return Ok(None);
        };
        if self.renames.is_source(&below.path.join(name)) {
            return Ok(None);
        }
        self.lower.lookup(below, name)
    }

    fn deleted(&mut self, path: RelPath, found: &Found) -> Outcome<()> {
        let file = found.kind();
        let size = if file == FileKind::Directory { 0 } else { found.attr.size };
        (self.sink)(Change { kind: Kind::Deleted, path, from: None, file, size, aspects: Vec::new() })
    }

    fn report(
        &mut self,
        kind: Kind,
        path: &RelPath,
        stat: &Stat,
        from: Option<RelPath>,
        aspects: Vec<Aspect>,
    ) -> Outcome<()> {
        let size = if stat.is_dir() { 0 } else { stat.size };
        (self.sink)(Change { kind, path: path.clone(), from, file: stat.kind(), size, aspects })
    }
}
