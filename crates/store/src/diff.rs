//! What a container changed: as a list (A, C, D), and as a layer's tar.
//!
//! Owns the comparison of an upper with the image below it. Its cost is that of the upper, with one
//! exception: a directory renamed with a redirect is, for a reader that knows no redirects, new as a whole.
//!
//! One rule decides everything: at a path, the merged view's places below the upper either are what the
//! image shows at that path, then only the upper's own names matter; or they are not (the directory is
//! opaque, new, or redirected), then everything visible there is emitted, behind an opaque marker if the
//! image has a directory at that path.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use plyfs_format::whiteout::{OPAQUE_MARKER, WHITEOUT_PREFIX};
use serde::Serialize;

use crate::beneath::join;
use crate::error::Result;
use crate::owner::Ownership;
use crate::stack::{Node, Stack};
use crate::tar::Time;
use crate::tree::Emit;

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ChangeKind {
    /// It is not in the image.
    #[serde(rename = "A")]
    Added,
    /// It is in the image too, and was changed or replaced, or something in it was.
    #[serde(rename = "C")]
    Changed,
    /// It is in the image and no longer here.
    #[serde(rename = "D")]
    Deleted,
}

impl ChangeKind {
    /// The letter that `docker diff` prints.
    pub fn letter(self) -> char {
        match self {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The path, from the container's root, with a leading slash.
    pub path: Vec<u8>,
}

/// An upper and the layers of its image, topmost first.
pub struct Diff {
    stack: Stack,
    /// Names that the upper does not have and that are changed all the same, by their directories: hard links of the image
    /// that show an indexed copy, and the directories down to them.
    more: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>,
}

/// What one visited path is, told to whoever collects.
enum Event<'a> {
    /// Visible in the merged view; and whether the image has something there.
    Here(&'a Node, bool),
    /// In the image and no longer visible.
    Gone,
    /// The same, below a directory that is replaced as a whole.
    GoneWithDir,
    /// A directory that hides the image's one of the same path.
    Replaced,
}

impl Diff {
    /// Opens the layers' directories.
    pub fn open(upper: PathBuf, work: &Path, lowers: Vec<PathBuf>, ownership: Ownership) -> Result<Diff> {
        let dirs: Vec<PathBuf> = std::iter::once(upper).chain(lowers).collect();
        let stack = Stack::open(&dirs, true, ownership)?.with_index(work)?;
        let mut more: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>> = BTreeMap::new();
        for path in stack.indexed_names()? {
            let mut path = &path[..];
            while !path.is_empty() {
                let (dir, name) = crate::beneath::split(path);
                more.entry(dir.to_vec()).or_default().insert(name.to_vec());
                path = dir;
            }
        }
        Ok(Diff { stack, more })
    }

    /// The list of changes, by path.
    pub fn changes(&self) -> Result<Vec<Change>> {
        let mut out: Vec<Change> = Vec::new();
        self.walk(&mut |path, event| {
            let kind = match event {
                Event::Here(_, false) => ChangeKind::Added,
                Event::Here(_, true) => ChangeKind::Changed,
                Event::Gone | Event::GoneWithDir => ChangeKind::Deleted,
                Event::Replaced => return Ok(()),
            };
            if !path.is_empty() {
                out.push(Change { kind, path: [b"/", path].concat() });
            }
            Ok(())
        })?;
        out.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(out)
    }

    /// Writes the layer's tar to `out`, which messages call `to`; returns the time of the newest entry and their number.
    pub fn tar(&self, out: &mut dyn Write, to: &Path) -> Result<(Option<Time>, u64)> {
        let mut emit = Emit::new(out, to);
        self.walk(&mut |path, event| match event {
            Event::Here(node, _) => emit.file(path, &self.stack.source(node)?),
            Event::Replaced => emit.marker(join(path, OPAQUE_MARKER)),
            Event::Gone => {
                let (dir, name) = crate::beneath::split(path);
                emit.marker(join(dir, &[WHITEOUT_PREFIX, name].concat()))
            }
            // The opaque marker above it said it already.
            Event::GoneWithDir => Ok(()),
        })?;
        emit.finish()
    }

    fn walk(&self, tell: &mut dyn FnMut(&[u8], Event<'_>) -> Result<()>) -> Result<()> {
        let (Some(merged), base) = (self.stack.root_node(0)?, self.stack.root_node(1)?) else {
            return Ok(());
        };
        self.visit(b"", &merged, base.as_ref(), tell)
    }

    /// A path that is visible in the merged view; `base` is what the image shows there.
    fn visit(
        &self,
        path: &[u8],
        merged: &Node,
        base: Option<&Node>,
        tell: &mut dyn FnMut(&[u8], Event<'_>) -> Result<()>,
    ) -> Result<()> {
        tell(path, Event::Here(merged, base.is_some()))?;
        if !merged.is_dir() {
            return Ok(());
        }
        match base.filter(|b| b.is_dir()) {
            Some(b) if merged.below_top_layer() == b.places => self.own_names(path, merged, b, tell),
            base => self.all_names(path, merged, base, tell),
        }
    }

    /// A directory that merges with the image's one: the upper's names are the changes.
    fn own_names(
        &self,
        path: &[u8],
        merged: &Node,
        base: &Node,
        tell: &mut dyn FnMut(&[u8], Event<'_>) -> Result<()>,
    ) -> Result<()> {
        let top = merged.top()?;
        let mut names: BTreeSet<Vec<u8>> = self.more.get(path).cloned().unwrap_or_default();
        if top.layer == 0 {
            names.extend(self.stack.names(top)?);
        }
        for name in names {
            let (child, below) = (join(path, &name), self.stack.lookup(base, &name)?);
            match self.stack.lookup(merged, &name)? {
                Some(n) => self.visit(&child, &n, below.as_ref(), tell)?,
                // A whiteout of nothing is left out: there is nothing to delete.
                None if below.is_some() => tell(&child, Event::Gone)?,
                None => {}
            }
        }
        Ok(())
    }

    /// A directory that does not: everything visible in it is new here, and everything of the image's gone.
    fn all_names(
        &self,
        path: &[u8],
        merged: &Node,
        base: Option<&Node>,
        tell: &mut dyn FnMut(&[u8], Event<'_>) -> Result<()>,
    ) -> Result<()> {
        if base.is_some() {
            tell(path, Event::Replaced)?;
        }
        self.contents(path, merged, base, tell)
    }

    /// Everything visible in a directory, through which nothing of the image shines.
    fn contents(
        &self,
        path: &[u8],
        merged: &Node,
        base: Option<&Node>,
        tell: &mut dyn FnMut(&[u8], Event<'_>) -> Result<()>,
    ) -> Result<()> {
        let names = self.stack.list(merged)?;
        if let Some(b) = base {
            let visible: BTreeSet<&[u8]> = names.iter().map(|(n, _)| &n[..]).collect();
            for (name, _) in self.stack.list(b)?.iter().filter(|(n, _)| !visible.contains(&n[..])) {
                tell(&join(path, name), Event::GoneWithDir)?;
            }
        }
        for (name, node) in &names {
            let child = join(path, name);
            let below = match base {
                Some(b) => self.stack.lookup(b, name)?,
                None => None,
            };
            tell(&child, Event::Here(node, below.is_some()))?;
            if node.is_dir() {
                self.contents(&child, node, below.as_ref().filter(|b| b.is_dir()), tell)?;
            }
        }
        Ok(())
    }
}

/// Writes the merged view of layers as one tar to `out`, which messages call `to`.
pub fn export(stack: &Stack, out: &mut dyn Write, to: &Path) -> Result<(Option<Time>, u64)> {
    let mut emit = Emit::new(out, to);
    if let Some(root) = stack.root_node(0)? {
        export_node(stack, &mut emit, b"", &root)?;
    }
    emit.finish()
}

fn export_node<W: Write>(stack: &Stack, emit: &mut Emit<W>, path: &[u8], node: &Node) -> Result<()> {
    emit.file(path, &stack.source(node)?)?;
    if node.is_dir() {
        for (name, child) in stack.list(node)? {
            export_node(stack, emit, &join(path, &name), &child)?;
        }
    }
    Ok(())
}
