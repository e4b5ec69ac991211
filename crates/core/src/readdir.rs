//! Merged listings: making them, keeping them true, and giving them out.
//!
//! Reading needs no open directory: a cookie means the same in every listing of a directory (see `listing.rs`). The
//! kernel's counterpart is `readdir.c`.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use plyfs_format::{Name, OciName};
use plyfs_sys::{Dir, Errno, FileKind, Stat};

use crate::Result;
use crate::directory::{DirBody, DirState};
use crate::listing::{Listed, Listing};
use crate::merge::Resolution;
use crate::node::{Node, SharedName};
use crate::object::{DirEntry, DirSink, Entry, NodeId};
use crate::overlay::Overlay;
use crate::table::NodeTable;
use crate::whiteout;

const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// Entries taken from a listing at once, so that its lock is not held while nodes are looked up.
const CHUNK: usize = 256;

/// How many entries may stay listed in all directories together, beside the latest listing.
const BUDGET: usize = 32_768;

/// Bounds the memory of cached listings: the oldest are dropped and made again on demand.
#[derive(Debug, Default)]
pub(crate) struct ListingBudget {
    cached: Mutex<Cached>,
    serials: AtomicU64,
}

impl ListingBudget {
    fn next_serial(&self) -> u64 {
        self.serials.fetch_add(1, Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Cached {
    /// Oldest first. By id and serial number: a node that was forgotten is not kept in memory by this.
    listings: VecDeque<(NodeId, u64, usize)>,
    entries: usize,
}

impl ListingBudget {
    /// Forgets directories that are gone.
    pub fn purge(&self, nodes: &NodeTable) {
        let mut cached = self.cached.lock();
        cached.listings.retain(|(node, ..)| nodes.get(*node).is_some_and(|node| node.is_dir()));
        cached.listings.shrink_to_fit();
        cached.entries = cached.listings.iter().map(|(_, _, entries)| entries + 1).sum();
    }
}

impl Overlay {
    /// Lists a directory from a cookie on (0 is the start) until the sink is full; `.` and `..` are included. With
    /// `with_entries` each entry carries its node and attributes, which counts as a lookup.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE`; what the layers answer.
    pub fn read_dir(
        &self,
        node: NodeId,
        cookie: u64,
        with_entries: bool,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        let node = self.dir_node(node)?;
        let dir = node.as_dir().ok_or(Errno::NOTDIR)?;
        let mut cookie = cookie;
        if cookie < DOT_DOT && !push_dots(&node, cookie, sink) {
            return Ok(());
        }
        loop {
            self.ensure_listing(&node, dir)?;
            let (chunk, generation) = {
                let state = dir.state.lock();
                let Some(listing) = state.listing.as_ref() else { continue };
                if !with_entries {
                    match self.push_known(&node, &state, listing, &mut cookie, sink) {
                        ControlFlow::Continue(()) => {}
                        ControlFlow::Break(()) => return Ok(()),
                    }
                }
                let chunk: Vec<(u64, Listed)> =
                    listing.after(cookie).take(CHUNK).map(|(key, listed)| (key, listed.clone())).collect();
                (chunk, state.generation)
            };
            let Some((last, _)) = chunk.last() else { return Ok(()) };
            let last = *last;
            for (key, listed) in &chunk {
                if !sink.has_room(listed.name.len()) {
                    return Ok(());
                }
                self.push_entry(&node, dir, *key, listed, with_entries.then_some(generation), sink)?;
            }
            cookie = last;
        }
    }

    /// Gives out entries, from `cookie` on, for as long as the listing is enough to know them; breaks when the sink is
    /// full. Needs no system call, so the listing may be locked meanwhile.
    fn push_known(
        &self,
        node: &Node,
        state: &DirState,
        listing: &Listing,
        cookie: &mut u64,
        sink: &mut dyn DirSink,
    ) -> ControlFlow<()> {
        let Some(dir) = node.as_dir() else { return ControlFlow::Continue(()) };
        for (key, listed) in listing.after(*cookie) {
            // A node of upper may be a copy whose number was never written down.
            let copy = listed.source == 0;
            let child = copy.then(|| state.child(&self.table, node.id, &listed.name)).flatten();
            let ino = child.map(|child| child.ino()).or_else(|| self.listed_ino(dir, listed));
            let Some(ino) = ino else { break };
            if !sink.has_room(listed.name.len()) {
                return ControlFlow::Break(());
            }
            let kind = listed.kind.mode_bits();
            sink.push(&DirEntry { cookie: key, ino, kind, name: &listed.name, entry: None });
            *cookie = key;
        }
        ControlFlow::Continue(())
    }

    fn push_entry(
        &self,
        node: &Arc<Node>,
        dir: &DirBody,
        cookie: u64,
        listed: &Listed,
        look_up: Option<u64>,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        let found = match look_up {
            Some(generation) => self.entry_of(node, dir, listed, generation),
            None => self.plain_entry(node, dir, listed),
        };
        // One damaged entry must not hide the others: it is shown without attributes.
        let (ino, entry) = found.unwrap_or_else(|error| {
            tracing::debug!(name = %String::from_utf8_lossy(&listed.name), %error, "listed without attributes");
            (listed.ino, None)
        });
        let kind = listed.kind.mode_bits();
        sink.push(&DirEntry { cookie, ino, kind, name: &listed.name, entry });
        Ok(())
    }

    /// Looks a listed name up, without asking the layers which of them has it.
    fn entry_of(
        &self,
        parent: &Arc<Node>,
        dir: &DirBody,
        listed: &Listed,
        generation: u64,
    ) -> Result<(u64, Option<Entry>)> {
        let (node, stat) = match self.known_child(parent, &listed.name) {
            Some(node) => self.stat_acquired(node)?,
            None => {
                let adopted = match self.resolve_entry(parent, dir, listed)? {
                    Resolution::Found(found) => {
                        let stat = found.stat;
                        self.adopt(parent, dir, &listed.name, found, (generation, false))
                            .map(|node| (node, stat))
                    }
                    _ => None,
                };
                match adopted {
                    Some(adopted) => adopted,
                    None => self.lookup_node(parent, &listed.name)?.ok_or(Errno::NOENT)?,
                }
            }
        };
        let entry = self.entry(&node, &stat);
        Ok((entry.attr.ino, Some(entry)))
    }

    /// The inode number of a listed name, without making a node where that is not needed.
    fn plain_entry(
        &self,
        parent: &Arc<Node>,
        dir: &DirBody,
        listed: &Listed,
    ) -> Result<(u64, Option<Entry>)> {
        if let Some(node) = self.known_child(parent, &listed.name) {
            let ino = node.ino();
            self.release_lookups(node, 1);
            return Ok((ino, None));
        }
        if let Some(ino) = self.listed_ino(dir, listed) {
            return Ok((ino, None));
        }
        match self.resolve_entry(parent, dir, listed)? {
            Resolution::Found(found) => Ok((found.ino, None)),
            _ => Err(Errno::NOENT),
        }
    }

    /// What `stat` reports as the number of a listed name, where the layer's own listing is enough to know it: not for an
    /// upper directory, which may be merged, nor for what may be a copy of a lower object.
    fn listed_ino(&self, dir: &DirBody, listed: &Listed) -> Option<u64> {
        if listed.source > 0 {
            let lower = dir.lowers.get(usize::from(listed.source - 1))?;
            return Some(self.lower_ino(lower.layer, listed.ino));
        }
        let impure = dir.upper.get()?.impure.load(Ordering::Acquire);
        (!impure && listed.kind != FileKind::Directory).then(|| self.upper_ino(listed.ino))
    }

    /// Whether a directory shows nothing.
    pub(crate) fn is_empty(&self, node: &Arc<Node>, dir: &DirBody) -> Result<bool> {
        loop {
            self.ensure_listing(node, dir)?;
            if let Some(listing) = dir.state.lock().listing.as_ref() {
                return Ok(listing.len() == 0);
            }
        }
    }

    /// Sees to it that the listing is cached. It may be dropped again at any time.
    pub(crate) fn ensure_listing(&self, node: &Node, dir: &DirBody) -> Result<()> {
        const UNDISTURBED: usize = 2;
        let mut attempt = 0;
        loop {
            // A busy directory would change under every attempt. Who holds this lock already succeeds at the first.
            let _still = (attempt >= UNDISTURBED).then(|| dir.change.lock());
            attempt += 1;
            let generation = {
                let state = dir.state.lock();
                if state.listing.is_some() {
                    return Ok(());
                }
                state.generation
            };
            let mut listing =
                if dir.state.lock().removed { Listing::default() } else { self.read_layers(node, dir)? };
            let (entries, serial) = (listing.len(), self.listings.next_serial());
            listing.serial = serial;
            let mut state = dir.state.lock();
            if state.generation == generation {
                state.listing = Some(Box::new(listing));
                drop(state);
                self.account(node.id, serial, entries);
                return Ok(());
            }
        }
    }

    /// Reads all layers of a directory, the topmost first.
    fn read_layers(&self, node: &Node, dir: &DirBody) -> Result<Listing> {
        let mut merge = Merge {
            overlay: self,
            listing: Listing::default(),
            hidden: Listing::default(),
            layer_hidden: Vec::new(),
            fresh: Vec::new(),
        };
        if dir.upper.get().is_some() {
            let fd = self.upper_dir(node)?;
            let marked = merge.add_layer(&fd, 0, false)?;
            if let Some(upper) = dir.upper.get() {
                upper.oci_marks.learn(marked);
            }
        }
        for (position, lower) in dir.lowers.iter().enumerate() {
            let source = u16::try_from(position + 1).map_err(|_| Errno::OVERFLOW)?;
            let marked = merge.add_layer(&*self.lower_dir(lower)?, source, lower.xwhiteouts)?;
            lower.oci_marks.learn(marked);
        }
        Ok(merge.listing)
    }

    /// Counts a new listing, and drops the oldest where there are too many.
    fn account(&self, node: NodeId, serial: u64, entries: usize) {
        let mut victims = Vec::new();
        {
            let mut cached = self.listings.cached.lock();
            cached.listings.push_back((node, serial, entries));
            cached.entries += entries + 1;
            while cached.entries > BUDGET && cached.listings.len() > 1 {
                let Some((oldest, serial, entries)) = cached.listings.pop_front() else { break };
                cached.entries = cached.entries.saturating_sub(entries + 1);
                victims.push((oldest, serial));
            }
        }
        for (victim, serial) in victims {
            let Some(node) = self.table.get(victim) else { continue };
            let Some(dir) = node.as_dir() else { continue };
            // Made anew since then, or of another directory that has the id now: not this one's turn.
            let listing = dir.state.lock().listing.take_if(|listing| listing.serial == serial);
            drop(listing);
        }
    }

    /// Lists a name that was just made in upper.
    pub(crate) fn list_upper(&self, state: &mut DirState, name: &SharedName, stat: &Stat) {
        self.list(state, name, stat.kind(), stat.ino);
    }

    /// Lists a node that was just moved here; it is in upper.
    pub(crate) fn list_moved(&self, state: &mut DirState, name: &SharedName, node: &Node) {
        self.list(state, name, node.kind, node.ino());
    }

    fn list(&self, state: &mut DirState, name: &SharedName, kind: FileKind, ino: u64) {
        let cookie = Listing::cookie(self.table.hash_name(name));
        let Some(listing) = state.listing.as_mut() else { return };
        // What lies below a new name is hidden, but it is still there: only the layers can say.
        let listed = Listed { name: Arc::clone(name), ino, kind, source: 0, in_lower: None, below: None };
        listing.insert(cookie, listed);
    }

    /// Takes a name out of the listing.
    pub(crate) fn unlist(&self, state: &mut DirState, name: &[u8]) {
        let cookie = Listing::cookie(self.table.hash_name(name));
        if let Some(listing) = state.listing.as_mut() {
            listing.remove(cookie, name);
        }
    }

    /// Notes that a listed name is now in upper.
    pub(crate) fn mark_listed_upper(&self, dir: &DirBody, name: &[u8]) {
        let cookie = Listing::cookie(self.table.hash_name(name));
        let mut state = dir.state.lock();
        state.changed();
        if let Some(listed) = state.listing.as_mut().and_then(|listing| listing.get_mut(cookie, name)) {
            listed.source = 0;
        }
    }
}

/// `.` and `..`; false when the sink is full.
fn push_dots(node: &Node, cookie: u64, sink: &mut dyn DirSink) -> bool {
    let above = node.place().map_or_else(|| node.ino(), |place| place.parent.ino());
    for (at, name, ino) in [(DOT, &b"."[..], node.ino()), (DOT_DOT, &b".."[..], above)] {
        if at <= cookie {
            continue;
        }
        if !sink.has_room(name.len()) {
            return false;
        }
        let kind = FileKind::Directory.mode_bits();
        sink.push(&DirEntry { cookie: at, ino, kind, name, entry: None });
    }
    true
}

/// A listing in the making.
struct Merge<'a> {
    overlay: &'a Overlay,
    listing: Listing,
    /// Names that a whiteout hides in the layers still to come.
    hidden: Listing,
    /// `.wh.` names of the layer being read: they hide in layers below, not in their own.
    layer_hidden: Vec<SharedName>,
    /// New names of the layer being read, each once: added together when it is done.
    fresh: Vec<(u64, Listed)>,
}

impl Merge<'_> {
    /// Adds what a layer shows; says whether it holds `.wh.` names.
    fn add_layer(&mut self, dir: &Dir, source: u16, xwhiteouts: bool) -> Result<bool> {
        let mut failure = None;
        let mut lister = dir.list()?;
        lister.for_each(|raw| match self.add(dir, &raw, source, xwhiteouts) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        })?;
        let fresh = std::mem::take(&mut self.fresh);
        if self.listing.len() == 0 {
            self.listing = Listing::of(fresh);
        } else {
            fresh.into_iter().for_each(|(cookie, listed)| self.listing.insert(cookie, listed));
        }
        let marked = !self.layer_hidden.is_empty();
        for name in std::mem::take(&mut self.layer_hidden) {
            self.hide(name);
        }
        failure.map_or(Ok(marked), Err)
    }

