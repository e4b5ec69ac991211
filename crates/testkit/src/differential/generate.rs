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

/// A sequence of `count` operations.
pub fn steps(rng: &mut Rng, bounds: Bounds, count: usize) -> Vec<Step> {
    let mut user = User::Root;
    (0..count)
        .map(|_| {
            if bounds.users && rng.u32(..8) == 0 {
                user = pick(rng, &[User::Root, User::Root, User::Alice, User::Bob]);
            }
            Step { user, op: op(rng, bounds), probe: rng.u32(..4) == 0 }
        })
        .collect()
}

/// One of `choices`, which must not be empty.
pub fn pick<T: Clone>(rng: &mut Rng, choices: &[T]) -> T {
    #[expect(
        clippy::indexing_slicing,
        reason = "the index is below the length; every pool here is a constant"
    )]
    choices[rng.usize(..choices.len())].clone()
}

/// A name of one component.
pub fn name(rng: &mut Rng) -> Vec<u8> {
    match rng.u32(..100) {
        0..70 => pick(rng, &[b"a", b"b", b"c"]).to_vec(),
        70..90 => pick(rng, &[b"d", b"e", b"f"]).to_vec(),
        90 => b".wh.a".to_vec(),
        91 => b".wh..wh..opq".to_vec(),
        92..94 => b"\xff\xfe\x80".to_vec(),
        94 => vec![b'n'; 255],
        95 => b"sp ace\n".to_vec(),
        96 => b"x:y,z\\".to_vec(),
        _ => b"g".to_vec(),
    }
}

fn path(rng: &mut Rng, bounds: Bounds) -> PathArg {
    if rng.u32(..60) == 0 {
        return PathArg(Vec::new());
    }
    let depth = pick(rng, &[1, 1, 1, 2, 2, 2, 2, 3, 3, 4]);
    let mut parts: Vec<Vec<u8>> = (0..depth).map(|_| name(rng)).collect();
    if rng.u32(..60) == 0 {
        let odd: &[&[u8]] = if bounds.may_climb && depth > 1 { &[b".", b"..", b""] } else { &[b"."] };
        parts.push(pick(rng, odd).to_vec());
    }
    if rng.u32(..200) == 0 {
        parts.push(vec![b'm'; 256]);
    }
    PathArg(parts.join(&b'/'))
}

fn on(rng: &mut Rng, bounds: Bounds) -> On {
    match rng.u32(..10) {
        0..3 => On::Fd(slot(rng)),
        3..5 => On::Link(path(rng, bounds)),
        _ => On::Path(path(rng, bounds)),
    }
}

fn slot(rng: &mut Rng) -> u8 {
    rng.u8(..SLOTS)
}

fn op(rng: &mut Rng, bounds: Bounds) -> Op {
    match rng.u32(..1000) {
        0..330 => on_open_file(rng),
        330..470 => open(rng, bounds),
        470..740 => on_names(rng, bounds),
        740..880 => on_attributes(rng, bounds),
        _ => look(rng, bounds),
    }
}

fn open(rng: &mut Rng, bounds: Bounds) -> Op {
    let mut flags = pick(rng, &[OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::RDWR]);
    let sometimes = [
        (3, OFlags::CREATE),
        (8, OFlags::EXCL),
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
            return Op::Reopen { slot: slot(rng), of: slot(rng), flags };
        }
        _ => {}
    }
    let at = (rng.u32(..15) == 0).then(|| slot(rng));
    let path = if at.is_some() { PathArg(name(rng)) } else { path(rng, bounds) };
    Op::Open { slot: slot(rng), at, path, flags: flags.bits(), mode: mode(rng) }
}

