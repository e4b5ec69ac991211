//! Extended attributes.
//!
//! The overlay's own attributes are hidden; those of an overlay inside this one are escaped on disk. The kernel's
//! counterpart is `xattrs.c`.

use std::borrow::Cow;
use std::ffi::{CStr, CString};

use plyfs_format::{Acl, xattr};
use plyfs_sys::{Errno, XattrFlags};

use crate::Result;
use crate::attr::gaining_privileges;
use crate::copy_up::Depth;
use crate::lower::LowerAt;
use crate::node::{Body, Node};
use crate::object::{Caller, NodeId};
use crate::overlay::Overlay;
use crate::upper::UpperObject;

const S_ISGID: u32 = 0o2000;

impl Overlay {
    /// The value of an attribute.
    ///
    /// # Errors
    /// `ENODATA` where it is absent, also on a layer without attributes; what the layer answers.
    pub fn get_xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        let on_disk = self.name_on_disk(name)?;
        let value = match self.read_xattr(&node, &on_disk)? {
            None => self.bare_record(&node, name)?,
            value => value,
        };
        let (name, value) = (on_disk, value.ok_or(Errno::NODATA)?);
        if is_acl(&name) { self.show.translate_acl(value, false) } else { Ok(value) }
    }

    /// The names of all attributes that the caller may see, each ended by NUL.
    ///
    /// # Errors
    /// What the layer answers.
    pub fn list_xattr(&self, caller: &Caller, node: NodeId) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        if self.show.noxattrs {
            return Err(Errno::OPNOTSUPP);
        }
        let raw = match self.object_of(&node)? {
            Located::Upper(UpperObject::Dir(dir)) => dir.list_own_xattrs()?,
            Located::Upper(UpperObject::Leaf(file)) => file.list_xattrs()?,
            Located::Lower(lower) => lower.list_xattrs()?,
        };
        let keeps_records = self.record_kept_for(&node).is_some();
        let mut shown = Vec::with_capacity(raw.len());
        for name in raw.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if (name.starts_with(b"trusted.") && caller.uid != 0) || self.show.hides_xattr(name) {
                continue;
            }
            let bare = || (!keeps_records && self.is_bare_record(&raw, name)).then_some(Cow::Borrowed(name));
            if let Some(name) = xattr::unescape(self.namespace, name).or_else(bare) {
                shown.extend_from_slice(&name);
                shown.push(0);
            }
        }
        Ok(shown)
    }

    /// Sets an attribute, with the flags of `setxattr(2)`; clears set-group-id if `kill_sgid`.
    ///
    /// # Errors
    /// `EROFS`; `EOPNOTSUPP` for a name that becomes too long; what the upper answers.
    pub fn set_xattr(
        &self,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        flags: u32,
        kill_sgid: bool,
    ) -> Result<()> {
        let node = self.node(node)?;
        let shown = name;
        let name = self.name_on_disk(shown)?;
        let upper = self.require_upper()?;
        self.may_alter(&node)?;
        let value = if is_acl(&name) {
            Cow::Owned(self.show.translate_acl(value.to_vec(), true)?)
        } else {
            Cow::Borrowed(value)
        };
        self.ensure(&node, Depth::Metadata)?;
        let object = self.upper_object(&node)?;
        self.escape_record(&object, shown, &name)?;
        gaining_privileges(&node, *name == *xattr::CAPABILITY, || {
            upper.set_xattr(&object, &name, &value, XattrFlags::from_bits_retain(flags))
        })?;
        // The kernel asks for it with a default ACL, too, which has nothing to do with the mode.
        if *name != *xattr::ACL_ACCESS {
            return Ok(());
        }
        let before = self.owner_of(&object)?.mode;
        let mut mode = if kill_sgid { before & !S_ISGID } else { before };
        // The file system has changed the real file's mode, which is not the one that is shown where it is recorded.
        if self.record_kept_for(&node).is_some()
            && let Ok(acl) = Acl::parse(&value)
        {
            mode = (mode & !0o777) | (acl.to_mode() & 0o777);
        }
        if mode != before { self.change_owner(&object, (None, None), Some(mode)) } else { Ok(()) }
    }

    /// Removes an attribute. One that is absent copies nothing up, unless set-group-id goes by the attempt.
    ///
    /// # Errors
    /// `EROFS`; `ENODATA`; what the upper answers.
    pub fn remove_xattr(&self, caller: &Caller, node: NodeId, name: &[u8]) -> Result<()> {
        let node = self.node(node)?;
        let shown = name;
        let name = self.name_on_disk(shown)?;
        let upper = self.require_upper()?;
        self.may_alter(&node)?;
        let attr = self.compose(&node, &self.stat_node(&node)?);
        // Of this the kernel tells nothing when an ACL is removed. It comes first, and whether there is an ACL or not.
        let drops_sgid =
            *name == *xattr::ACL_ACCESS && attr.mode & S_ISGID != 0 && !caller.is_member(attr.gid);
        let absent =
            || Ok(self.read_xattr(&node, &name)?.is_none() && self.bare_record(&node, shown)?.is_none());
        if !drops_sgid && !node.in_upper() && absent()? {
            return Err(Errno::NODATA);
        }
        self.ensure(&node, Depth::Metadata)?;
        let object = self.upper_object(&node)?;
        if drops_sgid {
            let mode = self.owner_of(&object)?.mode;
            self.change_owner(&object, (None, None), Some(mode & !S_ISGID))?;
        }
        self.escape_record(&object, shown, &name)?;
        upper.remove_xattr(&object, &name)
    }

    /// Whether `name`, which is in the list `all` of an object whose layer keeps no records of owner and mode, is such a
    /// record in its bare form and shown as it is. What was set through a mount is escaped, and goes before.
    pub(crate) fn is_bare_record(&self, all: &[u8], name: &[u8]) -> bool {
        xattr::is_record(name)
            && xattr::escape(self.namespace, name)
                .is_ok_and(|escaped| all.split(|byte| *byte == 0).all(|other| other != &*escaped))
    }

    /// The value of a record of owner and mode that lies in its bare form where it is no more than data.
    fn bare_record(&self, node: &Node, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if !xattr::is_record(name) || self.record_kept_for(node).is_some() {
            return Ok(None);
        }
        self.read_xattr(node, &CString::new(name).map_err(|_| Errno::INVAL)?)
    }

    /// Brings a bare record in upper, which another overlay let a program set, into the form in which it is never believed.
    fn escape_record(&self, object: &UpperObject, name: &[u8], on_disk: &CStr) -> Result<()> {
        if !xattr::is_record(name) || self.show.upper_record.is_some() {
            return Ok(());
        }
        let upper = self.require_upper()?;
        let bare = CString::new(name).map_err(|_| Errno::INVAL)?;
        let Some(value) = object.get_xattr(&bare)? else { return Ok(()) };
        match upper.set_xattr(object, on_disk, &value, XattrFlags::CREATE) {
            Ok(()) | Err(Errno::EXIST) => upper.remove_xattr(object, &bare),
            failed => failed,
        }
    }

    /// The name of an attribute on disk.
    fn name_on_disk(&self, name: &[u8]) -> Result<CString> {
        self.show.check_xattr(name)?;
        let escaped = xattr::escape(self.namespace, name).map_err(|_| Errno::OPNOTSUPP)?;
        CString::new(escaped.into_owned()).map_err(|_| Errno::INVAL)
    }

    pub(crate) fn read_xattr(&self, node: &Node, name: &CStr) -> Result<Option<Vec<u8>>> {
        match self.object_of(node)? {
            Located::Upper(object) => object.get_xattr(name),
            Located::Lower(lower) => lower.get_xattr(name),
        }
    }

    fn object_of(&self, node: &Node) -> Result<Located> {
        if node.in_upper() {
            return self.upper_object(node).map(Located::Upper);
        }
        match &node.body {
            Body::Dir(dir) => {
                let dir = self.lower_dir(dir.lowers.first().ok_or(Errno::IO)?)?;
                Ok(Located::Lower(LowerAt::Dir(dir)))
            }
            Body::Leaf(leaf) => self.lower_at(leaf.lower.as_ref().ok_or(Errno::IO)?).map(Located::Lower),
        }
    }
}

fn is_acl(name: &CStr) -> bool {
    name == xattr::ACL_ACCESS || name == xattr::ACL_DEFAULT
}

/// The object that bears a node's attributes.
enum Located {
    Upper(UpperObject),
    Lower(LowerAt),
}
