//! The store as its callers hold it. Owns opening, and the options of a session; the operations are in the
//! modules named after what they work on.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::db::{Db, Image, Name, Tx};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::owner::Ownership;
use crate::progress::{Progress, Silent};
use crate::tar::Limits;

/// How a store is used.
pub struct Options {
    /// Bounds on what an image may do.
    pub limits: Limits,
    /// Where progress is shown.
    pub progress: Box<dyn Progress>,
    /// The program that mounts with FUSE, called as fuse-overlayfs is; none for the running executable.
    pub fuse_program: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options { limits: Limits::default(), progress: Box::new(Silent), fuse_program: None }
    }
}

/// An open store. Several processes may have one open at the same time.
pub struct Store {
    pub(crate) layout: Layout,
    pub(crate) ownership: Ownership,
    pub(crate) options: Options,
    db: Mutex<Db>,
}

impl Store {
    /// Opens the store at `root`, or makes an empty one; removes what interrupted commands left.
    pub fn open(root: &Path, options: Options) -> Result<Store> {
        let layout = Layout::open(root)?;
        let db = Db::open(&layout.database())?;
        let s = Store { layout, ownership: Ownership::detect(), options, db: Mutex::new(db) };
        s.recover()?;
        Ok(s)
    }

    /// Where everything lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// One consistent view of the metadata.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner).read(f)
    }

    /// One change of the metadata, alone among all processes.
    pub(crate) fn write<T>(&self, f: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner).write(f)
    }

    pub(crate) fn db_integrity(&self) -> Result<Vec<String>> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner).integrity()
    }
}

/// Finds an image by its name (`:latest` may be left out), its manifest's digest, or the start of its id.
pub(crate) fn find_image(tx: &Tx<'_>, name: &str) -> Result<Image> {
    if let Some(n) = tx.get::<Name>(&crate::reference::with_tag(name)?)? {
        let missing = || Error::Damaged(format!("image \"{name}\" has no manifest"));
        return tx.get(&n.manifest.hex())?.ok_or_else(missing);
    }
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let looks = hex.len() >= 6 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let mut found: Vec<Image> = Vec::new();
    if looks {
        found = tx.all::<Image>()?;
        found.retain(|i| i.config.hex().starts_with(hex) || i.manifest.hex().starts_with(hex));
    }
    match (found.pop(), found.is_empty()) {
        (Some(i), true) => Ok(i),
        (Some(_), false) => Err(Error::invalid(format!("image \"{name}\""), "several images' ids begin so")),
        (None, _) => Err(Error::NotFound { what: "image", name: name.into() }),
    }
}
