//! File systems for layers to lie on: tmpfs, or ext4, xfs or btrfs in a loop file.
//!
//! A [`Backing`] is unmounted and deleted when dropped. All are mounted `noatime`, so that an access time
//! changes only where an operation sets it, and two trees treated alike agree on it.

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

/// Which file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// In memory; never reuses an inode number.
    Tmpfs,
    /// ext4 in a loop file.
    Ext4,
    /// xfs in a loop file; has reflinks.
    Xfs,
    /// btrfs in a loop file; has reflinks.
    Btrfs,
}

impl Kind {
    /// The name that mount(2) knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tmpfs => "tmpfs",
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
        }
    }

    /// True if an inode number is never used again, so that it identifies a file for ever.
    pub fn never_reuses_inodes(self) -> bool {
        self == Kind::Tmpfs
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [Kind::Tmpfs, Kind::Ext4, Kind::Xfs, Kind::Btrfs];
        all.into_iter().find(|kind| kind.name() == name).with_context(|| format!("no backing {name:?}"))
    }
}

/// A mounted file system.
#[derive(Debug)]
pub struct Backing {
    root: PathBuf,
    /// Holds the loop file and the mount point.
    _scratch: tempfile::TempDir,
}

impl Backing {
    /// Makes and mounts a file system of `kind`, of 2 GiB at most (sparse).
    pub fn new(kind: Kind) -> Result<Self> {
        Self::sized(kind, 2 << 30)
    }

    /// Makes and mounts a file system of `kind`, of `size` bytes at most (sparse).
    pub fn sized(kind: Kind, size: u64) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("plyfs-").tempdir_in(scratch_place())?;
        let root = scratch.path().join("fs");
        std::fs::create_dir(&root)?;
        match kind {
            Kind::Tmpfs => {
                let options = CString::new(format!("size={size},mode=755"))?;
                mount("tmpfs", &root, "tmpfs", MountFlags::NOATIME, Some(options.as_c_str()))?;
            }
            _ => mount_loop_file(kind, size, scratch.path(), &root)?,
        }
        Ok(Self { root, _scratch: scratch })
    }

    /// The root directory of the file system.
    pub fn path(&self) -> &Path {
        &self.root
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Err(cause) = unmount(&self.root, UnmountFlags::DETACH) {
            eprintln!("{} was left mounted: {cause}", self.root.display());
        }
    }
}

/// A place in memory, if there is one: a copy-up syncs, and the disk is not what is tested.
fn scratch_place() -> PathBuf {
    if let Some(place) = std::env::var_os("PLYFS_TEST_SCRATCH") {
        return place.into();
    }
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

fn mount_loop_file(kind: Kind, size: u64, scratch: &Path, root: &Path) -> Result<()> {
    let image = scratch.join("image");
    make_image(kind, size, &image)?;
    mount_image(kind, &image, root)
}

/// Makes a file system of `kind`, not tmpfs, of `size` bytes at most in the file `image` (sparse).
pub fn make_image(kind: Kind, size: u64, image: &Path) -> Result<()> {
    std::fs::File::create(image)?.set_len(size)?;
    let mkfs = format!("mkfs.{}", kind.name());
    let quiet = if kind == Kind::Ext4 { ["-q", "-F"] } else { ["-q", "-f"] };
    run(Command::new(mkfs).args(quiet).arg(image))
}

/// Mounts the file system in a file, also beside a copy of it, which has the same UUID.
pub fn mount_image(kind: Kind, image: &Path, root: &Path) -> Result<()> {
    let options = if kind == Kind::Xfs { "loop,noatime,nouuid" } else { "loop,noatime" };
    run(Command::new("mount").args(["-t", kind.name(), "-o", options]).arg(image).arg(root))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need::{self, Need};

    #[test]
    fn every_backing_is_mounted_and_gone_when_dropped() {
        for kind in [Kind::Tmpfs, Kind::Ext4, Kind::Xfs, Kind::Btrfs] {
            let mkfs = format!("mkfs.{}", kind.name());
            let mut needs = vec![Need::Root, Need::Filesystem(kind.name())];
            if kind != Kind::Tmpfs {
                needs.push(Need::Tool(&mkfs));
            }
            if !need::met(&needs) {
                continue;
            }
            let backing = Backing::new(kind).unwrap();
            std::fs::write(backing.path().join("x"), "x").unwrap();
            let path = backing.path().to_owned();
            drop(backing);
            assert!(!path.exists(), "{kind:?}");
        }
    }
}
