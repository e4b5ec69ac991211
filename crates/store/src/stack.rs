//! The merged view of layers, without a mount: where a path's contents come from.
//!
//! Owns lookup and listing over directories on disk, with whiteouts in all forms (char 0:0, xattr, `.wh.`),
//! opaque directories, redirects and metacopies. Read only. The kernel's counterpart is `ovl_lookup`.
//!
//! Redirects and metacopies are followed from the top layer only: the store drops these attributes when it
//! unpacks a stranger's tar, so that in a lower layer they can only be an attack.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use plyfs_format::whiteout::{OPAQUE_MARKER, WHITEOUT_PREFIX};
use plyfs_format::{Namespace, Opaque, Private, Redirect};
use rustix::fs::{FileType, Stat};

use crate::beneath::{self, Root, join, split};
use crate::error::{Context, Error, Result};
use crate::indexed::Index;
use crate::owner::{Ids, Ownership};
use crate::tree::Source;

/// One place on disk: a layer, counted from the top, and a path in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Index into the stack.
    pub layer: usize,
    /// The path in that layer.
    pub path: Vec<u8>,
}

/// What a path of the merged view is.
#[derive(Debug, Clone)]
pub struct Node {
    /// The topmost place, which gives type and attributes; of a directory also the places merged below.
    pub places: Vec<Place>,
    /// Status of the topmost place.
    pub stat: Stat,
    /// Where a file's bytes are, if not in the topmost place (metacopy).
    pub data: Option<Place>,
    /// Whether it is seen with the upper, whose index counts then.
    pub merged: bool,
}

impl Node {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        beneath::kind(&self.stat) == FileType::Directory
    }

    /// The topmost place.
    pub fn top(&self) -> Result<&Place> {
        self.places.first().ok_or_else(|| Error::Damaged("a node without a place".into()))
    }

    /// The places below layer 0.
    pub fn below_top_layer(&self) -> &[Place] {
        let n = usize::from(self.places.first().is_some_and(|p| p.layer == 0));
        self.places.get(n..).unwrap_or_default()
    }
}

/// What one layer has at a name.
enum Here {
    Nothing,
    Whiteout,
    Found(Stat),
}

/// Layers, topmost first.
pub struct Stack {
    roots: Vec<Root>,
    /// Whether the top layer is an upper, whose redirects and metacopies count.
    upper: bool,
    ids: Ids,
    /// What hard links of the image show, where the upper has an index. As a place it is the layer behind the last.
    index: Option<Index>,
    /// For each layer whether its records of owners are believed.
    records: Vec<bool>,
}

impl Stack {
    /// Opens layers; with `upper` the first is a container's writable one.
    pub fn open(dirs: &[PathBuf], upper: bool, ownership: Ownership) -> Result<Stack> {
        let roots = dirs.iter().map(|d| Root::open(d)).collect::<Result<Vec<_>>>()?;
        let mut records = vec![ownership.believes_layer(); roots.len()];
        if let (true, Some(first), Some(root)) = (upper, records.first_mut(), roots.first()) {
            *first = ownership.believes(root)?;
        }
        Ok(Stack { roots, upper, ids: ownership.ids(), records, index: None })
    }

    /// Opens a directory that is not the store's as the only layer.
    pub fn of_directory(dir: &Path, ownership: Ownership) -> Result<Stack> {
        let root = Root::open(dir)?;
        let records = vec![ownership.believes(&root)?];
        Ok(Stack { roots: vec![root], upper: false, ids: Ids::KEPT, records, index: None })
    }

    /// With the index of an upper's work directory.
    pub fn with_index(mut self, work: &Path) -> Result<Stack> {
        self.index = Index::open(work)?;
        Ok(self)
    }

