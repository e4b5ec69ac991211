//! Where everything lies below the store's root, with the names and modes of Docker's overlay2.
//!
//! Owns path names, modes, and the creation of an empty store. Never decides what belongs into one.
//!
//! ```text
//! ROOT                        0710
//!   plyfs.db                  metadata: images, layers, containers, blobs (SQLite)
//!   overlay2/                 0710
//!     l/LINK -> ../ID/diff    0700; LINK has 26 characters
//!     ID/                     0710; ID is an image layer's ChainID, or random for a container
//!       diff/                 0755, then as the layer's root
//!       link                  LINK, no newline
//!       lower                 l/A:l/B…, topmost first; absent in a base layer
//!       committed             empty; present when the layer is immutable
//!       work/ merged/         0700; containers only
//!   images/                   0700; an OCI image layout: oci-layout, index.json, blobs/sha256/HEX
//!   containers/ID/            0700; a container's runtime bundle and log
//!   staging/                  0700; one directory for each command at work
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::durable::{self, ensure_dir};
use crate::error::{Context, Error, Result};

/// Length of a link name: 26 characters of base32, 130 bits (Docker's `overlayutils.GenerateID`).
pub const LINK_LEN: usize = 26;
/// How many layers an image may have.
pub const MAX_DEPTH: usize = 500;

const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The paths of one store.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Opens the store's directories, or makes an empty store; modes found too wide are tightened.
    pub fn open(root: &Path) -> Result<Layout> {
        if let Some(p) = root.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(p).at("create", p)?;
        }
        refuse_foreign(root)?;
        ensure_dir(root, 0o710)?;
        let l = Layout { root: durable::absolute(root)? };
        ensure_dir(&l.overlay2(), 0o710)?;
        ensure_dir(&l.links(), 0o700)?;
        for d in [l.images(), l.images().join("blobs"), l.blobs(), l.containers(), l.staging()] {
            ensure_dir(&d, 0o700)?;
        }
        let marker = l.images().join("oci-layout");
        if !marker.exists() {
            durable::replace(&marker, OCI_LAYOUT, 0o644)?;
        }
        Ok(l)
    }

    /// The root, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The metadata database.
    pub fn database(&self) -> PathBuf {
        self.root.join("plyfs.db")
    }

    /// Docker's home of the driver: the directory that `lower` is relative to.
    pub fn overlay2(&self) -> PathBuf {
        self.root.join("overlay2")
    }

    /// The directory of short links.
    pub fn links(&self) -> PathBuf {
        self.root.join("overlay2/l")
    }

    /// One layer's directory.
    pub fn layer(&self, id: &str) -> PathBuf {
        self.overlay2().join(id)
    }

    /// One short link.
    pub fn link(&self, link: &str) -> PathBuf {
        self.links().join(link)
    }

    /// The OCI image layout.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// All blobs.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("images/blobs/sha256")
    }

    /// One blob.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// The directories of containers.
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// One container's directory: bundle, log, process id.
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// Where commands at work keep what is not finished.
    pub fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }
}

/// A directory that holds something else is not turned into a store: its modes would be changed.
fn refuse_foreign(root: &Path) -> Result<()> {
    let mut entries = match fs::read_dir(root) {
        Ok(e) => e,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).at("open", root),
    };
    let ours = ["plyfs.db", "overlay2", "lost+found"].iter().any(|n| root.join(n).symlink_metadata().is_ok());
    match entries.next() {
        Some(_) if !ours => Err(Error::Unsupported(format!(
            "{} is neither empty nor a plyfs store; give an empty or a new directory",
            root.display()
        ))),
        _ => Ok(()),
    }
}

/// The root that a user gets who names none: the system's for root, XDG's data directory otherwise.
pub fn default_root() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/plyfs"));
    }
    let set = |name| std::env::var_os(name).filter(|v| Path::new(v).is_absolute()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|h| h.join(".local/share")))
        .map(|d| d.join("plyfs"))
        .ok_or_else(|| Error::Unsupported("neither XDG_DATA_HOME nor HOME is set: give --root".into()))
}

/// A new link name: upper-case base32 as Docker's.
pub fn new_link() -> Result<String> {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut b = [0u8; LINK_LEN];
    getrandom::fill(&mut b)
        .map_err(|e| Error::Unsupported(format!("the system has no random numbers: {e}")))?;
    Ok(b.iter().filter_map(|x| ALPHABET.get(usize::from(x % 32))).map(|c| char::from(*c)).collect())
}

/// Creates a layer's directory below `dir`, as overlay2 lays it out, and returns nothing half made:
/// `link` and `lower` are synced before anyone sees them.
///
/// `lower` is the text of that file, without which the layer is a base layer. A container's layer
/// (`writable`) has `work` and `merged`; an image's has `committed`.
pub fn make_layer(dir: &Path, link: &str, lower: Option<&str>, writable: bool) -> Result<()> {
    durable::new_dir(dir, 0o710)?;
    durable::new_dir(&dir.join("diff"), 0o755)?;
    durable::create(&dir.join("link"), link.as_bytes(), 0o644)?;
    if let Some(lower) = lower {
        durable::create(&dir.join("lower"), lower.as_bytes(), 0o644)?;
    }
    if writable {
        durable::new_dir(&dir.join("work"), 0o700)?;
        durable::new_dir(&dir.join("merged"), 0o700)?;
    } else {
        durable::create(&dir.join("committed"), b"", 0o600)?;
    }
    durable::sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(p: &Path) -> u32 {
        fs::symlink_metadata(p).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_new_store_has_the_modes_of_docker_whatever_the_umask() {
        let t = tempfile::tempdir().unwrap();
        let l = Layout::open(&t.path().join("a/b")).unwrap();
        assert_eq!((mode(l.root()), mode(&l.overlay2()), mode(&l.links())), (0o710, 0o710, 0o700));
        make_layer(&l.layer("x"), "LINK", Some("l/A:l/B"), true).unwrap();
        let d = l.layer("x");
        assert_eq!(mode(&d), 0o710);
        assert_eq!(
            (mode(&d.join("diff")), mode(&d.join("work")), mode(&d.join("merged"))),
            (0o755, 0o700, 0o700)
        );
        assert_eq!(fs::read(d.join("link")).unwrap(), b"LINK");
        assert!(!d.join("committed").exists());
    }

    #[test]
    fn wide_modes_found_are_tightened_and_narrow_ones_left() {
        let t = tempfile::tempdir().unwrap();
        let root = t.path().join("s");
        let l = Layout::open(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(l.overlay2(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(l.links(), fs::Permissions::from_mode(0o777)).unwrap();
        Layout::open(&root).unwrap();
        assert_eq!((mode(&root), mode(&l.overlay2()), mode(&l.links())), (0o710, 0o700, 0o700));
    }

    #[test]
    fn a_directory_of_something_else_is_not_made_a_store() {
        let t = tempfile::tempdir().unwrap();
        fs::write(t.path().join("precious"), "").unwrap();
        fs::set_permissions(t.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Layout::open(t.path()).unwrap_err().kind(), "unsupported");
        assert_eq!(mode(t.path()), 0o755);
    }

    #[test]
    fn link_names_are_26_characters_of_base32_and_differ() {
        let (a, b) = (new_link().unwrap(), new_link().unwrap());
        assert_eq!(a.len(), LINK_LEN);
        assert!(a.bytes().all(|c| c.is_ascii_uppercase() || (b'2'..=b'7').contains(&c)));
        assert_ne!(a, b);
    }
}
