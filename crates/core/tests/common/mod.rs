//! A stack on temporary directories, seen by the engine and by the kernel's overlayfs in turn.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "each test uses its part; a test may fail by panicking"
)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use plyfs_core::{AssembleError, Attr, Caller, DirEntry, DirSink, Errno, NodeId, Overlay, Settings};
use plyfs_format::StackSpec;
use plyfs_testkit::mount::{Driver, Mounted};
use plyfs_testkit::need::{self, Need};
use tempfile::TempDir;

/// Layer directories `l0` (topmost) and on, upper `u`, work `w`, and a mount point `m`.
pub struct Stack {
    dir: TempDir,
    lowers: usize,
}

impl Stack {
    pub fn new(lowers: usize) -> Self {
        Self::within(tempfile::tempdir().unwrap(), lowers)
    }

    pub fn within(dir: TempDir, lowers: usize) -> Self {
        for number in 0..lowers {
            fs::create_dir(dir.path().join(format!("l{number}"))).unwrap();
        }
        for name in ["u", "w", "m"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir, lowers }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn file(&self, path: &str, content: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Assembles with these further options.
    pub fn open(&self, options: &str) -> Overlay {
        self.try_open(options).unwrap()
    }

    pub fn try_open(&self, options: &str) -> Result<Overlay, AssembleError> {
        let lowers: Vec<String> = (0..self.lowers).map(|number| format!("l{number}")).collect();
        self.try_open_layers(&lowers.iter().map(String::as_str).collect::<Vec<_>>(), options)
    }

    pub fn try_open_layers(&self, lowers: &[&str], options: &str) -> Result<Overlay, AssembleError> {
        let root = self.dir.path().display();
        let mut text = String::new();
        for lower in lowers {
            text += &format!("lowerdir+={root}/{lower},");
        }
        text += &format!("upperdir={root}/u,workdir={root}/w,{options}");
        let spec = StackSpec::parse(&[text]).unwrap().spec;
        Overlay::assemble(&spec, &settings())
    }

    /// Assembles with these settings.
    pub fn open_with(&self, options: &str, settings: &Settings) -> Overlay {
        let root = self.dir.path().display();
        let lowers: Vec<String> = (0..self.lowers).map(|number| format!("{root}/l{number}")).collect();
        let text = format!("lowerdir={},upperdir={root}/u,workdir={root}/w,{options}", lowers.join(":"));
        Overlay::assemble(&StackSpec::parse(&[text]).unwrap().spec, settings).unwrap()
    }

    /// Assembles with `.wh.` files for whiteouts.
    pub fn open_named(&self) -> Overlay {
        let root = self.dir.path().display();
        let lowers: Vec<String> = (0..self.lowers).map(|number| format!("{root}/l{number}")).collect();
        let text =
            format!("lowerdir={},upperdir={root}/u,workdir={root}/w,redirect_dir=on", lowers.join(":"));
        let settings = Settings { named_whiteouts: true, ..settings() };
        Overlay::assemble(&StackSpec::parse(&[text]).unwrap().spec, &settings).unwrap()
    }

    /// Mounts with the kernel and these further options, comma-separated.
    pub fn kernel(&self, options: &str) -> Mounted {
        self.try_kernel(options).unwrap()
    }

    pub fn try_kernel(&self, options: &str) -> Result<Mounted, String> {
        let stack = plyfs_testkit::mount::Stack {
            lowers: (0..self.lowers).map(|number| self.path(&format!("l{number}"))).collect(),
            upper: Some((self.path("u"), self.path("w"))),
            options: options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect(),
        };
        Driver::Kernel.mount(&stack, &self.path("m")).map_err(|error| format!("{error:#}"))
    }
}

/// A program that a test beside this one starts holds copies of our descriptors, and so the lock on upper, for a moment.
fn settings() -> Settings {
    Settings { wait_for_upper: std::time::Duration::from_secs(2), ..Settings::default() }
}

/// Whether the kernel's overlayfs can be asked here; says why if not.
pub fn kernel_can_be_asked() -> bool {
    need::met(&[Need::Root, Need::Filesystem("overlay")])
}

pub fn me() -> Caller {
    let own = fs::metadata("/proc/self").unwrap();
    Caller { uid: own.uid(), gid: own.gid(), pid: 0, umask: 0o022 }
}

pub fn walk(overlay: &Overlay, path: &str) -> Result<NodeId, Errno> {
    let mut node = NodeId::ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        node = overlay.lookup(node, name.as_bytes())?.ok_or(Errno::NOENT)?.node;
    }
    Ok(node)
}

pub fn attr(overlay: &Overlay, path: &str) -> Attr {
    overlay.getattr(walk(overlay, path).unwrap(), None).unwrap()
}

pub fn try_read(overlay: &Overlay, path: &str) -> Result<String, Errno> {
    let node = walk(overlay, path)?;
    let opened = overlay.open(&me(), node, 0, false)?;
    let mut buf = vec![0; 1 << 16];
    let count = overlay.read(opened.handle, 0, &mut buf);
    overlay.release(opened.handle);
    count.map(|count| String::from_utf8(buf[..count].to_vec()).unwrap())
}

pub fn read(overlay: &Overlay, path: &str) -> String {
    try_read(overlay, path).unwrap()
}

pub fn write(overlay: &Overlay, path: &str, offset: u64, content: &str) {
    let node = walk(overlay, path).unwrap();
    let opened = overlay.open(&me(), node, 1, false).unwrap();
    assert_eq!(overlay.write(opened.handle, offset, content.as_bytes(), None).unwrap(), content.len());
    overlay.release(opened.handle);
}

/// The value of an attribute of a file on disk, not following links.
pub fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    match rustix::fs::lgetxattr(path, name, &mut value) {
        Ok(length) => {
            value.truncate(length);
            Some(value)
        }
        Err(rustix::io::Errno::NODATA) => None,
        Err(error) => panic!("{name} of {}: {error}", path.display()),
    }
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// Names of a directory in the merged view, sorted.
pub fn list(overlay: &Overlay, path: &str) -> Vec<String> {
    struct Names(Vec<String>);
    impl DirSink for Names {
        fn has_room(&self, _: usize) -> bool {
            true
        }
        fn push(&mut self, entry: &DirEntry<'_>) {
            self.0.push(String::from_utf8(entry.name.to_vec()).unwrap());
        }
    }
    let mut names = Names(Vec::new());
    overlay.read_dir(walk(overlay, path).unwrap(), 0, true, &mut names).unwrap();
    names.0.retain(|name| name != "." && name != "..");
    names.0.sort();
    names.0
}
