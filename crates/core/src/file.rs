//! Open files: reading, writing, and where their data comes from.
//!
//! A descriptor opened on a lower file reads from upper once the file was copied up, as in the kernel since 4.19. The
//! kernel's counterpart is `file.c`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use plyfs_format::Name;
use plyfs_sys::{Errno, FallocateFlags, File, FileKind, OFlags, Whence};

use crate::Result;
use crate::copy_up::Depth;
use crate::handle::OpenFile;
use crate::node::{Body, Leaf, Node, SyncFailures};
use crate::object::{Caller, Data, HandleId, NodeId, Opened, Shareable};
use crate::overlay::Overlay;
use crate::upper::UpperObject;

impl Overlay {
    /// Opens a regular file with `open(2)` flags; for writing it is copied up first, without data if `O_TRUNC` is set.
    ///
    /// # Errors
    /// `EROFS` for writing without an upper, `EISDIR`, `ENXIO` for what is no regular file, what the layer answers.
    pub fn open(&self, caller: &Caller, node: NodeId, flags: u32, kill_priv: bool) -> Result<Opened> {
        let node = self.node(node)?;
        if node.kind != FileKind::Regular {
            return Err(if node.is_dir() { Errno::ISDIR } else { Errno::NXIO });
        }
        let flags = OFlags::from_bits_retain(flags);
        let truncates = flags.contains(OFlags::TRUNC);
        let writes = truncates || (flags & OFlags::ACCMODE) != OFlags::RDONLY;
        if writes {
            self.may_open_for_writing(&node, flags)?;
            let depth = if truncates { Depth::Data { keep: 0 } } else { Depth::ALL };
            self.ensure(&node, depth)?;
        }
        let mut file = self.shared_file(&node)?;
        if writes {
            file = self.for_writing(&node, file, flags)?;
        }
        if truncates {
            if kill_priv {
                self.strip_privileges(&UpperObject::Leaf(Arc::clone(&file)), caller)?;
            }
            self.require_upper()?.truncate(&file, 0)?;
        }
        Ok(self.opened(&node, file, writes))
    }

    /// Offers the data of a small lower file to the front end's cache, once: it spares the first read its round trip.
    /// Nothing is offered beside a copy-up, so that what is written after it cannot be overwritten by what was below.
    pub fn offer_data(&self, node: NodeId, offer: impl FnOnce(&[u8])) {
        const SMALL: u64 = 16 << 10;
        let Ok(node) = self.node(node) else { return };
        let Body::Leaf(leaf) = &node.body else { return };
        if leaf.usage().offered.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(_no_copy_up) = node.copy_up.try_lock() else { return };
        if leaf.upper.get().is_some() {
            return;
        }
        let Ok(file) = self.shared_file(&node) else { return };
        // Larger, empty, or unreadable: the read itself will say.
        let Some(size) = file.stat().ok().map(|stat| stat.size).filter(|size| (1..=SMALL).contains(size))
        else {
            return;
        };
        // Only what is in memory: who opens a file need not read it. A part would be taken for the whole file.
        let mut data = vec![0; size as usize];
        if file.pread_cached(&mut data, 0).is_ok_and(|count| count == data.len()) {
            offer(&data);
        }
    }

    /// Whether the data of a file still comes from a lower layer.
    #[must_use]
    pub fn data_in_lower(&self, node: NodeId) -> bool {
        let node = self.node(node);
        node.is_ok_and(|node| matches!(&node.body, Body::Leaf(leaf) if !leaf.data_in_upper()))
    }

    /// The kernel reads the lower file of this handle by itself ([`Data::UntilCopyUp`]): whatever else is asked of it is
    /// answered from that file too, also after copy-up.
    pub fn stays_lower(&self, handle: HandleId) {
        if let Some(open) = self.handles.get(handle) {
            open.stays_lower.store(true, Ordering::Release);
        }
    }

    /// Size in bytes and blocks of the lower file of a node; `None` if there is none.
    #[must_use]
    pub fn lower_extent(&self, node: NodeId) -> Option<(u64, u64)> {
        let node = self.node(node).ok()?;
        let Body::Leaf(leaf) = &node.body else { return None };
        let lower = leaf.lower.as_ref()?;
        let stat = self.lower_at(lower).and_then(|object| object.stat()).ok()?;
        Some((stat.size, self.data_blocks(lower, stat.size).unwrap_or(stat.blocks)))
    }

    /// Closes a handle.
    pub fn release(&self, handle: HandleId) {
        if let Some(open) = self.handles.remove(handle) {
            self.idle.keep(Arc::clone(&open.file.lock()));
        }
    }

    /// Reads at an offset; fewer bytes than asked for only at the end of the file.
    ///
    /// # Errors
    /// `EBADF` for an unknown handle; what the layer answers.
    pub fn read(&self, handle: HandleId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.handle_file(handle)?.pread(buf, offset)
    }

