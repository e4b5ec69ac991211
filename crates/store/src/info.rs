//! `info` and `df`: what this system can, and what takes how much. Owns the probes; changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use plyfs_sys::mount::{Parameter, new_filesystem};
use serde::Serialize;

use crate::db::{Blob, Container, Image, Layer, Name};
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::journal::Work;
use crate::mount::Backend;
use crate::owner::Ownership;
use crate::store::Store;
use crate::usage;

/// What `info` says.
#[derive(Debug, Clone, Serialize)]
pub struct Info {
    /// The store's root.
    pub root: String,
    /// The backend that `auto` takes.
    pub backend: Backend,
    /// Each backend that it does not take, and why.
    pub not: BTreeMap<String, String>,
    /// The file system below the store.
    pub backing_filesystem: String,
    /// Whether directory entries tell types, which overlayfs needs.
    pub supports_d_type: bool,
    /// Whether the kernel's own diff of layers is a plain copy of the upper (no redirects by default).
    pub native_overlay_diff: bool,
    /// Whether copy-up may leave the data below by default.
    pub using_metacopy: bool,
    /// `trusted` or `user`.
    pub xattr_namespace: String,
    /// Whether the store's file system forbids devices or set-uid.
    pub nodev_or_nosuid: bool,
    /// Whether owners are real or recorded in an attribute.
    pub owners: String,
    /// How many there are.
    pub images: usize,
    /// How many there are.
    pub containers: usize,
    /// How many there are.
    pub layers: usize,
}

/// What `df` says.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    /// One line an image.
    pub images: Vec<ImageUsage>,
    /// One line a container.
    pub containers: Vec<ContainerUsage>,
    /// Bytes of all layers on disk.
    pub layers: u64,
    /// Bytes of all blobs on disk.
    pub blobs: u64,
    /// Bytes that `gc` would give back.
    pub reclaimable: u64,
    /// Inodes of all layers and containers.
    pub inodes: u64,
}

/// One image's share.
#[derive(Debug, Clone, Serialize)]
pub struct ImageUsage {
    /// Its names, or its id.
    pub name: String,
    /// Bytes of its layers on disk.
    pub size: u64,
    /// Bytes that other images use as well.
    pub shared: u64,
    /// Bytes that only it uses.
    pub unique: u64,
    /// Bytes of its blobs.
    pub blobs: u64,
    /// Inodes.
    pub inodes: u64,
    /// Containers on it.
    pub containers: usize,
}

/// One container's share.
#[derive(Debug, Clone, Serialize)]
pub struct ContainerUsage {
    /// Its name.
    pub name: String,
    /// Bytes that it wrote.
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

impl Store {
    /// What this system can.
    pub fn info(&self) -> Result<Info> {
        let mut not = BTreeMap::new();
        let mut backend = None;
        for (b, r) in [(Backend::Kernel, self.probe_kernel()), (Backend::Fuse, probe_fuse())] {
            match r {
                Ok(()) if backend.is_none() => backend = Some(b),
                Ok(()) => {}
                Err(e) => {
                    not.insert(b.name().to_owned(), e.to_string());
                }
            }
        }
        let (images, containers, layers) = self.read(|tx| {
            Ok((tx.all::<Image>()?.len(), tx.all::<Container>()?.len(), tx.all::<Layer>()?.len()))
        })?;
        let root = self.layout.root();
        let real = self.ownership == Ownership::Real;
        let flags = rustix::fs::statvfs(root).at("stat", root)?.f_flag;
        Ok(Info {
            root: root.display().to_string(),
            backend: backend.unwrap_or(Backend::Copy),
            not,
            backing_filesystem: filesystem(root)?,
            supports_d_type: self.probe_d_type()?,
            native_overlay_diff: !module_parameter("redirect_dir"),
            using_metacopy: module_parameter("metacopy"),
            xattr_namespace: if real { "trusted" } else { "user" }.into(),
            nodev_or_nosuid: flags
                .intersects(rustix::fs::StatVfsMountFlags::NODEV | rustix::fs::StatVfsMountFlags::NOSUID),
            owners: if real { "real" } else { "recorded in user.containers.override_stat" }.into(),
            images,
            containers,
            layers,
        })
    }

