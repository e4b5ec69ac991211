//! What lies under an upper: the union of the lowers, through the engine, without mounting it.

use std::path::PathBuf;

use plyfs_core::{Attr, Caller, DirEntry, DirSink, HandleId, NodeId, Overlay, Settings};
use plyfs_format::spec::{Options, StackSpec};
use plyfs_format::{Name, NameBuf, Namespace, RelPath};
use plyfs_sys::FileKind;

use crate::failure::{Context, Failure, Outcome};

/// The union of the lowers.
#[derive(Debug)]
pub struct Lower {
    overlay: Overlay,
    /// The lower directories, topmost first.
    pub roots: Vec<PathBuf>,
}

/// An object of the union.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its node.
    pub node: NodeId,
    /// Its attributes.
    pub attr: Attr,
    /// Where it is.
    pub path: RelPath,
}

impl Found {
    /// The type.
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.attr.mode).unwrap_or(FileKind::Regular)
    }
}

impl Lower {
    /// Opens the lowers, whose private attributes are those of `namespace`.
    pub fn open(roots: &[PathBuf], namespace: Namespace) -> Outcome<Self> {
        let options = Options { userxattr: namespace == Namespace::User, ..Options::default() };
        let spec = StackSpec { lowers: roots.to_vec(), data_lowers: Vec::new(), upper: None, options };
        let overlay = Overlay::assemble(&spec, &Settings::default());
        let overlay = overlay.map_err(|error| Failure::new(error.to_string()))?;
        Ok(Self { overlay, roots: roots.to_vec() })
    }

    /// The root.
    pub fn root(&self) -> Outcome<Found> {
        let attr = self.overlay.getattr(NodeId::ROOT, None).context(|| "lower: /")?;
        Ok(Found { node: NodeId::ROOT, attr, path: RelPath::root() })
    }

    /// An entry of a directory.
    pub fn lookup(&self, parent: &Found, name: Name<'_>) -> Outcome<Option<Found>> {
        let path = parent.path.join(name);
        let entry =
            self.overlay.lookup(parent.node, name.as_bytes()).context(|| format!("lower: /{path}"))?;
        Ok(entry.map(|entry| Found { node: entry.node, attr: entry.attr, path }))
    }

    /// What is at a path.
    pub fn find(&self, path: &RelPath) -> Outcome<Option<Found>> {
        let mut here = self.root()?;
        for name in path.components() {
            if here.kind() != FileKind::Directory {
                return Ok(None);
            }
            match self.lookup(&here, name)? {
                Some(next) => here = next,
                None => return Ok(None),
            }
        }
        Ok(Some(here))
    }

    /// The names in a directory.
    pub fn names(&self, directory: &Found) -> Outcome<Vec<NameBuf>> {
        let mut names = Names { found: Vec::new(), cookie: 0, full: false };
        loop {
            let before = names.found.len();
            names.full = false;
            let result = self.overlay.read_dir(directory.node, names.cookie, false, &mut names);
            result.context(|| format!("lower: /{}", directory.path))?;
            if names.found.len() == before && !names.full {
                return Ok(names.found);
            }
        }
    }

    /// The target of a symbolic link.
    pub fn link_target(&self, link: &Found) -> Outcome<Vec<u8>> {
        self.overlay.readlink(link.node).context(|| format!("lower: /{}", link.path))
    }

    /// The extended attributes that the union shows, sorted by name.
    pub fn xattrs(&self, object: &Found) -> Outcome<Vec<(Vec<u8>, Vec<u8>)>> {
        let describe = || format!("lower: /{}", object.path);
        let list = self.overlay.list_xattr(&caller(), object.node).context(describe)?;
        let mut all = Vec::new();
        for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let value = self.overlay.get_xattr(object.node, name).context(describe)?;
            all.push((name.to_vec(), value));
        }
        all.sort();
        Ok(all)
    }

    /// Opens a file for reading.
    pub fn open_file(&self, file: &Found) -> Outcome<Reading<'_>> {
        let opened =
            self.overlay.open(&caller(), file.node, 0, false).context(|| format!("lower: /{}", file.path))?;
        Ok(Reading { overlay: &self.overlay, handle: opened.handle })
    }

    /// Lets the engine forget an object that will not be asked for again.
    pub fn forget(&self, object: &Found) {
        if object.node != NodeId::ROOT {
            self.overlay.forget(object.node, 1);
        }
    }
}

/// This process.
fn caller() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        pid: std::process::id(),
        umask: 0o022,
    }
}

/// A file that is open for reading.
#[derive(Debug)]
pub struct Reading<'a> {
    overlay: &'a Overlay,
    handle: HandleId,
}

impl Reading<'_> {
    /// Reads at an offset; 0 at the end.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> plyfs_core::Result<usize> {
        self.overlay.read(self.handle, offset, buffer)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.overlay.release(self.handle);
    }
}

/// Collects the names of a listing in portions, so that one huge directory is no one huge answer.
struct Names {
    found: Vec<NameBuf>,
    cookie: u64,
    full: bool,
}

impl DirSink for Names {
    fn has_room(&self, _name_len: usize) -> bool {
        true
    }

    fn push(&mut self, entry: &DirEntry<'_>) {
        self.cookie = entry.cookie;
        self.full = true;
        if let Ok(name) = Name::new(entry.name) {
            self.found.push(name.to_owned());
        }
    }
}
