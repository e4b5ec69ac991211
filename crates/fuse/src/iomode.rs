//! Where the data of open files comes from: one state machine an inode.
//!
//! Owns, for every inode with open files or a registered backing file, whether its opens go through the page cache of
//! the mount (`Cached`) or straight to a backing file (`Passthrough`), and decides it at each open. Never opens a file: the
//! engine says by type which file may be shared, and only such a file gets here as a backing.
//!
//! The kernel keeps the same two counts (`fs/fuse/iomode.c`) and answers EIO to an open that does not fit them. Its
//! counts fall before the RELEASE is processed here, so this side may believe in opens that are gone, never the
//! reverse; an open that follows the mode believed in fits in both cases. Its rules, which the state machine keeps:
//! while cached opens live, every open is cached; while passthrough opens live, every open names the same backing
//! object (an open by `DIRECT_IO` alone is refused as well); KEEP_CACHE beside PASSTHROUGH is refused.
//!
//! Backing files stay registered while an inode is idle, since registering costs more than the open itself. At most
//! [`IDLE_LIMIT`] do; the kernel holds each open, so one is also dropped when its inode is forgotten, or the space of a
//! deleted file would not come free.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use plyfs_core::Shareable;

use crate::abi::OpenFlags;
use crate::backing::{BackingId, Registry};
use crate::replaced::Inode;

/// How many idle inodes may keep a registered backing file.
pub const IDLE_LIMIT: usize = 1024;

/// What the engine lets an open be served from.
#[derive(Debug)]
pub enum Source<'a, F> {
    /// Only through the page cache of the mount.
    Cache,
    /// The kernel may go to this file, now and later.
    Lasting(&'a F),
    /// The kernel may go to this lower file until it is copied up.
    UntilCopyUp(&'a F),
}

/// An open that does not fit: the kernel goes to the lower file for those who have the inode open, and the file was copied
/// up. It needs an inode of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeedsInode;

/// How an open is to be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The flags of the answer.
    pub flags: OpenFlags,
    /// The backing file, beside [`OpenFlags::PASSTHROUGH`].
    pub backing: Option<BackingId>,
    /// The backing file is a lower one, which a copy-up outdates.
    pub lower: bool,
    /// From now on the inode's attributes can change without a request (a mapping of the backing file); what the kernel
    /// remembers of them must be taken back before the open is answered.
    pub attributes_loosen: bool,
}

/// The modes of all inodes. `F` is what the engine lets be shared.
pub struct IoModes<F = Shareable> {
    registry: Option<Box<dyn Registry<F>>>,
    table: Mutex<Table>,
    /// Opens of all inodes that may map a backing file to write to it; spares the look into the table while there are none.
    mappers: AtomicUsize,
}

#[derive(Default)]
struct Table {
    inodes: HashMap<Inode, Mode>,
    /// Nodes with a backing file in the order of registration, for second-chance replacement. May name inodes that have
    /// none any more.
    clock: VecDeque<Inode>,
    /// Nodes in `inodes` that have a backing file.
    registered: usize,
    /// Whether any file of this session was ever opened by passthrough, so that pages cached here may be outdated.
    bypassed: bool,
}

/// What is open of an inode. One that is not in the table is idle and has no backing file.
#[derive(Debug)]
enum Mode {
    Cached {
        opens: u64,
    },
    /// `lower`: the backing file is outdated once the file is copied up.
    Passthrough {
        backing: BackingId,
        lower: bool,
        opens: u64,
        mappers: u64,
        recent: bool,
    },
}

impl<F> IoModes<F> {
    /// Nothing is open. Without a registry every open is cached.
    #[must_use]
    pub fn new(registry: Option<Box<dyn Registry<F>>>) -> Self {
        Self { registry, table: Mutex::default(), mappers: AtomicUsize::new(0) }
    }

    /// Decides about an open that the engine granted, and counts it. `maps` is whether the open allows a shared mapping to be
    /// written (`O_RDWR`).
    ///
    /// # Errors
    /// [`NeedsInode`]; nothing is counted then. Only where lower files are given to the kernel.
    pub fn open(&self, inode: Inode, source: &Source<'_, F>, maps: bool) -> Result<Choice, NeedsInode> {
        let choice = self.choose(inode, source, maps)?;
        if maps && choice.backing.is_some() {
            self.mappers.fetch_add(1, Ordering::SeqCst);
        }
        Ok(choice)
    }

