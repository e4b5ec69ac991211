//! Random operations: which, how often, and from which small pools their arguments come.
//!
//! The pools are small so that operations meet: most names exist, and what one operation made the next ones
//! link, rename, replace or remove.

use super::op::{Change, LockArg, On, Op, PathArg, SLOTS, Step, TimeArg, Whence};
use crate::acl::{self, Entry};
use crate::identity::User;
use fastrand::Rng;
use rustix::fs::{FileType, OFlags};

/// What sequences are made of beside chance.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Whether operations may act as users other than root.
    pub users: bool,
    /// Whether paths may lead out of the thread's base directory (harmless in a mount of one's own).
    pub may_climb: bool,
}

/// Where the steps of a thread come from.
#[derive(Debug)]
pub enum Source<'a> {
    /// A sequence that was run before.
    Replay(std::slice::Iter<'a, Step>),
    /// Chance, which is told how each step ended.
    Random(Box<Generator>),
}

impl Source<'_> {
    /// The next step, or none at the end.
    pub fn next_step(&mut self) -> Option<Step> {
        match self {
            Source::Replay(steps) => steps.next().cloned(),
            Source::Random(generator) => generator.next_step(),
        }
    }

    /// The steps that were taken from it.
    pub fn into_steps(self) -> Vec<Step> {
        match self {
            Source::Replay(steps) => steps.as_slice().to_vec(),
            Source::Random(generator) => generator.steps,
        }
    }

    /// Takes note of whether the last step succeeded.
    pub fn learn(&mut self, step: &Step, succeeded: bool) {
        if let Source::Random(generator) = self
            && succeeded
        {
            generator.world.learn(&mut generator.rng, &step.op);
        }
    }
}

/// Makes steps by chance, and keeps them.
#[derive(Debug)]
pub struct Generator {
    rng: Rng,
    world: World,
    user: User,
    count: usize,
    /// The steps so far.
    pub steps: Vec<Step>,
}

impl Generator {
    /// Will make `count` steps on a tree in which `paths` exist at first.
    pub fn new(rng: Rng, bounds: Bounds, paths: Vec<Vec<u8>>, count: usize) -> Self {
        let world = World { bounds, paths, open: Vec::new() };
        Self { rng, world, user: User::Root, count, steps: Vec::new() }
    }

    fn next_step(&mut self) -> Option<Step> {
        if self.steps.len() == self.count {
            return None;
        }
        let rng = &mut self.rng;
        if self.world.bounds.users && rng.u32(..8) == 0 {
            self.user = pick(rng, &[User::Root, User::Root, User::Root, User::Alice, User::Bob]);
        }
        let step = Step { user: self.user, op: op(rng, &self.world), probe: rng.u32(..4) == 0 };
        self.steps.push(step.clone());
        Some(step)
    }
}

/// What probably exists: only to make operations meet; nothing depends on its being right.
#[derive(Debug)]
struct World {
    bounds: Bounds,
    /// Paths that are in a layer or were made.
    paths: Vec<Vec<u8>>,
    /// Slots in use.
    open: Vec<u8>,
}

impl World {
    /// How many paths are remembered: few, so that several operations meet at each.
    const PATHS: usize = 60;

    fn learn(&mut self, rng: &mut Rng, op: &Op) {
        match op {
            Op::Open { slot, at: None, path, flags, .. } => {
                self.fill(*slot);
                if flags & OFlags::CREATE.bits() != 0 {
                    self.remember(rng, path);
                }
            }
            Op::Open { slot, .. } | Op::Reopen { slot, .. } => self.fill(*slot),
            Op::Close(slot) => self.open.retain(|open| open != slot),
            Op::Mkdir { path, .. } | Op::Symlink { path, .. } | Op::Mknod { path, .. } => {
                self.remember(rng, path)
            }
            Op::Link { to, .. } | Op::LinkFd { to, .. } => self.remember(rng, to),
            Op::Rename { from, to, .. } => {
                let moved: Vec<Vec<u8>> = self.paths.iter().filter_map(|path| below(path, &from.0)).collect();
                self.forget(from);
                for rest in moved {
                    self.remember(rng, &PathArg([to.0.as_slice(), &rest].concat()));
                }
            }
            Op::Unlink(path) | Op::Rmdir(path) => self.forget(path),
            _ => {}
        }
    }

