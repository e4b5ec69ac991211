//! Creating files, directories, symlinks and special files.
//!
//! A new object appears at once and whole: directly under its name, or, where a whiteout has the name, made in work and
//! put in its place. The kernel's counterparts are `ovl_create_upper` and `ovl_create_over_whiteout`.

use std::sync::Arc;

use parking_lot::Mutex;
use plyfs_format::{Acl, Name, Private, acl, xattr};
use plyfs_sys::{DirMut, Errno, File, RenameFlags, Stat, XattrFlags};

use crate::Result;
use crate::copy_up::Depth;
use crate::directory::{DirBody, UpperDir};
use crate::listing::Listing;
use crate::lookup::check_name;
use crate::merge::{Found, Object};
use crate::node::{Body, Leaf, Node, SharedName, UpperLeaf};
use crate::object::{Caller, Entry, NodeId, Opened};
use crate::overlay::Overlay;
use crate::show::Owner;
use crate::upper::{New, Upper, UpperObject};
use crate::whiteout;

const S_IFMT: u32 = 0o170_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
const S_ISGID: u32 = 0o2000;

/// What is asked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    caller: &'a Caller,
    mode: u32,
    new: New<'a>,
}

/// What was made on disk.
struct Made {
    stat: Stat,
    file: Option<File>,
    opaque: bool,
}

