//! What a user sees of a tree, taken down so that two of them can be compared: through the engine, or on disk.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "each test uses its part; a test may fail by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use plyfs_core::{Attr, Caller, DirEntry, DirSink, Errno, NodeId, Overlay};

/// One object, without its times and inode number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: (u32, u32),
    /// Content of a file, target of a link.
    pub data: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// All objects of a tree by path.
pub type View = BTreeMap<String, Seen>;

pub const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };

/// A listing with the nodes that it looked up.
#[derive(Default)]
pub struct Names(pub Vec<(Vec<u8>, Option<plyfs_core::Entry>)>);

impl DirSink for Names {
    fn has_room(&self, _: usize) -> bool {
        true
    }

    fn push(&mut self, entry: &DirEntry<'_>) {
        if entry.name != b"." && entry.name != b".." {
            self.0.push((entry.name.to_vec(), entry.entry));
        }
    }
}

/// The merged view as the engine serves it.
pub fn merged(overlay: &Overlay) -> View {
    let mut view = View::new();
    let root = overlay.getattr(NodeId::ROOT, None).unwrap();
    view.insert(String::new(), seen(overlay, NodeId::ROOT, &root));
    add_merged(overlay, NodeId::ROOT, "", &mut view);
    view
}

fn add_merged(overlay: &Overlay, dir: NodeId, path: &str, view: &mut View) {
    let mut names = Names::default();
    overlay.read_dir(dir, 0, false, &mut names).unwrap();
    for (name, _) in names.0 {
        let path = format!("{path}/{}", String::from_utf8_lossy(&name));
        let entry = overlay.lookup(dir, &name);
        let entry = entry.unwrap_or_else(|error| panic!("lookup of {path}: {error}"));
        let entry = entry.unwrap_or_else(|| panic!("{path} is listed and not found"));
        view.insert(path.clone(), seen(overlay, entry.node, &entry.attr));
        if entry.attr.mode & 0o170_000 == 0o040_000 {
            add_merged(overlay, entry.node, &path, view);
        }
        overlay.forget(entry.node, 1);
    }
}

fn seen(overlay: &Overlay, node: NodeId, attr: &Attr) -> Seen {
    let data = match attr.mode & 0o170_000 {
        0o100_000 => content(overlay, node, attr.size).unwrap(),
        0o120_000 => overlay.readlink(node).unwrap(),
        _ => Vec::new(),
    };
    let mut xattrs = BTreeMap::new();
    for name in overlay.list_xattr(&ROOT, node).unwrap().split(|byte| *byte == 0) {
        if !name.is_empty() {
            xattrs.insert(name.to_vec(), overlay.get_xattr(node, name).unwrap());
        }
    }
    Seen { mode: attr.mode, uid: attr.uid, gid: attr.gid, rdev: attr.rdev, data, xattrs }
}

/// All bytes of a file.
pub fn content(overlay: &Overlay, node: NodeId, size: u64) -> Result<Vec<u8>, Errno> {
    let opened = overlay.open(&ROOT, node, 0, false)?;
    let mut data = vec![0; usize::try_from(size).unwrap()];
    let count = overlay.read(opened.handle, 0, &mut data);
    overlay.release(opened.handle);
    data.truncate(count?);
    Ok(data)
}

/// A tree on disk, with every attribute that root sees and the times of change of the data.
pub fn on_disk(root: &Path) -> BTreeMap<String, (Seen, i64, i64)> {
    let mut view = BTreeMap::new();
    add_on_disk(root, "", &mut view);
    view
}

fn add_on_disk(root: &Path, rel: &str, view: &mut BTreeMap<String, (Seen, i64, i64)>) {
    let path = if rel.is_empty() { root.to_owned() } else { root.join(&rel[1..]) };
    let meta = fs::symlink_metadata(&path).unwrap();
    let kind = meta.file_type();
    let data = if kind.is_file() {
        fs::read(&path).unwrap()
    } else if kind.is_symlink() {
        fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
    } else {
        Vec::new()
    };
    let device = kind.is_char_device() || kind.is_block_device();
    let rdev = if device { (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())) } else { (0, 0) };
    let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
    let found = Seen { mode, uid, gid, rdev, data, xattrs: xattrs_on_disk(&path) };
    view.insert(rel.to_owned(), (found, meta.mtime(), meta.mtime_nsec()));
    if kind.is_dir() {
        for entry in fs::read_dir(&path).unwrap() {
            let name = entry.unwrap().file_name();
            add_on_disk(root, &format!("{rel}/{}", name.to_string_lossy()), view);
        }
    }
}

fn xattrs_on_disk(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 14];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 1 << 14];
        let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    found
}

/// Says how two views differ, for messages.
pub fn difference(one: &View, other: &View) -> String {
    let mut text = String::new();
    let paths: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    for path in paths {
        let (left, right) = (one.get(path), other.get(path));
        if left != right {
            text += &format!("  {path:?}: {} | {}\n", brief(left), brief(right));
        }
    }
    text
}

fn brief(seen: Option<&Seen>) -> String {
    let Some(seen) = seen else { return "absent".to_owned() };
    let data = String::from_utf8_lossy(&seen.data[..seen.data.len().min(24)]).into_owned();
    let names: Vec<_> = seen.xattrs.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    format!("{:o} {}:{} {} bytes {data:?} {names:?}", seen.mode, seen.uid, seen.gid, seen.data.len())
}
