//! How owners, modes and link counts on disk are shown, where the options ask for something else than what lies there.
//!
//! Owns the translation of ids (`uidmapping`, `gidmapping`, `squash_to_*`) and the owners and modes that are recorded in
//! an attribute (`xattr_permissions`). The rest of the engine deals in ids and modes as on disk. The kernel has no
//! counterpart: the options are fuse-overlayfs's.

use std::ffi::CStr;

use plyfs_format::spec::{Options, XattrPermissions};
use plyfs_format::{Acl, AclEntry, AclTag, IdMap, OverrideStat, xattr};
use plyfs_sys::{Dir, DirMut, Errno, FileKind, Stat, XattrFlags};

use crate::Result;
use crate::node::{Body, Node};
use crate::object::{Attr, Caller, SetAttr};
use crate::overlay::Overlay;
use crate::upper::UpperObject;

/// The id shown for one that no mapping holds: the kernel's `overflowuid`.
const OVERFLOW_ID: u32 = 65534;

/// What is shown otherwise than it lies on disk.
#[derive(Debug, Default)]
pub(crate) struct Show {
    /// `None`: ids as they are.
    ids: Option<Box<Ids>>,
    /// Directories show one link.
    pub static_nlink: bool,
    /// ACLs are neither shown nor set.
    pub noacl: bool,
    /// No attribute is shown or set.
    pub noxattrs: bool,
    /// Upper keeps owners and modes in this attribute.
    pub upper_record: Option<Record>,
    /// Some layer does.
    pub any_record: bool,
}

/// Which attribute records the owners and modes of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// `user.containers.override_stat`, or its older spelling.
    Containers,
    /// `security.fuseoverlayfs.override_stat`, which only the privileged can write.
    Privileged,
}

#[derive(Debug)]
struct Ids {
    uid: Translation,
    gid: Translation,
}

#[derive(Debug)]
enum Translation {
    Same,
    /// Everything is shown as one id; what is created has its place on disk, which a mapping may give.
    Squash {
        shown: u32,
        disk: u32,
    },
    Map(IdMap),
}

/// An owner and permission bits, as on disk or as recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits only.
    pub mode: u32,
}

impl Show {
    /// What the options ask for.
    pub fn new(options: &Options) -> Self {
        let squash = |shown: u32, map: Option<&IdMap>| {
            let disk = map.and_then(|map| map.to_disk(shown)).unwrap_or(shown);
            Translation::Squash { shown, disk }
        };
        let translation = |squashed: Option<u32>, map: Option<&IdMap>| match (squashed, map) {
            (Some(id), _) => squash(id, map),
            (None, _) if options.squash_to_root => squash(0, map),
            (None, Some(map)) => Translation::Map(map.clone()),
            (None, None) => Translation::Same,
        };
        let ids = Ids {
            uid: translation(options.squash_to_uid, options.uid_mapping.as_ref()),
            gid: translation(options.squash_to_gid, options.gid_mapping.as_ref()),
        };
        let changes = !matches!((&ids.uid, &ids.gid), (Translation::Same, Translation::Same));
        Self {
            ids: changes.then(|| Box::new(ids)),
            static_nlink: options.static_nlink,
            noacl: options.noacl,
            noxattrs: options.noxattrs,
            upper_record: match options.xattr_permissions {
                Some(XattrPermissions::Privileged) => Some(Record::Privileged),
                Some(XattrPermissions::Containers) => Some(Record::Containers),
                Some(XattrPermissions::Off) | None => None,
            },
            any_record: false,
        }
    }

    /// The caller with the ids that what it creates has on disk. An id that has none creates as the overflow id, as in
    /// fuse-overlayfs: podman itself, whose id is not the container's, puts `/etc/mtab` into a new container.
    pub fn creator(&self, caller: &Caller) -> Caller {
        let Some(ids) = &self.ids else { return *caller };
        let to_disk = |translation: &Translation, id| translation.to_disk(id).unwrap_or(OVERFLOW_ID);
        Caller { uid: to_disk(&ids.uid, caller.uid), gid: to_disk(&ids.gid, caller.gid), ..*caller }
    }

    /// Whether every object is shown with one and the same owner and group, whatever lies on disk.
    pub fn squashes(&self) -> bool {
        let squashed = |translation: &Translation| matches!(translation, Translation::Squash { .. });
        self.ids.as_ref().is_some_and(|ids| squashed(&ids.uid) && squashed(&ids.gid))
    }

    /// A change of owner in ids as on disk; a squashed id is never changed.
    pub fn owner_change(&self, set: &SetAttr) -> Result<(Option<u32>, Option<u32>)> {
        let Some(ids) = &self.ids else { return Ok((set.uid, set.gid)) };
        Ok((ids.uid.change(set.uid)?, ids.gid.change(set.gid)?))
    }

