//! Where the data of open files comes from: one state machine a node.
//!
//! Owns, for every node with open files or a registered backing file, whether its opens go through the page cache of the
//! mount (`Cached`) or straight to a backing file (`Passthrough`), and decides it at each open. Never opens a file: the
//! engine says by type which file may be shared, and only such a file gets here as a backing.
//!
//! The kernel keeps the same two counts (`fs/fuse/iomode.c`) and answers EIO to an open that does not fit them. Its
//! counts fall before the RELEASE is processed here, so this side may believe in opens that are gone, never the
//! reverse; an open that follows the mode believed in fits in both cases. Its rules, which the state machine keeps:
//! while cached opens live, every open is cached; while passthrough opens live, every open names the same backing
//! object (an open by `DIRECT_IO` alone is refused as well); KEEP_CACHE beside PASSTHROUGH is refused.
//!
//! Backing files stay registered while a node is idle, since registering costs more than the open itself. At most
//! [`IDLE_LIMIT`] do; the kernel holds each open, so one is also dropped when its node is forgotten, or the space of a
//! deleted file would not come free.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use plyfs_core::{NodeId, Shareable};

use crate::abi::OpenFlags;
use crate::backing::{BackingId, Registry};

/// How many idle nodes may keep a registered backing file.
pub const IDLE_LIMIT: usize = 1024;

/// How an open is to be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The flags of the answer.
    pub flags: OpenFlags,
    /// The backing file, beside [`OpenFlags::PASSTHROUGH`].
    pub backing: Option<BackingId>,
    /// From now on the node's attributes can change without a request (a mapping of the backing file); what the kernel
    /// remembers of them must be taken back before the open is answered.
    pub attributes_loosen: bool,
}

/// The modes of all nodes. `F` is what the engine lets be shared.
pub struct IoModes<F = Shareable> {
    registry: Option<Box<dyn Registry<F>>>,
    table: Mutex<Table>,
    /// Opens of all nodes that may map a backing file to write to it; spares the look into the table while there are none.
    mappers: AtomicUsize,
}

#[derive(Default)]
struct Table {
    nodes: HashMap<NodeId, NodeMode>,
    /// Nodes with a backing file in the order of registration, for second-chance replacement. May name nodes that have
    /// none any more.
    clock: VecDeque<NodeId>,
    /// Nodes in `nodes` that have a backing file.
    registered: usize,
    /// Whether any file of this session was ever opened by passthrough, so that pages cached here may be outdated.
    bypassed: bool,
}

/// What is open of a node. A node that is not in the table is idle and has no backing file.
#[derive(Debug)]
enum NodeMode {
    Cached { opens: u64 },
    Passthrough { backing: BackingId, opens: u64, mappers: u64, recent: bool },
}

impl<F> IoModes<F> {
    /// Nothing is open. Without a registry every open is cached.
    #[must_use]
    pub fn new(registry: Option<Box<dyn Registry<F>>>) -> Self {
        Self { registry, table: Mutex::default(), mappers: AtomicUsize::new(0) }
    }

    /// Decides about an open that the engine granted, and counts it. `shareable` is the file the kernel may go to, where
    /// there is one; `maps` is whether the open allows a shared mapping to be written (`O_RDWR`).
    pub fn open(&self, node: NodeId, shareable: Option<&F>, maps: bool) -> Choice {
        let choice = self.choose(node, shareable, maps);
        if maps && choice.backing.is_some() {
            self.mappers.fetch_add(1, Ordering::SeqCst);
        }
        choice
    }

    /// Counts the end of an open.
    pub fn release(&self, node: NodeId, maps: bool) {
        let mut table = self.table.lock();
        match table.nodes.get_mut(&node) {
            Some(NodeMode::Cached { opens }) => {
                *opens = opens.saturating_sub(1);
                if *opens == 0 {
                    table.nodes.remove(&node);
                }
            }
            Some(NodeMode::Passthrough { opens, mappers, recent, .. }) => {
                *opens = opens.saturating_sub(1);
                *recent = true;
                if maps && *mappers > 0 {
                    *mappers -= 1;
                    self.mappers.fetch_sub(1, Ordering::SeqCst);
                }
            }
            None => tracing::warn!(node = node.0, "a file was released that is not open"),
        }
    }

    /// Whether the node's attributes can change without a request, so that the kernel must not remember them: a mapping
    /// of the backing file may be written.
    pub fn is_loose(&self, node: NodeId) -> bool {
        self.mappers.load(Ordering::SeqCst) > 0
            && matches!(self.table.lock().nodes.get(&node), Some(NodeMode::Passthrough { mappers: 1.., .. }))
    }

