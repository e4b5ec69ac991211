//! That the directories of a stack are different ones, and no lower lies within another directory of the stack.
//!
//! Owns the refusal, before anything is opened or made. A stack of such layers would show one object at two places under
//! two identities, and a change of the upper would change a lower. The kernel's counterpart are the trap inodes of
//! `ovl_setup_trap` and `ovl_check_overlapping_layers` (`fs/overlayfs/super.c`), which answer `ELOOP`. An upper or a
//! work directory within a lower is allowed, as there.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use plyfs_format::StackSpec;

use crate::error::AssembleError;

/// A directory by its device and inode number.
type Identity = (u64, u64);

/// A directory of the stack: the option that names it, and its path as it was given.
type Place<'a> = (&'static str, &'a Path);

/// Refuses a directory that is named twice, and, unless `nested`, a lower within another directory of the stack. What
/// cannot be looked at is passed over: opening it will say why.
pub(crate) fn check(spec: &StackSpec, nested: bool) -> Result<(), AssembleError> {
    let places = places(spec)?;
    if nested {
        return Ok(());
    }
    let mut clear = HashSet::new();
    spec.lowers.iter().chain(&spec.data_lowers).try_for_each(|lower| check_above(lower, &places, &mut clear))
}

/// The directories of a stack, which must differ.
fn places(spec: &StackSpec) -> Result<HashMap<Identity, Place<'_>>, AssembleError> {
    let upper = spec.upper.iter().flat_map(|paths| [("upperdir", &paths.upper), ("workdir", &paths.work)]);
    let lowers = spec.lowers.iter().chain(&spec.data_lowers).map(|lower| ("lowerdir", lower));
    let mut places = HashMap::new();
    for (role, path) in upper.chain(lowers) {
        let Some(identity) = identity(path) else { continue };
        match places.insert(identity, (role, path.as_path())) {
            // What upper and work are to each other is checked where they are opened.
            Some(("upperdir", _)) if role == "workdir" => {}
            Some((other_role, other)) => {
                return Err(AssembleError::SameDirectory {
                    role,
                    path: path.clone(),
                    other_role,
                    other: other.to_owned(),
                });
            }
            None => {}
        }
    }
    Ok(places)
}

/// Looks at the directories above a lower, up to the root of its file system. Those in `clear` have been looked at.
fn check_above(
    lower: &Path,
    places: &HashMap<Identity, Place<'_>>,
    clear: &mut HashSet<PathBuf>,
) -> Result<(), AssembleError> {
    let (Ok(real), Some((device, _))) = (lower.canonicalize(), identity(lower)) else { return Ok(()) };
    for above in real.ancestors().skip(1) {
        let Some(found) = identity(above).filter(|found| found.0 == device) else { break };
        if !clear.insert(above.to_owned()) {
            break;
        }
        if let Some((outer_role, outer)) = places.get(&found) {
            let (path, outer) = (lower.to_owned(), (*outer).to_owned());
            return Err(AssembleError::LowerInside { path, outer_role, outer });
        }
    }
    Ok(())
}

fn identity(path: &Path) -> Option<Identity> {
    path.metadata().ok().map(|found| (found.dev(), found.ino()))
}