    fn fill(&mut self, slot: u8) {
        if !self.open.contains(&slot) {
            self.open.push(slot);
        }
    }

    fn remember(&mut self, rng: &mut Rng, path: &PathArg) {
        if self.paths.contains(&path.0) {
            return;
        }
        self.paths.push(path.0.clone());
        if self.paths.len() > Self::PATHS {
            self.paths.swap_remove(rng.usize(..Self::PATHS));
        }
    }

    fn forget(&mut self, path: &PathArg) {
        self.paths.retain(|other| below(other, &path.0).is_none());
    }

    /// A path of that kind, by its name, that probably exists; the base directory if there is none.
    fn existing(&self, rng: &mut Rng, kind: Sort) -> Vec<u8> {
        let paths: Vec<&Vec<u8>> = self.paths.iter().filter(|path| kind.is_of(path)).collect();
        if paths.is_empty() { Vec::new() } else { pick(rng, &paths).clone() }
    }
}

/// What follows `dir` in `path`, if `path` is `dir` or below it.
fn below(path: &[u8], dir: &[u8]) -> Option<Vec<u8>> {
    let rest = path.strip_prefix(dir)?;
    (rest.is_empty() || rest.starts_with(b"/")).then(|| rest.to_vec())
}

/// What a name is usually the name of, so that operations seldom fail for the type alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// Directories.
    Dir,
    /// Everything else.
    File,
}

impl Sort {
    fn any(rng: &mut Rng) -> Self {
        if rng.u32(..3) == 0 { Sort::Dir } else { Sort::File }
    }

    fn is_of(self, path: &[u8]) -> bool {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let dir = matches!(name.first(), Some(b'a'..=b'c' | b'x'));
        dir == (self == Sort::Dir)
    }
}

/// One of `choices`, which must not be empty.
pub fn pick<T: Clone>(rng: &mut Rng, choices: &[T]) -> T {
    #[expect(
        clippy::indexing_slicing,
        reason = "the index is below the length; every pool here is a constant"
    )]
    choices[rng.usize(..choices.len())].clone()
}

/// A name of one component, mostly one that is usually of that sort.
pub fn name(rng: &mut Rng, sort: Sort) -> Vec<u8> {
    let dir = (sort == Sort::Dir) != (rng.u32(..12) == 0);
    match rng.u32(..20) {
        0 if dir => b"x:y,z\\".to_vec(),
        _ if dir => pick(rng, &[b"a", b"b", b"c"]).to_vec(),
        // No `.wh.` names: see known.rs.
        0 => pick(rng, &[b".wha".as_slice(), b"\xff\xfe\x80", b"sp ace\n"]).to_vec(),
        1 => vec![b'n'; 255],
        _ => pick(rng, &[b"d", b"e", b"f", b"g"]).to_vec(),
    }
}

/// A path that probably exists.
fn path(rng: &mut Rng, world: &World, sort: Sort) -> PathArg {
    match rng.u32(..20) {
        0 => any_path(rng, world.bounds),
        1 | 2 => new_path(rng, world, sort),
        3 => {
            let any = Sort::any(rng);
            PathArg(world.existing(rng, any))
        }
        _ => PathArg(world.existing(rng, sort)),
    }
}

/// A path that often does not exist, in a directory that probably does.
fn new_path(rng: &mut Rng, world: &World, sort: Sort) -> PathArg {
    let name = name(rng, sort);
    let dir = if rng.u32(..3) == 0 { Vec::new() } else { world.existing(rng, Sort::Dir) };
    PathArg(if dir.is_empty() { name } else { [dir.as_slice(), b"/", &name].concat() })
}

