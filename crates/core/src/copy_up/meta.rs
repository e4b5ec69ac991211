//! Copy-up: the attributes.
//!
//! Data comes first: writing it would drop security.capability. Owner before attributes and mode: changing it would drop
//! them too. Times last. The kernel's counterparts are `ovl_copy_xattr`, `ovl_set_attr` and `ovl_set_origin`.

use std::ffi::CString;

use plyfs_format::{Namespace, Origin, Private, xattr};
use plyfs_sys::{Errno, FileKind, Stat, Times, XattrFlags};

use crate::Result;
use crate::lower::LowerAt;
use crate::overlay::Overlay;
use crate::show::Owner;
use crate::upper::UpperObject;

/// An object of a lower layer, for reading its attributes.
#[derive(Debug)]
pub(super) struct LowerObject {
    pub at: LowerAt,
    pub layer: u16,
    pub stat: Stat,
}

impl Overlay {
    /// Gives a staged copy the owner, attributes, mode and times of its lower object, and records where it came from.
    pub(super) fn copy_metadata(
        &self,
        from: &LowerObject,
        to: &UpperObject,
        with_origin: bool,
    ) -> Result<()> {
        let upper = self.require_upper()?;
        let nosuid = self.lowers.get(usize::from(from.layer)).is_some_and(|layer| layer.nosuid);
        let kind = from.stat.kind();
        let owner = match self.record_of(from.layer) {
            Some(record) => {
                record.read(|name| from.at.get_xattr(name))?.unwrap_or_else(|| Owner::of(&from.stat))
            }
            None => Owner::of(&from.stat),
        };
        let (uid, gid) = self.owners.replace(owner.uid, owner.gid);
        let foreign = nosuid || (uid, gid) != (owner.uid, owner.gid);
        let keep = if foreign && kind == FileKind::Regular { 0o1777 } else { 0o7777 };
        let mut owner = Owner { uid, gid, mode: owner.mode & keep };
        let recorded = self.record_new(to, owner, kind)?;
        if !recorded {
            match upper.chown(to, Some(owner.uid), Some(owner.gid)) {
                // Without privilege the copy is the mounter's, which nobody sees; it must not act in that name.
                Err(Errno::PERM) if self.show.squashes() && kind == FileKind::Regular => owner.mode &= 0o1777,
                Err(Errno::PERM) if self.show.squashes() => {}
                // An id that this user namespace does not know.
                Err(Errno::INVAL) => return Err(Errno::OVERFLOW),
                done => done?,
            }
        }
        self.copy_xattrs(from, to, nosuid)?;
        self.copy_protection(&from.stat, to)?;
        if with_origin {
            self.set_origin(from, to)?;
        }
        if !recorded && kind != FileKind::Symlink {
            upper.chmod(to, owner.mode)?;
        }
        upper.utimens(to, Times::of(&from.stat))
    }

    /// Gives an empty directory the attributes of the upper directory that it will replace.
    pub(crate) fn copy_upper_metadata(&self, from: &plyfs_sys::DirMut, to: &UpperObject) -> Result<()> {
        let upper = self.require_upper()?;
        let stat = from.stat()?;
        upper.chown(to, Some(stat.uid), Some(stat.gid))?;
        let names = from.list_own_xattrs()?;
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let name = CString::new(name).map_err(|_| Errno::INVAL)?;
            if let Some(value) = from.get_own_xattr(&name)? {
                upper.set_xattr(to, &name, &value, XattrFlags::empty())?;
            }
        }
        upper.chmod(to, stat.permissions())?;
        upper.utimens(to, Times::of(&stat))
    }

    fn copy_xattrs(&self, from: &LowerObject, to: &UpperObject, nosuid: bool) -> Result<()> {
        let upper = self.require_upper()?;
        let names = from.at.list_xattrs()?;
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            // A record where none is kept is data, but upper may be one that keeps them.
            let bare = self.record_of(from.layer).is_none() && self.is_bare_record(&names, name);
            let skipped = xattr::is_private(self.namespace, name) && !bare;
            if skipped || (nosuid && name == xattr::CAPABILITY.to_bytes()) {
                continue;
            }
            let copied = if bare { xattr::escape(self.namespace, name) } else { Ok(name.into()) };
            let copied = cstring(&copied.map_err(|_| Errno::OPNOTSUPP)?)?;
            let Some(value) = from.at.get_xattr(&cstring(name)?)? else { continue };
            match upper.set_xattr(to, &copied, &value, XattrFlags::empty()) {
                Err(Errno::OPNOTSUPP) if !must_copy(name) => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn set_origin(&self, from: &LowerObject, to: &UpperObject) -> Result<()> {
        // Nothing where the file system has no handles, or one that the format cannot hold.
        let value = match from.at.file_handle()? {
            Some(handle) => Origin::new(self.recorded_uuid(from.layer), handle).encode(),
            None => Vec::new(),
        };
        match self.set_private(to, Private::Origin, &value) {
            // user.* attributes exist on files and directories only: the inode number will change at the next mount.
            Err(Errno::PERM)
                if self.namespace == Namespace::User && !may_have_user_xattrs(from.stat.kind()) =>
            {
                Ok(())
            }
            done => done,
        }
    }
}

fn cstring(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Errno::INVAL)
}

fn may_have_user_xattrs(kind: FileKind) -> bool {
    matches!(kind, FileKind::Regular | FileKind::Directory)
}

/// Attributes without which the copy would grant more, or less, than the original.
fn must_copy(name: &[u8]) -> bool {
    name == xattr::ACL_ACCESS.to_bytes()
        || name == xattr::ACL_DEFAULT.to_bytes()
        || name.starts_with(b"security.")
}