    /// Writes at an offset; clears set-id bits and capabilities if the privileges of `kill_priv` do not keep them.
    ///
    /// # Errors
    /// `EBADF` for a handle that is unknown or was not opened for writing; what the upper answers.
    pub fn write(
        &self,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        kill_priv: Option<&Caller>,
    ) -> Result<usize> {
        let file = self.handle_file(handle)?;
        let upper = self.require_upper()?;
        if let Some(caller) = kill_priv {
            // First, as in the kernel: a crash between both must not leave what was written with the privileges.
            self.strip_privileges(&UpperObject::Leaf(Arc::clone(&file)), caller)?;
        }
        upper.write(&file, data, offset)
    }

    /// Writes at an offset what a page cache held back. When it was written its writer's privileges were settled, or it was
    /// written through a mapping, which settles none: the set-id bits and the capability that are there now stay.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn write_back(&self, handle: HandleId, offset: u64, data: &[u8]) -> Result<usize> {
        let open = self.handles.get(handle).ok_or(Errno::BADF)?;
        let file = self.current_file(&open)?;
        let Body::Leaf(leaf) = &open.node.body else { return Err(Errno::BADF) };
        let upper = self.require_upper()?;
        let known = leaf.usage().privileged.read();
        if *known == Some(false) {
            return upper.write(&file, data, offset);
        }
        drop(known);
        let mut known = leaf.usage().privileged.write();
        let object = UpperObject::Leaf(Arc::clone(&file));
        let held = self.privileges(&object)?;
        *known = Some(held.any());
        let written = upper.write(&file, data, offset);
        self.restore_privileges(&object, &held)?;
        written
    }

    /// Makes what was written durable, unless the stack is volatile. A failure is told once to every handle that was open
    /// when it happened.
    ///
    /// # Errors
    /// `EBADF`; what the upper answers.
    pub fn fsync(&self, handle: HandleId, datasync: bool) -> Result<()> {
        let open = self.handles.get(handle).ok_or(Errno::BADF)?;
        let file = self.current_file(&open)?;
        let Body::Leaf(leaf) = &open.node.body else { return Err(Errno::BADF) };
        let usage = leaf.usage();
        let syncing = usage.syncing.read();
        if let Err(errno) = self.sync_file(&file, datasync) {
            let mut failures = usage.sync_failures.lock();
            *failures = SyncFailures { count: failures.count + 1, last: Some(errno) };
        }
        drop(syncing);
        // A failure that another sync of the file was told, and this one was not, is to be counted by now.
        drop(usage.syncing.write());
        let failures = *usage.sync_failures.lock();
        let told = open.failures_told.swap(failures.count, Ordering::AcqRel);
        failures.last.filter(|_| told != failures.count).map_or(Ok(()), Err)
    }

    /// As [`fsync`](Self::fsync), of a directory or of a file without a handle.
    ///
    /// # Errors
    /// `ESTALE`; what the upper answers.
    pub fn fsync_node(&self, node: NodeId, datasync: bool) -> Result<()> {
        let node = self.node(node)?;
        match &node.body {
            Body::Dir(dir) if dir.upper.get().is_some() && self.features.sync => {
                let fd = self.upper_dir(&node)?;
                self.require_upper()?.sync_dir(&fd)
            }
            Body::Leaf(leaf) if leaf.data_in_upper() && node.kind == FileKind::Regular => {
                let file = self.shared_file(&node)?;
                self.sync_file(&file, datasync)
            }
            _ => Ok(()),
        }
    }

    /// As `fallocate(2)`, with its mode bits.
    ///
    /// # Errors
    /// `EBADF`; what the upper answers.
    pub fn fallocate(&self, handle: HandleId, mode: u32, offset: u64, len: u64) -> Result<()> {
        let file = self.handle_file(handle)?;
        self.require_upper()?.fallocate(&file, FallocateFlags::from_bits_retain(mode), offset, len)
    }

    /// `SEEK_DATA` (3) and `SEEK_HOLE` (4) of `lseek(2)`.
    ///
    /// # Errors
    /// `EINVAL` for another `whence`; `ENXIO`; `EBADF`.
    pub fn lseek(&self, handle: HandleId, offset: u64, whence: u32) -> Result<u64> {
        let whence = match whence {
            3 => Whence::Data,
            4 => Whence::Hole,
            _ => return Err(Errno::INVAL),
        };
        self.handle_file(handle)?.seek(offset, whence)
    }

    /// As `copy_file_range(2)`; returns the number of bytes copied.
    ///
    /// # Errors
    /// `EBADF`; what the layers answer.
    pub fn copy_file_range(
        &self,
        from: HandleId,
        from_offset: u64,
        to: HandleId,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        let (from, to) = (self.handle_file(from)?, self.handle_file(to)?);
        if !to.is_writable_grant() {
            return Err(Errno::BADF);
        }
        self.require_upper()?.copy_range((&from, from_offset), (&to, to_offset), len)
    }

    /// Makes a handle of an open file.
    pub(crate) fn opened(&self, node: &Arc<Node>, file: Arc<File>, writes: bool) -> Opened {
        let shareable = || Shareable { file: Arc::clone(&file) };
        let data = match self.writable() && !file.is_writable_grant() {
            true if self.features.lower_passthrough && !writes => Data::UntilCopyUp(shareable()),
            true => Data::LowerOfWritable,
            false => Data::Shareable(shareable()),
        };
        let file = parking_lot::Mutex::new(file);
        let failures_told = match &node.body {
            Body::Leaf(leaf) => leaf.usage().sync_failures.lock().count.into(),
            Body::Dir(_) => AtomicU64::default(),
        };
        let stays_lower = AtomicBool::new(false);
        let node = Arc::clone(node);
        let handle = self.handles.insert(OpenFile { node, writes, file, stays_lower, failures_told });
        Opened { handle, data }
    }

    /// The file that a handle reads and writes now.
    pub(crate) fn handle_file(&self, handle: HandleId) -> Result<Arc<File>> {
        self.current_file(&*self.handles.get(handle).ok_or(Errno::BADF)?)
    }

    fn current_file(&self, open: &OpenFile) -> Result<Arc<File>> {
        let file = Arc::clone(&open.file.lock());
        if open.stays_lower.load(Ordering::Acquire)
            || file.is_writable_grant()
            || !matches!(&open.node.body, Body::Leaf(leaf) if leaf.data_in_upper())
        {
            return Ok(file);
        }
        let upper = self.shared_file(&open.node)?;
        *open.file.lock() = Arc::clone(&upper);
        Ok(upper)
    }

    /// The one open file of a node, opened if nobody holds it.
    pub(crate) fn shared_file(&self, node: &Arc<Node>) -> Result<Arc<File>> {
        let Body::Leaf(leaf) = &node.body else { return Err(Errno::ISDIR) };
        let in_upper = leaf.data_in_upper();
        let usable = |file: &Arc<File>| file.is_writable_grant() == in_upper;
        let present = leaf.usage().shared.lock().upgrade();
        if let Some(file) = present.filter(usable) {
            return Ok(file);
        }
        // Opened without the lock: it may have to wait for a rename. Whoever is second takes the file of the first.
        let opened = Arc::new(if in_upper {
            self.open_upper_leaf(node, leaf)?
        } else {
            self.open_lower(leaf.lower.as_ref().ok_or(Errno::IO)?)?
        });
        let mut shared = leaf.usage().shared.lock();
        if let Some(file) = shared.upgrade()
            && (usable(&file) || file.is_writable_grant())
        {
            return Ok(file);
        }
        *shared = Arc::downgrade(&opened);
        Ok(opened)
    }

    /// An upper file, opened for reading and writing; for reading where its inode flags forbid more.
    pub(crate) fn open_upper_leaf(&self, node: &Node, leaf: &Leaf) -> Result<File> {
        let open = |flags| match leaf.orphan() {
            Some(orphan) => orphan.reopen(flags),
            None => {
                let by_name = |dir: &plyfs_sys::DirMut, name: Name<'_>| dir.open_writable(name, flags);
                match self.at_place(node, leaf, by_name, File::stat) {
                    Err(Errno::NOENT) => self.unnamed_upper(node, leaf)?.reopen(flags),
                    done => done,
                }
            }
        };
        match open(OFlags::RDWR) {
            // The inode flags may let it grow only, or not change at all.
            Err(Errno::PERM) => open(OFlags::RDWR | OFlags::APPEND).or_else(|_| open(OFlags::RDONLY)),
            Err(Errno::ACCESS | Errno::TXTBSY) => open(OFlags::RDONLY),
            done => done,
        }
    }

    /// The shared file of a node that is opened for writing: the one there may have been opened when it could not be
    /// written.
    fn for_writing(&self, node: &Arc<Node>, file: Arc<File>, flags: OFlags) -> Result<Arc<File>> {
        let Body::Leaf(leaf) = &node.body else { return Err(Errno::ISDIR) };
        let (have, appends) = (file.status_flags()?, flags.contains(OFlags::APPEND));
        if have & OFlags::ACCMODE != OFlags::RDONLY && (appends || !have.contains(OFlags::APPEND)) {
            return Ok(file);
        }
        let opened = match file.reopen(OFlags::RDWR) {
            Err(Errno::PERM) if appends => file.reopen(OFlags::RDWR | OFlags::APPEND)?,
            opened => opened?,
        };
        let opened = Arc::new(opened);
        *leaf.usage().shared.lock() = Arc::downgrade(&opened);
        Ok(opened)
    }

    fn sync_file(&self, file: &File, datasync: bool) -> Result<()> {
        if self.features.sync && file.is_writable_grant() {
            self.require_upper()?.sync(file, datasync)?;
        }
        Ok(())
    }
}
