//! What the store's tests share: tars written byte by byte, and a store in a temporary directory.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests; each binary uses its part"
)]

use std::path::{Path, PathBuf};

use plyfs_store::{Changes, Error, Image, Options, Store};

/// A store that goes with its directory.
pub struct Home {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Home {
    pub fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("store"));
        Home { dir, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.path("store")
    }

    /// Imports a tar's bytes.
    pub fn import(&self, tar: &[u8], name: &str) -> Result<Image, Error> {
        let p = self.path("import.tar");
        std::fs::write(&p, tar).unwrap();
        self.store.import(&p, name, &Changes::default())
    }

    /// The topmost layer's directory of an image.
    pub fn top(&self, image: &Image) -> PathBuf {
        self.store.layout().layer(&image.layers.last().unwrap().chain.hex()).join("diff")
    }

    /// Layers, blobs and staging directories that are there.
    pub fn leftovers(&self) -> Vec<String> {
        let mut all = Vec::new();
        for d in ["overlay2", "overlay2/l", "images/blobs/sha256", "staging", "containers"] {
            for e in std::fs::read_dir(self.root().join(d)).unwrap() {
                let name = e.unwrap().file_name().into_string().unwrap();
                if name != "l" && !name.starts_with('.') {
                    all.push(format!("{d}/{name}"));
                }
            }
        }
        all
    }
}

pub fn open(root: &Path) -> Store {
    Store::open(root, Options::default()).unwrap()
}

/// Whether this test may mount and chown; says so when not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root, for mounts, devices and owners");
    }
    root
}

/// One header and its data.
#[derive(Clone)]
pub struct Raw {
    pub name: Vec<u8>,
    pub flag: u8,
    pub mode: u32,
    pub link: Vec<u8>,
    pub size: Option<u64>,
    pub data: Vec<u8>,
    pub pax: Vec<(String, Vec<u8>)>,
    pub dev: (u32, u32),
    pub owner: (u32, u32),
}

pub fn entry(flag: u8, name: &str) -> Raw {
    let mode = if flag == b'5' { 0o755 } else { 0o644 };
    Raw {
        name: name.into(),
        flag,
        mode,
        link: Vec::new(),
        size: None,
        data: Vec::new(),
        pax: Vec::new(),
        dev: (0, 0),
        owner: (0, 0),
    }
}

pub fn dir(name: &str) -> Raw {
    entry(b'5', name)
}

pub fn file(name: &str, data: &str) -> Raw {
    Raw { data: data.into(), ..entry(b'0', name) }
}

pub fn symlink(name: &str, to: &str) -> Raw {
    Raw { link: to.into(), ..entry(b'2', name) }
}

pub fn hardlink(name: &str, to: &str) -> Raw {
    Raw { link: to.into(), ..entry(b'1', name) }
}

impl Raw {
    pub fn mode(mut self, mode: u32) -> Raw {
        self.mode = mode;
        self
    }

    pub fn owner(mut self, uid: u32, gid: u32) -> Raw {
        self.owner = (uid, gid);
        self
    }

    pub fn pax(mut self, key: &str, value: &[u8]) -> Raw {
        self.pax.push((key.into(), value.to_vec()));
        self
    }

    /// A header that lies about the length of its data.
    pub fn size(mut self, size: u64) -> Raw {
        self.size = Some(size);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.pax.is_empty() {
            let body: Vec<u8> = self.pax.iter().flat_map(|(k, v)| record(k, v)).collect();
            out.extend(Raw { data: body, ..entry(b'x', "pax") }.bytes());
        }
        out.extend(self.header());
        out.extend(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }

    pub fn header(&self) -> Vec<u8> {
        let mut b = vec![0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, format!("{:07o}", self.owner.0).as_bytes());
        put(116, format!("{:07o}", self.owner.1).as_bytes());
        put(124, format!("{:011o}", self.size.unwrap_or(self.data.len() as u64)).as_bytes());
        put(136, b"14000000000");
        put(148, b"        ");
        put(156, &[self.flag]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", self.dev.0).as_bytes());
        put(337, format!("{:07o}", self.dev.1).as_bytes());
        let sum: u32 = b.iter().map(|x| u32::from(*x)).sum();
        b[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        b
    }
}

pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut len = body.len() + 1;
    while len.to_string().len() + body.len() != len {
        len += 1;
    }
    [len.to_string().as_bytes(), &body].concat()
}

pub fn tar(entries: &[Raw]) -> Vec<u8> {
    let mut out: Vec<u8> = entries.iter().flat_map(Raw::bytes).collect();
    out.resize(out.len() + 1024, 0);
    out
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}
