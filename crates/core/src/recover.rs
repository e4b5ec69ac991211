//! From an id that lasts (`export.rs`) to its object, when the front end asks for a node that it no longer has.
//!
//! Directories are found by climbing to the root of their layer and looking the names up on the way down; anything else is
//! reached by its handle, and has no name until one is looked up. An id can be anybody's invention: whatever is wrong with
//! it is `ESTALE`. The kernel's counterpart is `ovl_fh_to_dentry`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use plyfs_format::{FileHandle, Name, NameBuf, Origin, Private, RelPath};
use plyfs_sys::{Dir, Errno, File, FileKind, Stat};

use crate::Result;
use crate::export::Named;
use crate::index::IndexEntry;
use crate::layer::{LayerDir, LowerLayer};
use crate::lookup::acquire;
use crate::merge::{Found, Object, Resolution};
use crate::node::{Body, HeldLower, Leaf, LowerLeaf, LowerPlace, Node, UpperLeaf};
use crate::object::NodeId;
use crate::overlay::Overlay;
use crate::protect::{self, Protection};

impl Overlay {
    /// The node that an id names, whether or not it is remembered; counts one lookup.
    ///
    /// # Errors
    /// `ESTALE` for what is gone, and for ids that were never given.
    pub(crate) fn node_of_id(&self, id: NodeId) -> Result<(Arc<Node>, Stat)> {
        if let Some(node) = self.table.get(id)
            && acquire(&node)
        {
            return self.stat_acquired(node);
        }
        let named = self.export.as_ref().and_then(|export| export.parse(id)).ok_or(Errno::STALE)?;
        let node = match self.recover(id, &named) {
            Ok(node) => node,
            // What a handle leads to may be anything: whatever is wrong with it, there is nothing of this id. But what lacks for
            // a moment may be there the next time.
            Err(Errno::NOMEM) => return Err(Errno::NOMEM),
            Err(Errno::NFILE | Errno::MFILE) => return Err(Errno::NFILE),
            Err(Errno::IO) => {
                tracing::warn!(id = id.0, "the object of a file handle cannot be read");
                return Err(Errno::IO);
            }
            Err(error) => {
                tracing::debug!(id = id.0, %error, "a file handle leads nowhere");
                return Err(Errno::STALE);
            }
        };
        if node.id != id {
            self.release_lookups(node, 1);
            return Err(Errno::STALE);
        }
        self.stat_acquired(node)
    }

    /// The directory above; counts one lookup.
    pub(crate) fn parent_of(&self, node: &Node) -> Result<(Arc<Node>, Stat)> {
        let parent = match node.place() {
            Some(place) => place.parent,
            None if node.id == NodeId::ROOT => self.node(NodeId::ROOT)?,
            None => return Err(Errno::STALE),
        };
        if acquire(&parent) { self.stat_acquired(parent) } else { Err(Errno::STALE) }
    }

    /// An upper leaf that has no known name, by its handle.
    pub(crate) fn unnamed_upper(&self, node: &Node, leaf: &Leaf) -> Result<Arc<File>> {
        if let Some(file) = leaf.orphan() {
            return Ok(Arc::clone(file));
        }
        match self.export.as_ref().and_then(|export| export.parse(node.id)) {
            Some(named) if named.in_upper => {
                self.require_upper()?.root.open_handle_mut(&named.handle).map(Arc::new)
            }
            _ => Err(Errno::NOENT),
        }
    }

    fn recover(&self, id: NodeId, named: &Named) -> Result<Arc<Node>> {
        if named.in_upper {
            return self.recover_upper(id, &named.handle);
        }
        let on_it = |layer: &&LowerLayer| layer.fs == named.fs;
        if self.upper.is_some() {
            for layer in self.lowers.iter().filter(on_it) {
                let uuid = if self.features.uuid { layer.uuid } else { [0; 16] };
                match self.upper_of_entry(&Origin::new(uuid, named.handle.clone()))? {
                    IndexEntry::None => {}
                    IndexEntry::Retired => return Err(Errno::STALE),
                    IndexEntry::Upper(handle) => return self.connect_upper(&handle),
                    IndexEntry::Leaf(entry, stat) => return self.recover_indexed(id, named, entry, &stat),
                }
            }
        }
        self.recover_lower(id, named)
    }

