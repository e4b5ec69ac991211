//! Assembly of a stack into an [`Overlay`], and what all operations share: layers, table, caches.
//!
//! Owns the stack, the nodes and the handles. The kernel's counterparts are `super.c` and `params.c`.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use plyfs_format::spec::Verity;
use plyfs_format::{Name, Namespace, Origin, Private, RelPath, StackSpec, origin::Parsed};
use plyfs_sys::{Dir, DirMut, Errno, Faults};

use crate::Result;
use crate::directory::{DirBody, UpperDir};
use crate::error::AssembleError;
use crate::export::Export;
use crate::fd_cache::{FdCache, Slot};
use crate::handle::Handles;
use crate::idle::IdleFiles;
use crate::index;
use crate::ino::{FsIndex, InoSpace};
use crate::layer::{LayerDir, LowerLayer, OciMarks};
use crate::lock::{self, OrderedRw};
use crate::node::{Body, Node};
use crate::object::NodeId;
use crate::overlap;
use crate::owner::Owners;
use crate::probe;
use crate::protect::Protection;
use crate::readdir::ListingBudget;
use crate::show::Show;
use crate::table::NodeTable;
use crate::upper::Upper;
use crate::uuid;
use crate::whiteout::DirMarks;

/// Engine settings that are no mount options.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Fault points for crash tests; they do nothing unless armed.
    pub faults: Faults,
    /// How many layer directories may be held open at once. The process needs some descriptors beside them.
    pub open_directories: usize,
    /// Delete by `.wh.NAME` files also where whiteout devices could be made: for tests, and for uppers that are to go where
    /// there are none.
    pub named_whiteouts: bool,
    /// How long assembly waits for another mount to let go of the upper directory: a daemon that is just ending.
    pub wait_for_upper: Duration,
    /// Owner and group of objects whose own are not mapped in the mounter's user namespace: shown so, and given to their
    /// copies, without set-id bits. `None`: shown as reported, and a copy-up is `EOVERFLOW`, as in the kernel.
    pub unmapped_owner: Option<(u32, u32)>,
    /// Allow lowers that lie within another directory of the stack, which is refused otherwise, as by the kernel: for who
    /// has made sure, by a whiteout above, that nothing is reached in two ways.
    pub nested_lowers: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            faults: Faults::new(),
            named_whiteouts: false,
            open_directories: 4096,
            wait_for_upper: Duration::from_secs(3),
            unmapped_owner: None,
            nested_lowers: false,
        }
    }
}

/// What was answered before, and was made untrue by an operation on another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stale {
    /// The attributes of a node that was copied up: its change time, and the link count of a directory.
    Attributes(NodeId),
    /// An inode number in the listing of a directory: a file with several lower links was copied up.
    Listing(NodeId),
}

struct Observer(Box<dyn Fn(Stale) + Send + Sync>);

impl std::fmt::Debug for Observer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Observer")
    }
}

/// A mounted stack: the union of its layers. Every operation takes `&self` and may run on any thread.
#[derive(Debug)]
pub struct Overlay {
    pub(crate) lowers: Vec<LowerLayer>,
    /// Layers that hold data of metadata-only files and never merge.
    pub(crate) data_layers: Vec<LowerLayer>,
    pub(crate) upper: Option<Upper>,
    pub(crate) namespace: Namespace,
    pub(crate) features: Features,
    pub(crate) owners: Owners,
    pub(crate) show: Show,
    pub(crate) table: NodeTable,
    pub(crate) handles: Handles,
    pub(crate) cache: FdCache,
    pub(crate) tree: OrderedRw<{ lock::TREE }, ()>,
    pub(crate) listings: ListingBudget,
    pub(crate) idle: IdleFiles,
    /// With it ids last (`nfs_export=on`).
    pub(crate) export: Option<Export>,
    root: Arc<Node>,
    ino: InoSpace,
    /// The most nodes that were remembered since memory was last given back.
    peak: AtomicUsize,
    observer: OnceLock<Observer>,
    /// Locks on upper and work, released when the overlay goes.
    _locks: Vec<probe::InUseLock>,
}