    /// Counts the end of an open.
    pub fn release(&self, inode: Inode, maps: bool) {
        let mut table = self.table.lock();
        match table.inodes.get_mut(&inode) {
            Some(Mode::Cached { opens }) => {
                *opens = opens.saturating_sub(1);
                if *opens == 0 {
                    table.inodes.remove(&inode);
                }
            }
            Some(Mode::Passthrough { opens, mappers, recent, .. }) => {
                *opens = opens.saturating_sub(1);
                *recent = true;
                if maps && *mappers > 0 {
                    *mappers -= 1;
                    self.mappers.fetch_sub(1, Ordering::SeqCst);
                }
            }
            None => tracing::warn!(inode = inode.0, "a file was released that is not open"),
        }
    }

    /// Whether the inode's attributes can change without a request, so that the kernel must not remember them: a mapping
    /// of the backing file may be written.
    pub fn is_loose(&self, inode: Inode) -> bool {
        self.mappers.load(Ordering::SeqCst) > 0
            && matches!(self.table.lock().inodes.get(&inode), Some(Mode::Passthrough { mappers: 1.., .. }))
    }

    /// Whether somebody has the inode open whose data the kernel reads from a lower file.
    pub fn reads_lower(&self, inode: Inode) -> bool {
        matches!(
            self.table.lock().inodes.get(&inode),
            Some(Mode::Passthrough { lower: true, opens: 1.., .. })
        )
    }

    /// The kernel forgot the inode, at least in part: an idle backing file of it is dropped.
    pub fn forgotten(&self, inode: Inode) {
        let dropped = {
            let mut table = self.table.lock();
            if table.inodes.is_empty() {
                return;
            }
            table.drop_idle(inode)
        };
        self.drop_ids(dropped);
    }

    fn choose(&self, inode: Inode, source: &Source<'_, F>, maps: bool) -> Result<Choice, NeedsInode> {
        let (file, lower) = match *source {
            Source::Cache => return Ok(self.choose_cached(inode, true)),
            Source::Lasting(file) => (file, false),
            Source::UntilCopyUp(file) => (file, true),
        };
        let Some(registry) = self.registry.as_deref() else { return Ok(self.choose_cached(inode, false)) };
        let mut table = self.table.lock();
        let outdated = if lower { None } else { table.drop_idle_lower(inode) };
        let joined = table.join(inode, lower, maps);
        drop(table);
        self.drop_ids(outdated);
        match joined? {
            Some(choice) => Ok(choice),
            None => self.start_passthrough(registry, inode, file, lower, maps),
        }
    }

    /// `keep`: the pages cached of the inode hold, because nothing could change it but through this page cache.
    fn choose_cached(&self, inode: Inode, keep: bool) -> Choice {
        let mut table = self.table.lock();
        match table.join(inode, true, false) {
            Ok(Some(choice)) => choice,
            _ => table.start_cached(inode, keep),
        }
    }

    fn start_passthrough(
        &self,
        registry: &dyn Registry<F>,
        inode: Inode,
        file: &F,
        lower: bool,
        maps: bool,
    ) -> Result<Choice, NeedsInode> {
        let id = registry.register(file);
        let mut table = self.table.lock();
        // Another thread may have opened the inode meanwhile.
        let joined = table.join(inode, lower, maps);
        if !matches!(joined, Ok(None)) {
            drop(table);
            self.drop_ids(id);
            return joined.and_then(|choice| choice.ok_or(NeedsInode));
        }
        let Some(id) = id else {
            let keep = !table.bypassed;
            return Ok(table.start_cached(inode, keep));
        };
        table.bypassed = true;
        table.registered += 1;
        table.clock.push_back(inode);
        let fresh = Mode::Passthrough { backing: id, lower, opens: 0, mappers: 0, recent: true };
        table.inodes.insert(inode, fresh);
        let evicted = table.evict();
        let joined = table.join(inode, lower, maps);
        drop(table);
        self.drop_ids(evicted);
        joined.and_then(|choice| choice.ok_or(NeedsInode))
    }

    fn drop_ids(&self, ids: impl IntoIterator<Item = BackingId>) {
        if let Some(registry) = self.registry.as_deref() {
            ids.into_iter().for_each(|id| registry.drop_id(id));
        }
    }
}