    /// The value of an ACL attribute with the ids that are shown (`to_disk` false), or those on disk.
    pub fn translate_acl(&self, value: Vec<u8>, to_disk: bool) -> Result<Vec<u8>> {
        let Some(ids) = &self.ids else { return Ok(value) };
        let acl = Acl::parse(&value).map_err(|_| Errno::INVAL)?;
        let id = |translation: &Translation, id| {
            if to_disk { translation.to_disk(id) } else { Ok(translation.to_shown(id)) }
        };
        let mut entries = Vec::with_capacity(acl.entries().len());
        for entry in acl.entries() {
            let tag = match entry.tag {
                AclTag::User(user) => AclTag::User(id(&ids.uid, user)?),
                AclTag::Group(group) => AclTag::Group(id(&ids.gid, group)?),
                tag => tag,
            };
            entries.push(AclEntry { tag, perm: entry.perm });
        }
        Ok(Acl::from_entries(entries).encode())
    }

    /// Whether an attribute may be named through the mount at all.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for what the options switch off.
    pub fn check_xattr(&self, name: &[u8]) -> Result<()> {
        if self.noxattrs || self.hides_xattr(name) { Err(Errno::OPNOTSUPP) } else { Ok(()) }
    }

    /// Whether an attribute on disk is left out of listings.
    pub fn hides_xattr(&self, name: &[u8]) -> bool {
        self.noacl && is_acl(name)
    }

    fn ids(&self, owner: Owner) -> (u32, u32) {
        match &self.ids {
            Some(ids) => (ids.uid.to_shown(owner.uid), ids.gid.to_shown(owner.gid)),
            None => (owner.uid, owner.gid),
        }
    }
}

impl Translation {
    fn to_shown(&self, id: u32) -> u32 {
        match self {
            Self::Same => id,
            Self::Squash { shown, .. } => *shown,
            Self::Map(map) => map.to_shown(id).unwrap_or(OVERFLOW_ID),
        }
    }

    fn to_disk(&self, id: u32) -> Result<u32> {
        match self {
            Self::Same => Ok(id),
            Self::Squash { disk, .. } => Ok(*disk),
            Self::Map(map) => map.to_disk(id).ok_or(Errno::OVERFLOW),
        }
    }

    fn change(&self, id: Option<u32>) -> Result<Option<u32>> {
        match self {
            Self::Squash { .. } => Ok(None),
            _ => id.map(|id| self.to_disk(id)).transpose(),
        }
    }
}

impl Record {
    /// The record that a layer keeps, told by its root: whoever records the layer's files records its root too.
    pub fn of_layer(root: &Dir) -> Result<Option<Self>> {
        let names = root.list_own_xattrs()?;
        let has = |wanted: &CStr| names.split(|byte| *byte == 0).any(|name| name == wanted.to_bytes());
        if has(xattr::CONTAINERS_OVERRIDE_STAT) || has(xattr::FUSE_OVERLAYFS_OVERRIDE_STAT) {
            return Ok(Some(Self::Containers));
        }
        Ok(has(xattr::PRIVILEGED_OVERRIDE_STAT).then_some(Self::Privileged))
    }

    /// What is recorded, read by `get`; `None` for what bears no record or a malformed one.
    pub fn read(self, get: impl Fn(&CStr) -> Result<Option<Vec<u8>>>) -> Result<Option<Owner>> {
        let value = match self {
            Self::Privileged => get(xattr::PRIVILEGED_OVERRIDE_STAT)?,
            Self::Containers => match get(xattr::CONTAINERS_OVERRIDE_STAT)? {
                None => get(xattr::FUSE_OVERLAYFS_OVERRIDE_STAT)?,
                value => value,
            },
        };
        let Some(value) = value else { return Ok(None) };
        match OverrideStat::parse(&value) {
            Ok(stat) => Ok(Some(Owner { uid: stat.uid, gid: stat.gid, mode: stat.mode })),
            Err(error) => {
                tracing::warn!(%error, "a record of owner and mode is ignored");
                Ok(None)
            }
        }
    }

    /// Marks a layer's root as one whose files bear records.
    pub fn mark_root(self, root: &DirMut, stat: &Stat) -> Result<()> {
        root.set_own_xattr(self.name(), &Owner::of(stat).to_record(), XattrFlags::empty())
    }

    fn name(self) -> &'static CStr {
        match self {
            Self::Containers => xattr::CONTAINERS_OVERRIDE_STAT,
            Self::Privileged => xattr::PRIVILEGED_OVERRIDE_STAT,
        }
    }
}

impl Owner {
    /// As on disk.
    pub fn of(stat: &Stat) -> Self {
        Self { uid: stat.uid, gid: stat.gid, mode: stat.permissions() }
    }

