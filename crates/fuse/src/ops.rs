//! The operations: decoded request → engine → body of the answer, a few lines each.
//!
//! Owns the translation between the protocol's values and the engine's, nothing else: policy is the engine's, the data
//! path of open files `iomode`'s, and sending is `reply`'s.

use std::sync::Arc;

use plyfs_core::{Attr, Caller, Data, Entry, HandleId, NodeId, Opened, Overlay, SetAttr, Time, TimeSet};
use plyfs_sys::{Errno, creds};

use crate::abi::{FMODE_EXEC, OpenFlags, SetAttrValid};
use crate::channel::{Channel, Memory};
use crate::encode::{self, Timeouts};
use crate::executing::Executing;
use crate::ioctl;
use crate::iomode::{Choice, IoModes, NeedsInode, Source};
use crate::listing::Listing;
use crate::notify;
use crate::replaced::{Inode, Replaced};
use crate::reply::{Answer, OpenGiven, Outcome};
use crate::request::{CopyFileRangeIn, Header, Request, SetAttrIn};
use crate::wire::Output;

/// What the operations work on.
pub struct Operations {
    /// The engine.
    pub overlay: Overlay,
    /// Where the data of open files comes from.
    pub modes: IoModes,
    /// Which files are open to be executed.
    pub executing: Executing,
    /// Which inodes of the kernel stand for which nodes.
    pub replaced: Arc<Replaced>,
    /// How long the kernel remembers.
    pub timeouts: Timeouts,
    /// The kernel collects writes: it reads through descriptors opened for writing and places appends itself.
    pub writeback: bool,
    /// `false` answers fsync once for ever.
    pub fsync: bool,
}

const O_ACCMODE: u32 = 0o3;
const O_WRONLY: u32 = 0o1;
const O_RDWR: u32 = 0o2;
const O_TRUNC: u32 = 0o1000;
const O_APPEND: u32 = 0o2000;

impl Operations {
    /// Carries out a request other than READ, INIT and DESTROY.
    pub fn perform(
        &self,
        channel: &Channel,
        header: &Header,
        request: Request<'_>,
        out: &mut Output,
    ) -> Outcome {
        let inode = Inode(header.node);
        let outcome = self.dispatch(channel, header, self.replaced.node(inode), request, out);
        if self.replaced.is_past(inode) {
            // What was changed through the old inode is remembered of the one that stands for the node now.
            notify::attributes_or_log(channel, self.replaced.inode(self.replaced.node(inode)));
        }
        outcome
    }

    fn dispatch(
        &self,
        channel: &Channel,
        header: &Header,
        node: NodeId,
        request: Request<'_>,
        out: &mut Output,
    ) -> Outcome {
        match request {
            Request::Lookup { .. }
            | Request::Symlink { .. }
            | Request::MkNod { .. }
            | Request::MkDir { .. }
            | Request::Unlink { .. }
            | Request::RmDir { .. }
            | Request::Rename { .. }
            | Request::Link { .. } => self.name(header, node, request, out),
            Request::Open { flags, kill_priv } => self.open(channel, header, node, flags, kill_priv, out),
            Request::Create { .. } | Request::TmpFile { .. } => {
                self.create(channel, header, node, request, out)
            }
            Request::Write { .. }
            | Request::Release { .. }
            | Request::Fsync { .. }
            | Request::Fallocate { .. }
            | Request::Lseek { .. }
            | Request::CopyFileRange(_) => self.file(header, request, out),
            Request::SetXattr { .. }
            | Request::GetXattr { .. }
            | Request::ListXattr { .. }
            | Request::RemoveXattr { .. } => self.xattr(header, node, &request, out),
            _ => self.node(header, node, request, out),
        }
    }

    /// READ: the data goes to `memory`'s payload.
    pub fn read(&self, handle: u64, offset: u64, size: u32, memory: &mut Memory) -> Outcome {
        let size = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        self.overlay.read(HandleId(handle), offset, memory.payload(size)).map(Answer::Data)
    }