impl Table {
    /// Joins the mode that the inode is in, if it is in one. `lower`: the open may be served from the lower file; one that was
    /// let before a copy-up may as well be served from what came of it.
    fn join(&mut self, inode: Inode, lower: bool, maps: bool) -> Result<Option<Choice>, NeedsInode> {
        Ok(match self.inodes.get_mut(&inode) {
            None => None,
            Some(Mode::Cached { opens }) => {
                *opens += 1;
                Some(cached(true))
            }
            Some(Mode::Passthrough { lower: true, .. }) if !lower => return Err(NeedsInode),
            Some(Mode::Passthrough { backing, lower, opens, mappers, recent }) => {
                *opens += 1;
                *recent = true;
                let first = maps && *mappers == 0;
                *mappers += u64::from(maps);
                Some(Choice {
                    flags: OpenFlags::PASSTHROUGH | OpenFlags::NOFLUSH,
                    backing: Some(*backing),
                    lower: *lower,
                    attributes_loosen: first,
                })
            }
        })
    }

    /// Drops the lower file that nobody has open any more, now that it was copied up.
    fn drop_idle_lower(&mut self, inode: Inode) -> Option<BackingId> {
        match self.inodes.get(&inode) {
            Some(Mode::Passthrough { lower: true, opens: 0, .. }) => self.drop_idle(inode),
            _ => None,
        }
    }

    /// `keep`: the pages cached of the node hold, because nothing could change it but through this page cache.
    fn start_cached(&mut self, inode: Inode, keep: bool) -> Choice {
        self.inodes.insert(inode, Mode::Cached { opens: 1 });
        cached(keep || !self.bypassed)
    }

    fn drop_idle(&mut self, inode: Inode) -> Option<BackingId> {
        let Some(Mode::Passthrough { backing, opens: 0, .. }) = self.inodes.get(&inode) else {
            return None;
        };
        let backing = *backing;
        self.inodes.remove(&inode);
        self.registered -= 1;
        // Forgotten inodes leave their places in the clock behind; it is swept before it doubles.
        if self.clock.len() > 2 * (self.registered + IDLE_LIMIT) {
            let inodes = &self.inodes;
            self.clock.retain(|inode| matches!(inodes.get(inode), Some(Mode::Passthrough { .. })));
        }
        Some(backing)
    }

    /// Drops the backing files of inodes that were idle for a whole turn of the clock, until few enough are left. Those of
    /// open files cannot be dropped and do not count as too many for long: one turn is the most that is tried.
    fn evict(&mut self) -> Vec<BackingId> {
        let mut dropped = Vec::new();
        let mut turns = self.clock.len();
        while self.registered > IDLE_LIMIT && turns > 0 {
            turns -= 1;
            let Some(inode) = self.clock.pop_front() else { break };
            match self.inodes.get_mut(&inode) {
                Some(Mode::Passthrough { opens: 0, recent: false, .. }) => {
                    dropped.extend(self.drop_idle(inode))
                }
                Some(Mode::Passthrough { recent, .. }) => {
                    *recent = false;
                    self.clock.push_back(inode);
                }
                _ => {}
            }
        }
        dropped
    }
}