    /// The kernel forgot the node, at least in part: an idle backing file of it is dropped.
    pub fn forgotten(&self, node: NodeId) {
        let dropped = {
            let mut table = self.table.lock();
            if table.nodes.is_empty() {
                return;
            }
            table.drop_idle(node)
        };
        self.drop_ids(dropped);
    }

    fn choose(&self, node: NodeId, shareable: Option<&F>, maps: bool) -> Choice {
        let mut table = self.table.lock();
        if let Some(choice) = table.join(node, maps) {
            return choice;
        }
        let Some((registry, file)) = self.registry.as_deref().zip(shareable) else {
            return table.start_cached(node, shareable.is_none());
        };
        drop(table);
        self.start_passthrough(registry, node, file, maps)
    }

    fn start_passthrough(&self, registry: &dyn Registry<F>, node: NodeId, file: &F, maps: bool) -> Choice {
        let id = registry.register(file);
        let mut table = self.table.lock();
        // Another thread may have opened the node meanwhile.
        if let Some(choice) = table.join(node, maps) {
            drop(table);
            self.drop_ids(id);
            return choice;
        }
        let Some(id) = id else {
            let keep = !table.bypassed;
            return table.start_cached(node, keep);
        };
        table.bypassed = true;
        table.registered += 1;
        table.clock.push_back(node);
        table.nodes.insert(node, NodeMode::Passthrough { backing: id, opens: 0, mappers: 0, recent: true });
        let evicted = table.evict();
        let choice = table.join(node, maps);
        let choice = choice.unwrap_or_else(|| table.start_cached(node, false));
        drop(table);
        self.drop_ids(evicted);
        choice
    }

    fn drop_ids(&self, ids: impl IntoIterator<Item = BackingId>) {
        if let Some(registry) = self.registry.as_deref() {
            ids.into_iter().for_each(|id| registry.drop_id(id));
        }
    }
}

impl Table {
    /// Joins the mode that the node is in, if it is in one.
    fn join(&mut self, node: NodeId, maps: bool) -> Option<Choice> {
        Some(match self.nodes.get_mut(&node)? {
            NodeMode::Cached { opens } => {
                *opens += 1;
                cached(true)
            }
            NodeMode::Passthrough { backing, opens, mappers, recent } => {
                *opens += 1;
                *recent = true;
                let first = maps && *mappers == 0;
                *mappers += u64::from(maps);
                Choice {
                    flags: OpenFlags::PASSTHROUGH | OpenFlags::NOFLUSH,
                    backing: Some(*backing),
                    attributes_loosen: first,
                }
            }
        })
    }

    /// `keep`: the pages cached of the node hold, because nothing could change it but through this page cache.
    fn start_cached(&mut self, node: NodeId, keep: bool) -> Choice {
        self.nodes.insert(node, NodeMode::Cached { opens: 1 });
        cached(keep || !self.bypassed)
    }

    fn drop_idle(&mut self, node: NodeId) -> Option<BackingId> {
        let Some(NodeMode::Passthrough { backing, opens: 0, .. }) = self.nodes.get(&node) else {
            return None;
        };
        let backing = *backing;
        self.nodes.remove(&node);
        self.registered -= 1;
        // Forgotten nodes leave their places in the clock behind; it is swept before it doubles.
        if self.clock.len() > 2 * (self.registered + IDLE_LIMIT) {
            let nodes = &self.nodes;
            self.clock.retain(|node| matches!(nodes.get(node), Some(NodeMode::Passthrough { .. })));
        }
        Some(backing)
    }

    /// Drops the backing files of nodes that were idle for a whole turn of the clock, until few enough are left. Those of
    /// open files cannot be dropped and do not count as too many for long: one turn is the most that is tried.
    fn evict(&mut self) -> Vec<BackingId> {
        let mut dropped = Vec::new();
        let mut turns = self.clock.len();
        while self.registered > IDLE_LIMIT && turns > 0 {
            turns -= 1;
            let Some(node) = self.clock.pop_front() else { break };
            match self.nodes.get_mut(&node) {
                Some(NodeMode::Passthrough { opens: 0, recent: false, .. }) => {
                    dropped.extend(self.drop_idle(node))
                }
                Some(NodeMode::Passthrough { recent, .. }) => {
                    *recent = false;
                    self.clock.push_back(node);
                }
                _ => {}
            }
        }
        dropped
    }
}