fn any_path(rng: &mut Rng, bounds: Bounds) -> PathArg {
    if rng.u32(..10) == 0 {
        return PathArg(Vec::new());
    }
    let depth = pick(rng, &[1, 1, 1, 2, 2, 2, 2, 3, 3, 4]);
    let sort = Sort::any(rng);
    let mut parts: Vec<Vec<u8>> = (0..depth).map(|_| name(rng, sort)).collect();
    if rng.u32(..12) == 0 {
        let odd: &[&[u8]] = if bounds.may_climb && depth > 1 { &[b".", b"..", b""] } else { &[b"."] };
        parts.push(pick(rng, odd).to_vec());
    }
    if rng.u32(..40) == 0 {
        parts.push(vec![b'm'; 256]);
    }
    PathArg(parts.join(&b'/'))
}

fn on(rng: &mut Rng, world: &World) -> On {
    let sort = Sort::any(rng);
    match rng.u32(..10) {
        0..3 => On::Fd(slot(rng, world)),
        3..5 => On::Link(path(rng, world, sort)),
        _ => On::Path(path(rng, world, sort)),
    }
}

/// A slot that is probably in use.
fn slot(rng: &mut Rng, world: &World) -> u8 {
    if world.open.is_empty() || rng.u32(..20) == 0 { any_slot(rng) } else { pick(rng, &world.open) }
}

fn any_slot(rng: &mut Rng) -> u8 {
    rng.u8(..SLOTS)
}

fn op(rng: &mut Rng, world: &World) -> Op {
    match rng.u32(..1000) {
        0..320 => on_open_file(rng, world),
        320..470 => open(rng, world),
        470..740 => on_names(rng, world),
        740..880 => on_attributes(rng, world),
        _ => look(rng, world),
    }
}

fn open(rng: &mut Rng, world: &World) -> Op {
    let mut flags = pick(rng, &[OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::RDWR]);
    let sometimes = [
        (2, OFlags::CREATE),
        (12, OFlags::EXCL),
        (8, OFlags::TRUNC),
        (8, OFlags::APPEND),
        (30, OFlags::DIRECTORY),
        (15, OFlags::NOFOLLOW),
        (40, OFlags::PATH),
        (40, OFlags::DIRECT),
        (40, OFlags::SYNC),
        (40, OFlags::NOATIME),
    ];
    for (one_in, flag) in sometimes {
        if rng.u32(..one_in) == 0 {
            flags |= flag;
        }
    }
    match rng.u32(..14) {
        0 => {
            flags = OFlags::TMPFILE | pick(rng, &[OFlags::WRONLY, OFlags::RDWR, OFlags::RDWR | OFlags::EXCL]);
        }
        1 => flags = OFlags::RDONLY | OFlags::DIRECTORY,
        2 if rng.u32(..2) == 0 => {
            let flags = pick(rng, &[OFlags::RDONLY, OFlags::RDWR, OFlags::WRONLY | OFlags::TRUNC]).bits();
            return Op::Reopen { slot: any_slot(rng), of: slot(rng, world), flags };
        }
        _ => {}
    }
    let at = (rng.u32(..15) == 0).then(|| slot(rng, world));
    let sort = if flags.intersects(OFlags::DIRECTORY) && rng.u32(..8) != 0 { Sort::Dir } else { Sort::File };
    let path = if at.is_some() {
        PathArg(name(rng, sort))
    } else if flags.contains(OFlags::CREATE) && rng.bool() {
        new_path(rng, world, sort)
    } else {
        path(rng, world, sort)
    };
    Op::Open { slot: any_slot(rng), at, path, flags: flags.bits(), mode: mode(rng, sort) }
}