const fn cached(keep: bool) -> Choice {
    let flags = if keep { OpenFlags::KEEP_CACHE } else { OpenFlags::empty() };
    Choice { flags, backing: None, lower: false, attributes_loosen: false }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    /// Registers everything but the file "no", and remembers what is registered.
    #[derive(Default)]
    struct Fake(Mutex<(u32, Vec<BackingId>)>);

    impl Registry<&'static str> for Arc<Fake> {
        fn register(&self, file: &&'static str) -> Option<BackingId> {
            let (next, live) = &mut *self.0.lock();
            *next += 1;
            let id = (*file != "no").then_some(BackingId(*next));
            live.extend(id);
            id
        }

        fn drop_id(&self, id: BackingId) {
            let live = &mut self.0.lock().1;
            let place = live.iter().position(|&other| other == id).expect("dropped twice");
            live.remove(place);
        }
    }

    impl Fake {
        fn live(&self) -> usize {
            self.0.lock().1.len()
        }
    }

    const A: Inode = Inode(2);

    fn modes() -> (IoModes<&'static str>, Arc<Fake>) {
        let fake = Arc::new(Fake::default());
        (IoModes::new(Some(Box::new(Arc::clone(&fake)))), fake)
    }

    fn open(
        modes: &IoModes<&'static str>,
        inode: Inode,
        source: &Source<'_, &'static str>,
        maps: bool,
    ) -> Choice {
        modes.open(inode, source, maps).expect("it fits")
    }

    #[test]
    fn one_backing_file_serves_every_open_of_a_node() {
        let (modes, fake) = modes();
        let first = open(&modes, A, &Source::Lasting(&"upper"), false);
        assert!(first.flags.contains(OpenFlags::PASSTHROUGH) && !first.flags.contains(OpenFlags::KEEP_CACHE));
        assert_eq!(open(&modes, A, &Source::Lasting(&"upper"), true).backing, first.backing);
        modes.release(A, false);
        modes.release(A, true);
        assert_eq!(
            open(&modes, A, &Source::Lasting(&"upper"), false).backing,
            first.backing,
            "kept while idle"
        );
        assert_eq!(fake.live(), 1);
    }

    #[test]
    fn while_a_lower_file_is_open_every_open_is_cached() {
        let (modes, fake) = modes();
        assert_eq!(open(&modes, A, &Source::Cache, false).flags, OpenFlags::KEEP_CACHE);
        let writer = open(&modes, A, &Source::Lasting(&"upper"), true);
        assert_eq!((writer.flags, writer.backing), (OpenFlags::KEEP_CACHE, None), "copied up meanwhile");
        modes.release(A, false);
        assert_eq!(open(&modes, A, &Source::Lasting(&"upper"), false).backing, None);
        modes.release(A, true);
        modes.release(A, false);
        assert!(open(&modes, A, &Source::Lasting(&"upper"), false).backing.is_some(), "all were closed");
        assert_eq!(fake.live(), 1);
    }

    #[test]
    fn pages_are_not_kept_where_writes_may_have_passed_them_by() {
        let (modes, _) = modes();
        assert_eq!(
            open(&modes, A, &Source::Lasting(&"no"), false).flags,
            OpenFlags::KEEP_CACHE,
            "nothing was bypassed yet"
        );
        modes.release(A, false);
        open(&modes, Inode(3), &Source::Lasting(&"upper"), true);
        assert_eq!(open(&modes, A, &Source::Lasting(&"no"), false).flags, OpenFlags::empty());
    }

    #[test]
    fn only_the_first_mapper_loosens_the_attributes() {
        let (modes, _) = modes();
        assert!(!open(&modes, A, &Source::Lasting(&"upper"), false).attributes_loosen);
        assert!(!modes.is_loose(A));
        assert!(open(&modes, A, &Source::Lasting(&"upper"), true).attributes_loosen);
        assert!(!open(&modes, A, &Source::Lasting(&"upper"), true).attributes_loosen);
        modes.release(A, true);
        assert!(modes.is_loose(A) && !modes.is_loose(Inode(3)));
        modes.release(A, true);
        assert!(!modes.is_loose(A));
        assert!(open(&modes, A, &Source::Lasting(&"upper"), true).attributes_loosen);
    }

    #[test]
    fn a_forgotten_node_gives_its_backing_file_back_unless_it_is_open() {
        let (modes, fake) = modes();
        open(&modes, A, &Source::Lasting(&"upper"), false);
        modes.forgotten(A);
        assert_eq!(fake.live(), 1, "open");
        modes.release(A, false);
        modes.forgotten(A);
        modes.forgotten(A);
        assert_eq!(fake.live(), 0);
    }

    #[test]
    fn idle_backing_files_are_limited_and_open_ones_survive() {
        let (modes, fake) = modes();
        let kept = open(&modes, A, &Source::Lasting(&"upper"), false).backing;
        for inode in 0..3 * IDLE_LIMIT as u64 {
            open(&modes, Inode(100 + inode), &Source::Lasting(&"upper"), false);
            modes.release(Inode(100 + inode), false);
        }
        assert!(fake.live() <= IDLE_LIMIT + 1, "{}", fake.live());
        assert_eq!(open(&modes, A, &Source::Lasting(&"upper"), false).backing, kept);
        for inode in 0..10 * IDLE_LIMIT as u64 {
            open(&modes, Inode(100_000 + inode), &Source::Lasting(&"upper"), false);
            modes.release(Inode(100_000 + inode), false);
            modes.forgotten(Inode(100_000 + inode));
        }
        assert!(
            modes.table.lock().clock.len() <= 2 * (2 * IDLE_LIMIT + 1),
            "forgotten nodes leave the clock"
        );
    }

    #[test]
    fn who_has_the_lower_file_open_keeps_it_and_others_need_an_inode_of_their_own() {
        let (modes, fake) = modes();
        let reader = open(&modes, A, &Source::UntilCopyUp(&"lower"), false);
        assert!(reader.backing.is_some());
        assert_eq!(open(&modes, A, &Source::UntilCopyUp(&"lower"), false).backing, reader.backing);
        assert_eq!(modes.open(A, &Source::Lasting(&"upper"), true), Err(NeedsInode));
        modes.release(A, false);
        assert_eq!(modes.open(A, &Source::Lasting(&"upper"), false), Err(NeedsInode), "one is still open");
        modes.release(A, false);
        let writer = open(&modes, A, &Source::Lasting(&"upper"), true);
        assert!(writer.backing.is_some() && writer.backing != reader.backing, "nobody has it open any more");
        assert_eq!(fake.live(), 1);
    }

    #[test]
    fn an_open_that_was_let_before_a_copy_up_is_served_from_what_came_of_it() {
        let (modes, _) = modes();
        let writer = open(&modes, A, &Source::Lasting(&"upper"), true);
        assert_eq!(open(&modes, A, &Source::UntilCopyUp(&"lower"), false).backing, writer.backing);
    }

    /// The kernel's side of one inode (`fs/fuse/iomode.c`): answers EIO to what does not fit.
    #[derive(Default)]
    struct Kernel {
        cached: u32,
        passthrough: u32,
        backing: Option<BackingId>,
    }

    impl Kernel {
        fn opened(&mut self, choice: &Choice) -> bool {
            match choice.backing {
                Some(id) => {
                    if self.cached > 0 || self.backing.is_some_and(|other| other != id) {
                        return false;
                    }
                    self.passthrough += 1;
                    self.backing = Some(id);
                }
                None => {
                    if self.backing.is_some() {
                        return false;
                    }
                    self.cached += 1;
                }
            }
            true
        }

        fn closed(&mut self, choice: &Choice) {
            match choice.backing {
                Some(_) => {
                    self.passthrough -= 1;
                    if self.passthrough == 0 {
                        self.backing = None;
                    }
                }
                None => self.cached -= 1,
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// `true` once the file was copied up; it stays so.
        Open {
            upper: bool,
            /// Whether lower files are given to the kernel.
            shared: bool,
            maps: bool,
        },
        Close(prop::sample::Index),
        ProcessRelease(prop::sample::Index),
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<(bool, bool, bool)>().prop_map(|(upper, shared, maps)| Step::Open { upper, shared, maps }),
            any::<prop::sample::Index>().prop_map(Step::Close),
            any::<prop::sample::Index>().prop_map(Step::ProcessRelease),
            Just(Step::Forget),
        ]
    }

    proptest! {
        #[test]
        fn the_kernel_never_refuses_an_open_however_late_releases_arrive(
            steps in proptest::collection::vec(step(), 1..60),
        ) {
            let (modes, fake) = modes();
            let mut kernel = Kernel::default();
            let mut open: Vec<(Choice, bool)> = Vec::new();
            let mut releasing: Vec<bool> = Vec::new();
            let mut upper = false;
            let mut lowers = Vec::new();
            for step in steps {
                match step {
                    Step::Open { upper: copied, shared, maps } => {
                        upper |= copied;
                        let source = match upper {
                            true => Source::Lasting(&"upper"),
                            false if shared => Source::UntilCopyUp(&"lower"),
                            false => Source::Cache,
                        };
                        let maps = maps && upper;
                        let Ok(choice) = modes.open(A, &source, maps) else {
                            prop_assert!(upper, "only what is no longer lower needs another inode");
                            continue;
                        };
                        prop_assert!(kernel.opened(&choice), "EIO for {choice:?}");
                        prop_assert!(!maps || choice.backing.is_none_or(|id| !lowers.contains(&id)), "a writer got the lower file");
                        if !upper {
                            lowers.extend(choice.backing);
                        }
                        open.push((choice, maps));
                    }
                    Step::Close(which) if !open.is_empty() => {
                        let (choice, maps) = open.swap_remove(which.index(open.len()));
                        kernel.closed(&choice);
                        releasing.push(maps);
                    }
                    Step::ProcessRelease(which) if !releasing.is_empty() => {
                        modes.release(A, releasing.swap_remove(which.index(releasing.len())));
                    }
                    Step::Forget => modes.forgotten(A),
                    _ => {}
                }
            }
            prop_assert!(fake.live() <= 1);
        }
    }
}
