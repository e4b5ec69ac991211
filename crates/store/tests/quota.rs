//! `create --size` on the file systems that have project quotas, made in a file and mounted as a loop device.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{file, is_root, tar};
use plyfs_store::{Backend, Changes, Options, Store};

struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// None, and why, where the file system cannot be made or mounted.
    fn new(mkfs: &[&str], options: &str) -> Option<Disk> {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("fs"), dir.path().join("mnt"));
        fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        let made = Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).output();
        let mounted = made.is_ok_and(|o| o.status.success())
            && Command::new("mount")
                .args(["-o", options])
                .args([&image, &at])
                .output()
                .unwrap()
                .status
                .success();
        if !mounted {
            eprintln!("skipped: {} failed, or this kernel does not mount its work with {options}", mkfs[0]);
        }
        mounted.then(|| Disk { dir })
    }

    fn store(&self) -> Store {
        Store::open(&self.root(), Options::default()).unwrap()
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("mnt/store")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(self.dir.path().join("mnt")).status().unwrap().success());
    }
}

fn write(path: &Path, mib: usize) -> std::io::Result<()> {
    let mut f = fs::File::create(path)?;
    (0..mib).try_for_each(|_| f.write_all(&vec![1; 1 << 20]))?;
    f.sync_all()
}

/// A container with a limit of 8 MiB takes 5 and not 6 more; its neighbour without takes them all.
fn limits(disk: &Disk) {
    let s = disk.store();
    let base = disk.dir.path().join("base.tar");
    fs::write(&base, tar(&[file("f", &"x".repeat(10 << 20)), file("g", "small")])).unwrap();
    s.import(&base, "base:1", &Changes::default()).unwrap();
    assert_eq!(s.create("base:1", None, Some(1000)).unwrap_err().kind(), "invalid");
    s.create("base:1", Some("free"), None).unwrap();
    let c = s.create("base:1", Some("c"), Some(8 << 20)).unwrap();
    assert_eq!(s.container("c").unwrap().size_limit, Some(8 << 20));
    let m = s.mount("c", Backend::Kernel).unwrap();
    // The image's own bytes do not count.
    write(&m.join("five"), 5).unwrap();
    let e = write(&m.join("six"), 6).unwrap_err();
    assert!(matches!(e.raw_os_error(), Some(28 | 122)), "{e}");
    let shown = rustix::fs::statvfs(&m).unwrap();
    assert!(shown.f_blocks * shown.f_frsize <= 9 << 20, "{}", shown.f_blocks);
    // What is removed gives its room back, and changing a large file of the image is too much.
    fs::remove_file(m.join("six")).unwrap();
    assert!(fs::OpenOptions::new().append(true).open(m.join("f")).is_err());
    fs::remove_file(m.join("five")).unwrap();
    write(&m.join("six"), 6).unwrap();
    s.unmount("c", true).unwrap();
    assert_eq!(s.mount("c", Backend::Copy).unwrap_err().kind(), "unsupported");
    let m = s.mount("free", Backend::Kernel).unwrap();
    write(&m.join("much"), 20).unwrap();
    s.unmount("free", true).unwrap();
    let project = c.project.unwrap();
    s.remove_container("c", false).unwrap();
    let dir = fs::File::open(disk.root()).unwrap();
    assert!(plyfs_sys::quota::is_unused(&dir, project).unwrap(), "the limit goes with the container");
}

#[test]
fn a_containers_size_is_limited_on_ext4() {
    if !is_root() {
        return;
    }
    let mkfs = ["mkfs.ext4", "-qF", "-O", "quota,project", "-E", "quotatype=prjquota"];
    if let Some(d) = Disk::new(&mkfs, "loop,prjquota") {
        limits(&d);
    }
}

#[test]
fn a_containers_size_is_limited_on_xfs() {
    if !is_root() {
        return;
    }
    if let Some(d) = Disk::new(&["mkfs.xfs", "-qf"], "loop,prjquota") {
        limits(&d);
    }
}

#[test]
fn a_limit_that_nobody_would_keep_is_refused() {
    if !is_root() {
        return;
    }
    if let Some(d) = Disk::new(&["mkfs.ext4", "-qF"], "loop") {
        let s = d.store();
        let base = d.dir.path().join("base.tar");
        fs::write(&base, tar(&[file("f", "x")])).unwrap();
        s.import(&base, "base:1", &Changes::default()).unwrap();
        let e = s.create("base:1", Some("c"), Some(8 << 20)).unwrap_err();
        assert!(e.kind() == "unsupported" && e.to_string().contains("prjquota"), "{e}");
        assert!(s.containers().unwrap().is_empty());
    }
}