fn on_open_file(rng: &mut Rng, world: &World) -> Op {
    let slot = slot(rng, world);
    let somewhere = offset(rng);
    match rng.u32(..100) {
        0..8 => Op::Close(slot),
        8..24 => Op::Read { slot, offset: maybe_offset(rng), length: length(rng) },
        24..48 => Op::Write { slot, offset: maybe_offset(rng), length: length(rng), byte: rng.u8(1..) },
        48..56 => {
            let whence = pick(
                rng,
                &[Whence::Set, Whence::Current, Whence::End, Whence::Data, Whence::Hole, Whence::Hole],
            );
            let offset = i64::try_from(somewhere).unwrap_or(0) - if rng.u32(..8) == 0 { 5000 } else { 0 };
            Op::Seek { slot, whence, offset }
        }
        56..64 => Op::Truncate { on: On::Fd(slot), length: somewhere },
        64..72 => {
            // 0, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, and one that is refused; those kept out: see known.rs.
            let mode = pick(rng, &[0, 0, 1, 1, 3, 3, 16, 17, 2]);
            let length = pick(rng, &[0, 1, 4096, 8192, 10_000, 65_536]);
            Op::Fallocate { slot, mode, offset: somewhere, length }
        }
        72..78 => Op::CopyRange {
            from: slot,
            from_offset: offset(rng),
            to: self::slot(rng, world),
            to_offset: somewhere,
            length: length(rng),
        },
        78..82 => Op::Sync { slot, data_only: rng.bool() },
        82..89 => Op::MapWrite { slot, page: rng.u64(..4), length: length(rng), byte: rng.u8(1..) },
        89..94 => Op::MapRead { slot, page: rng.u64(..4), length: length(rng) },
        _ => {
            let locks = [
                LockArg::FlockShared,
                LockArg::FlockExclusive,
                LockArg::FlockUnlock,
                LockArg::PosixShared,
                LockArg::PosixExclusive,
                LockArg::PosixUnlock,
            ];
            Op::Lock { slot, lock: pick(rng, &locks) }
        }
    }
}

fn on_names(rng: &mut Rng, world: &World) -> Op {
    let sort = Sort::any(rng);
    match rng.u32(..100) {
        0..16 => Op::Mkdir { path: new_path(rng, world, Sort::Dir), mode: mode(rng, Sort::Dir) },
        16..18 => Op::Mkdir { path: path(rng, world, sort), mode: mode(rng, Sort::Dir) },
        18..26 => Op::Rmdir(path(rng, world, Sort::Dir)),
        26..38 => Op::Unlink(path(rng, world, Sort::File)),
        38..64 => {
            let flags = pick(rng, &[0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 4, 3]);
            let to =
                if rng.bool() && flags != 2 { new_path(rng, world, sort) } else { path(rng, world, sort) };
            Op::Rename { from: path(rng, world, sort), to, flags }
        }
        64..78 => {
            let (from, to) = (path(rng, world, Sort::File), new_path(rng, world, Sort::File));
            Op::Link { from, to, follow: rng.u32(..4) == 0 }
        }
        78..82 => Op::LinkFd { slot: slot(rng, world), to: new_path(rng, world, Sort::File) },
        82..88 => {
            let mut target = PathArg(name(rng, sort));
            match rng.u32(..6) {
                0 if world.bounds.may_climb => target.0.splice(..0, *b"../").for_each(drop),
                1 => target.0 = b"/no/such/place".to_vec(),
                2 => target = any_path(rng, world.bounds),
                _ => {}
            }
            Op::Symlink { target, path: new_path(rng, world, sort) }
        }
        88..93 => mknod(rng, world),
        93 => Op::Umask(pick(rng, &[0o022, 0o022, 0o002, 0o077, 0o000, 0o000, 0o777])),
        _ => Op::Truncate { on: On::Path(path(rng, world, Sort::File)), length: offset(rng) },
    }
}