    /// Makes an overlay of empty directories, attached nowhere.
    fn probe_kernel(&self) -> Result<()> {
        let work = Work::begin(&self.layout)?;
        let mut paths = Vec::new();
        for n in ["lower", "upper", "work"] {
            let p = work.path(n);
            durable::new_dir(&p, 0o700)?;
            paths.push(
                CString::new(p.as_os_str().as_bytes())
                    .map_err(|_| Error::invalid("the store's path", "contains a NUL"))?,
            );
        }
        let [lower, upper, workdir] = &paths[..] else { return Ok(()) };
        let mut p = vec![
            Parameter::Text(c"lowerdir+", lower),
            Parameter::Text(c"upperdir", upper),
            Parameter::Text(c"workdir", workdir),
        ];
        if self.ownership == Ownership::Recorded {
            p.push(Parameter::Flag(c"userxattr"));
        }
        let r = new_filesystem(c"overlay", &p, 0).map(drop).at("mount an overlay on", self.layout.root());
        work.finish()?;
        r
    }

    fn probe_d_type(&self) -> Result<bool> {
        let dir = self.layout.root();
        let fd = std::fs::File::open(dir).at("open", dir)?;
        for e in rustix::fs::Dir::read_from(&fd).at("read", dir)? {
            if e.at("read", dir)?.file_type() == rustix::fs::FileType::Unknown {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What takes how much.
    pub fn df(&self) -> Result<Usage> {
        let (images, names, layers, blobs) = self
            .read(|tx| Ok((tx.all::<Image>()?, tx.all::<Name>()?, tx.all::<Layer>()?, tx.all::<Blob>()?)))?;
        let containers = self.containers()?;
        let mut on_disk = BTreeMap::new();
        for l in &layers {
            let p = self.layout.layer(&l.chain.hex());
            on_disk.insert(l.chain, usage::of(&p).at("measure", &p)?);
        }
        let users = |l: &Layer| images.iter().filter(|i| i.layers.iter().any(|x| x.chain == l.chain)).count();
        let mut out = Usage {
            images: Vec::new(),
            containers: Vec::new(),
            layers: 0,
            blobs: 0,
            reclaimable: 0,
            inodes: 0,
        };
        for i in &images {
            let called: Vec<&str> =
                names.iter().filter(|n| n.manifest == i.manifest).map(|n| n.name.as_str()).collect();
            let name = if called.is_empty() { i.config.to_string() } else { called.join(", ") };
            let mine: BTreeSet<_> = i.layers.iter().map(|l| l.chain).collect();
            let mut u =
                ImageUsage { name, size: 0, shared: 0, unique: 0, blobs: 0, inodes: 0, containers: 0 };
            for l in layers.iter().filter(|l| mine.contains(&l.chain)) {
                let (bytes, inodes) = on_disk.get(&l.chain).copied().unwrap_or_default();
                u.size += bytes;
                u.inodes += inodes;
                if users(l) > 1 { u.shared += bytes } else { u.unique += bytes }
            }
            u.blobs = i.layers.iter().map(|l| l.size).sum::<u64>() + i.manifest_size;
            u.containers = containers.iter().filter(|c| c.image == i.manifest).count();
            out.images.push(u);
        }
        for c in &containers {
            let (size, inodes) = self.container_usage(c)?;
            out.inodes += inodes;
            out.containers.push(ContainerUsage { name: c.name.clone(), size, inodes });
        }
        out.layers = on_disk.values().map(|(b, _)| b).sum();
        out.inodes += on_disk.values().map(|(_, i)| i).sum::<u64>();
        out.blobs = blobs.iter().map(|b| b.size).sum();
        out.reclaimable = layers
            .iter()
            .filter(|l| users(l) == 0)
            .filter_map(|l| on_disk.get(&l.chain))
            .map(|(b, _)| b)
            .sum();
        Ok(out)
    }
}

fn probe_fuse() -> Result<()> {
    let dev = Path::new("/dev/fuse");
    std::fs::OpenOptions::new().read(true).write(true).open(dev).at("open", dev)?;
    let helper = ["/usr/bin/fusermount3", "/bin/fusermount3"].iter().any(|p| Path::new(p).exists());
    if rustix::process::geteuid().is_root() || helper {
        return Ok(());
    }
    Err(Error::Unsupported("fusermount3 is not installed (Debian's package fuse3)".into()))
}

fn module_parameter(name: &str) -> bool {
    std::fs::read_to_string(format!("/sys/module/overlay/parameters/{name}")).is_ok_and(|v| v.trim() == "Y")
}

/// The type of the file system at `path`, as the mount table names it.
fn filesystem(path: &Path) -> Result<String> {
    let all = plyfs_sys::mountinfo::read().at("read", "/proc/self/mountinfo")?;
    let below = all.into_iter().filter(|m| path.starts_with(&m.target));
    Ok(below.max_by_key(|m| m.target.as_os_str().len()).map_or_else(|| "unknown".into(), |m| m.fstype))
}
