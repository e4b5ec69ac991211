//! An upper directory as it lies on disk: what each entry means. The kernel's forms and those of layers that were written
//! under a FUSE mount program are read alike.

use std::ffi::CStr;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

use plyfs_format::{
    Name, NameBuf, Namespace, OciName, Opaque, Origin, Private, Redirect, RelPath, origin::Parsed, xattr,
};
use plyfs_sys::{Dir, FileKind, Stat, creds};

use crate::changes::applied;
use crate::failure::{Context, Failure, Outcome};

/// A directory of an upper.
#[derive(Debug)]
pub struct UpperDir {
    /// The directory itself.
    pub dir: Dir,
    /// Where it is in the union.
    pub path: RelPath,
    /// Where private attributes live.
    pub namespace: Namespace,
    /// The directory over which it is looked at, as [`applied::identity`] tells it: what was renamed there lies where it is.
    pub over: Option<Rc<str>>,
}

/// What an entry means. Markers that say something of the directory itself are no entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The name does not exist in the union.
    Whiteout(NameBuf),
    /// The name exists.
    Plain(NameBuf, Stat),
}

impl Item {
    /// The name it is about.
    pub fn name(&self) -> &NameBuf {
        match self {
            Self::Whiteout(name) | Self::Plain(name, _) => name,
        }
    }
}

impl UpperDir {
    /// Opens an upper. Whether its private attributes are `trusted.overlay.*` or `user.overlay.*` is seen from its root:
    /// the former win, because a program inside the mount can forge the latter there.
    pub fn open_root(path: &Path) -> Outcome<Self> {
        let dir = Dir::open_root(path).context(|| path.display().to_string())?;
        let names = dir.list_own_xattrs().context(|| path.display().to_string())?;
        let own = |namespace: Namespace, name: &[u8]| {
            name.starts_with(namespace.prefix()) && xattr::is_private(namespace, name)
        };
        let has = |namespace| names.split(|byte| *byte == 0).any(|name| own(namespace, name));
        let namespace = match (has(Namespace::Trusted), has(Namespace::User)) {
            (true, _) => Namespace::Trusted,
            (false, true) => Namespace::User,
            (false, false) if creds::has_cap_sys_admin_init() => Namespace::Trusted,
            (false, false) => Namespace::User,
        };
        Ok(Self { dir, path: RelPath::root(), namespace, over: None })
    }

    /// Opens an upper to compare it with, or to apply it to, the directory `lower`.
    pub fn open_over(path: &Path, lower: &Dir) -> Outcome<Self> {
        let over = applied::identity(lower).context(|| "the directory below cannot be told from others")?;
        Ok(Self { over: Some(over.into()), ..Self::open_root(path)? })
    }

    /// A subdirectory.
    pub fn child(&self, name: Name<'_>) -> Outcome<Self> {
        let path = self.path.join(name);
        let dir = self.dir.child_dir(name).context(|| format!("upper: /{path}"))?;
        Ok(Self { dir, path, namespace: self.namespace, over: self.over.clone() })
    }

    /// The entries, sorted by name. What is mounted among them is no part of the upper, and hides what is: it is refused.
    pub fn items(&self) -> Outcome<Vec<Item>> {
        let describe = || format!("upper: /{}", self.path);
        let mount = self.dir.mount_id().context(describe)?;
        let mut items = Vec::new();
        for name in names(&self.dir).context(describe)? {
            let item = self.item(name)?;
            if let Some(Item::Plain(name, stat)) = &item
                && stat.mount_id != mount
            {
                let path = self.path.join(name.as_name());
                return Err(Failure::new(format!(
                    "upper: /{path}: something is mounted here, which is no part of the upper; unmount it first"
                )));
            }
            items.extend(item);
        }
        items.sort_by(|one, other| one.name().cmp(other.name()));
        Ok(items)
    }

    fn item(&self, name: NameBuf) -> Outcome<Option<Item>> {
        match OciName::parse(name.as_name()) {
            OciName::Whiteout(target) => return Ok(Some(Item::Whiteout(target.to_owned()))),
            OciName::OpaqueMarker | OciName::Invalid(_) => return Ok(None),
            OciName::Plain => {}
        }
        let stat = self
            .dir
            .stat_at(name.as_name())
            .context(|| format!("upper: /{}", self.path.join(name.as_name())))?;
        Ok(Some(if stat.is_whiteout() { Item::Whiteout(name) } else { Item::Plain(name, stat) }))
    }

    /// Whether this directory hides what lies below it.
    pub fn is_opaque(&self) -> Outcome<bool> {
        let describe = || format!("upper: /{}", self.path);
        let value = self.dir.get_own_xattr(self.namespace.name(Private::Opaque)).context(describe)?;
        if value.is_some_and(|value| Opaque::parse(&value) == Opaque::Opaque) {
            return Ok(true);
        }
        let marker = Name::new(plyfs_format::whiteout::OPAQUE_MARKER)
            .map_err(|error| Failure::new(error.to_string()))?;
        Ok(self.dir.stat_at(marker).is_ok())
    }

    /// Where an entry's lower lies, if its redirect names another place than its own.
    pub fn redirect(&self, name: Name<'_>, stat: &Stat) -> Outcome<Option<Redirect>> {
        if !matches!(stat.kind(), FileKind::Directory | FileKind::Regular) {
            return Ok(None);
        }
        let Some(value) = self.private(name, Private::Redirect)? else {
            return Ok(None);
        };
        let path = self.path.join(name);
        if self.was_renamed(name, &value)? {
            return Ok(Some(Redirect::Absolute(path)));
        }
        Redirect::parse(&value).map(Some).context(|| format!("upper: /{path}"))
    }

    /// Whether a commit has renamed an entry in the directory below already.
    fn was_renamed(&self, name: Name<'_>, redirect: &[u8]) -> Outcome<bool> {
        let Some(over) = &self.over else { return Ok(false) };
        let mark = self.attribute(name, applied::attribute(self.namespace))?;
        Ok(mark.is_some_and(|mark| mark == applied::mark(over, redirect)))
    }

    /// Whether an entry has metadata only, its data being that of its lower.
    pub fn is_metacopy(&self, name: Name<'_>, stat: &Stat) -> Outcome<bool> {
        Ok(stat.kind() == FileKind::Regular && self.private(name, Private::Metacopy)?.is_some())
    }

    /// The lower file that an entry was copied up from, if that is recorded and can be used here.
    pub fn origin(&self, name: Name<'_>) -> Outcome<Option<Origin>> {
        let value = self.private(name, Private::Origin)?;
        Ok(value.and_then(|value| match Origin::parse(&value) {
            Ok(Parsed::Known(origin)) => Some(origin),
            Ok(Parsed::Empty | Parsed::Unknown(_)) | Err(_) => None,
        }))
    }

    fn private(&self, name: Name<'_>, private: Private) -> Outcome<Option<Vec<u8>>> {
        self.attribute(name, self.namespace.name(private))
    }

    fn attribute(&self, name: Name<'_>, attr: &CStr) -> Outcome<Option<Vec<u8>>> {
        self.dir.get_xattr(name, attr).context(|| format!("upper: /{}", self.path.join(name)))
    }
}

fn names(dir: &Dir) -> plyfs_sys::Result<Vec<NameBuf>> {
    let mut names = Vec::new();
    dir.list()?.for_each(|entry| {
        // The kernel returns no name that is not one.
        if let Ok(name) = Name::new(entry.name) {
            names.push(name.to_owned());
        }
        ControlFlow::Continue(())
    })?;
    Ok(names)
}
