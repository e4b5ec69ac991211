//! The values that cross the engine's boundary: what a request names, what it asks, what it is told.
//!
//! Owns no state and makes no system call. The kernel's counterparts are `struct iattr`, `struct kstat` and the
//! arguments of `struct inode_operations`.

use std::sync::Arc;

/// A node (inode) of the merged view, as long as the front end remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the merged view; always known, never forgotten.
    pub const ROOT: Self = Self(1);
}

/// An open file of the merged view.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct HandleId(pub u64);

impl SetAttr {
    /// Whether no attribute is named.
    pub(crate) fn changes_nothing(&self) -> bool {
        Self { kill_priv: false, ..*self } == Self::default()
    }
}

/// On whose behalf a request is made. New objects belong to `uid` and `gid`; layers are accessed as the mounter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Filesystem user id.
    pub uid: u32,
    /// Filesystem group id.
    pub gid: u32,
    /// Process or thread id, for messages and for its supplementary groups; 0 if it is not known.
    pub pid: u32,
    /// The file mode creation mask; applied by the engine, once, and only where no default ACL is inherited.
    pub umask: u32,
}

impl Caller {
    /// Who the caller is, where the request says it or its process can be seen: a mount that can be id-mapped is told of
    /// callers by their process alone, unless something is created.
    fn ids(&self) -> Option<plyfs_sys::creds::TaskIds> {
        const UNKNOWN: u32 = u32::MAX;
        let seen = plyfs_sys::creds::ids_of(self.pid);
        if self.uid == UNKNOWN {
            return seen;
        }
        let groups = seen.map_or_else(Vec::new, |seen| seen.groups);
        Some(plyfs_sys::creds::TaskIds { uid: self.uid, gid: self.gid, groups })
    }

    /// Whether the caller is known to be root.
    pub(crate) fn is_root(&self) -> bool {
        self.ids().is_some_and(|ids| ids.uid == 0)
    }

    /// Whether the caller is root or in that group.
    pub(crate) fn is_member(&self, group: u32) -> bool {
        self.ids().is_some_and(|ids| ids.uid == 0 || ids.gid == group || ids.groups.contains(&group))
    }

    /// Whether the caller is known to be neither root nor that user.
    pub(crate) fn is_stranger_to(&self, user: u32) -> bool {
        self.ids().is_some_and(|ids| ids.uid != 0 && ids.uid != user)
    }
}

/// A point in time: seconds and nanoseconds since 1970, seconds negative before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999, counted forwards from `sec`.
    pub nsec: u32,
}

/// What `stat` reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Inode number: constant across copy-up, equal in `stat` and directory listings.
    pub ino: u64,
    /// Type and permission bits (`st_mode`).
    pub mode: u32,
    /// Number of hard links; 1 for a merged directory.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, `major` and `minor`.
    pub rdev: (u32, u32),
    /// Size in bytes.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last modification of the data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Creation, where the layer's file system records it.
    pub btime: Option<Time>,
    /// `false` while the attributes can change without a request to the engine (a shared backing that is open for
    /// writing): the front end must not cache them then.
    pub cacheable: bool,
}

/// A name that exists. Each `Entry` counts as one lookup of its node: the front end gives it back by `forget`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The node.
    pub node: NodeId,
    /// What a file handle of the node must state beside its id: always the same for the same id. 0 where ids do not last.
    pub generation: u32,
    /// Its attributes.
    pub attr: Attr,
}

/// A time to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeSet {
    /// The present, as the layer's file system sees it.
    Now,
    /// This time.
    At(Time),
}

/// The attributes to be changed; `None` leaves one as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    /// Permission bits (the type bits are ignored).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<TimeSet>,
    /// Modification time.
    pub mtime: Option<TimeSet>,
    /// Clear set-user-id, set-group-id (where group execution is allowed) and file capabilities.
    pub kill_priv: bool,
}

/// Directory entry as it is given to a [`DirSink`].
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Where a later listing continues after this entry.
    pub cookie: u64,
    /// Inode number, the one `stat` reports.
    pub ino: u64,
    /// Type bits as in `st_mode` (`S_IFMT` part).
    pub kind: u32,
    /// The name.
    pub name: &'a [u8],
    /// Node and attributes, when the listing was asked for them and they could be had. It counts as a lookup.
    pub entry: Option<Entry>,
}

/// Receives a listing.
pub trait DirSink {
    /// Whether an entry with a name of `name_len` bytes still fits. The engine asks before it looks a node up.
    fn has_room(&self, name_len: usize) -> bool;
    /// Takes an entry; called only after [`has_room`](Self::has_room) said yes.
    fn push(&mut self, entry: &DirEntry<'_>);
}

/// A real file that the kernel may read and write without asking the engine: a file in upper, any file of a stack that has
/// no upper, or, where it was asked for, a lower file for an open that only reads. Only the engine makes one, so a writer
/// can never be given a file of a lower layer under an upper (invariant 2).
#[derive(Clone, Debug)]
pub struct Shareable {
    pub(crate) file: Arc<plyfs_sys::File>,
}

impl Shareable {
    /// The real file. Opened for reading and writing when it lies in upper, for reading otherwise.
    #[must_use]
    pub fn file(&self) -> &Arc<plyfs_sys::File> {
        &self.file
    }
}

/// Where the data of an opened file may come from.
#[derive(Clone, Debug)]
pub enum Data {
    /// The kernel may go to this file directly.
    Shareable(Shareable),
    /// The kernel may go to this lower file directly, as long as it is told of another for what is opened after a copy-up
    /// (`lower_passthrough`).
    UntilCopyUp(Shareable),
    /// A file of a lower layer that a later copy-up can replace: every read comes to the engine (or from the page
    /// cache of the mount), so that it sees what is written after the copy-up.
    LowerOfWritable,
}

/// An opened file.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The handle; given back by `release`.
    pub handle: HandleId,
    /// Where its data may come from.
    pub data: Data,
}

/// What `statfs` reports, of the upper's file system or, without one, of the topmost layer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatFs {
    /// Unit of the block counts, in bytes.
    pub bsize: u64,
    /// Fragment size, in bytes.
    pub frsize: u64,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for unprivileged users.
    pub bavail: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Longest name in bytes.
    pub namelen: u32,
}
