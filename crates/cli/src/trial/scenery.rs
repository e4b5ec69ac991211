//! Which mounts of the machine the view needs, and what each becomes there.
//!
//! Reads the mount table, changes nothing. Real file systems are overlaid, each by a plyfs of its own; /proc, /dev and
//! /sys are made new (`stage.rs`); everything else that is mounted is shown read-only.

use std::path::{Path, PathBuf};

use plyfs_sys::mountinfo::{self, MountInfo};
use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::failure::{Context, Outcome};

/// What a mount of the machine becomes in the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A plyfs with the mount as its lower.
    Overlaid,
    /// The same mount, read-only.
    ReadOnly,
    /// An empty directory: this user may not list what is there.
    Closed,
}

/// A mount below the view's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    /// Where it is on the machine.
    pub path: PathBuf,
    /// What it becomes.
    pub part: Part,
    /// Whether it is a directory; a single file can be mounted too.
    pub directory: bool,
}

/// File systems that hold no files of their own but speak with the kernel or another process. Written, they would change
/// the machine; overlaid, they would make no sense.
const PSEUDO: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// What the view makes anew, with everything mounted below.
const MADE_NEW: &[&str] = &["proc", "dev", "sys"];

/// The mounts strictly below `root` (an absolute path without symbolic links) that can be seen, parents before children.
/// What lies below a mount that is not overlaid comes with it.
pub fn below(root: &Path) -> Outcome<Vec<Scene>> {
    let mounts = mountinfo::read().context(|| "/proc/self/mountinfo")?;
    let mut scenes: Vec<Scene> = Vec::new();
    let mut candidates: Vec<&MountInfo> =
        mounts.iter().filter(|mount| is_below(&mount.target, root)).collect();
    candidates.sort_by(|one, other| one.target.cmp(&other.target));
    for mount in candidates {
        let path = &mount.target;
        let covered = |scene: &Scene| scene.part != Part::Overlaid && path.starts_with(&scene.path);
        if MADE_NEW.iter().any(|made| path.starts_with(root.join(made))) || scenes.iter().any(covered) {
            continue;
        }
        if let Some(scene) = scene(mount) {
            scenes.push(scene);
        }
    }
    Ok(scenes)
}

/// Has a directory overlaid that need not be a mount point.
pub fn add_overlaid(scenes: &mut Vec<Scene>, path: &Path) {
    match scenes.iter_mut().find(|scene| scene.path == path) {
        Some(scene) => scene.part = Part::Overlaid,
        None => scenes.push(Scene { path: path.to_owned(), part: Part::Overlaid, directory: true }),
    }
    scenes.sort_by(|one, other| one.path.cmp(&other.path));
}

fn is_below(path: &Path, root: &Path) -> bool {
    path != root && path.starts_with(root)
}

/// `None` if another mount hides this one, or its path is gone or cannot be reached.
fn scene(mount: &MountInfo) -> Option<Scene> {
    let path = mount.target.clone();
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    // What this user cannot reach (below a directory of somebody else's, a FUSE mount of another user, one whose daemon is
    // dead) the view's file systems cannot reach either.
    let found = rustix::fs::statx(CWD, &path, flags, StatxFlags::TYPE | StatxFlags::MNT_ID).ok()?;
    if found.stx_mask & StatxFlags::MNT_ID.bits() != 0 && found.stx_mnt_id != mount.id {
        return None;
    }
    let directory = rustix::fs::FileType::from_raw_mode(found.stx_mode.into()).is_dir();
    Some(Scene { part: part(mount, directory), directory, path })
}

fn part(mount: &MountInfo, directory: bool) -> Part {
    let fstype = mount.fstype.as_str();
    let readable = || rustix::fs::access(&mount.target, rustix::fs::Access::READ_OK).is_ok();
    if PSEUDO.contains(&fstype) || mount.has_option("ro") || !directory {
        Part::ReadOnly
    } else if readable() {
        Part::Overlaid
    } else {
        Part::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_not_below_itself_and_neighbours_are_not_below_it() {
        assert!(!is_below(Path::new("/a"), Path::new("/a")));
        assert!(!is_below(Path::new("/ab"), Path::new("/a")));
        assert!(is_below(Path::new("/a/b"), Path::new("/a")));
        assert!(is_below(Path::new("/a"), Path::new("/")));
    }

    #[test]
    fn proc_dev_and_sys_are_left_to_the_stage() {
        for scene in below(Path::new("/")).unwrap() {
            assert!(!scene.path.starts_with("/proc") && !scene.path.starts_with("/sys"), "{scene:?}");
        }
    }
}
