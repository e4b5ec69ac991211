//! That the directories of a stack are different ones, and no lower lies within another directory of the stack.
//!
//! Owns the refusal, before anything is opened or made. A stack of such layers would show one object at two places under
//! two identities, and a change of the upper would change a lower. The kernel's counterpart are the trap inodes of
//! `ovl_setup_trap` and `ovl_check_overlapping_layers` (`fs/overlayfs/super.c`), which answer `ELOOP`. An upper or a
//! work directory within a lower is allowed, as there.
//!
//! Where a directory lies is told by its path inside its file system, not by the one that was given: a bind mount shows a part
//! of a file system somewhere else, and covers another.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use plyfs_format::StackSpec;
use plyfs_sys::{Dir, mountinfo};

use crate::error::AssembleError;

/// A directory of the stack that could be looked at.
struct Place<'a> {
    /// The option that names it.
    role: &'static str,
    /// As it was given.
    path: &'a Path,
    /// As the mount table would name it.
    real: PathBuf,
    device: u64,
    inode: u64,
    mount: u64,
}

/// A file system, and a path in it; or, where the mount table cannot tell, a mount and a path from the process's root.
type Spot = (Filesystem, PathBuf);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Filesystem {
    /// The device of the super block. Not that of a subvolume: a path in the mount table leads through those.
    Device(u32, u32),
    Mount(u64),
}

/// Refuses a directory that is named twice, and, unless `nested`, a lower within another directory of the stack. What
/// cannot be looked at is passed over: opening it will say why.
pub(crate) fn check(spec: &StackSpec, nested: bool) -> Result<(), AssembleError> {
    let places = places(spec);
    refuse_twice(&places)?;
    if nested {
        return Ok(());
    }
    let spots = spots(&places);
    let by_spot: HashMap<&Spot, &Place<'_>> = spots.iter().map(|(place, spot)| (spot, *place)).collect();
    for (lower, (filesystem, path)) in spots.iter().filter(|(place, _)| place.role == "lowerdir") {
        let mut above = path.ancestors().skip(1).map(|above| (*filesystem, above.to_owned()));
        if let Some(outer) = above.find_map(|above| by_spot.get(&above)) {
            return Err(AssembleError::LowerInside {
                path: lower.path.to_owned(),
                outer_role: outer.role,
                outer: outer.path.to_owned(),
            });
        }
    }
    Ok(())
}

fn places(spec: &StackSpec) -> Vec<Place<'_>> {
    let upper = spec.upper.iter().flat_map(|paths| [("upperdir", &paths.upper), ("workdir", &paths.work)]);
    let lowers = spec.lowers.iter().chain(&spec.data_lowers).map(|lower| ("lowerdir", lower));
    upper.chain(lowers).filter_map(|(role, path)| Place::look(role, path)).collect()
}

impl<'a> Place<'a> {
    fn look(role: &'static str, path: &'a Path) -> Option<Self> {
        let dir = Dir::open_root(path).ok()?;
        let stat = dir.stat().ok()?;
        // One system call where resolving the path takes one for each of its parts.
        let real = dir.real_path().ok().or_else(|| path.canonicalize().ok())?;
        Some(Self { role, path, real, device: stat.dev(), inode: stat.ino, mount: stat.mount_id })
    }
}

fn refuse_twice(places: &[Place<'_>]) -> Result<(), AssembleError> {
    let mut seen: HashMap<(u64, u64), &Place<'_>> = HashMap::new();
    for place in places {
        match seen.insert((place.device, place.inode), place) {
            // What upper and work are to each other is checked where they are opened.
            Some(other) if other.role == "upperdir" && place.role == "workdir" => {}
            Some(other) => {
                return Err(AssembleError::SameDirectory {
                    role: place.role,
                    path: place.path.to_owned(),
                    other_role: other.role,
                    other: other.path.to_owned(),
                });
            }
            None => {}
        }
    }
    Ok(())
}

/// Where the directories lie. On one mount, as most stacks are, their paths tell that without the mount table.
fn spots<'a, 'p>(places: &'a [Place<'p>]) -> Vec<(&'a Place<'p>, Spot)> {
    let several = places.windows(2).any(|two| matches!(two, [one, other] if one.mount != other.mount));
    let table = if several { mountinfo::read().unwrap_or_default() } else { Vec::new() };
    let table: HashMap<u64, &mountinfo::MountInfo> = table.iter().map(|mount| (mount.id, mount)).collect();
    let spot = |place: &'a Place<'p>| {
        let real = place.real.clone();
        let spot = table.get(&place.mount).and_then(|mount| {
            let within = real.strip_prefix(&mount.target).ok()?;
            Some((Filesystem::Device(mount.major, mount.minor), mount.root.join(within)))
        });
        (place, spot.unwrap_or((Filesystem::Mount(place.mount), real)))
    };
    places.iter().map(spot).collect()
}
