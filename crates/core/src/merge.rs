//! Resolution of a name in the stack: which layers hold it, and where merging stops.
//!
//! Reads layers; keeps no state and makes no node (`lookup.rs` does). The kernel's counterpart is
//! `fs/overlayfs/namei.c`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use plyfs_format::{Name, NameBuf, Private, Redirect, RelPath};
use plyfs_sys::{Dir, Errno, FileKind, Stat};

use crate::Result;
use crate::directory::{DirBody, UpperDir};
use crate::layer::LayerDir;
use crate::listing::{Listed, Listing};
use crate::node::{LowerLeaf, LowerPlace, Node, SharedName, UpperLeaf};
use crate::object::NodeId;
use crate::overlay::Overlay;
use crate::protect::{self, Protection};
use crate::whiteout::{self, DirMarks};

/// Directories merged from more lowers than this are resolved through their listing: one pass over the layers then
/// serves every name, present or absent.
const DEEP: usize = 4;

/// What a name is in the merged view.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "lives on the stack for the length of one lookup")]
pub(crate) enum Resolution {
    /// No layer has it.
    Absent,
    /// A whiteout in upper hides it.
    Whiteout,
    Found(Found),
}

/// An object of the merged view, not yet a node.
#[derive(Debug)]
pub(crate) struct Found {
    /// Of the topmost object: its metadata.
    pub stat: Stat,
    /// As `stat` reports it.
    pub ino: u64,
    /// The id that its node is to have, where ids last.
    pub lasting: Option<NodeId>,
    pub object: Object,
}

#[derive(Debug)]
pub(crate) enum Object {
    Dir { lowers: Vec<Arc<LayerDir>>, upper: Option<Box<UpperDir>> },
    UpperLeaf { upper: UpperLeaf, lower: Option<LowerLeaf> },
    LowerLeaf(LowerLeaf),
}

/// The way down through the lower layers while a directory (or the data of a metacopy) is being looked for.
#[derive(Debug)]
pub(crate) struct Descent {
    pub target: Target,
    /// The first lower layer that may still be asked.
    from: u16,
    pub stop: bool,
}

#[derive(Debug)]
pub(crate) enum Target {
    /// An entry of the parent's lower directories.
    Child(NameBuf),
    /// A path from the root of each layer: an absolute redirect was met.
    Path(RelPath),
}

impl Overlay {
    /// What the name is, asked of the layers.
    pub(crate) fn resolve(&self, parent: &Node, dir: &DirBody, name: &SharedName) -> Result<Resolution> {
        self.identified(parent, name, self.resolve_name(parent, dir, name)?)
    }

    /// The object that a listing found.
    pub(crate) fn resolve_entry(&self, parent: &Node, dir: &DirBody, listed: &Listed) -> Result<Resolution> {
        self.identified(parent, &listed.name, self.resolve_listed_entry(parent, dir, listed)?)
    }

    /// Adds the id that lasts.
    fn identified(&self, parent: &Node, name: &[u8], found: Resolution) -> Result<Resolution> {
        match found {
            Resolution::Found(found) if self.export.is_some() => {
                let lasting = self.lasting_id(parent, name, &found.object)?;
                Ok(Resolution::Found(Found { lasting, ..found }))
            }
            other => Ok(other),
        }
    }

    fn resolve_name(&self, parent: &Node, dir: &DirBody, name: &SharedName) -> Result<Resolution> {
        let checked = Name::new(name).map_err(|_| Errno::INVAL)?;
        if whiteout::is_reserved(checked) {
            return Ok(Resolution::Absent);
        }
        if dir.lowers.len() > DEEP || dir.state.lock().listing.is_some() {
            return self.resolve_listed(parent, dir, name);
        }
        if let Some(upper) = dir.upper.get() {
            match self.find_in_upper(parent, dir, upper, checked)? {
                Some(resolution) => return Ok(resolution),
                None if dir.lowers.is_empty() => return Ok(Resolution::Absent),
                None => {}
            }
        }
        self.find_in_lowers(dir, name, 0)
    }