fn mknod(rng: &mut Rng, world: &World) -> Op {
    let kinds = [
        (FileType::Fifo, 0, 0),
        (FileType::Socket, 0, 0),
        (FileType::RegularFile, 0, 0),
        (FileType::RegularFile, 0, 0),
        (FileType::CharacterDevice, 1, 3),
        (FileType::CharacterDevice, 0, 0),
        (FileType::BlockDevice, 240, 5),
    ];
    let (kind, major, minor) = pick(rng, &kinds);
    let mode = kind.as_raw_mode() | mode(rng, Sort::File);
    Op::Mknod { path: new_path(rng, world, Sort::File), mode, major, minor }
}

fn on_attributes(rng: &mut Rng, world: &World) -> Op {
    let (on, sort) = (on(rng, world), Sort::any(rng));
    match rng.u32(..100) {
        0..22 => Op::Chmod { on, mode: mode(rng, sort) },
        22..38 => {
            let ids = [None, Some(0), Some(1000), Some(1001), Some(2000)];
            let (uid, gid) = (pick(rng, &ids), pick(rng, &ids));
            // Never -1 for both: see known.rs.
            Op::Chown { on, uid: if gid.is_none() { uid.or(Some(0)) } else { uid }, gid }
        }
        38..60 => Op::Utimens { on, atime: time(rng), mtime: time(rng) },
        60..78 => {
            let (name, value) = xattr(rng);
            Op::SetXattr { on, name, value, flags: pick(rng, &[0, 0, 0, 1, 2]) }
        }
        78..86 => Op::RemoveXattr { on, name: xattr(rng).0 },
        86..94 => Op::GetXattr { on, name: xattr(rng).0, size: pick(rng, &[0, 1, 28, 256, 65_536]) },
        _ => Op::ListXattr { on, size: pick(rng, &[0, 8, 65_536, 65_536]) },
    }
}

fn look(rng: &mut Rng, world: &World) -> Op {
    let sort = Sort::any(rng);
    match rng.u32(..100) {
        0..45 => Op::Stat(on(rng, world)),
        45..50 => Op::Statfs(path(rng, world, sort)),
        50..62 => {
            Op::Access { path: path(rng, world, sort), mode: rng.u32(..8), effective: rng.u32(..4) != 0 }
        }
        62..70 => Op::Readlink(path(rng, world, Sort::File)),
        70..85 => Op::List(On::Path(path(rng, world, Sort::Dir))),
        85..88 => Op::List(On::Fd(slot(rng, world))),
        _ => {
            let changes = (0..rng.usize(1..5))
                .map(|_| match rng.u32(..3) {
                    0 => Change::Create(PathArg(name(rng, Sort::File))),
                    1 => Change::Unlink(PathArg(name(rng, Sort::File))),
                    _ => Change::Rename(PathArg(name(rng, sort)), PathArg(name(rng, sort))),
                })
                .collect();
            Op::ListChanging { path: path(rng, world, Sort::Dir), first: rng.usize(..6), changes }
        }
    }
}

/// Mode bits, mostly such that the next user can go on.
pub fn mode(rng: &mut Rng, sort: Sort) -> u32 {
    let dirs =
        [0o777, 0o777, 0o777, 0o777, 0o755, 0o755, 0o755, 0o1777, 0o2777, 0o2755, 0o711, 0o700, 0o4555];
    let files = [0o666, 0o666, 0o644, 0o644, 0o640, 0o600, 0o000, 0o444, 0o777, 0o755, 0o1644];
    let set_id = [0o4755, 0o6755, 0o6777, 0o2755, 0o2777, 0o2640, 0o4644];
    match sort {
        Sort::Dir => pick(rng, &dirs),
        Sort::File if rng.u32(..4) == 0 => pick(rng, &set_id),
        Sort::File => pick(rng, &files),
    }
}

fn offset(rng: &mut Rng) -> u64 {
    pick(rng, &[0, 0, 0, 1, 100, 4095, 4096, 4097, 8192, 12_288, 20_000, 65_536, 300_000, 1 << 20])
}

fn maybe_offset(rng: &mut Rng) -> Option<u64> {
    rng.bool().then(|| offset(rng))
}

