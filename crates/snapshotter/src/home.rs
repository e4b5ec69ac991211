//! The directories of snapshots, as in an overlay2 home.
//!
//! Owns names and modes, making a snapshot's directories, and moving them out of the way. Never decides which snapshot
//! exists (the database does), and never deletes a tree (the reaper does). Everything appears and disappears by one
//! rename.
//!
//! ```text
//! ROOT                  0700
//!   snapshots.redb      what exists
//!   overlay2/ID/        0700; ID is the snapshot's number, short so that many fit into one page of mount options
//!     diff/             as the parent's root, or 0755
//!     work/             0700; of snapshots that were active only
//!   staging/            directories being made
//!   trash/              directories being deleted
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use plyfs_format::name::Name;
use plyfs_sys::{Dir, DirMut, Errno, RenameFlags};

use crate::error::{Context, Error, Result};
use crate::tree;

/// Characters that would need escapes in mount options, which containerd does not know.
const FORBIDDEN: &[char] = &[',', ':', '\\', '"', '\n'];
/// The database of the layer store (`plyfs pull` and the like), which has a home of its own.
const STORE_DATABASE: &str = "plyfs.db";
const PRIVATE: u32 = 0o700;
/// The root directory of a snapshot that has no parent.
const ROOT_MODE: u32 = 0o755;

/// The directories of one root.
#[derive(Debug)]
pub struct Home {
    root: PathBuf,
    layers: DirMut,
    staging: DirMut,
    trash: DirMut,
    /// Makes names unique within staging and trash, which start empty with each process.
    sequence: AtomicU64,
}

/// Owner and mode of a new snapshot's root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootAttributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner; none to leave it to the process.
    pub owner: Option<(u32, u32)>,
}

impl Default for RootAttributes {
    fn default() -> Self {
        Self { mode: ROOT_MODE, owner: None }
    }
}

impl Home {
    /// Opens the directories of `root`, making those that are missing.
    pub fn open(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).at("create", root)?;
        let root = fs::canonicalize(root).at("resolve", root)?;
        refuse_unsuitable(&root)?;
        set_private(&root)?;
        Ok(Self {
            layers: private_dir(&root, "overlay2")?,
            staging: private_dir(&root, "staging")?,
            trash: private_dir(&root, "trash")?,
            root,
            sequence: AtomicU64::new(0),
        })
    }

    /// The root, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The metadata database.
    pub fn database(&self) -> PathBuf {
        self.root.join("snapshots.redb")
    }

    /// A snapshot's own layer.
    pub fn diff(&self, id: u64) -> PathBuf {
        self.layer(id).join("diff")
    }

    /// The overlay's work directory of an active snapshot.
    pub fn work(&self, id: u64) -> PathBuf {
        self.layer(id).join("work")
    }

    /// Where removed trees wait for the reaper.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Makes the directories of snapshot `id`, durably; what lies there already is no snapshot, and goes.
    pub fn create(&self, id: u64, attributes: RootAttributes, with_work: bool) -> Result<()> {
        let name = self.fresh("new");
        let staged = self.root.join("staging").join(&name);
        let made = self.stage(&name, attributes, with_work).and_then(|dir| {
            self.discard(id)?;
            let flags = RenameFlags::NOREPLACE;
            let target = id.to_string();
            self.staging
                .rename(entry(&name)?, &self.layers, entry(&target)?, flags)
                .at("publish", &staged)?;
            dir.sync().at("sync", &self.layer(id))?;
            self.layers.sync().at("sync", &self.root)
        });
        if made.is_err() {
            self.move_to_trash(&self.staging, &name, "failed")?;
        }
        made
    }

    /// The attributes of a snapshot's root, for those that stand on it.
    pub fn root_attributes(&self, id: u64) -> Result<RootAttributes> {
        let path = self.diff(id);
        let stat = Dir::open_root(&path).and_then(|dir| dir.stat()).at("open", &path)?;
        Ok(RootAttributes { mode: stat.permissions(), owner: Some((stat.uid, stat.gid)) })
    }

    /// Whether the layer of snapshot `id` is there.
    pub fn exists(&self, id: u64) -> bool {
        self.diff(id).is_dir()
    }

    /// Moves a snapshot's directories to the trash; none there is as good.
    pub fn discard(&self, id: u64) -> Result<()> {
        self.move_to_trash(&self.layers, &id.to_string(), "removed")
    }

    /// Moves to the trash whatever is being made, and every directory whose number `is_known` does not know. Only while
    /// nobody is making one.
    pub fn sweep_layers(&self, is_known: impl Fn(u64) -> bool) -> Result<usize> {
        let mut swept = 0;
        for name in self.names(&self.layers, "overlay2")? {
            let known = name.parse::<u64>().is_ok_and(|id| id.to_string() == name && is_known(id));
            if !known {
                self.move_to_trash(&self.layers, &name, "orphan")?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// Moves to the trash what a dead process was making.
    pub fn sweep_staging(&self) -> Result<()> {
        for name in self.names(&self.staging, "staging")? {
            self.move_to_trash(&self.staging, &name, "staged")?;
        }
        Ok(())
    }

    /// Writes everything below the root to the medium.
    pub fn sync(&self) -> Result<()> {
        self.layers.sync_filesystem().at("sync", &self.root)
    }

    fn stage(&self, name: &str, attributes: RootAttributes, with_work: bool) -> Result<DirMut> {
        let path = self.root.join("staging").join(name);
        let make = || -> plyfs_sys::Result<DirMut> {
            let name = Name::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
            self.staging.create_dir(name, PRIVATE)?;
            let dir = self.staging.child_mut(name)?;
            make_child(&dir, "diff", attributes)?;
            if with_work {
                make_child(&dir, "work", RootAttributes { mode: PRIVATE, owner: None })?;
            }
            Ok(dir)
        };
        make().at("make", &path)
    }

    fn move_to_trash(&self, from: &DirMut, name: &str, why: &str) -> Result<()> {
        loop {
            let target = self.fresh(&format!("{why}-{name}"));
            match from.rename(entry(name)?, &self.trash, entry(&target)?, RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e).at("move to the trash", &self.root.join(name)),
            }
        }
    }

    fn names(&self, dir: &DirMut, name: &str) -> Result<Vec<String>> {
        let names = tree::names(dir, usize::MAX).at("list", &self.root.join(name))?;
        Ok(names.iter().map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned()).collect())
    }

    fn layer(&self, id: u64) -> PathBuf {
        self.root.join("overlay2").join(id.to_string())
    }

    fn fresh(&self, prefix: &str) -> String {
        format!("{prefix}-{}", self.sequence.fetch_add(1, Ordering::Relaxed))
    }
}