    fn recover_upper(&self, id: NodeId, handle: &FileHandle) -> Result<Arc<Node>> {
        let upper = self.require_upper()?;
        let file = upper.root.open_handle_mut(handle)?;
        let stat = check_alive(&file, handle)?;
        if stat.is_dir() {
            return self.connect_upper(handle);
        }
        let origin = file.get_xattr(self.namespace.name(Private::Origin))?;
        if self.entry_of_upper(origin.as_deref(), &stat)?.is_some() {
            // It has the id of its lower object.
            return Err(Errno::STALE);
        }
        let leaf = UpperLeaf { protection: self.protection_of(&file)?, ..UpperLeaf::whole(stat.ino) };
        let ino = match origin.as_deref() {
            Some(value) => self.ino_of_origin(value).unwrap_or_else(|| self.upper_ino(stat.ino)),
            None => self.upper_ino(stat.ino),
        };
        Ok(self.hold(id, stat.kind(), ino, Leaf::upper(leaf, None)))
    }

    /// A copied-up leaf, by its index entry.
    fn recover_indexed(&self, id: NodeId, named: &Named, entry: NameBuf, stat: &Stat) -> Result<Arc<Node>> {
        let lower = self.held_lower(named)?;
        let file = self.index_dir()?.open_path_mut(entry.as_name())?;
        let leaf = UpperLeaf {
            protection: self.protection_of(&file)?,
            index: Some(Box::new(entry)),
            ..UpperLeaf::whole(stat.ino)
        };
        let ino = lower.1;
        Ok(self.hold(id, stat.kind(), ino, Leaf::upper(leaf, Some(lower.0))))
    }

    fn recover_lower(&self, id: NodeId, named: &Named) -> Result<Arc<Node>> {
        let layer = self.lowers.iter().find(|layer| layer.fs == named.fs).ok_or(Errno::STALE)?;
        let file = layer.root.open_handle(&named.handle)?;
        let stat = check_alive(&file, &named.handle)?;
        if stat.is_dir() {
            return self.connect_lower(named);
        }
        if file.get_xattr(self.namespace.name(Private::Metacopy))?.is_some() {
            return Err(Errno::PERM);
        }
        let (lower, ino) = self.held_lower(named)?;
        Ok(self.hold(id, stat.kind(), ino, Leaf::lower(lower)))
    }

    /// A lower leaf of which nothing but the handle is known, and the number that it is shown with.
    fn held_lower(&self, named: &Named) -> Result<(LowerLeaf, u64)> {
        let layer = self.lowers.iter().position(|layer| layer.fs == named.fs).ok_or(Errno::STALE)?;
        let layer = u16::try_from(layer).map_err(|_| Errno::STALE)?;
        let held = HeldLower { layer, handle: named.handle.clone() };
        let mut lower = LowerLeaf {
            at: LowerPlace::Handle(Box::new(held)),
            hard_linked: false,
            protection: plyfs_format::Protattr::empty(),
            data: None,
        };
        let stat = self.lower_at(&lower)?.stat()?;
        lower.hard_linked = stat.nlink > 1;
        lower.protection = protect::of_lower(&stat);
        Ok((lower, self.lower_ino(layer, stat.ino)))
    }

    fn protection_of(&self, file: &File) -> Result<Protection> {
        let value = file.get_xattr(self.namespace.name(Private::Protattr))?;
        Ok(Protection::new(value.map_or_else(Default::default, |value| protect::parse(&value))))
    }

    /// Remembers a leaf without a name, unless somebody was faster.
    fn hold(&self, id: NodeId, kind: FileKind, ino: u64, leaf: Leaf) -> Arc<Node> {
        self.table.share_or_insert(
            id,
            |node| !node.is_dir() && acquire(node),
            |at| {
                let node = Node::new(at, kind, ino, None, Body::Leaf(leaf));
                node.lookups.store(1, Ordering::Relaxed);
                node
            },
        )
    }
}

/// Directories, which are always found by their names.
impl Overlay {
    /// The node of a directory of upper; counts one lookup.
    fn connect_upper(&self, handle: &FileHandle) -> Result<Arc<Node>> {
        let upper = self.require_upper()?;
        let mut tries = 0;
        loop {
            let root = upper.root.stat()?;
            let dir = upper.root.open_dir_handle(handle)?;
            let expected = dir.stat()?;
            let climbed = {
                let _still = self.tree.read();
                climb(dir, &root)?
            };
            let names = climbed.ok_or(Errno::STALE)?;
            match self.walk_names(&names) {
                Ok(node)
                    if self
                        .upper_dir(&node)
                        .and_then(|dir| dir.stat())
                        .is_ok_and(|s| s.same_inode(&expected)) =>
                {
                    return Ok(node);
                }
                Ok(node) => self.release_lookups(node, 1),
                Err(Errno::STALE) => {}
                Err(error) => return Err(error),
            }
            // Something on the way was renamed meanwhile.
            tries += 1;
            if tries == ATTEMPTS {
                return Err(Errno::STALE);
            }
        }
    }

