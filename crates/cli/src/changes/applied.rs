//! Which renames of an upper were carried out in a directory already.
//!
//! Applying an upper to a directory again changes nothing where it has been applied, with one exception: what the upper says
//! was renamed is looked for at its old name, and something else may be there by now (two directories that exchanged their
//! names). So a commit says on every renamed entry of the upper, when all is on the medium, in which directory it was
//! renamed. For that directory the entry then lies where it is; everything else in the upper, also what is added later, is
//! applied as ever.

use std::ffi::CStr;
use std::path::Path;

use plyfs_format::{Namespace, RelPath};
use plyfs_sys::{Dir, DirMut, Errno, XattrFlags};

use super::UpperDir;
use crate::failure::{Context, Outcome};

/// What tells a directory from all others of its file system, also after that was mounted elsewhere or by another kernel:
/// its number, and since that is given again when it is deleted, the time it was made at.
pub fn identity(dir: &Dir) -> plyfs_sys::Result<String> {
    let stat = dir.stat()?;
    let made = stat.btime.map(|time| format!("{}.{:09}", time.sec, time.nsec)).unwrap_or_default();
    Ok(format!("{}:{made}", stat.ino))
}

/// The mark on an entry with this redirect, that it was renamed in the directory with this identity. A redirect that was
/// changed since has another one.
pub fn mark(identity: &str, redirect: &[u8]) -> Vec<u8> {
    [identity.as_bytes(), b" ", redirect].concat()
}

/// Of the overlay's own attributes, so that no mount shows it.
pub fn attribute(namespace: Namespace) -> &'static CStr {
    match namespace {
        Namespace::Trusted => c"trusted.overlay.plyfs.committed",
        Namespace::User => c"user.overlay.plyfs.committed",
    }
}

/// Marks the entries at these paths of an upper as renamed in the directory that it was opened over. One that cannot be written (`EROFS`, no attributes) stays as it is: whoever
/// commits it again has been told.
pub fn say(path: &Path, upper: &UpperDir, renamed: &[RelPath]) -> Outcome<()> {
    let Some(identity) = &upper.over else { return Ok(()) };
    let describe = || format!("{}: cannot say in it what was renamed", path.display());
    let root = DirMut::open_root(path).context(describe)?;
    for entry in renamed {
        match say_one(&root, upper, identity, entry) {
            Ok(()) => {}
            Err(Errno::ROFS | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {
                eprintln!("plyfs: {}: do not commit it again, what it renames is renamed", path.display());
                return Ok(());
            }
            Err(error) => return Err(error).context(describe),
        }
    }
    root.sync_filesystem().context(describe)
}

fn say_one(root: &DirMut, upper: &UpperDir, identity: &str, entry: &RelPath) -> plyfs_sys::Result<()> {
    let (Some(parent), Some(name)) = (entry.parent(), entry.file_name()) else { return Err(Errno::INVAL) };
    let parent = root.open_dir_mut(&parent)?;
    let redirect = upper.namespace.name(plyfs_format::Private::Redirect);
    let redirect = parent.get_xattr(name, redirect)?.unwrap_or_default();
    let mark = mark(identity, &redirect);
    parent.set_xattr(name, attribute(upper.namespace), &mark, XattrFlags::empty())
}
