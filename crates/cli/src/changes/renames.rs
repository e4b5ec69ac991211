//! What was renamed: found before anything is reported, since the old place may come before the new one.
//!
//! A directory's redirect names its old place. A file that was copied up has the handle of its lower in `origin`; it was
//! renamed if a whiteout stands where the file with that handle is.

use std::collections::HashMap;
use std::path::Path;

use plyfs_format::{FileHandle, Name, NameBuf, Redirect, RelPath};
use plyfs_sys::{Dir, FileKind, Stat};

use crate::changes::lower::{Found, Lower};
use crate::changes::upper::{Item, UpperDir};
use crate::failure::Outcome;

/// The renamed objects, by where they are in the lowers.
#[derive(Debug, Default)]
pub struct Renames {
    /// Old place to new place.
    by_source: HashMap<RelPath, RelPath>,
    /// New place to old place.
    by_target: HashMap<RelPath, RelPath>,
}

impl Renames {
    /// Whether what the lowers have at a path is elsewhere now.
    pub fn is_source(&self, lower: &RelPath) -> bool {
        self.by_source.contains_key(lower)
    }

    /// Where what is at a path of the union was in the lowers.
    pub fn source_of(&self, path: &RelPath) -> Option<&RelPath> {
        self.by_target.get(path)
    }

    fn add(&mut self, source: RelPath, target: RelPath) {
        self.by_target.insert(target.clone(), source.clone());
        self.by_source.insert(source, target);
    }
}

/// Searches an upper for what was renamed.
pub fn find(upper: &UpperDir, lower: &Lower) -> Outcome<Renames> {
    let mut search = Search { lower, renames: Renames::default(), orphans: HashMap::new(), gone: Vec::new() };
    let root = lower.root()?;
    search.directory(upper, Some(&root))?;
    search.match_files();
    Ok(search.renames)
}

/// Is shown each directory of an upper, and may refuse it.
pub type Visitor<'a> = dyn FnMut(&UpperDir) -> Outcome<()> + 'a;

/// What an upper says by redirects alone: where things were in the lowers, and where they are now.
pub fn redirected(upper: &UpperDir, visit: &mut Visitor<'_>) -> Outcome<Vec<(RelPath, RelPath)>> {
    let mut found = Vec::new();
    redirected_in(upper, Some(&RelPath::root()), visit, &mut found)?;
    Ok(found)
}

/// `below`: the directory's own place in the lowers, if it has one.
fn redirected_in(
    upper: &UpperDir,
    below: Option<&RelPath>,
    visit: &mut Visitor<'_>,
    found: &mut Vec<(RelPath, RelPath)>,
) -> Outcome<()> {
    visit(upper)?;
    let below = if upper.is_opaque()? { None } else { below };
    for item in upper.items()? {
        let Item::Plain(name, stat) = item else { continue };
        let name = name.as_name();
        let own = below.map(|below| below.join(name));
        let source = upper.redirect(name, &stat)?.and_then(|redirect| resolve(&redirect, below));
        if let Some(source) = source.clone().filter(|source| Some(source) != own.as_ref()) {
            found.push((source, upper.path.join(name)));
        }
        if stat.is_dir() {
            redirected_in(&upper.child(name)?, source.or(own).as_ref(), visit, found)?;
        }
    }
    Ok(())
}

/// The place in the lowers that a redirect names, for an entry of a directory whose own place is `parent`.
pub fn resolve(redirect: &Redirect, parent: Option<&RelPath>) -> Option<RelPath> {
    match redirect {
        Redirect::Absolute(path) => Some(path.clone()),
        Redirect::Relative(name) => parent.map(|parent| parent.join(name.as_name())),
    }
}

struct Search<'a> {
    lower: &'a Lower,
    renames: Renames,
    /// Files that were copied up and have nothing under them, by the handle of what they were copied from.
    orphans: HashMap<FileHandle, RelPath>,
    /// Files that are whited out, by their place in the lowers.
    gone: Vec<RelPath>,
}

impl Search<'_> {
    fn directory(&mut self, upper: &UpperDir, below: Option<&Found>) -> Outcome<()> {
        let below = if upper.is_opaque()? { None } else { below };
        for item in upper.items()? {
            match item {
                Item::Whiteout(name) => self.whiteout(&name, below)?,
                Item::Plain(name, stat) => self.entry(upper, name.as_name(), &stat, below)?,
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, name: &NameBuf, below: Option<&Found>) -> Outcome<()> {
        let Some(below) = below else { return Ok(()) };
        if let Some(found) = self.lower.lookup(below, name.as_name())? {
            if found.kind() != FileKind::Directory {
                self.gone.push(found.path.clone());
            }
            self.lower.forget(&found);
        }
        Ok(())
    }

    fn entry(&mut self, upper: &UpperDir, name: Name<'_>, stat: &Stat, below: Option<&Found>) -> Outcome<()> {
        let path = upper.path.join(name);
        let own = below.map(|below| below.path.join(name));
        let source = upper
            .redirect(name, stat)?
            .and_then(|redirect| resolve(&redirect, below.map(|found| &found.path)));
        if let Some(source) = source.clone().filter(|source| Some(source) != own.as_ref()) {
            self.renames.add(source, path.clone());
        }
        let found = match (&source, below) {
            (Some(source), _) => self.lower.find(source)?,
            (None, Some(below)) => self.lower.lookup(below, name)?,
            (None, None) => None,
        };
        if stat.is_dir() {
            let below = found.as_ref().filter(|found| found.kind() == FileKind::Directory);
            self.directory(&upper.child(name)?, below)?;
        } else if found.is_none()
            && let Some(origin) = upper.origin(name)?
        {
            self.orphans.insert(origin.handle, path);
        }
        found.iter().for_each(|found| self.lower.forget(found));
        Ok(())
    }

    /// Only where there are both: a lower file's handle costs some system calls.
    fn match_files(&mut self) {
        if self.orphans.is_empty() {
            return;
        }
        for source in std::mem::take(&mut self.gone) {
            let handle = self.lower.roots.iter().find_map(|root| handle_of(root, &source));
            if let Some(target) = handle.and_then(|handle| self.orphans.remove(&handle)) {
                self.renames.add(source, target);
            }
        }
    }
}

/// The handle of a file of one lower directory; `None` if it is not there, or its file system has no handles.
fn handle_of(root: &Path, path: &RelPath) -> Option<FileHandle> {
    let directory = Dir::open_root(root).ok()?.open_dir(&path.parent()?).ok()?;
    directory.file_handle(path.file_name()?).ok()?
}