/// The optional features as they are in force.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// Directories of lower layers can be renamed: the redirect is recorded in upper.
    pub redirect_dir: bool,
    pub follow_redirect_in_upper: bool,
    pub follow_redirect_in_lower: bool,
    /// Attribute changes of lower files copy no data.
    pub metacopy: bool,
    /// The names of a lower file with several links stay together when it is copied up.
    pub index: bool,
    /// File handles last: every copy has an entry in the index, and what was deleted too.
    pub nfs_export: bool,
    /// Lower layers are believed that their files' data lies further down.
    pub follow_metacopy_in_lower: bool,
    /// Whether the data of metadata-only files is checked against the recorded digest.
    pub verity: Verity,
    /// Copy-up and fsync reach the medium.
    pub sync: bool,
    /// Lower layers may be changed while nothing is mounted: no new directory is marked opaque without need.
    pub allow_offline_changes: bool,
    /// `origin` and `uuid` carry file system UUIDs.
    pub uuid: bool,
    /// Lower files that are opened for reading are given to the kernel: what has one open goes on reading it after copy-up.
    pub lower_passthrough: bool,
}

impl Features {
    /// Without what the upper's file system cannot keep.
    fn within(self, upper: Option<&Upper>) -> Self {
        let Some(upper) = upper.filter(|upper| !upper.abilities.xattr) else { return self };
        tracing::warn!(path = %upper.path.display(), "upperdir has no attributes: no directory of a lower layer can be renamed, and inode numbers change at copy-up");
        Self {
            redirect_dir: false,
            metacopy: false,
            index: false,
            nfs_export: false,
            allow_offline_changes: true,
            ..self
        }
    }
}

impl Overlay {
    /// Opens the layers and prepares upper and work. Relative paths are taken from the working directory.
    ///
    /// # Errors
    /// One clear line for each thing that can be wrong with the stack; nothing is left half done.
    pub fn assemble(spec: &StackSpec, settings: &Settings) -> core::result::Result<Self, AssembleError> {
        let privileged = plyfs_sys::creds::has_cap_sys_admin_init();
        let options = probe::options(spec, privileged)?;
        overlap::check(spec, settings.nested_lowers)?;
        let mut devices = Vec::new();
        let upper = match &spec.upper {
            Some(paths) => Some(probe::upper(paths, &options, settings, &mut devices)?),
            None => None,
        };
        let lowers = probe::lowers(spec, &mut devices)?;
        let data_layers = probe::data_layers(spec, &mut devices)?;
        let (upper, locks) = match upper {
            Some((upper, locks)) => (Some(upper), locks),
            None => (None, Vec::new()),
        };
        let mut features = options.features.within(upper.as_ref());
        let mut export = None;
        if features.nfs_export {
            export = Export::of(&lowers, upper.as_ref(), devices.len(), features.uuid);
        }
        if let (true, Some(upper), Some(paths)) = (features.index, &upper, &spec.upper) {
            let index = index::Preparation { upper, work: &paths.work, namespace: options.namespace };
            features.index = index.run(&lowers, features.uuid, export.is_some())?;
        }
        export = export.filter(|_| upper.is_none() || features.index);
        features.nfs_export = export.is_some();
        if let Some(upper) = upper.as_ref().filter(|upper| upper.abilities.xattr)
            && let Err(error) = uuid::prepare(&upper.root, options.uuid, options.namespace)
        {
            tracing::warn!(path = %upper.path.display(), %error, "upperdir gets no UUID");
        }
        let ino = InoSpace::new(devices.len(), spec.options.ino32);
        let show = probe::show(spec, &lowers, upper.as_ref())?;
        let table = if features.nfs_export { NodeTable::with_lasting_ids() } else { NodeTable::default() };
        let root = make_root(&table, &lowers, upper.as_ref(), options.namespace, ino)?;
        Ok(Self {
            lowers,
            data_layers,
            upper,
            namespace: options.namespace,
            features,
            owners: Owners::new(settings.unmapped_owner),
            show,
            table,
            handles: Handles::default(),
            cache: FdCache::new(settings.open_directories),
            tree: OrderedRw::new(()),
            listings: ListingBudget::default(),
            idle: IdleFiles::default(),
            export,
            root,
            ino,
            peak: AtomicUsize::new(0),
            observer: OnceLock::new(),
            _locks: locks,
        })
    }

