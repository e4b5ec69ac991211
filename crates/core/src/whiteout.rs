//! Whiteouts and opaque marks in every form that layers hold, and the attributes that steer merging.
//!
//! Reads only; whiteouts are made in `upper.rs`. Forms: character device 0:0; an empty file with the `whiteout`
//! attribute in a directory whose `opaque` is `x`; `.wh.NAME` and `.wh..wh..opq`, which fuse-overlayfs and image
//! layers written through it hold. The kernel's counterparts are `ovl_path_is_whiteout` and `ovl_is_opaquedir`.

use plyfs_format::{Name, Namespace, Private, Protattr, Redirect, whiteout as oci};
use plyfs_sys::{Dir, Errno, FileKind, Stat};

use crate::Result;

/// What a directory's own attributes say about merging.
#[derive(Debug, Default)]
pub(crate) struct DirMarks {
    /// Nothing below shows through.
    pub opaque: bool,
    /// It may hold whiteouts in the attribute form.
    pub xwhiteouts: bool,
    /// It may hold copies of lower objects.
    pub impure: bool,
    /// It is append-only or immutable.
    pub protection: Protattr,
    /// Layers below have it under another name.
    pub redirect: Option<Redirect>,
}

/// Names that no user sees: the `.wh.` forms.
pub(crate) fn is_reserved(name: Name<'_>) -> bool {
    name.as_bytes().starts_with(oci::WHITEOUT_PREFIX)
}

/// Whether the directory holds `.wh.NAME`.
pub(crate) fn is_marked(dir: &Dir, name: Name<'_>) -> Result<bool> {
    let Ok(mark) = oci::whiteout_name(name) else { return Ok(false) };
    exists(dir.stat_at(mark.as_name()))
}

/// Whether the object with this `stat` is a whiteout.
pub(crate) fn hides(dir: &Dir, name: Name<'_>, stat: &Stat, xwhiteouts: bool, ns: Namespace) -> Result<bool> {
    if stat.is_whiteout() {
        return Ok(true);
    }
    if !xwhiteouts || stat.kind() != FileKind::Regular || stat.size != 0 {
        return Ok(false);
    }
    Ok(dir.get_xattr(name, ns.name(Private::Whiteout))?.is_some())
}

impl DirMarks {
    /// Reads the marks of the directory `name` in `dir`: one system call where it has no attributes.
    pub fn read(dir: &Dir, name: Name<'_>, ns: Namespace) -> Result<Self> {
        let names = dir.list_xattrs(name)?;
        let mut marks = Self::from_names(&names, ns, |attr| dir.get_xattr(name, attr))?;
        if !marks.opaque {
            marks.opaque = match Name::new(oci::OPAQUE_MARKER) {
                Ok(marker) => dir.has_entry_in(name, marker)?,
                Err(_) => false,
            };
        }
        Ok(marks)
    }

    /// Reads the marks of the directory itself.
    pub fn read_own(dir: &Dir, ns: Namespace) -> Result<Self> {
        let names = dir.list_own_xattrs()?;
        let mut marks = Self::from_names(&names, ns, |attr| dir.get_own_xattr(attr))?;
        if !marks.opaque {
            marks.opaque = has_opaque_marker(dir)?;
        }
        Ok(marks)
    }

    fn from_names(
        names: &[u8],
        ns: Namespace,
        get: impl Fn(&std::ffi::CStr) -> Result<Option<Vec<u8>>>,
    ) -> Result<Self> {
        let mut marks = Self::default();
        if names.is_empty() {
            return Ok(marks);
        }
        let has = |wanted: &[u8]| names.split(|byte| *byte == 0).any(|name| name == wanted);
        let value = |attr: &std::ffi::CStr| if has(attr.to_bytes()) { get(attr) } else { Ok(None) };
        match value(ns.name(Private::Opaque))?.as_deref() {
            Some(b"y") => marks.opaque = true,
            Some(b"x") => marks.xwhiteouts = true,
            _ => {}
        }
        marks.opaque |= value(c"user.fuseoverlayfs.opaque")?.as_deref() == Some(b"y");
        if let Some(value) = value(ns.name(Private::Protattr))? {
            marks.protection = crate::protect::parse(&value);
        }
        marks.impure = value(ns.name(Private::Impure))?.as_deref() == Some(b"y");
        if let Some(redirect) = value(ns.name(Private::Redirect))? {
            marks.redirect = Some(Redirect::parse(&redirect).map_err(|_| Errno::INVAL)?);
        }
        Ok(marks)
    }
}

fn has_opaque_marker(dir: &Dir) -> Result<bool> {
    let Ok(marker) = Name::new(oci::OPAQUE_MARKER) else { return Ok(false) };
    exists(dir.stat_at(marker))
}

fn exists(stat: Result<Stat>) -> Result<bool> {
    match stat {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
        Err(error) => Err(error),
    }
}