    fn walk_names(&self, names: &[NameBuf]) -> Result<Arc<Node>> {
        let mut node = self.node(NodeId::ROOT)?;
        for name in names {
            let next = self.lookup_node(&node, name.as_bytes());
            self.release_lookups(node, 1);
            node = next?.ok_or(Errno::STALE)?.0;
        }
        Ok(node)
    }

    /// The node in which a directory of a lower layer merges; counts one lookup.
    fn connect_lower(&self, named: &Named) -> Result<Arc<Node>> {
        let (layer, names) = self.layer_of(named)?;
        let mut node = self.node(NodeId::ROOT)?;
        let mut path = RelPath::root();
        for name in &names {
            path = path.join(name.as_name());
            let next = self.child_with(&node, name.as_name(), layer, &path);
            self.release_lookups(node, 1);
            node = next?;
        }
        Ok(node)
    }

    /// In which layer a lower directory lies, and where. A layer that is a mount of its own can only be climbed within.
    fn layer_of(&self, named: &Named) -> Result<(u16, Vec<NameBuf>)> {
        for (position, layer) in self.lowers.iter().enumerate().filter(|(_, layer)| layer.fs == named.fs) {
            let root = layer.root.stat()?;
            if let Some(names) = climb(layer.root.open_dir_handle(&named.handle)?, &root)? {
                return Ok((u16::try_from(position).map_err(|_| Errno::STALE)?, names));
            }
        }
        Err(Errno::STALE)
    }

    /// The directory that has this lower one below it. Its parent is the node, unless it was renamed: then the index tells where
    /// it is now.
    fn child_with(&self, node: &Arc<Node>, name: Name<'_>, layer: u16, path: &RelPath) -> Result<Arc<Node>> {
        let has = |lowers: &[Arc<LayerDir>]| lowers.iter().any(|dir| dir.layer == layer && dir.path == *path);
        if let Some((child, _)) = self.lookup_node(node, name.as_bytes())? {
            if child.as_dir().is_some_and(|dir| has(&dir.lowers)) {
                return Ok(child);
            }
            self.release_lookups(child, 1);
        }
        let dir = node.as_dir().ok_or(Errno::STALE)?;
        let below = self.find_in_lowers(dir, &name.as_bytes().into(), 0)?;
        let Resolution::Found(Found { object: Object::Dir { lowers, .. }, .. }) = below else {
            return Err(Errno::STALE);
        };
        let top = lowers.first().filter(|_| has(&lowers) && self.upper.is_some()).ok_or(Errno::STALE)?;
        let handle = self.lower_dir(top)?.own_file_handle()?.ok_or(Errno::STALE)?;
        let IndexEntry::Upper(upper) =
            self.upper_of_entry(&Origin::new(self.recorded_uuid(top.layer), handle))?
        else {
            return Err(Errno::STALE);
        };
        let moved = self.connect_upper(&upper)?;
        if moved.as_dir().is_some_and(|dir| has(&dir.lowers)) {
            return Ok(moved);
        }
        self.release_lookups(moved, 1);
        Err(Errno::STALE)
    }
}

/// How often a directory is looked for that is being renamed.
const ATTEMPTS: u32 = 8;

/// How deep a directory may lie.
const DEEPEST: usize = 10_000;

/// That the object of a handle is the one asked for (file systems take a generation of zero for any), and one that can be
/// shown.
fn check_alive(file: &File, handle: &FileHandle) -> Result<Stat> {
    let stat = file.stat()?;
    if file.file_handle()?.as_ref() != Some(handle) || stat.nlink == 0 || stat.is_whiteout() {
        return Err(Errno::STALE);
    }
    Ok(stat)
}

/// Climbs from a directory to the root of a layer: the names on the way down. `None` for a directory outside of it.
fn climb(mut dir: Dir, root: &Stat) -> Result<Option<Vec<NameBuf>>> {
    let mut names = Vec::new();
    while names.len() < DEEPEST {
        let stat = dir.stat()?;
        if stat.same_inode(root) {
            names.reverse();
            return Ok(Some(names));
        }
        let above = match dir.above() {
            // Out of the mount, so out of the layer.
            Err(Errno::NOENT) => return Ok(None),
            above => above?,
        };
        if above.stat()?.same_inode(&stat) {
            return Ok(None);
        }
        let Some(name) = name_in(&above, &stat)? else { return Ok(None) };
        names.push(name);
        dir = above;
    }
    Ok(None)
}

/// The name of a directory in the one above it.
fn name_in(dir: &Dir, stat: &Stat) -> Result<Option<NameBuf>> {
    let mut found = None;
    dir.list()?.for_each(|entry| {
        if entry.ino == stat.ino && entry.dtype.is_none_or(|kind| kind == FileKind::Directory) {
            found = Name::new(entry.name).ok().map(Name::to_owned);
        }
        if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(found)
}