    /// Whether file handles last (`nfs_export=on`): it is off where the layers or this process's privileges do not allow it.
    #[must_use]
    pub fn handles_last(&self) -> bool {
        self.export.is_some()
    }

    /// Has `observer` told what a front end that remembers answers must forget. It is called during operations, without
    /// locks held, before they return. Only the first observer counts.
    pub fn observe(&self, observer: impl Fn(Stale) + Send + Sync + 'static) {
        if self.observer.set(Observer(Box::new(observer))).is_err() {
            tracing::warn!("a second observer of an overlay is not told anything");
        }
    }

    pub(crate) fn tell(&self, stale: Stale) {
        if let Some(Observer(observer)) = self.observer.get() {
            observer(stale);
        }
    }

    /// Whether the stack has an upper: without one every change is `EROFS`.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.upper.is_some()
    }

    /// Number of nodes that are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn require_upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Errno::ROFS)
    }

    pub(crate) fn root_lowers(&self) -> &[Arc<LayerDir>] {
        self.root.as_dir().map_or(&[], |dir| &dir.lowers)
    }

    pub(crate) fn upper_ino(&self, ino: u64) -> u64 {
        self.ino.map(FsIndex(0), ino)
    }

    pub(crate) fn lower_ino(&self, layer: u16, ino: u64) -> u64 {
        let fs = self.lowers.get(usize::from(layer)).map_or(FsIndex(0), |layer| layer.fs);
        self.ino.map(fs, ino)
    }

    pub(crate) fn lower_dir(&self, dir: &LayerDir) -> Result<Arc<Dir>> {
        dir.open(&self.lowers, &self.cache)
    }

    /// The upper directory of a node that has one.
    pub(crate) fn upper_dir(&self, node: &Node) -> Result<Arc<DirMut>> {
        let upper = node.as_dir().and_then(|dir| dir.upper.get()).ok_or(Errno::IO)?;
        if let Some(removed) = upper.removed.get() {
            return Ok(Arc::clone(removed));
        }
        upper.slot.get(&self.cache, || {
            let _tree = self.tree.read();
            let path = self.upper_path(node)?;
            self.require_upper()?.root.open_dir_mut(&path)
        })
    }

    /// The path of a directory in upper; the caller holds the tree lock.
    fn upper_path(&self, node: &Node) -> Result<RelPath> {
        let mut names = Vec::new();
        let mut place = node.place();
        while let Some(here) = place {
            names.push(here.name);
            place = here.parent.place();
        }
        let mut path = RelPath::root();
        for name in names.iter().rev() {
            path = path.join(Name::new(name).map_err(|_| Errno::IO)?);
        }
        if path.is_root() && node.id != crate::NodeId::ROOT {
            return Err(Errno::NOENT);
        }
        Ok(path)
    }

    /// The inode number of the lower object that an upper one was copied from, if its `origin` says so and it lies on
    /// the file system of a layer.
    pub(crate) fn origin_ino(&self, dir: &Dir, name: Name<'_>) -> Result<Option<u64>> {
        let value = dir.get_xattr(name, self.namespace.name(Private::Origin))?;
        Ok(value.and_then(|value| self.ino_of_origin(&value)))
    }

    /// The same from the attribute's value.
    pub(crate) fn ino_of_origin(&self, value: &[u8]) -> Option<u64> {
        let Ok(Parsed::Known(origin)) = Origin::parse(value) else { return None };
        let layer = self.lowers.iter().find(|layer| layer.uuid == origin.uuid || origin.uuid == [0; 16]);
        layer.zip(probe::ino_of_handle(&origin.handle)).map(|(layer, ino)| self.ino.map(layer.fs, ino))
    }

    /// Returns freed memory to the system each time half of the nodes are gone.
    pub(crate) fn trim_memory(&self) {
        const WORTH_IT: usize = 4096;
        let live = self.table.len();
        let peak = self.peak.fetch_max(live, Ordering::Relaxed).max(live);
        if peak > WORTH_IT && live < peak / 2 {
            self.peak.store(live, Ordering::Relaxed);
            self.cache.purge();
            self.listings.purge(&self.table);
            plyfs_sys::malloc::trim();
        }
    }
}