fn entry(name: &str) -> Result<Name<'_>> {
    Name::new(name.as_bytes()).map_err(|e| Error::Damaged(format!("{name:?} among the snapshots: {e}")))
}

/// Modes are set, not left to the umask.
fn make_child(dir: &DirMut, name: &str, attributes: RootAttributes) -> plyfs_sys::Result<()> {
    let name = Name::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    dir.create_dir(name, PRIVATE)?;
    if let Some((uid, gid)) = attributes.owner {
        dir.chown_at(name, Some(uid), Some(gid))?;
    }
    dir.chmod_at(name, attributes.mode)
}

fn refuse_unsuitable(root: &Path) -> Result<()> {
    let text = root.to_string_lossy();
    if text.contains(FORBIDDEN) || root.to_str().is_none() {
        return Err(Error::InvalidArgument(format!(
            "the root {text:?} has a character that mount options cannot hold: one of {FORBIDDEN:?}"
        )));
    }
    if root.join(STORE_DATABASE).exists() {
        return Err(Error::InvalidArgument(format!(
            "{text} is the home of a layer store: give the snapshotter a directory of its own"
        )));
    }
    Ok(())
}

fn private_dir(root: &Path, name: &str) -> Result<DirMut> {
    let path = root.join(name);
    match fs::create_dir(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e).at("create", &path),
        _ => set_private(&path)?,
    }
    DirMut::open_root(&path).at("open", &path)
}

fn set_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE)).at("chmod", path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("r")).unwrap();
        (dir, home)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn modes_do_not_depend_on_the_umask_and_leftovers_give_way() {
        let (_dir, home) = home();
        fs::create_dir_all(home.root().join("overlay2/7/diff/old")).unwrap();
        home.create(7, RootAttributes { mode: 0o1777, owner: None }, true).unwrap();
        assert_eq!((mode(&home.diff(7)), mode(&home.work(7))), (0o1777, 0o700));
        assert!(!home.diff(7).join("old").exists());
        assert_eq!(home.root_attributes(7).unwrap().mode, 0o1777);
        home.create(8, RootAttributes::default(), false).unwrap();
        assert_eq!(mode(&home.diff(8)), 0o755);
        assert!(!home.work(8).exists());
    }

    #[test]
    fn sweeping_takes_what_nobody_knows_and_leaves_the_rest() {
        let (_dir, home) = home();
        home.create(1, RootAttributes::default(), true).unwrap();
        home.create(2, RootAttributes::default(), true).unwrap();
        fs::create_dir(home.root().join("overlay2/01")).unwrap();
        fs::create_dir(home.root().join("staging/new-0")).unwrap();
        assert_eq!(home.sweep_layers(|id| id == 1).unwrap(), 2);
        home.sweep_staging().unwrap();
        assert!(home.exists(1) && !home.exists(2));
        assert_eq!(fs::read_dir(home.trash()).unwrap().count(), 3);
    }

    #[test]
    fn a_root_that_mount_options_cannot_name_and_a_stores_home_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Home::open(&dir.path().join("a,b")), Err(Error::InvalidArgument(_))));
        fs::write(dir.path().join("plyfs.db"), "").unwrap();
        assert!(matches!(Home::open(dir.path()), Err(Error::InvalidArgument(_))));
    }
}