fn on_open_file(rng: &mut Rng) -> Op {
    let slot = slot(rng);
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
            // 0, KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE
            let mode = pick(rng, &[0, 0, 1, 1, 3, 3, 8, 16, 17, 32, 64, 2]);
            let length = pick(rng, &[0, 1, 4096, 8192, 10_000, 65_536]);
            Op::Fallocate { slot, mode, offset: somewhere, length }
        }
        72..78 => Op::CopyRange {
            from: slot,
            from_offset: offset(rng),
            to: self::slot(rng),
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

fn on_names(rng: &mut Rng, bounds: Bounds) -> Op {
    let here = path(rng, bounds);
    match rng.u32(..100) {
        0..20 => Op::Mkdir { path: here, mode: mode(rng) },
        20..28 => Op::Rmdir(here),
        28..42 => Op::Unlink(here),
        42..66 => {
            let flags = pick(rng, &[0, 0, 0, 1, 2, 2, 4, 3]);
            Op::Rename { from: here, to: path(rng, bounds), flags }
        }
        66..78 => Op::Link { from: here, to: path(rng, bounds), follow: rng.u32(..4) == 0 },
        78..82 => Op::LinkFd { slot: slot(rng), to: here },
        82..90 => {
            let mut target = path(rng, bounds);
            match rng.u32(..6) {
                0 if bounds.may_climb => target.0.splice(..0, *b"../").for_each(drop),
                1 => target.0 = b"/no/such/place".to_vec(),
                _ => {}
            }
            Op::Symlink { target, path: here }
        }
        90..96 => {
            let (kind, major, minor) = pick(
                rng,
                &[
                    (FileType::Fifo, 0, 0),
                    (FileType::Socket, 0, 0),
                    (FileType::RegularFile, 0, 0),
                    (FileType::CharacterDevice, 1, 3),
                    (FileType::CharacterDevice, 0, 0),
                    (FileType::BlockDevice, 240, 5),
                ],
            );
            Op::Mknod { path: here, mode: kind.as_raw_mode() | mode(rng), major, minor }
        }
        96..98 => Op::Umask(pick(rng, &[0o022, 0o002, 0o077, 0o000, 0o777])),
        _ => Op::Truncate { on: On::Path(here), length: offset(rng) },
    }
}

fn on_attributes(rng: &mut Rng, bounds: Bounds) -> Op {
    let on = on(rng, bounds);
    match rng.u32(..100) {
        0..22 => Op::Chmod { on, mode: mode(rng) },
        22..38 => {
            let ids = [None, Some(0), Some(1000), Some(1001), Some(2000)];
            Op::Chown { on, uid: pick(rng, &ids), gid: pick(rng, &ids) }
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

fn look(rng: &mut Rng, bounds: Bounds) -> Op {
    match rng.u32(..100) {
        0..45 => Op::Stat(on(rng, bounds)),
        45..50 => Op::Statfs(path(rng, bounds)),
        50..62 => Op::Access { path: path(rng, bounds), mode: rng.u32(..8), effective: rng.u32(..4) != 0 },
        62..70 => Op::Readlink(path(rng, bounds)),
        70..88 => Op::List(on(rng, bounds)),
        _ => {
            let changes = (0..rng.usize(1..5))
                .map(|_| match rng.u32(..3) {
                    0 => Change::Create(PathArg(name(rng))),
                    1 => Change::Unlink(PathArg(name(rng))),
                    _ => Change::Rename(PathArg(name(rng)), PathArg(name(rng))),
                })
                .collect();
            Op::ListChanging { path: path(rng, bounds), first: rng.usize(..6), changes }
        }
    }
}

/// Mode bits, mostly such that the next user can go on.
pub fn mode(rng: &mut Rng) -> u32 {
    pick(
        rng,
        &[
            0o777, 0o777, 0o755, 0o755, 0o666, 0o644, 0o640, 0o600, 0o000, 0o444, 0o1777, 0o2777, 0o2755,
            0o4755, 0o6755, 0o6777, 0o2640, 0o711,
        ],
    )
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

    #[test]
    fn a_seed_gives_the_same_sequence_every_time() {
        let bounds = Bounds { users: true, may_climb: true };
        let make = || steps(&mut Rng::with_seed(7), bounds, 500);
        assert_eq!(make(), make());
    }

    #[test]
    fn every_kind_of_operation_is_generated() {
        let bounds = Bounds { users: true, may_climb: true };
        let steps = steps(&mut Rng::with_seed(1), bounds, 20_000);
        let names: std::collections::BTreeSet<String> = steps.iter().map(|step| step.op.name()).collect();
        assert_eq!(names.len(), 39, "{names:?}");
    }
}