fn make_root(
    table: &NodeTable,
    lowers: &[LowerLayer],
    upper: Option<&Upper>,
    namespace: Namespace,
    ino: InoSpace,
) -> core::result::Result<Arc<Node>, AssembleError> {
    let mut dirs = Vec::with_capacity(lowers.len());
    for (position, layer) in lowers.iter().enumerate() {
        let fail = |errno| directory_error("lowerdir", &layer.path, errno);
        let marks = DirMarks::read_own(&layer.root, namespace).map_err(fail)?;
        let number = u16::try_from(position).map_err(|_| AssembleError::TooManyLowers(lowers.len()))?;
        dirs.push(Arc::new(LayerDir::new(number, RelPath::root(), marks.xwhiteouts)));
    }
    let top = lowers.first().ok_or(AssembleError::NoLower)?;
    let top_ino = top.root.stat().map_err(|errno| directory_error("lowerdir", &top.path, errno))?.ino;
    let upper_dir = match upper {
        Some(upper) => Some(upper_root(upper, namespace)?),
        None => None,
    };
    let body = Body::Dir(Box::new(DirBody::new(dirs, upper_dir)));
    // The root is the upper's where there is one, in the kernel too: nothing was ever copied up to it.
    let ino = match upper {
        Some(upper) => {
            let stat = upper.root.stat().map_err(|errno| directory_error("upperdir", &upper.path, errno))?;
            ino.map(FsIndex(0), stat.ino)
        }
        None => ino.map(top.fs, top_ino),
    };
    Ok(table.insert_root(|at| Node::new(at, plyfs_sys::FileKind::Directory, ino, None, body)))
}

fn upper_root(upper: &Upper, namespace: Namespace) -> core::result::Result<Box<UpperDir>, AssembleError> {
    let fail = |errno| directory_error("upperdir", &upper.path, errno);
    let marks = DirMarks::read_own(&upper.root, namespace).map_err(fail)?;
    Ok(Box::new(UpperDir::found(&marks, None)))
}

/// A directory that cannot be used.
pub(crate) fn directory_error(role: &'static str, path: &Path, errno: Errno) -> AssembleError {
    AssembleError::Directory { role, path: path.to_owned(), errno }
}

impl UpperDir {
    /// A directory found in upper, with what its attributes say.
    pub(crate) fn found(marks: &DirMarks, redirect: Option<Box<[u8]>>) -> Self {
        Self {
            redirect: Mutex::new(redirect),
            oci_marks: OciMarks::default(),
            protection: Protection::new(marks.protection),
            ..Self::made(marks.opaque, marks.impure)
        }
    }

    /// A directory that this mount just made.
    pub(crate) fn made(opaque: bool, impure: bool) -> Self {
        Self {
            slot: Slot::empty(),
            opaque: opaque.into(),
            impure: impure.into(),
            protection: Protection::default(),
            oci_marks: OciMarks::none(),
            redirect: Mutex::new(None),
            removed: std::sync::OnceLock::new(),
        }
    }
}