fn length(rng: &mut Rng) -> usize {
    pick(rng, &[0, 1, 1, 10, 100, 1000, 4095, 4096, 4097, 10_000, 70_000])
}

/// A time to set: never one that could have happened during the test.
pub fn moment(rng: &mut Rng) -> (i64, i64) {
    let whole = [-1_000_000_000, -1, 0, 1, 1_000_000_000, 2_147_483_648, 4_000_000_000, 9_000_000_000];
    (pick(rng, &whole), pick(rng, &[0, 1, 123_456_789, 999_999_999]))
}

fn time(rng: &mut Rng) -> TimeArg {
    match rng.u32(..6) {
        0 => TimeArg::Now,
        1 => TimeArg::Omit,
        _ => {
            let (sec, nsec) = moment(rng);
            TimeArg::At(sec, nsec)
        }
    }
}

/// An extended attribute, name and value.
pub fn xattr(rng: &mut Rng) -> (String, Vec<u8>) {
    let plain = pick(rng, &[b"".to_vec(), b"x".to_vec(), vec![b'v'; 20], vec![b'w'; 300]]);
    match rng.u32(..20) {
        0..6 => (pick(rng, &["user.a", "user.b"]).to_owned(), plain),
        6..9 => ("trusted.t".to_owned(), plain),
        9..11 => {
            // VFS_CAP_REVISION_2 with one permitted capability, or nonsense.
            let capability = [[0, 0, 0, 2], [0, 4, 0, 0], [0; 4], [0; 4], [0; 4]].concat();
            ("security.capability".to_owned(), pick(rng, &[capability, b"bad".to_vec()]))
        }
        11..12 => {
            let names =
                ["trusted.overlay.opaque", "trusted.overlay.x", "user.overlay.x", "trusted.overlay.redirect"];
            (pick(rng, &names).to_owned(), pick(rng, &[b"y".to_vec(), b"a".to_vec()]))
        }
        12..16 => (acl::ACCESS.to_owned(), acl(rng)),
        16..19 => (acl::DEFAULT.to_owned(), acl(rng)),
        _ => (pick(rng, &["user.", "nonsense", "system.other", "user.overlay.opaque"]).to_owned(), plain),
    }
}

/// An ACL, mostly valid.
pub fn acl(rng: &mut Rng) -> Vec<u8> {
    let perm = |rng: &mut Rng| pick(rng, &[0, 4, 5, 6, 7, 7]);
    match rng.u32(..12) {
        0 => b"bad".to_vec(),
        1 => acl::encode(&[]),
        2 | 3 => {
            acl::encode(&[Entry::UserObj(perm(rng)), Entry::GroupObj(perm(rng)), Entry::Other(perm(rng))])
        }
        4..8 => acl::encode(&[
            Entry::UserObj(7),
            Entry::User(1000, perm(rng)),
            Entry::GroupObj(perm(rng)),
            Entry::Mask(perm(rng)),
            Entry::Other(perm(rng)),
        ]),
        _ => acl::encode(&[
            Entry::UserObj(perm(rng)),
            Entry::User(1001, perm(rng)),
            Entry::GroupObj(perm(rng)),
            Entry::Group(2000, perm(rng)),
            Entry::Mask(perm(rng)),
            Entry::Other(perm(rng)),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(seed: u64, count: usize) -> Vec<Step> {
        let bounds = Bounds { users: true, may_climb: true };
        let mut generator = Generator::new(Rng::with_seed(seed), bounds, vec![b"a".to_vec()], count);
        while generator.next_step().is_some() {}
        generator.steps
    }

    #[test]
    fn a_seed_gives_the_same_sequence_every_time() {
        assert_eq!(steps(7, 500), steps(7, 500));
        assert_ne!(steps(7, 500), steps(8, 500));
    }

    #[test]
    fn every_kind_of_operation_is_generated() {
        let names: std::collections::BTreeSet<String> =
            steps(1, 20_000).iter().map(|step| step.op.name()).collect();
        assert_eq!(names.len(), 35, "{names:?}");
    }
}