impl Overlay {
    /// Creates a regular file or a special one, by the type bits of `mode`.
    ///
    /// # Errors
    /// `EROFS` without an upper; `EEXIST`; `EINVAL` for a reserved name; `EPERM` for a character device 0:0, which is a
    /// whiteout; what the upper answers.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        rdev: (u32, u32),
    ) -> Result<Entry> {
        if mode & S_IFMT == S_IFCHR && rdev == (0, 0) {
            // It would be a whiteout: made, and not there.
            return Err(Errno::PERM);
        }
        let new = if mode & S_IFMT == S_IFREG { New::File } else { New::Node { rdev } };
        self.make(parent, name, Wanted { caller, mode, new }).map(|(entry, _, _)| entry)
    }

    /// Creates a directory.
    ///
    /// # Errors
    /// As [`mknod`](Self::mknod).
    pub fn mkdir(&self, caller: &Caller, parent: NodeId, name: &[u8], mode: u32) -> Result<Entry> {
        let wanted = Wanted { caller, mode: mode & 0o7777, new: New::Dir };
        self.make(parent, name, wanted).map(|(entry, _, _)| entry)
    }

    /// Creates a symbolic link.
    ///
    /// # Errors
    /// As [`mknod`](Self::mknod).
    pub fn symlink(&self, caller: &Caller, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Entry> {
        let wanted = Wanted { caller, mode: 0o777, new: New::Symlink(target) };
        self.make(parent, name, wanted).map(|(entry, _, _)| entry)
    }

    /// Creates a file and opens it.
    ///
    /// # Errors
    /// As [`mknod`](Self::mknod).
    pub fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        _flags: u32,
    ) -> Result<(Entry, Opened)> {
        let wanted = Wanted { caller, mode: S_IFREG | (mode & 0o7777), new: New::File };
        let (entry, node, file) = self.make(parent, name, wanted)?;
        let file = file.ok_or(Errno::IO)?;
        Ok((entry, self.opened(&node, file, true)))
    }

    /// Creates a file without a name (`O_TMPFILE`) in the directory, and opens it.
    ///
    /// # Errors
    /// `EROFS`; `EOPNOTSUPP` where the upper's file system cannot; what the upper answers.
    pub fn tmpfile(
        &self,
        caller: &Caller,
        parent: NodeId,
        mode: u32,
        _flags: u32,
    ) -> Result<(Entry, Opened)> {
        let parent = self.dir_node(parent)?;
        let upper = self.require_upper()?;
        self.ensure(&parent, Depth::Metadata)?;
        let dir = self.upper_dir(&parent)?;
        let caller = &self.show.creator(caller);
        let wanted = Wanted { caller, mode: S_IFREG | (mode & 0o7777), new: New::File };
        let file = self.make_unnamed(upper, &dir, wanted)?;
        let stat = file.stat()?;
        let leaf = Leaf::upper(UpperLeaf::whole(stat.ino), None);
        leaf.usage().orphan.set(Arc::clone(&file)).map_err(|_| Errno::IO)?;
        *leaf.usage().shared.lock() = Arc::downgrade(&file);
        let lasting = self.lasting_id_of_new(|| file.file_handle());
        let node = self.table.insert(lasting, |at| {
            let node = Node::new(at, stat.kind(), self.upper_ino(stat.ino), None, Body::Leaf(leaf));
            node.lookups.store(1, std::sync::atomic::Ordering::Relaxed);
            node
        });
        let entry = self.entry(&node, &stat);
        Ok((entry, self.opened(&node, file, true)))
    }

    fn make(
        &self,
        parent: NodeId,
        name: &[u8],
        wanted: Wanted<'_>,
    ) -> Result<(Entry, Arc<Node>, Option<Arc<File>>)> {
        let parent = self.dir_node(parent)?;
        let upper = self.require_upper()?;
        check_name(name)?;
        let checked = Name::new(name).map_err(|_| Errno::INVAL)?;
        if whiteout::is_reserved(checked) {
            return Err(Errno::INVAL);
        }
        let caller = &self.show.creator(wanted.caller);
        let wanted = Wanted { caller, ..wanted };
        self.ensure(&parent, Depth::Metadata)?;
        self.may_add_names(&parent)?;
        let dir = parent.as_dir().ok_or(Errno::NOTDIR)?;
        let shared: SharedName = name.into();
        let _change = dir.change.lock();
        let fd = self.upper_dir(&parent)?;
        let free = if nothing_below(dir, self.table.hash_name(name), name) {
            Free::Plain
        } else {
            self.check_free(&parent, dir, &fd, &shared)?
        };
        let is_dir = matches!(wanted.new, New::Dir);
        let made = match free {
            // It must not be seen with the mounter's owner.
            _ if self.show.upper_record.is_some() => self.make_staged(upper, &fd, checked, wanted, free),
            Free::Whiteout => self.make_staged(upper, &fd, checked, wanted, free),
            // What the mark hides would show in a directory that is not opaque from the start.
            Free::Marked if is_dir => self.make_staged(upper, &fd, checked, wanted, free),
            _ => match self.make_directly(upper, dir, &fd, checked, wanted) {
                Err(Errno::EXIST) if self.check_free(&parent, dir, &fd, &shared)? == Free::Whiteout => {
                    self.make_staged(upper, &fd, checked, wanted, Free::Whiteout)
                }
                made => made,
            },
        };
        match made {
            Ok(made) => Ok(self.adopt_made(&parent, dir, &shared, made)),
            Err(error) => {
                dir.state.lock().distrust();
                Err(error)
            }
        }
    }

    /// What is in the way of a new object; `EEXIST` if something visible is.
    pub(crate) fn check_free(
        &self,
        parent: &Node,
        dir: &DirBody,
        fd: &DirMut,
        name: &SharedName,
    ) -> Result<Free> {
        if dir.state.lock().removed {
            return Err(Errno::NOENT);
        }
        if let Some(node) = self.known_child(parent, name) {
            self.release_lookups(node, 1);
            return Err(Errno::EXIST);
        }
        match fd.stat_at(Name::new(name).map_err(|_| Errno::INVAL)?) {
            Ok(stat) if stat.is_whiteout() => Ok(Free::Whiteout),
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) if !self.lower_has(dir, name)? => Ok(Free::Plain),
            Err(Errno::NOENT) => {
                let possible = dir.upper.get().is_some_and(|upper| upper.oci_marks.possible());
                let checked = Name::new(name).map_err(|_| Errno::INVAL)?;
                if possible && whiteout::is_marked(fd, checked)? {
                    Ok(Free::Marked)
                } else {
                    Err(Errno::EXIST)
                }
            }
            Err(error) => Err(error),
        }
    }

    fn make_directly(
        &self,
        upper: &Upper,
        dir: &DirBody,
        fd: &Arc<DirMut>,
        name: Name<'_>,
        wanted: Wanted<'_>,
    ) -> Result<Made> {
        let file = upper.create(wanted.caller, fd, name, wanted.mode, wanted.new)?;
        let stat = match &file {
            Some(file) => file.stat()?,
            None => fd.stat_at(name)?,
        };
        let mut opaque = false;
        let spares_lookups = !dir.lowers.is_empty() && !self.features.allow_offline_changes;
        if matches!(wanted.new, New::Dir) && spares_lookups {
            // Nothing is there to be hidden: it only spares later lookups the layers.
            let made = UpperObject::Dir(Arc::new(fd.child_mut(name)?));
            match self.set_private(&made, Private::Opaque, b"y") {
                Ok(()) => opaque = true,
                Err(error) => tracing::debug!(%error, "a new directory stays transparent"),
            }
        }
        Ok(Made { stat, file, opaque })
    }

    /// Makes the object in work, as it would have come out in the directory, and gives it its name in one step.
    fn make_staged(
        &self,
        upper: &Upper,
        fd: &Arc<DirMut>,
        name: Name<'_>,
        wanted: Wanted<'_>,
        free: Free,
    ) -> Result<Made> {
        let temporary = upper.temporary_name()?;
        let is_dir = matches!(wanted.new, New::Dir);
        let inherited = self.inherit(fd, wanted)?;
        let file = self.create_staged(upper, temporary.as_name(), wanted, &inherited)?;
        let opaque = is_dir && free != Free::Plain;
        let finish = || -> Result<Stat> {
            let object = match (&file, is_dir) {
                (_, true) => UpperObject::Dir(Arc::new(upper.work.child_mut(temporary.as_name())?)),
                _ => UpperObject::Leaf(Arc::new(upper.work.open_path_mut(temporary.as_name())?)),
            };
            self.apply_inherited(upper, &object, &inherited)?;
            self.record_new(&object, inherited.owner(wanted.caller), object.stat()?.kind())?;
            if opaque {
                self.set_private(&object, Private::Opaque, b"y")?;
            }
            let stat = object.stat()?;
            let flags = match (free, is_dir) {
                (Free::Whiteout, true) => RenameFlags::EXCHANGE,
                (Free::Whiteout, false) => RenameFlags::empty(),
                _ => RenameFlags::NOREPLACE,
            };
            upper.rename(&upper.work, temporary.as_name(), fd, name, flags)?;
            // It is published; only its time of change is newer now.
            Ok(object.stat().unwrap_or(stat))
        };
        let made = finish();
        if made.is_err() || (is_dir && free == Free::Whiteout) {
            upper.discard(temporary.as_name());
        }
        Ok(Made { stat: made?, file, opaque })
    }

    fn create_staged(
        &self,
        upper: &Upper,
        name: Name<'_>,
        wanted: Wanted<'_>,
        inherited: &Inherited,
    ) -> Result<Option<File>> {
        if self.show.upper_record.is_some() {
            let is_dir = matches!(wanted.new, New::Dir);
            let mode = (inherited.mode & !0o7777) | Owner::real_mode(inherited.mode, is_dir);
            return upper.create_as_mounter(&upper.work, name, mode, wanted.new);
        }
        let caller = Caller { gid: inherited.gid, umask: 0, ..*wanted.caller };
        upper.create(&caller, &upper.work, name, inherited.mode, wanted.new)
    }

    fn make_unnamed(&self, upper: &Upper, dir: &Arc<DirMut>, wanted: Wanted<'_>) -> Result<Arc<File>> {
        if self.show.upper_record.is_none() {
            return upper.create_unnamed(wanted.caller, dir, wanted.mode).map(Arc::new);
        }
        let inherited = self.inherit(dir, wanted)?;
        let file = Arc::new(upper.stage_unnamed()?);
        let object = UpperObject::Leaf(Arc::clone(&file));
        self.apply_inherited(upper, &object, &inherited)?;
        self.record_new(&object, inherited.owner(wanted.caller), plyfs_sys::FileKind::Regular)?;
        Ok(file)
    }

    /// What the parent passes on: group and set-gid bit, ACLs or the umask.
    fn inherit(&self, fd: &Arc<DirMut>, wanted: Wanted<'_>) -> Result<Inherited> {
        let parent = self.owner_of(&UpperObject::Dir(Arc::clone(fd)))?;
        let is_dir = matches!(wanted.new, New::Dir);
        let mut inherited =
            Inherited { gid: wanted.caller.gid, mode: wanted.mode, access: None, default: None };
        if parent.mode & S_ISGID != 0 {
            inherited.gid = parent.gid;
            inherited.mode |= if is_dir { S_ISGID } else { 0 };
        }
        if matches!(wanted.new, New::Symlink(_)) {
            return Ok(inherited);
        }
        match fd.get_own_xattr(xattr::ACL_DEFAULT)? {
            None => inherited.mode &= !wanted.caller.umask,
            Some(value) => {
                let default = Acl::parse(&value).map_err(|_: acl::AclError| Errno::IO)?;
                let (access, mode) = default.inherit(inherited.mode);
                inherited.mode = mode;
                inherited.access = access.map(|acl| acl.encode());
                inherited.default = is_dir.then_some(value);
            }
        }
        Ok(inherited)
    }

    fn apply_inherited(&self, upper: &Upper, object: &UpperObject, inherited: &Inherited) -> Result<()> {
        if matches!(object, UpperObject::Dir(_)) && inherited.mode & S_ISGID != 0 {
            // mkdir(2) takes no set-gid bit; it comes from the parent, which here is work.
            upper.chmod(object, inherited.mode & 0o7777)?;
        }
        if let Some(value) = &inherited.access {
            upper.set_xattr(object, xattr::ACL_ACCESS, value, XattrFlags::empty())?;
        }
        if let Some(value) = &inherited.default {
            upper.set_xattr(object, xattr::ACL_DEFAULT, value, XattrFlags::empty())?;
        }
        Ok(())
    }

    fn adopt_made(
        &self,
        parent: &Arc<Node>,
        dir: &DirBody,
        name: &SharedName,
        made: Made,
    ) -> (Entry, Arc<Node>, Option<Arc<File>>) {
        let stat = made.stat;
        let object = if stat.is_dir() {
            let upper = Box::new(UpperDir::made(made.opaque, false));
            Object::Dir { lowers: Vec::new(), upper: Some(upper) }
        } else {
            Object::UpperLeaf { upper: UpperLeaf::whole(stat.ino), lower: None }
        };
        let lasting = self.lasting_id_of_new(|| {
            self.upper_dir(parent)?.file_handle(Name::new(name).map_err(|_| Errno::INVAL)?)
        });
        let found = Found { stat, ino: self.upper_ino(stat.ino), lasting, object };
        let file = made.file.map(Arc::new);
        let node = {
            let mut state = dir.state.lock();
            state.changed();
            self.list_upper(&mut state, name, &stat);
            self.make_node(parent, &mut state, name, found)
        };
        if let (Body::Leaf(leaf), Some(file)) = (&node.body, &file) {
            let mut shared: parking_lot::MutexGuard<'_, _> = Mutex::lock(&leaf.usage().shared);
            *shared = Arc::downgrade(file);
        }
        (self.entry(&node, &stat), node, file)
    }
}

/// Whether the name is known to be free without asking the layers: nothing is merged here, or a listing does not have it.
/// What upper has all the same (a whiteout) makes the creation fail.
fn nothing_below(dir: &DirBody, hash: u64, name: &[u8]) -> bool {
    let state = dir.state.lock();
    if state.removed {
        return false;
    }
    if state.absent == Some(hash) {
        return true;
    }
    let unlisted =
        state.listing.as_ref().is_some_and(|listing| listing.get(Listing::cookie(hash), name).is_none());
    let marks = dir.upper.get().is_none_or(|upper| upper.oci_marks.possible());
    dir.lowers.is_empty() || (unlisted && !marks)
}

/// What is in the way of a new object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Free {
    /// Nothing.
    Plain,
    /// A whiteout, to be replaced.
    Whiteout,
    /// A `.wh.` mark in upper that hides something below: a new directory must hide it itself.
    Marked,
}

/// What a new object takes from its parent.
struct Inherited {
    gid: u32,
    mode: u32,
    access: Option<Vec<u8>>,
    default: Option<Vec<u8>>,
}

impl Inherited {
    fn owner(&self, caller: &Caller) -> Owner {
        Owner { uid: caller.uid, gid: self.gid, mode: self.mode & 0o7777 }
    }
}