    /// The paths of hard links that show a copy although the upper has no such name; none without an index. The one thing
    /// whose cost is that of the image.
    pub fn indexed_names(&self) -> Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        let root = if self.index.is_some() { self.root_node(0)? } else { None };
        let mut todo: Vec<(Vec<u8>, Node)> = root.map(|n| (Vec::new(), n)).into_iter().collect();
        while let Some((path, dir)) = todo.pop() {
            for (name, node) in self.list(&dir)? {
                let child = join(&path, &name);
                if node.is_dir() {
                    todo.push((child, node));
                } else if node.top()?.layer == self.roots.len() {
                    found.push(child);
                }
            }
        }
        Ok(found)
    }

    /// Where a node's attributes are and where its data is.
    pub fn source<'a>(&'a self, node: &'a Node) -> Result<Source<'a>> {
        let top = node.top()?;
        let data = match &node.data {
            Some(d) => Some((self.root(d.layer)?, &d.path[..])),
            None => None,
        };
        // What is in the index, programs wrote like the upper.
        let layer = if top.layer == self.roots.len() { 0 } else { top.layer };
        let records = self.records.get(layer).is_some_and(|r| *r);
        Ok(Source { at: (self.root(top.layer)?, &top.path), data, stat: &node.stat, ids: self.ids, records })
    }

    /// A layer's root.
    pub fn root(&self, layer: usize) -> Result<&Root> {
        let index = self.index.as_ref().filter(|_| layer == self.roots.len()).map(Index::root);
        self.roots.get(layer).or(index).ok_or_else(|| Error::Damaged("no such layer".into()))
    }

    /// The merged root, as seen from `from` downwards.
    pub fn root_node(&self, from: usize) -> Result<Option<Node>> {
        let places: Vec<Place> =
            (from..self.roots.len()).map(|layer| Place { layer, path: Vec::new() }).collect();
        let Some(first) = places.first() else { return Ok(None) };
        let root = self.root(first.layer)?;
        let stat = rustix::fs::fstat(root).at("stat", root.path())?;
        Ok(Some(Node { places, stat, data: None, merged: from == 0 }))
    }

    /// The path `rel` of the merged view from layer `from` downwards.
    pub fn resolve(&self, from: usize, rel: &[u8]) -> Result<Option<Node>> {
        let mut node = self.root_node(from)?;
        for c in rel.split(|b| *b == b'/').filter(|c| !c.is_empty()) {
            node = match node {
                Some(n) if n.is_dir() => self.lookup(&n, c)?,
                _ => return Ok(None),
            };
        }
        Ok(node)
    }

    /// The entry `name` of a merged directory.
    pub fn lookup(&self, dir: &Node, name: &[u8]) -> Result<Option<Node>> {
        let mut found: Option<Node> = None;
        let mut name = name.to_vec();
        for p in &dir.places {
            let path = join(&p.path, &name);
            let st = match self.here(p.layer, &path)? {
                Here::Nothing => continue,
                Here::Whiteout => break,
                Here::Found(st) => st,
            };
            let place = Place { layer: p.layer, path };
            let is_dir = beneath::kind(&st) == FileType::Directory;
            match &mut found {
                None if dir.merged
                    && let Some(copy) = self.indexed(&place, &st)? =>
                {
                    found = Some(copy);
                    break;
                }
                None => {
                    let stop = if is_dir { self.opaque(&place)? } else { !self.metacopy(&place)? };
                    let redirect = if stop { None } else { self.redirect(&place)? };
                    found = Some(Node { places: vec![place], stat: st, data: None, merged: dir.merged });
                    match redirect {
                        _ if stop => break,
                        None => {}
                        Some(Redirect::Relative(n)) => name = n.as_bytes().to_vec(),
                        Some(Redirect::Absolute(target)) => {
                            append(found.as_mut(), self.resolve(p.layer + 1, target.as_bytes())?);
                            break;
                        }
                    }
                }
                Some(n) if n.is_dir() && is_dir => {
                    let stop = self.opaque(&place)?;
                    n.places.push(place);
                    if stop {
                        break;
                    }
                }
                // A metacopy's data is in the first file below it.
                Some(n) if !n.is_dir() && !is_dir => {
                    n.data = Some(place);
                    break;
                }
                Some(_) => break,
            }
        }
        Ok(found)
    }

    /// The names of a merged directory, sorted, each with what it is.
    pub fn list(&self, dir: &Node) -> Result<Vec<(Vec<u8>, Node)>> {
        let mut names: BTreeMap<Vec<u8>, ()> = BTreeMap::new();
        for p in &dir.places {
            names.extend(self.names(p)?.into_iter().map(|n| (n, ())));
        }
        let mut out = Vec::new();
        for n in names.into_keys() {
            if let Some(node) = self.lookup(dir, &n)? {
                out.push((n, node));
            }
        }
        Ok(out)
    }

    /// The names that one layer has in a directory: `.wh.NAME` of an upper is given as `NAME`.
    pub fn names(&self, p: &Place) -> Result<Vec<Vec<u8>>> {
        let root = self.root(p.layer)?;
        let fd = root.dir(&p.path).at("open", root.show(&p.path))?;
        let mut names = beneath::names(fd.as_fd()).at("read", root.show(&p.path))?;
        if self.is_upper(p.layer) {
            for n in &mut names {
                if n != OPAQUE_MARKER
                    && let Some(hidden) = n.strip_prefix(WHITEOUT_PREFIX)
                {
                    *n = hidden.to_vec();
                }
            }
            names.retain(|n| n != OPAQUE_MARKER && !n.is_empty());
            names.sort();
            names.dedup();
        }
        Ok(names)
    }

    fn here(&self, layer: usize, path: &[u8]) -> Result<Here> {
        let root = self.root(layer)?;
        let (dir, name) = split(path);
        if self.is_upper(layer) {
            let marker = join(dir, &[WHITEOUT_PREFIX, name].concat());
            if root.stat(&marker)?.is_some_and(|s| beneath::kind(&s) == FileType::RegularFile) {
                return Ok(Here::Whiteout);
            }
        }
        let Some(st) = root.stat(path)? else { return Ok(Here::Nothing) };
        if beneath::is_whiteout_device(&st) {
            return Ok(Here::Whiteout);
        }
        let empty = beneath::kind(&st) == FileType::RegularFile && st.st_size == 0;
        if empty && self.private(&Place { layer, path: path.to_vec() }, Private::Whiteout)?.is_some() {
            return Ok(Here::Whiteout);
        }
        Ok(Here::Found(st))
    }

    /// Whether a directory hides what lies below it.
    pub fn opaque(&self, p: &Place) -> Result<bool> {
        let marked = self.private(p, Private::Opaque)?.is_some_and(|v| Opaque::parse(&v) == Opaque::Opaque);
        if marked || !self.is_upper(p.layer) {
            return Ok(marked);
        }
        Ok(self.root(p.layer)?.stat(&join(&p.path, OPAQUE_MARKER))?.is_some())
    }

    /// The copy that a file of the image shows instead of itself.
    fn indexed(&self, p: &Place, st: &Stat) -> Result<Option<Node>> {
        let Some(index) = self.index.as_ref().filter(|_| p.layer > 0) else { return Ok(None) };
        let Some((name, stat)) = index.copy_of(self.root(p.layer)?, &p.path, st)? else { return Ok(None) };
        let place = Place { layer: self.roots.len(), path: name };
        let data = self.metacopy(&place)?.then(|| p.clone());
        Ok(Some(Node { places: vec![place], stat, data, merged: true }))
    }

    fn metacopy(&self, p: &Place) -> Result<bool> {
        Ok(self.is_upper(p.layer) && self.private(p, Private::Metacopy)?.is_some())
    }

    fn redirect(&self, p: &Place) -> Result<Option<Redirect>> {
        if !self.is_upper(p.layer) {
            return Ok(None);
        }
        let Some(v) = self.private(p, Private::Redirect)? else { return Ok(None) };
        let show = self.root(p.layer)?.show(&p.path);
        Redirect::parse(&v).map(Some).map_err(|e| Error::invalid(show.display().to_string(), e.to_string()))
    }

    /// One of the overlay's own attributes, in either namespace.
    fn private(&self, p: &Place, which: Private) -> Result<Option<Vec<u8>>> {
        let root = self.root(p.layer)?;
        let (dir, name) = split(&p.path);
        if name.is_empty() {
            return Ok(None);
        }
        let fd = match root.open_at(dir, rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(e) => return Err(e).at("open", root.show(dir)),
        };
        let path = beneath::proc_child(fd.as_fd(), name);
        for ns in [Namespace::Trusted, Namespace::User] {
            match beneath::xattr(&path, ns.name(which).to_bytes()) {
                Ok(Some(v)) => return Ok(Some(v)),
                Ok(None) => {}
                Err(e) => return Err(e).at("read attribute of", root.show(&p.path)),
            }
        }
        Ok(None)
    }

    fn is_upper(&self, layer: usize) -> bool {
        self.upper && (layer == 0 || layer == self.roots.len())
    }
}

/// Attaches what an absolute redirect found below.
fn append(node: Option<&mut Node>, below: Option<Node>) {
    let (Some(node), Some(below)) = (node, below) else { return };
    if node.is_dir() && below.is_dir() {
        node.places.extend(below.places);
    } else if !node.is_dir() && !below.is_dir() {
        node.data = below.places.into_iter().next();
    }
}