const fn cached(keep: bool) -> Choice {
    let flags = if keep { OpenFlags::KEEP_CACHE } else { OpenFlags::empty() };
    Choice { flags, backing: None, attributes_loosen: false }
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

    const A: NodeId = NodeId(2);

    fn modes() -> (IoModes<&'static str>, Arc<Fake>) {
        let fake = Arc::new(Fake::default());
        (IoModes::new(Some(Box::new(Arc::clone(&fake)))), fake)
    }

    #[test]
    fn one_backing_file_serves_every_open_of_a_node() {
        let (modes, fake) = modes();
        let first = modes.open(A, Some(&"upper"), false);
        assert!(first.flags.contains(OpenFlags::PASSTHROUGH) && !first.flags.contains(OpenFlags::KEEP_CACHE));
        assert_eq!(modes.open(A, Some(&"upper"), true).backing, first.backing);
        modes.release(A, false);
        modes.release(A, true);
        assert_eq!(modes.open(A, Some(&"upper"), false).backing, first.backing, "kept while idle");
        assert_eq!(fake.live(), 1);
    }

    #[test]
    fn while_a_lower_file_is_open_every_open_is_cached() {
        let (modes, fake) = modes();
        assert_eq!(modes.open(A, None, false).flags, OpenFlags::KEEP_CACHE);
        let writer = modes.open(A, Some(&"upper"), true);
        assert_eq!((writer.flags, writer.backing), (OpenFlags::KEEP_CACHE, None), "copied up meanwhile");
        modes.release(A, false);
        assert_eq!(modes.open(A, Some(&"upper"), false).backing, None);
        modes.release(A, true);
        modes.release(A, false);
        assert!(modes.open(A, Some(&"upper"), false).backing.is_some(), "all were closed");
        assert_eq!(fake.live(), 1);
    }

    #[test]
    fn pages_are_not_kept_where_writes_may_have_passed_them_by() {
        let (modes, _) = modes();
        assert_eq!(
            modes.open(A, Some(&"no"), false).flags,
            OpenFlags::KEEP_CACHE,
            "nothing was bypassed yet"
        );
        modes.release(A, false);
        modes.open(NodeId(3), Some(&"upper"), true);
        assert_eq!(modes.open(A, Some(&"no"), false).flags, OpenFlags::empty());
    }

    #[test]
    fn only_the_first_mapper_loosens_the_attributes() {
        let (modes, _) = modes();
        assert!(!modes.open(A, Some(&"upper"), false).attributes_loosen);
        assert!(!modes.is_loose(A));
        assert!(modes.open(A, Some(&"upper"), true).attributes_loosen);
        assert!(!modes.open(A, Some(&"upper"), true).attributes_loosen);
        modes.release(A, true);
        assert!(modes.is_loose(A) && !modes.is_loose(NodeId(3)));
        modes.release(A, true);
        assert!(!modes.is_loose(A));
        assert!(modes.open(A, Some(&"upper"), true).attributes_loosen);
    }

    #[test]
    fn a_forgotten_node_gives_its_backing_file_back_unless_it_is_open() {
        let (modes, fake) = modes();
        modes.open(A, Some(&"upper"), false);
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
        let kept = modes.open(A, Some(&"upper"), false).backing;
        for node in 0..3 * IDLE_LIMIT as u64 {
            modes.open(NodeId(100 + node), Some(&"upper"), false);
            modes.release(NodeId(100 + node), false);
        }
        assert!(fake.live() <= IDLE_LIMIT + 1, "{}", fake.live());
        assert_eq!(modes.open(A, Some(&"upper"), false).backing, kept);
        for node in 0..10 * IDLE_LIMIT as u64 {
            modes.open(NodeId(100_000 + node), Some(&"upper"), false);
            modes.release(NodeId(100_000 + node), false);
            modes.forgotten(NodeId(100_000 + node));
        }
        assert!(
            modes.table.lock().clock.len() <= 2 * (2 * IDLE_LIMIT + 1),
            "forgotten nodes leave the clock"
        );
    }

    /// The kernel's side of one node (`fs/fuse/iomode.c`): answers EIO to what does not fit.
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
            shareable: bool,
            maps: bool,
        },
        Close(prop::sample::Index),
        ProcessRelease(prop::sample::Index),
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (any::<bool>(), any::<bool>()).prop_map(|(shareable, maps)| Step::Open { shareable, maps }),
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
            for step in steps {
                match step {
                    Step::Open { shareable, maps } => {
                        upper |= shareable;
                        let choice = modes.open(A, upper.then_some(&"upper"), maps);
                        prop_assert!(kernel.opened(&choice), "EIO for {choice:?}");
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