    /// Takes back what an answer gave that nobody took.
    pub fn take_back(&self, given: Answer, out: &Output) {
        match given {
            Answer::Entry(inode) => self.forget(inode, 1),
            Answer::Open(open) => self.release(open),
            Answer::EntryAndOpen(open) => {
                self.release(open);
                self.forget(open.inode, 1);
            }
            Answer::Listing => Listing::inodes(out.as_bytes()).for_each(|inode| self.forget(inode, 1)),
            Answer::Body | Answer::Data(_) | Answer::Silence => {}
        }
    }
}

/// Operations on names.
impl Operations {
    fn name(&self, header: &Header, node: NodeId, request: Request<'_>, out: &mut Output) -> Outcome {
        let overlay = &self.overlay;
        match request {
            Request::Lookup { name } => match overlay.lookup(node, name)? {
                Some(entry) => Ok(self.entry(&entry, out)),
                // With no time to remember it for, the kernel must not be left with a negative name at all.
                None if self.timeouts.negative.is_zero() => Err(Errno::NOENT),
                None => {
                    encode::absent(out, &self.timeouts);
                    Ok(Answer::Body)
                }
            },
            Request::Symlink { name, target } => {
                Ok(self.entry(&overlay.symlink(&caller(header, 0), node, name, target)?, out))
            }
            Request::MkNod { name, mode, rdev, umask } => {
                let rdev = encode::split_device_number(rdev);
                Ok(self.entry(&overlay.mknod(&caller(header, umask), node, name, mode, rdev)?, out))
            }
            Request::MkDir { name, mode, umask } => {
                Ok(self.entry(&overlay.mkdir(&caller(header, umask), node, name, mode)?, out))
            }
            Request::Link { node: existing, name } => {
                Ok(self.entry(&overlay.link(self.replaced.node(Inode(existing)), node, name)?, out))
            }
            Request::Unlink { name } => overlay.unlink(node, name).map(done),
            Request::RmDir { name } => overlay.rmdir(node, name).map(done),
            Request::Rename { name, new_parent, new_name, flags } => {
                overlay.rename(node, name, NodeId(new_parent), new_name, flags).map(done)
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn entry(&self, entry: &Entry, out: &mut Output) -> Answer {
        let (inode, entry) = self.told(*entry);
        encode::entry(out, inode, &entry, &self.timeouts);
        Answer::Entry(inode)
    }

    /// What the kernel is told of an entry.
    fn told(&self, entry: Entry) -> (Inode, Entry) {
        let inode = self.replaced.inode(entry.node);
        (inode, Entry { attr: self.held(inode, entry.attr), ..entry })
    }

    /// The attributes, marked as not to be remembered where they can change unseen: by a backing file, or through the inode
    /// that came after this one.
    fn held(&self, inode: Inode, attr: Attr) -> Attr {
        let cacheable = attr.cacheable && !self.modes.is_loose(inode) && !self.replaced.is_past(inode);
        Attr { cacheable, ..attr }
    }
}

/// Operations on open files.
impl Operations {
    fn open(
        &self,
        channel: &Channel,
        header: &Header,
        node: NodeId,
        flags: u32,
        kill_priv: bool,
        out: &mut Output,
    ) -> Outcome {
        let inode = Inode(header.node);
        let past = self.replaced.is_past(inode);
        // Once nobody reads the lower file through it any more, a past inode serves readers as well as the present one. Writers
        // would change what is remembered of that.
        if past && (writes(flags) || self.modes.reads_lower(inode)) {
            return Err(Errno::STALE);
        }
        let opening = self.executing.begin(inode, flags)?;
        let opened = self.overlay.open(&caller(header, 0), node, self.open_flags(flags), kill_priv)?;
        opening.done();
        let given = OpenGiven { inode, handle: opened.handle, maps: maps(flags), executes: executes(flags) };
        let choice = self.choose(node, &opened, given).map_err(|NeedsInode| self.replace(channel, given))?;
        if past && choice.backing.is_none() {
            // Two inodes must not both have pages of one file.
            self.release(given);
            return Err(Errno::STALE);
        }
        if choice.lower {
            self.overlay.stays_lower(opened.handle);
        }
        encode::open(out, opened.handle.0, choice.flags, choice.backing.map(|id| id.0));
        if matches!(opened.data, Data::LowerOfWritable) && choice.flags.contains(OpenFlags::KEEP_CACHE) {
            self.overlay.offer_data(node, |data| {
                if let Err(errno) = notify::data(channel, inode, data) {
                    tracing::debug!(%errno, node = node.0, "a small file's data was not taken into the page cache");
                }
            });
        }
        // A truncated file's attributes are dropped by the kernel itself.
        if choice.attributes_loosen && flags & O_TRUNC == 0 {
            // Before the answer: no program can have mapped the file yet.
            notify::attributes_or_log(channel, inode);
        }
        Ok(Answer::Open(given))
    }

    fn create(
        &self,
        channel: &Channel,
        header: &Header,
        parent: NodeId,
        request: Request<'_>,
        out: &mut Output,
    ) -> Outcome {
        let (flags, result) = match request {
            Request::Create { name, flags, mode, umask } => {
                let caller = caller(header, umask);
                (flags, self.overlay.create(&caller, parent, name, mode, self.open_flags(flags)))
            }
            Request::TmpFile { flags, mode, umask } => {
                let caller = caller(header, umask);
                (flags, self.overlay.tmpfile(&caller, parent, mode, self.open_flags(flags)))
            }
            _ => return Err(Errno::NOSYS),
        };
        let (entry, opened) = result?;
        let inode = self.replaced.inode(entry.node);
        let given = OpenGiven { inode, handle: opened.handle, maps: maps(flags), executes: false };
        // Nothing is remembered of a new file that had to be taken back.
        let choice = self.choose(entry.node, &opened, given).map_err(|NeedsInode| {
            let errno = self.replace(channel, given);
            self.forget(inode, 1);
            errno
        })?;
        let entry = Entry { attr: self.held(inode, entry.attr), ..entry };
        encode::entry(out, inode, &entry, &self.timeouts);
        encode::open(out, opened.handle.0, choice.flags, choice.backing.map(|id| id.0));
        Ok(Answer::EntryAndOpen(given))
    }

    fn choose(&self, node: NodeId, opened: &Opened, given: OpenGiven) -> Result<Choice, NeedsInode> {
        let source = match &opened.data {
            Data::Shareable(file) => Source::Lasting(file),
            Data::UntilCopyUp(file) => Source::UntilCopyUp(file),
            Data::LowerOfWritable => Source::Cache,
        };
        let mut choice = self.modes.open(given.inode, &source, given.maps)?;
        // Copied up, written by passthrough and idle again since the engine answered: then what is cached is outdated.
        // Asked once this open is counted, which keeps passthrough away from now on.
        if matches!(source, Source::Cache) && !self.overlay.data_in_lower(node) {
            choice.flags.remove(OpenFlags::KEEP_CACHE);
        }
        Ok(choice)
    }

    /// Has another inode stand for the node from now on: this one's readers have the lower file, and it was copied up.
    /// Returns the errno on which the kernel asks for the name again.
    fn replace(&self, channel: &Channel, given: OpenGiven) -> Errno {
        self.executing.released(given.inode, given.executes);
        self.overlay.release(given.handle);
        self.replaced.replace(given.inode);
        // What is remembered of the old one would never be asked for again.
        notify::attributes_or_log(channel, given.inode);
        Errno::STALE
    }

    fn release(&self, open: OpenGiven) {
        self.executing.released(open.inode, open.executes);
        self.modes.release(open.inode, open.maps);
        self.overlay.release(open.handle);
    }

    fn open_flags(&self, flags: u32) -> u32 {
        let flags = flags & !FMODE_EXEC;
        if !self.writeback {
            return flags;
        }
        let access = if flags & O_ACCMODE == O_WRONLY { O_RDWR } else { flags & O_ACCMODE };
        (flags & !(O_ACCMODE | O_APPEND)) | access
    }

    fn file(&self, header: &Header, request: Request<'_>, out: &mut Output) -> Outcome {
        let overlay = &self.overlay;
        match request {
            Request::Write { handle, offset, data, from_cache, kill_priv } => {
                let (caller, handle) = (caller(header, 0), HandleId(handle));
                let count = if from_cache && !kill_priv {
                    overlay.write_back(handle, offset, data)?
                } else {
                    overlay.write(handle, offset, data, kill_priv.then_some(&caller))?
                };
                encode::written(out, u32::try_from(count).map_err(|_| Errno::OVERFLOW)?);
                Ok(Answer::Body)
            }
            Request::Release { handle, flags } => {
                let (maps, executes) = (maps(flags), executes(flags));
                let inode = Inode(header.node);
                self.release(OpenGiven { inode, handle: HandleId(handle), maps, executes });
                Ok(Answer::Body)
            }
            Request::Fsync { .. } if !self.fsync => Err(Errno::NOSYS),
            Request::Fsync { handle, datasync } => overlay.fsync(HandleId(handle), datasync).map(done),
            Request::Fallocate { handle, offset, length, mode } => {
                overlay.fallocate(HandleId(handle), mode, offset, length).map(done)
            }
            // What the kernel has not written back yet would be a hole, and lost to who copies by SEEK_DATA. So it is left
            // to the kernel, to which such a file is all data.
            Request::Lseek { .. } if self.writeback => Err(Errno::NOSYS),
            Request::Lseek { handle, offset, whence } => {
                encode::number(out, overlay.lseek(HandleId(handle), offset, whence)?);
                Ok(Answer::Body)
            }
            Request::CopyFileRange(copy) => self.copy_file_range(&copy, out),
            _ => Err(Errno::NOSYS),
        }
    }

    fn copy_file_range(&self, copy: &CopyFileRangeIn, out: &mut Output) -> Outcome {
        if copy.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = (HandleId(copy.from), HandleId(copy.to));
        // The older operation answers in 32 bits; a copy may always be shorter than asked.
        let len = if copy.wide { copy.len } else { copy.len.min(0x7fff_f000) };
        let count = self.overlay.copy_file_range(from, copy.from_offset, to, copy.to_offset, len)?;
        if copy.wide {
            encode::number(out, count);
        } else {
            encode::written(out, u32::try_from(count).map_err(|_| Errno::OVERFLOW)?);
        }
        Ok(Answer::Body)
    }
}

/// Operations on nodes.
impl Operations {
    fn node(&self, header: &Header, node: NodeId, request: Request<'_>, out: &mut Output) -> Outcome {
        let overlay = &self.overlay;
        match request {
            Request::Forget { count } => {
                self.forget(Inode(header.node), count);
                Ok(Answer::Silence)
            }
            Request::BatchForget(forgets) => {
                forgets.for_each(|(inode, count)| self.forget(Inode(inode), count));
                Ok(Answer::Silence)
            }
            Request::Interrupt { .. } => Ok(Answer::Silence),
            Request::GetAttr { handle } => {
                let attr = overlay.getattr(node, handle.map(HandleId))?;
                Ok(self.attr(header, attr, out))
            }
            Request::Statx { handle, .. } => {
                let attr = overlay.getattr(node, handle.map(HandleId))?;
                encode::statx(out, &self.seen_through(Inode(header.node), attr), &self.timeouts);
                Ok(Answer::Body)
            }
            Request::SetAttr(set) => {
                let handle = set.valid.contains(SetAttrValid::FH).then_some(HandleId(set.handle));
                let set = set_attr(&set);
                // The kernel's own ctime, for one, is no change here.
                let attr = if set == SetAttr::default() {
                    overlay.getattr(node, handle)?
                } else {
                    overlay.setattr(&caller(header, 0), node, handle, &set)?
                };
                Ok(self.attr(header, attr, out))
            }
            Request::ReadLink => {
                out.bytes(&overlay.readlink(node)?);
                Ok(Answer::Body)
            }
            Request::StatFs => {
                encode::statfs(out, &overlay.statfs()?);
                Ok(Answer::Body)
            }
            Request::FsyncDir { .. } if !self.fsync => Err(Errno::NOSYS),
            Request::FsyncDir { datasync } => overlay.fsync_node(node, datasync).map(done),
            Request::SyncFs => overlay.fsync_node(NodeId::ROOT, false).map(done),
            Request::ReadDir { offset, size, plus } => {
                let limit = usize::try_from(size).map_err(|_| Errno::INVAL)?;
                let told = |entry| self.told(entry);
                let mut listing = Listing::new(out, limit, plus.then_some(&told), self.timeouts);
                overlay.read_dir(node, offset, plus, &mut listing)?;
                Ok(if plus { Answer::Listing } else { Answer::Body })
            }
            Request::Ioctl(ioctl) => ioctl::perform(overlay, node, &ioctl, out).map(done),
            _ => Err(Errno::NOSYS),
        }
    }

    fn forget(&self, inode: Inode, count: u64) {
        self.modes.forgotten(inode);
        let node = self.replaced.node(inode);
        self.overlay.forget(node, count);
        if self.replaced.any() && !self.overlay.remembers(node) {
            self.replaced.forget(node);
        }
    }

    fn attr(&self, header: &Header, attr: Attr, out: &mut Output) -> Answer {
        encode::attr(out, &self.seen_through(Inode(header.node), attr), &self.timeouts);
        Answer::Body
    }

    /// The attributes as an inode shows them: one through which the lower file is still read has its size.
    fn seen_through(&self, inode: Inode, attr: Attr) -> Attr {
        let mut attr = self.held(inode, attr);
        if self.replaced.is_past(inode)
            && self.modes.reads_lower(inode)
            && let Some((size, blocks)) = self.overlay.lower_extent(self.replaced.node(inode))
        {
            (attr.size, attr.blocks) = (size, blocks);
        }
        attr
    }

    fn xattr(&self, header: &Header, node: NodeId, request: &Request<'_>, out: &mut Output) -> Outcome {
        let overlay = &self.overlay;
        match *request {
            Request::SetXattr { name, value, flags, kill_sgid } => {
                overlay.set_xattr(node, name, value, flags, kill_sgid).map(done)
            }
            Request::RemoveXattr { name } => overlay.remove_xattr(&caller(header, 0), node, name).map(done),
            Request::GetXattr { name, size } => sized(&overlay.get_xattr(node, name)?, size, out),
            Request::ListXattr { size } => self.list_xattr(header, node, size, out),
            _ => Err(Errno::NOSYS),
        }
    }
}

impl Operations {
    /// Since mounts can be idmapped the kernel tells the caller's ids only for creations; who may see `trusted.*` is found
    /// out where there is such a name.
    fn list_xattr(&self, header: &Header, node: NodeId, size: u32, out: &mut Output) -> Outcome {
        let as_root = Caller { uid: 0, ..caller(header, 0) };
        let mut names = self.overlay.list_xattr(&as_root, node)?;
        let trusted = |name: &&[u8]| name.starts_with(b"trusted.");
        if names.split(|byte| *byte == 0).any(|name| trusted(&name))
            && !creds::task_has_cap_sys_admin_init(header.pid)
        {
            names = names
                .split_inclusive(|byte| *byte == 0)
                .filter(|name| !trusted(name))
                .collect::<Vec<_>>()
                .concat();
        }
        sized(&names, size, out)
    }
}

/// An xattr's value or list for a buffer of `size` bytes; 0 asks for the length.
fn sized(value: &[u8], size: u32, out: &mut Output) -> Outcome {
    let length = u32::try_from(value.len()).map_err(|_| Errno::OVERFLOW)?;
    if size == 0 {
        encode::xattr_size(out, length);
    } else if length > size {
        return Err(Errno::RANGE);
    } else {
        out.bytes(value);
    }
    Ok(Answer::Body)
}

const fn done((): ()) -> Answer {
    Answer::Body
}

/// Whether a descriptor opened with these flags can be mapped to be written: a shared mapping reads as well.
const fn maps(flags: u32) -> bool {
    flags & O_ACCMODE == O_RDWR
}

/// Whether an open with these flags can change the data.
const fn writes(flags: u32) -> bool {
    flags & O_ACCMODE != 0 || flags & O_TRUNC != 0
}

const fn executes(flags: u32) -> bool {
    flags & FMODE_EXEC != 0
}

const fn caller(header: &Header, umask: u32) -> Caller {
    Caller { uid: header.uid, gid: header.gid, pid: header.pid, umask }
}

/// What a SETATTR asks. One that names nothing at all comes from a write through a backing file, or from a chown to -1:
/// set-id bits and capabilities are to go.
fn set_attr(set: &SetAttrIn) -> SetAttr {
    let valid = set.valid;
    let time = |present, now, (sec, nsec)| {
        valid
            .contains(present)
            .then(|| if valid.contains(now) { TimeSet::Now } else { TimeSet::At(Time { sec, nsec }) })
    };
    SetAttr {
        mode: valid.contains(SetAttrValid::MODE).then_some(set.mode),
        uid: valid.contains(SetAttrValid::UID).then_some(set.uid),
        gid: valid.contains(SetAttrValid::GID).then_some(set.gid),
        size: valid.contains(SetAttrValid::SIZE).then_some(set.size),
        atime: time(SetAttrValid::ATIME, SetAttrValid::ATIME_NOW, set.atime),
        mtime: time(SetAttrValid::MTIME, SetAttrValid::MTIME_NOW, set.mtime),
        kill_priv: valid.contains(SetAttrValid::KILL_SUIDGID) || valid.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use plyfs_core::{Settings, Shareable};
    use plyfs_format::StackSpec;

    use super::*;
    use crate::backing::{BackingId, Registry};

    /// A kernel that takes every file as backing.
    struct TakesAll;

    impl Registry<Shareable> for TakesAll {
        fn register(&self, _: &Shareable) -> Option<BackingId> {
            Some(BackingId(1))
        }

        fn drop_id(&self, _: BackingId) {}
    }

    #[test]
    fn pages_are_not_kept_if_the_file_was_copied_up_and_written_before_the_open_was_counted() {
        let layers = tempfile::tempdir().unwrap();
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(layers.path().join(name)).unwrap();
        }
        std::fs::write(layers.path().join("lower/file"), "old").unwrap();
        let at = layers.path().display();
        let options = format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work");
        let spec = StackSpec::parse(&[options]).unwrap().spec;
        let operations = Operations {
            overlay: Overlay::assemble(&spec, &Settings::default()).unwrap(),
            modes: IoModes::new(Some(Box::new(TakesAll))),
            executing: Executing::default(),
            replaced: Arc::default(),
            timeouts: Timeouts::FOREVER,
            writeback: false,
            fsync: true,
        };
        let overlay = &operations.overlay;
        let caller = Caller { uid: 0, gid: 0, pid: 1, umask: 0 };
        let node = overlay.lookup(NodeId::ROOT, b"file").unwrap().unwrap().node;
        let open = |flags| {
            let opened = overlay.open(&caller, node, flags, false).unwrap();
            let given =
                OpenGiven { inode: node.into(), handle: opened.handle, maps: maps(flags), executes: false };
            (opened, given)
        };
        let cached = |open: &(Opened, OpenGiven)| {
            operations.choose(node, &open.0, open.1).unwrap().flags.contains(OpenFlags::KEEP_CACHE)
        };

        let first = open(0);
        assert!(cached(&first), "what is in the page cache is the lower's, and stays so");
        operations.release(first.1);
        // The engine has opened the lower file, and before that is counted the file is written by passthrough.
        let reader = open(0);
        let (writer, given) = open(O_WRONLY);
        assert!(operations.choose(node, &writer, given).unwrap().backing.is_some());
        operations.release(given);
        operations.modes.forgotten(node.into());
        assert!(!cached(&reader), "the page cache has what lay in the lower");
    }
}
