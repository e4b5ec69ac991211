//! What a step must not leave behind: mounts, processes, containers' directories, cgroups.
//!
//! The process namespace holds nothing but this program and its init, and the mount namespace nothing that
//! the scene did not make, so whatever else is found is an engine's or plyfs's.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use plyfs_sys::mountinfo::{self, MountInfo};
use rustix::mount::UnmountFlags;

use super::scene::Scene;

/// A daemon ends after its mount went; a loaded machine may take a while for it.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
/// How the engines call the cgroups of what they run.
const CGROUPS: [&str; 5] = ["libpod_parent", "libpod", "buildah", "docker", "conmon"];

/// Fails if a mount in the scratch directory, a union mount anywhere, or a process is left.
pub fn check(scene: &Scene) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut left = mounts(scene)?;
        left.extend(processes()?);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("left behind: {}", left.join("; "));
        }
        thread::sleep(POLL);
    }
}

/// Fails if the graph root of a client from which everything was removed has a layer or a container left.
pub fn check_store(graph_root: &Path) -> Result<()> {
    let mut left = Vec::new();
    for part in ["overlay", "overlay/l", "overlay-containers", "overlay-images"] {
        for entry in fs::read_dir(graph_root.join(part)).into_iter().flatten() {
            let entry = entry.with_context(|| part.to_owned())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() && name != "l" || part == "overlay/l" {
                left.push(format!("{part}/{name}"));
            }
        }
    }
    if left.is_empty() { Ok(()) } else { bail!("left in the store: {}", left.join(", ")) }
}

/// All cgroups that an engine may have made.
pub fn cgroups() -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut pending = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let entry = entry.with_context(|| directory.display().to_string())?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            let name = entry.file_name();
            if CGROUPS.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                found.insert(entry.path());
            }
            pending.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes the engines' cgroups that are not in `before`. One that holds a process cannot be removed: an error.
pub fn remove_new_cgroups(before: &BTreeSet<PathBuf>) -> Result<()> {
    let now = cgroups()?;
    // In reverse order a directory comes after what it contains.
    for group in now.difference(before).collect::<Vec<_>>().into_iter().rev() {
        remove_tree(group)?;
    }
    Ok(())
}

/// Removes a cgroup and those below it; its files go with it.
fn remove_tree(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group).into_iter().flatten() {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cgroup {} was left behind", group.display()))
        }
        _ => Ok(()),
    }
}

/// Lets go of union mounts that were there before: a copy of a mount in this namespace would keep its daemon from
/// ending with the original.
pub fn detach_foreign() -> Result<()> {
    let table = mountinfo::read().context("/proc/self/mountinfo")?;
    for mount in table.iter().rev().filter(|mount| is_union(mount)) {
        rustix::mount::unmount(&mount.target, UnmountFlags::DETACH)
            .with_context(|| mount.target.display().to_string())?;
    }
    Ok(())
}

fn mounts(scene: &Scene) -> Result<Vec<String>> {
    let scratch = scene.path("");
    let table = mountinfo::read().context("/proc/self/mountinfo")?;
    let left = table.iter().filter(|mount| is_union(mount) || mount.target.starts_with(&scratch));
    Ok(left.map(|mount| format!("mount {} on {}", mount.fstype, mount.target.display())).collect())
}

fn is_union(mount: &MountInfo) -> bool {
    ["fuse.plyfs", "fuse.fuse-overlayfs"].contains(&mount.fstype.as_str())
}

/// Every living process but init, this one and its threads.
fn processes() -> Result<Vec<String>> {
    let own = [1, std::process::id()];
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // One that ended meanwhile has no files any more.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let state = stat.rsplit_once(')').map_or("", |(_, rest)| rest).trim_start();
        if own.contains(&pid) || state.starts_with(['Z', 'X']) {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        found.push(format!("process {pid} {}", String::from_utf8_lossy(&line).replace('\0', " ")));
    }
    Ok(found)
}
