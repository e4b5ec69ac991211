//! How far a commit came, so that it is finished, and not done twice, by running it again.
//!
//! Applying an upper again changes nothing where it has been applied, with one exception: what the upper says was renamed
//! is looked for at its old name, and something else may be there by now (two directories that exchanged their names). So
//! the stage remembers whose commit it belongs to, and that everything renamed was taken; and the upper, when all is on
//! the medium, to which directory it was applied. Each mark is on the medium before what relies on it is done.

use std::ffi::CStr;
use std::path::Path;

use plyfs_format::Namespace;
use plyfs_sys::{Dir, DirMut, Errno, XattrFlags};

use crate::changes::UpperDir;
use crate::failure::{Context, Outcome};

/// Whether the upper was applied to this directory to the end.
pub fn is_done(upper: &UpperDir, target: &Dir) -> Outcome<bool> {
    let value = upper.dir.get_own_xattr(attribute(upper.namespace)).context(|| "upper: cannot be read")?;
    Ok(value.is_some_and(|value| identity(target).is_ok_and(|identity| identity.as_bytes() == value)))
}

/// Says in the upper that it was applied to this directory. An upper that cannot be written (`EROFS`, no attributes) stays
/// as it is: whoever commits it again has been told.
pub fn mark_done(path: &Path, namespace: Namespace, target: &Dir) -> Outcome<()> {
    let describe = || format!("{}: cannot say in it that it was applied", path.display());
    let identity = identity(target).context(describe)?;
    let marked = DirMut::open_root(path).and_then(|upper| {
        upper.set_own_xattr(attribute(namespace), identity.as_bytes(), XattrFlags::empty())?;
        upper.sync()
    });
    match marked {
        Err(Errno::ROFS | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {
            eprintln!("plyfs: {}: do not commit it again, what it renames is renamed", path.display());
            Ok(())
        }
        other => other.context(describe),
    }
}

/// What tells a directory from all others, also after its file system was mounted anew where that has a UUID.
pub fn identity(dir: &Dir) -> plyfs_sys::Result<String> {
    let stat = dir.stat()?;
    let filesystem = match dir.filesystem_uuid()? {
        Some(uuid) => uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
        None => format!("{:x}", stat.dev()),
    };
    // A number is given again when its directory is deleted; the time it was made at is another one then.
    let made = stat.btime.map(|time| format!("{}.{:09}", time.sec, time.nsec)).unwrap_or_default();
    Ok(format!("{filesystem}:{}:{made}", stat.ino))
}

/// Of the overlay's own attributes, so that no mount shows it.
fn attribute(namespace: Namespace) -> &'static CStr {
    match namespace {
        Namespace::Trusted => c"trusted.overlay.plyfs.committed",
        Namespace::User => c"user.overlay.plyfs.committed",
    }
}
