//! A union for one test: layers in a directory of their own, mounted, and all gone when dropped.

use crate::layer::TreeSpec;
use crate::mount::{Driver, Mounted, Stack};
use crate::snapshot::{Clock, Snapshot, View};
use anyhow::{Context, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A mounted union with an upper.
#[derive(Debug)]
pub struct Union {
    // Dropped in this order: unmounted first.
    mounted: Option<Mounted>,
    driver: Driver,
    stack: Stack,
    upper: PathBuf,
    target: PathBuf,
    dir: tempfile::TempDir,
}

impl Union {
    /// Makes `layers` (topmost first) and an empty upper below `place`, and mounts them with `options`.
    pub fn new(driver: &Driver, place: &Path, layers: &[TreeSpec], options: &[&str]) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("union-").tempdir_in(place).context("a directory for a union")?;
        // Other users must be able to come as far as the mount point.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))?;
        let mut lowers = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let lower = dir.path().join(format!("lower-{number}"));
            layer.build(&lower)?;
            lowers.push(lower);
        }
        let [upper, work, target] = ["upper", "work", "merged"].map(|name| dir.path().join(name));
        for path in [&upper, &work, &target] {
            std::fs::create_dir(path).with_context(|| path.display().to_string())?;
        }
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let stack = Stack { lowers, upper: Some((upper.clone(), work)), options };
        let mut union = Self { mounted: None, driver: driver.clone(), stack, upper, target, dir };
        union.mount(driver)?;
        Ok(union)
    }

    /// The mount point.
    pub fn merged(&self) -> &Path {
        &self.target
    }

    /// A path in the mount.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.target.join(relative)
    }

    /// The upper directory.
    pub fn upper(&self) -> &Path {
        &self.upper
    }

    /// A lower layer's directory; 0 is the topmost.
    pub fn lower(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("lower-{number}"))
    }

    /// The work directory.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Unmounts and mounts again in the same way.
    pub fn remount(&mut self) -> Result<()> {
        let driver = self.driver.clone();
        self.remount_with(&driver)
    }

    /// Unmounts and mounts again with another driver.
    pub fn remount_with(&mut self, driver: &Driver) -> Result<()> {
        self.unmount()?;
        self.mount(driver)
    }

    /// Changes the options of the next mount.
    pub fn set_options(&mut self, options: &[String]) {
        self.stack.options = options.to_vec();
    }

    /// Unmounts; the layers stay.
    pub fn unmount(&mut self) -> Result<()> {
        self.mounted.take().map_or(Ok(()), Mounted::unmount)
    }

    /// The merged tree as it is now.
    pub fn snapshot(&self, clock: Clock) -> Result<Snapshot> {
        Snapshot::take(&self.target, View::Merged, clock)
    }

    /// All lower layers as they are now, with exact times.
    pub fn lowers(&self) -> Result<Vec<Snapshot>> {
        let layers = self.stack.lowers.iter();
        layers.map(|lower| Snapshot::take(lower, View::Merged, Clock::never())).collect()
    }

    fn mount(&mut self, driver: &Driver) -> Result<()> {
        self.mounted = Some(driver.mount(&self.stack, &self.target)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need::{self, Need};

    #[test]
    fn a_union_is_mounted_with_its_layers_and_unmounted_when_dropped() {
        if !need::met(&[Need::Root, Need::Filesystem("overlay")]) {
            return;
        }
        let backing = crate::backing::Backing::new(crate::backing::Kind::Tmpfs).unwrap();
        let layers =
            [TreeSpec::new().file("x", "upper one"), TreeSpec::new().file("x", "lower one").file("y", "")];
        let mut union = Union::new(&Driver::Kernel, backing.path(), &layers, &[]).unwrap();
        assert_eq!(std::fs::read_to_string(union.path("x")).unwrap(), "upper one");
        std::fs::write(union.path("y"), "new").unwrap();
        union.remount().unwrap();
        assert_eq!(std::fs::read_to_string(union.upper().join("y")).unwrap(), "new");
        let merged = union.merged().to_owned();
        drop(union);
        assert!(!merged.exists());
    }
}