    fn add(&mut self, dir: &Dir, raw: &plyfs_sys::RawEntry<'_>, source: u16, xwhiteouts: bool) -> Result<()> {
        let name = Name::new(raw.name).map_err(|_| Errno::IO)?;
        match OciName::parse(name) {
            OciName::Plain => {}
            OciName::Whiteout(hidden) => {
                self.layer_hidden.push(hidden.as_bytes().into());
                return Ok(());
            }
            _ => return Ok(()),
        }
        let cookie = Listing::cookie(self.overlay.table.hash_name(raw.name));
        if self.hidden.get(cookie, raw.name).is_some() {
            return Ok(());
        }
        let Some(kind) = visible_kind(self.overlay, dir, name, raw.dtype, xwhiteouts)? else {
            self.hide(raw.name.into());
            return Ok(());
        };
        if let Some(above) = self.listing.get_mut(cookie, raw.name) {
            let merges = above.kind == FileKind::Directory && kind == FileKind::Directory;
            above.in_lower = Some(true);
            if merges && above.source != 0 {
                above.below.get_or_insert_default().push(source - 1);
            }
            if !merges {
                // Nothing of that name merges from the layers still to come.
                self.hide(raw.name.into());
            }
            return Ok(());
        }
        let listed = Listed {
            name: raw.name.into(),
            ino: raw.ino,
            kind,
            source,
            in_lower: Some(source != 0),
            below: None,
        };
        self.fresh.push((cookie, listed));
        Ok(())
    }

    fn hide(&mut self, name: SharedName) {
        let cookie = Listing::cookie(self.overlay.table.hash_name(&name));
        let hidden = Listed { name, ino: 0, kind: FileKind::Char, source: 0, in_lower: None, below: None };
        self.hidden.insert(cookie, hidden);
    }
}

/// The type of an entry; `None` for a whiteout.
fn visible_kind(
    overlay: &Overlay,
    dir: &Dir,
    name: Name<'_>,
    dtype: Option<FileKind>,
    xwhiteouts: bool,
) -> Result<Option<FileKind>> {
    match dtype {
        Some(
            kind @ (FileKind::Directory
            | FileKind::Symlink
            | FileKind::Block
            | FileKind::Fifo
            | FileKind::Socket),
        ) => Ok(Some(kind)),
        Some(FileKind::Regular) if !xwhiteouts => Ok(Some(FileKind::Regular)),
        _ => {
            let stat = match dir.stat_at(name) {
                Ok(stat) => stat,
                // Removed since it was listed: as good as not there, and the generation says so.
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(error),
            };
            let hides = whiteout::hides(dir, name, &stat, xwhiteouts, overlay.namespace)?;
            Ok((!hides).then(|| stat.kind()))
        }
    }
}