    fn to_record(self) -> Vec<u8> {
        OverrideStat { uid: self.uid, gid: self.gid, mode: self.mode, kind: None }.to_bytes()
    }

    /// The mode of the real file beside a record: the mounter can always use it, and no set-id bit is real.
    pub fn real_mode(mode: u32, is_dir: bool) -> u32 {
        (mode & 0o777) | if is_dir { 0o700 } else { 0o600 }
    }
}

impl Overlay {
    /// Puts what is shown of owner, mode and links into a node's attributes.
    pub(crate) fn present(&self, node: &Node, stat: &Stat, attr: &mut Attr) {
        let mut owner = Owner::of(stat);
        if self.show.any_record {
            match self.recorded(node) {
                Ok(recorded) => owner = recorded.unwrap_or(owner),
                Err(error) => tracing::debug!(%error, "owner and mode are shown as on disk"),
            }
            attr.mode = (attr.mode & !0o7777) | owner.mode;
        }
        (owner.uid, owner.gid) = self.owners.replace(owner.uid, owner.gid);
        (attr.uid, attr.gid) = self.show.ids(owner);
        if self.show.static_nlink && node.is_dir() {
            attr.nlink = 1;
        }
    }

    /// The owner and mode of an upper object: as recorded, or as on disk.
    pub(crate) fn owner_of(&self, object: &UpperObject) -> Result<Owner> {
        let recorded = match self.show.upper_record {
            Some(record) => record.read(|name| object.get_xattr(name))?,
            None => None,
        };
        match recorded {
            Some(owner) => Ok(owner),
            None => object.stat().map(|stat| Owner::of(&stat)),
        }
    }

    /// Changes owner and mode of an upper object, on disk or in its record.
    pub(crate) fn change_owner(
        &self,
        object: &UpperObject,
        (uid, gid): (Option<u32>, Option<u32>),
        mode: Option<u32>,
    ) -> Result<()> {
        let upper = self.require_upper()?;
        if self.show.upper_record.is_some() && (uid.is_some() || gid.is_some() || mode.is_some()) {
            let before = self.owner_of(object)?;
            let owner = Owner {
                uid: uid.unwrap_or(before.uid),
                gid: gid.unwrap_or(before.gid),
                mode: mode.unwrap_or(before.mode),
            };
            return self.record(object, owner, object.stat()?.kind());
        }
        if uid.is_some() || gid.is_some() {
            upper.chown(object, uid, gid)?;
        }
        match mode {
            Some(mode) => upper.chmod(object, mode),
            None => Ok(()),
        }
    }

    /// Gives a new upper object its owner and mode where upper keeps a record, and says whether it does.
    pub(crate) fn record_new(&self, object: &UpperObject, owner: Owner, kind: FileKind) -> Result<bool> {
        if self.show.upper_record.is_none() {
            return Ok(false);
        }
        self.record(object, owner, kind)?;
        Ok(true)
    }

    fn record(&self, object: &UpperObject, owner: Owner, kind: FileKind) -> Result<()> {
        let upper = self.require_upper()?;
        let record = self.show.upper_record.ok_or(Errno::IO)?;
        match upper.set_xattr(object, record.name(), &owner.to_record(), XattrFlags::empty()) {
            // No user.* attribute can be on a link or a special file: those show what the mounter owns.
            Err(Errno::PERM) if !matches!(kind, FileKind::Regular | FileKind::Directory) => return Ok(()),
            done => done?,
        }
        if kind == FileKind::Symlink {
            return Ok(());
        }
        let real = Owner::real_mode(owner.mode, kind == FileKind::Directory);
        if object.stat()?.permissions() == real { Ok(()) } else { upper.chmod(object, real) }
    }

    fn recorded(&self, node: &Node) -> Result<Option<Owner>> {
        let Some(record) = self.record_kept_for(node) else { return Ok(None) };
        record.read(|name| self.read_xattr(node, name))
    }

    /// The record that is kept where a node's attributes lie.
    pub(crate) fn record_kept_for(&self, node: &Node) -> Option<Record> {
        match &node.body {
            _ if node.in_upper() => self.show.upper_record,
            Body::Dir(dir) => dir.lowers.first().and_then(|lower| self.record_of(lower.layer)),
            Body::Leaf(leaf) => leaf.lower.as_ref().and_then(|lower| self.record_of(lower.at.layer())),
        }
    }

    /// The record that a lower layer keeps.
    pub(crate) fn record_of(&self, layer: u16) -> Option<Record> {
        self.lowers.get(usize::from(layer)).and_then(|layer| layer.record)
    }
}

fn is_acl(name: &[u8]) -> bool {
    name == xattr::ACL_ACCESS.to_bytes() || name == xattr::ACL_DEFAULT.to_bytes()
}