    /// Whether a lower layer shows the name, whatever upper says: its removal needs a whiteout then.
    pub(crate) fn lower_has(&self, dir: &DirBody, name: &SharedName) -> Result<bool> {
        if dir.lowers.is_empty() {
            return Ok(false);
        }
        let cookie = Listing::cookie(self.table.hash_name(name));
        let known = {
            let state = dir.state.lock();
            state
                .listing
                .as_ref()
                .and_then(|listing| listing.get(cookie, name))
                .and_then(|listed| listed.in_lower)
        };
        if let Some(known) = known {
            return Ok(known);
        }
        Ok(matches!(self.find_in_lowers(dir, name, 0)?, Resolution::Found(_)))
    }

    fn resolve_listed_entry(&self, parent: &Node, dir: &DirBody, listed: &Listed) -> Result<Resolution> {
        let name = Name::new(&listed.name).map_err(|_| Errno::INVAL)?;
        match (listed.source, dir.upper.get()) {
            (0, Some(upper)) => {
                Ok(self.find_in_upper(parent, dir, upper, name)?.unwrap_or(Resolution::Absent))
            }
            (0, None) => Err(Errno::IO),
            (source, _) if listed.kind == FileKind::Directory => {
                let first = usize::from(source - 1);
                let below = listed.below.as_deref().map_or(&[][..], Vec::as_slice);
                self.lower_dir_listed(dir, &listed.name, first, below)
            }
            (source, _) => self.find_in_lowers(dir, &listed.name, usize::from(source - 1)),
        }
    }

    fn resolve_listed(&self, parent: &Node, dir: &DirBody, name: &SharedName) -> Result<Resolution> {
        self.ensure_listing(parent, dir)?;
        let cookie = Listing::cookie(self.table.hash_name(name));
        let listed = {
            let state = dir.state.lock();
            match state.listing.as_ref() {
                Some(listing) => listing.get(cookie, name).cloned(),
                None => return Err(Errno::AGAIN),
            }
        };
        match listed {
            Some(listed) => self.resolve_listed_entry(parent, dir, &listed),
            None => Ok(Resolution::Absent),
        }
    }

