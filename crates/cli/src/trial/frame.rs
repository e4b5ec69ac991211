//! The frame: a lower layer of our own that lies over the machine's directory and keeps from the view what must not be
//! looked at through it.
//!
//! Where something else is mounted in the view, the frame has an empty opaque directory, so that the file system's
//! process never enters what the machine has mounted there. What the view itself is made of (its upper, its work, its own
//! mount point) is whited out: else a walk through the view would meet the view, and a copy would never end. The
//! directories on the way are like those of the machine.

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use plyfs_format::{Name, Namespace, Private, RelPath, xattr};
use plyfs_sys::{Dir, DirMut, Errno, Times, XattrFlags};

use crate::failure::{Context, Failure, Outcome};

/// What the frame has in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// A directory to mount on.
    Directory,
    /// A file to mount on.
    File,
    /// Nothing: the name does not exist.
    Hidden,
}

/// Builds the frame for the file system mounted at `root` in the empty directory `frame`. The holes are absolute paths
/// strictly below `root`, parents before children.
pub fn build(root: &Path, frame: &Path, holes: &[(PathBuf, Hole)], namespace: Namespace) -> Outcome<()> {
    let lower = Dir::open_root(root).context(|| root.display().to_string())?;
    let top = DirMut::open_root(frame).context(|| frame.display().to_string())?;
    let mut builder = Builder { lower, top, namespace, ways: vec![RelPath::root()] };
    for (path, hole) in holes {
        builder
            .add(&relative(root, path)?, *hole)
            .context(|| format!("{}: cannot prepare it", path.display()))?;
    }
    builder.finish().context(|| format!("{}: cannot prepare it", frame.display()))
}

/// Gives an upper that is new the attributes of what it lies over: its root is the root of the union.
/// `user`: made in a user namespace, it stays the user's, as whom the namespace's root acts; the owner of a root that has no
/// id there would be one of his subordinate ids, and the upper not his own any more.
pub fn begin_upper(root: &Path, upper: &Path, user: bool) -> Outcome<()> {
    let describe = || format!("{}: cannot prepare it", upper.display());
    let made = DirMut::open_root(upper).context(describe)?;
    if made.list().and_then(|mut list| list.is_empty()).context(describe)? {
        let original = Dir::open_root(root).context(|| root.display().to_string())?;
        imitate(&original, &made, !user).context(describe)?;
    }
    Ok(())
}

fn relative(root: &Path, path: &Path) -> Outcome<RelPath> {
    let rest = path.strip_prefix(root).unwrap_or(path).as_os_str().as_encoded_bytes();
    RelPath::parse(rest).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

struct Builder {
    lower: Dir,
    top: DirMut,
    namespace: Namespace,
    /// The directories made on the way to a hole, parents before children.
    ways: Vec<RelPath>,
}

impl Builder {
    fn add(&mut self, path: &RelPath, hole: Hole) -> plyfs_sys::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::INVAL);
        };
        let parent = self.way_to(&parent)?;
        match hole {
            Hole::Directory => {
                parent.create_dir(name, 0o755)?;
                let opaque = self.namespace.name(Private::Opaque);
                parent.set_xattr(name, opaque, b"y", XattrFlags::empty())
            }
            Hole::File => parent.mknod(name, REGULAR_FILE, 0),
            Hole::Hidden => self.hide(&parent, name),
        }
    }

    /// Makes a whiteout: a device, or where the file system is an overlay itself, which lets nobody make one, an empty file
    /// with an attribute, in a directory that says that it has such files.
    fn hide(&self, parent: &DirMut, name: Name<'_>) -> plyfs_sys::Result<()> {
        match parent.mknod(name, CHARACTER_DEVICE, 0) {
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {
                parent.mknod(name, REGULAR_FILE, 0)?;
                let (whiteout, opaque) = (Private::Whiteout, Private::Opaque);
                parent.set_xattr(name, self.namespace.name(whiteout), b"y", XattrFlags::empty())?;
                parent.set_own_xattr(self.namespace.name(opaque), b"x", XattrFlags::empty())
            }
            other => other,
        }
    }

    /// Opens the directory at `path` in the frame, making those that are missing.
    fn way_to(&mut self, path: &RelPath) -> plyfs_sys::Result<DirMut> {
        let mut dir = self.top.try_clone()?;
        let mut here = RelPath::root();
        for name in path.components() {
            here = here.join(name);
            match dir.create_dir(name, 0o700) {
                Ok(()) => self.ways.push(here.clone()),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            dir = dir.child_mut(name)?;
        }
        Ok(dir)
    }

    /// Gives the directories on the way the attributes of those they stand for, the deepest first: making an entry
    /// changes its parent's times.
    fn finish(self) -> plyfs_sys::Result<()> {
        for way in self.ways.iter().rev() {
            let made = self.top.open_dir_mut(way)?;
            match self.lower.open_dir(way) {
                Ok(original) => imitate(&original, &made, true)?,
                // Only what the view adds (a /proc where there was none) lies in a directory that does not exist.
                Err(Errno::NOENT) => made.chmod_self(0o755)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Types and permissions as mknod(2) wants them.
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR_FILE: u32 = 0o100_444;

/// Copies the owner if so asked, mode, attributes and times. In a user namespace most owners and some attributes cannot be had.
fn imitate(original: &Dir, made: &DirMut, owner: bool) -> plyfs_sys::Result<()> {
    let stat = original.stat()?;
    if owner {
        forgive(made.chown_self(Some(stat.uid), Some(stat.gid)))?;
    }
    let names = original.list_own_xattrs().or_else(|error| forgive(Err(error)).map(|()| Vec::new()))?;
    for name in names.split_inclusive(|byte| *byte == 0) {
        let overlays = [Namespace::Trusted, Namespace::User];
        let Ok(attr) = CStr::from_bytes_with_nul(name) else { continue };
        if overlays.iter().any(|namespace| xattr::is_private(*namespace, attr.to_bytes())) {
            continue;
        }
        if let Some(value) = original.get_own_xattr(attr)? {
            forgive(made.set_own_xattr(attr, &value, XattrFlags::empty()))?;
        }
    }
    made.chmod_self(stat.permissions())?;
    made.utimens_self(Times::of(&stat))
}

fn forgive(result: plyfs_sys::Result<()>) -> plyfs_sys::Result<()> {
    match result {
        Err(Errno::PERM | Errno::INVAL | Errno::OVERFLOW | Errno::OPNOTSUPP | Errno::ACCESS) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn name(text: &str) -> Name<'_> {
        Name::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_frame_has_its_holes_and_ways_like_the_original() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        let frame = place.path().join("frame");
        std::fs::create_dir_all(root.join("a/b/mnt")).unwrap();
        std::fs::create_dir(&frame).unwrap();
        std::fs::set_permissions(root.join("a/b"), std::fs::Permissions::from_mode(0o1750)).unwrap();
        let holes = [(root.join("a/b/mnt"), Hole::Directory), (root.join("a/b/file"), Hole::File)];
        build(&root, &frame, &holes, Namespace::User).unwrap();
        let made = frame.join("a/b").metadata().unwrap();
        let original = root.join("a/b").metadata().unwrap();
        assert_eq!((made.mode(), made.mtime_nsec()), (original.mode(), original.mtime_nsec()));
        let dir = Dir::open_root(&frame.join("a/b")).unwrap();
        assert_eq!(dir.get_xattr(name("mnt"), c"user.overlay.opaque").unwrap().unwrap(), b"y");
        assert!(frame.join("a/b/file").is_file());
    }
}
