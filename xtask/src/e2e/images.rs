//! The images' root file systems: busybox, and a minimal Debian of this machine's release.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::client::Client;
use super::scene::Scene;
use crate::{child, setup, workspace};
use plyfs_sys::mountinfo;

/// The name of the busybox image.
pub const BUSYBOX: &str = "localhost/busybox:1";
/// The name of the Debian image.
pub const DEBIAN: &str = "localhost/debian:1";

const TAR_LIMIT: Duration = Duration::from_secs(300);
const DEBOOTSTRAP_LIMIT: Duration = Duration::from_secs(1800);

/// Puts [`BUSYBOX`] into a client's store.
pub fn import_busybox(client: &Client<'_>) -> Result<()> {
    let archive = busybox_archive(client.scene)?;
    client.podman(&["import", "--change", "CMD=/bin/sh", &archive.display().to_string(), BUSYBOX]).map(drop)
}

/// Puts [`DEBIAN`] into a client's store. The first run on a machine downloads it into `target/e2e`.
pub fn import_debian(client: &Client<'_>) -> Result<()> {
    let archive = debian_archive(client.scene)?;
    // A user may not be able to read where the workspace lies.
    let copy = client.scene.path("debian.tar");
    if !copy.exists() {
        fs::copy(&archive, &copy).with_context(|| format!("copying {}", archive.display()))?;
    }
    client.podman(&["import", "--change", "CMD=/bin/bash", &copy.display().to_string(), DEBIAN]).map(drop)
}

/// [`busybox_root`], packed.
pub fn busybox_archive(scene: &Scene) -> Result<PathBuf> {
    let archive = scene.path("busybox.tar");
    if !archive.exists() {
        pack(&busybox_root(scene)?, &archive)?;
    }
    Ok(archive)
}

/// A directory with busybox under all its names, and the usual directories and users.
pub fn busybox_root(scene: &Scene) -> Result<PathBuf> {
    let root = scene.path("busybox");
    if root.exists() {
        return Ok(root);
    }
    for name in ["bin", "etc", "tmp", "root", "usr/share/doc", "var/lib/data", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(name)).with_context(|| name.to_owned())?;
    }
    fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).context("tmp")?;
    let binary = setup::tool_path("busybox").context("busybox is not installed")?;
    fs::copy(&binary, root.join("bin/busybox")).with_context(|| binary.display().to_string())?;
    let applets = child::run_quiet(Command::new(&binary).arg("--list"), TAR_LIMIT)?;
    for applet in applets.lines.iter().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).with_context(|| applet.clone())?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n")?;
    for number in 0..50 {
        fs::write(root.join(format!("usr/share/doc/page{number}")), format!("page {number}\n"))?;
        fs::write(root.join(format!("var/lib/data/record{number}")), "x".repeat(number * 100))?;
    }
    Ok(root)
}

fn debian_archive(scene: &Scene) -> Result<PathBuf> {
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.context("/etc/os-release has no VERSION_CODENAME: not a Debian release")?;
    let archive = workspace::root()?.join(format!("target/e2e/debian-{suite}.tar"));
    if archive.exists() {
        return Ok(archive);
    }
    println!("e2e: downloading a minimal Debian by debootstrap, once");
    let root = scene.path("debian");
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", suite]).arg(&root);
    if !child::run_silent(&mut debootstrap, DEBOOTSTRAP_LIMIT)?.success() {
        bail!("debootstrap failed");
    }
    unmount_below(&root)?;
    fs::create_dir_all(archive.parent().context("no parent")?)?;
    let part = archive.with_extension("part");
    pack(&root, &part)?;
    fs::rename(&part, &archive).with_context(|| archive.display().to_string())?;
    Ok(archive)
}

/// debootstrap leaves `/proc` mounted.
fn unmount_below(root: &Path) -> Result<()> {
    let table = mountinfo::read().context("/proc/self/mountinfo")?;
    for mount in table.iter().rev().filter(|mount| mount.target.starts_with(root)) {
        rustix::mount::unmount(&mount.target, rustix::mount::UnmountFlags::empty())
            .with_context(|| mount.target.display().to_string())?;
    }
    Ok(())
}

fn pack(root: &Path, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.arg("--numeric-owner").arg("-C").arg(root).arg("-cf").arg(archive).arg(".");
    if !child::run_silent(&mut tar, TAR_LIMIT)?.success() {
        bail!("tar of {} failed", root.display());
    }
    Ok(())
}