    /// `None` where upper has no word on the name.
    fn find_in_upper(
        &self,
        parent: &Node,
        dir: &DirBody,
        upper: &UpperDir,
        name: Name<'_>,
    ) -> Result<Option<Resolution>> {
        let fd = self.upper_dir(parent)?;
        let stat = match fd.stat_at(name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                let merged = !dir.lowers.is_empty();
                let marked = merged && self.may_be_marked(upper, &fd)? && whiteout::is_marked(&fd, name)?;
                return Ok(marked.then_some(Resolution::Whiteout));
            }
            Err(error) => return Err(error),
        };
        if stat.is_whiteout() {
            return Ok(Some(Resolution::Whiteout));
        }
        let impure = upper.impure.load(std::sync::atomic::Ordering::Relaxed);
        let found = if stat.is_dir() {
            self.upper_directory(dir, &fd, name, stat)?
        } else {
            self.upper_leaf(dir, &fd, name, stat, impure)?
        };
        Ok(Some(Resolution::Found(found)))
    }

    /// Whether upper may hold a `.wh.` mark here. Found out by listing the directory once, since it rarely does.
    pub(crate) fn may_be_marked(&self, upper: &UpperDir, fd: &Dir) -> Result<bool> {
        if let Some(known) = upper.oci_marks.known() {
            return Ok(known);
        }
        let mut any = false;
        fd.list()?.for_each(|entry| {
            any |= entry.name.starts_with(plyfs_format::whiteout::WHITEOUT_PREFIX);
            if any { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        upper.oci_marks.learn(any);
        Ok(any)
    }

    fn upper_directory(&self, parent: &DirBody, fd: &Dir, name: Name<'_>, stat: Stat) -> Result<Found> {
        let mut marks = DirMarks::read(fd, name, self.namespace)?;
        let mut descent = Descent { target: Target::Child(name.to_owned()), from: 0, stop: marks.opaque };
        let redirect = marks.redirect.as_ref().map(|redirect| redirect.to_bytes().into_boxed_slice());
        if let Some(redirect) = marks.redirect.take().filter(|_| !marks.opaque) {
            if !self.features.follow_redirect_in_upper {
                return Err(Errno::PERM);
            }
            descent.redirect(redirect);
        }
        let mut lowers = self.descend(parent, descent)?;
        if self.export.is_some() && !self.is_origin_of(fd, name, lowers.first())? {
            // As in the kernel: with handles that last, a directory merges with none but the one it is a copy of.
            lowers.clear();
        }
        let upper = UpperDir::found(&marks, redirect);
        let ino = match lowers.first() {
            Some(lower) => self.lower_dir_ino(lower)?,
            None => self.upper_ino(stat.ino),
        };
        Ok(Found { stat, ino, lasting: None, object: Object::Dir { lowers, upper: Some(Box::new(upper)) } })
    }

    fn upper_leaf(
        &self,
        parent: &DirBody,
        fd: &Dir,
        name: Name<'_>,
        mut stat: Stat,
        impure: bool,
    ) -> Result<Found> {
        let mut ino = self.upper_ino(stat.ino);
        let (mut lower, mut index, mut protection) = (None, None, Protection::default());
        // Most files have no attributes at all: one call tells, where asking for each would take two.
        let names = if impure || self.features.metacopy { fd.list_xattrs(name)? } else { Vec::new() };
        if !names.is_empty() {
            let protattr = self.namespace.name(Private::Protattr);
            if names.split(|byte| *byte == 0).any(|name| name == protattr.to_bytes()) {
                let value = fd.get_xattr(name, protattr)?;
                protection =
                    Protection::new(value.map_or_else(Default::default, |value| protect::parse(&value)));
            }
            if let Some(origin) = self.origin_ino(fd, name)? {
                ino = origin;
            }
            if self.features.index && stat.nlink > 1 {
                let origin = fd.get_xattr(name, self.namespace.name(Private::Origin))?;
                index = self.entry_of_upper(origin.as_deref(), &stat)?;
            }
            if stat.kind() == FileKind::Regular
                && let Some(mark) = self.upper_mark(fd, name)?
            {
                let below = self.below_upper(parent, fd, name, &mark)?;
                stat.blocks = self.data_blocks(&below, stat.size)?;
                lower = Some(below);
            }
        }
        let upper =
            UpperLeaf { ino: stat.ino, metacopy: AtomicBool::new(lower.is_some()), index, protection };
        Ok(Found { stat, ino, lasting: None, object: Object::UpperLeaf { upper, lower } })
    }

    /// A lower file whose copy was made through another of its names.
    fn indexed_leaf(&self, lower: LowerLeaf, ino: u64, entry: NameBuf, mut stat: Stat) -> Result<Found> {
        let is_regular = stat.kind() == FileKind::Regular;
        let value = self.index_dir()?.get_xattr(entry.as_name(), self.namespace.name(Private::Protattr))?;
        let protection = Protection::new(value.map_or_else(Default::default, |value| protect::parse(&value)));
        let metacopy = is_regular && self.upper_mark(self.index_dir()?, entry.as_name())?.is_some();
        if metacopy {
            stat.blocks = self.data_blocks(&lower, stat.size)?;
        }
        let upper =
            UpperLeaf { ino: stat.ino, metacopy: metacopy.into(), index: Some(Box::new(entry)), protection };
        Ok(Found { stat, ino, lasting: None, object: Object::UpperLeaf { upper, lower: Some(lower) } })
    }

    /// Searches the parent's lowers from the given position on.
    pub(crate) fn find_in_lowers(
        &self,
        dir: &DirBody,
        name: &SharedName,
        first: usize,
    ) -> Result<Resolution> {
        let checked = Name::new(name).map_err(|_| Errno::INVAL)?;
        for (position, lower) in dir.lowers.iter().enumerate().skip(first) {
            let last = position + 1 == dir.lowers.len();
            let fd = lower.open(&self.lowers, &self.cache)?;
            let mut stat = match fd.stat_at(checked) {
                Ok(stat) => stat,
                Err(Errno::NOENT)
                    if !last && lower.oci_marks.possible() && whiteout::is_marked(&fd, checked)? =>
                {
                    break;
                }
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            if whiteout::hides(&fd, checked, &stat, lower.xwhiteouts, self.namespace)? {
                break;
            }
            if stat.is_dir() {
                return self.lower_dir_found(dir, checked, position, stat);
            }
            let mut leaf = LowerLeaf {
                at: LowerPlace::Named { dir: Arc::clone(lower), name: Arc::clone(name) },
                hard_linked: stat.nlink > 1,
                protection: protect::of_lower(&stat),
                data: None,
            };
            if let Some(mark) = self.lower_mark(&fd, checked, &stat)? {
                leaf = self.below_lower(dir, checked, leaf, &mark)?;
                stat.blocks = self.data_blocks(&leaf, stat.size)?;
            }
            let ino = self.lower_ino(lower.layer, stat.ino);
            let found = match self.find_indexed(&leaf)? {
                Some((entry, copy)) => self.indexed_leaf(leaf, ino, entry, copy)?,
                None => Found { stat, ino, lasting: None, object: Object::LowerLeaf(leaf) },
            };
            return Ok(Resolution::Found(found));
        }
        Ok(Resolution::Absent)
    }

    fn lower_dir_found(
        &self,
        dir: &DirBody,
        name: Name<'_>,
        position: usize,
        stat: Stat,
    ) -> Result<Resolution> {
        let from = dir.lowers.get(position).map_or(0, |lower| lower.layer);
        let descent = Descent { target: Target::Child(name.to_owned()), from, stop: false };
        let lowers = self.descend(dir, descent)?;
        let ino = lowers.first().map_or(stat.ino, |lower| self.lower_ino(lower.layer, stat.ino));
        Ok(Resolution::Found(Found { stat, ino, lasting: None, object: Object::Dir { lowers, upper: None } }))
    }

    /// A lower directory whose layers a listing already knows: only those are asked, as long as no redirect leads
    /// elsewhere.
    fn lower_dir_listed(
        &self,
        dir: &DirBody,
        name: &SharedName,
        first: usize,
        below: &[u16],
    ) -> Result<Resolution> {
        let checked = Name::new(name).map_err(|_| Errno::INVAL)?;
        let mut lowers = Vec::with_capacity(1 + below.len());
        let mut top = None;
        for position in std::iter::once(first).chain(below.iter().map(|position| usize::from(*position))) {
            let Some(lower) = dir.lowers.get(position) else { return Err(Errno::IO) };
            let fd = lower.open(&self.lowers, &self.cache)?;
            let stat = fd.stat_at(checked)?;
            let marks = DirMarks::read(&fd, checked, self.namespace)?;
            if marks.redirect.is_some() {
                return self.find_in_lowers(dir, name, first);
            }
            top.get_or_insert(stat);
            lowers.push(Arc::new(LayerDir::new(lower.layer, lower.join(checked), marks.xwhiteouts)));
            if marks.opaque {
                break;
            }
        }
        let stat = top.ok_or(Errno::IO)?;
        let ino = lowers.first().map_or(stat.ino, |lower| self.lower_ino(lower.layer, stat.ino));
        Ok(Resolution::Found(Found { stat, ino, lasting: None, object: Object::Dir { lowers, upper: None } }))
    }

    /// Collects the lower directories that merge under a name.
    fn descend(&self, parent: &DirBody, mut descent: Descent) -> Result<Vec<Arc<LayerDir>>> {
        let mut found = Vec::new();
        while let Some((base, path)) = self.next_candidate(parent, &mut descent) {
            let Some((dir, stat)) = self.walk_to(&base, &path, &mut descent)? else { continue };
            let Some(name) = path.file_name() else { break };
            if !stat.is_dir() {
                break;
            }
            let last = usize::from(dir.layer) + 1 == self.lowers.len();
            let fd = dir.open(&self.lowers, &self.cache)?;
            let marks = if last { DirMarks::default() } else { DirMarks::read(&fd, name, self.namespace)? };
            found.push(Arc::new(LayerDir::new(dir.layer, dir.join(name), marks.xwhiteouts)));
            if marks.opaque {
                break;
            }
            if let Some(redirect) = marks.redirect {
                if !self.features.follow_redirect_in_lower {
                    return Err(Errno::PERM);
                }
                descent.redirect(redirect);
            }
        }
        Ok(found)
    }

    /// The next layer to ask and the path in it, relative to the returned directory.
    pub(crate) fn next_candidate(
        &self,
        parent: &DirBody,
        descent: &mut Descent,
    ) -> Option<(Arc<LayerDir>, RelPath)> {
        if descent.stop {
            return None;
        }
        let (lowers, path) = match &descent.target {
            Target::Child(name) => (&*parent.lowers, RelPath::root().join(name.as_name())),
            Target::Path(path) => (self.root_lowers(), path.clone()),
        };
        let base = lowers.iter().find(|lower| lower.layer >= descent.from)?;
        descent.from = base.layer + 1;
        Some((Arc::clone(base), path))
    }

    /// Walks a path in one layer; the directory that holds its last component and what that is, or `None` if this
    /// layer does not have it. Sets `stop` where no layer below may be asked.
    pub(crate) fn walk_to(
        &self,
        base: &Arc<LayerDir>,
        path: &RelPath,
        descent: &mut Descent,
    ) -> Result<Option<(Arc<LayerDir>, Stat)>> {
        let mut dir = Arc::clone(base);
        let count = path.components().count();
        // The same way in the layers below, where a directory on it was renamed in this one.
        let mut below = RelPath::root();
        for (position, name) in path.components().enumerate() {
            let last_layer = usize::from(dir.layer) + 1 == self.lowers.len();
            let fd = dir.open(&self.lowers, &self.cache)?;
            let stat = match fd.stat_at(name) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => {
                    descent.stop |= !last_layer && whiteout::is_marked(&fd, name)?;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            if whiteout::hides(&fd, name, &stat, dir.xwhiteouts, self.namespace)? {
                descent.stop = true;
                return Ok(None);
            }
            if position + 1 == count {
                return Ok(Some((dir, stat)));
            }
            if !stat.is_dir() {
                descent.stop = true;
                return Ok(None);
            }
            let marks =
                if last_layer { DirMarks::default() } else { DirMarks::read(&fd, name, self.namespace)? };
            descent.stop |= marks.opaque;
            let redirected = marks.redirect.is_some();
            if redirected && !self.features.follow_redirect_in_lower {
                return Err(Errno::PERM);
            }
            below = match marks.redirect {
                None => below.join(name),
                Some(Redirect::Relative(name)) => below.join(name.as_name()),
                Some(Redirect::Absolute(path)) => path,
            };
            if redirected {
                let rest = path.components().skip(position + 1);
                descent.target = Target::Path(rest.fold(below.clone(), |path, name| path.join(name)));
            }
            dir = Arc::new(LayerDir::new(dir.layer, dir.join(name), marks.xwhiteouts));
        }
        Ok(None)
    }

    fn lower_dir_ino(&self, lower: &LayerDir) -> Result<u64> {
        let stat = lower.open(&self.lowers, &self.cache)?.stat()?;
        Ok(self.lower_ino(lower.layer, stat.ino))
    }
}

impl Descent {
    /// Starts with a name in the parent's lower directories, in no layer above `from`.
    pub fn child(name: Name<'_>, from: u16) -> Self {
        Self { target: Target::Child(name.to_owned()), from, stop: false }
    }

    /// Continues under another name or path in the layers below.
    pub fn redirect(&mut self, redirect: Redirect) {
        self.target = match (redirect, &self.target) {
            (Redirect::Absolute(path), _) => Target::Path(path),
            (Redirect::Relative(name), Target::Child(_)) => Target::Child(name),
            (Redirect::Relative(name), Target::Path(path)) => {
                Target::Path(path.parent().unwrap_or_else(RelPath::root).join(name.as_name()))
            }
        };
    }
}
