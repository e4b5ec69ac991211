//! The differences between the kernel's overlayfs and plyfs that are meant to be, each with its reason.
//!
//! Whatever is not here is a finding. The list is mirrored in `docs/compatibility.md`.
//!
//! More differences are kept out of the comparison altogether, since the sides would go apart by them
//! (`differential/apart.rs` makes the decisions that need a look at the files):
//! - plyfs, like fuse-overlayfs, reads `.wh.NAME` and `.wh..wh..opq` as whiteout and opaque mark (image layers hold
//!   them), and refuses to make such names; to the kernel they are names like any other.
//! - The positions of a directory are its file system's own, and what lseek(2) does to them is decided by the kernel.
//! - A chown to -1 and -1 by a stranger is EPERM for a set-id file; FUSE gives it the form of a write, and while the
//!   file is open for writing plyfs takes it for one.
//! - A lower file that is unlinked while it is open: the kernel goes on to show the lower's links, and its copy-up fails
//!   or, for a device, brings the name back. Such descriptors are closed; the cases of `posix` have what plyfs does.
//! - Direct reads of lower files go through the daemon, in a user namespace all direct I/O does: it may start anywhere.
//! - A failed rename changes nothing. The kernel overlay asks for a whiteout in the same call, and ext4 stamps the
//!   directory when it takes that back; the sides then get the same time.
//! - In a user namespace the kernel cannot record from which lower file a copy comes. A further name of a copy is then
//!   another inode to it, with attributes and a number of its own; to plyfs it is the same file.
//! - With `userxattr` the same holds for what cannot have such an attribute: anything but files and directories.
//! - In a user namespace the kernel's FUSE collects writes and keeps the times: a truncate(2) to the size that the file has
//!   does not change its modification time, and an fallocate that the file system refuses (ZERO_RANGE on tmpfs) does.
//! - What is written to a mapping behind the end of the file is shown by tmpfs when the file grows, and dropped by the page
//!   cache of the mount.
//! - An empty lower file has no data that could stay below: plyfs copies it whole also with `metacopy=on`. The layers have none
//!   then.
//! - Of several names of a lower file in the index plyfs may redirect to one that is too long (`EXDEV`), where the kernel takes
//!   the one that was used. With `metacopy=on` no such name in the layers is one of several.
//! - The whiteout that the kernel links to make others, in the index, is left out.
//! - The kernel's FUSE refuses fallocate with COLLAPSE_RANGE, INSERT_RANGE and UNSHARE_RANGE before plyfs hears of it.

use crate::compare::{self, Difference};
use crate::differential::listing;
use crate::differential::op::{On, Op, Whence};
use crate::differential::outcome::{Outcome, StatShot};
use crate::differential::run::Stage;
use crate::features::Features;
use crate::sandbox::Space;
use crate::snapshot::{Shot, Snapshot, Stamp};
use rustix::io::Errno;

/// Under which conditions a difference was found.
#[derive(Debug, Clone, Copy)]
pub struct Conditions<'a> {
    /// Where both sides are mounted.
    pub space: Space,
    /// With what.
    pub features: &'a Features,
}

/// Where an explanation counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Always.
    Everywhere,
    /// Only in a user namespace: there plyfs has no passthrough, and the kernel collects writes.
    UserSpace,
    /// Only with `index=on`.
    Index,
    /// Only with `metacopy=on`.
    Metacopy,
}

impl Scope {
    fn holds(self, conditions: &Conditions<'_>) -> bool {
        match self {
            Scope::Everywhere => true,
            Scope::UserSpace => conditions.space == Space::User,
            Scope::Index => conditions.features.has("index=on"),
            Scope::Metacopy => conditions.features.has("metacopy=on"),
        }
    }
}

/// An explained difference in the results of one operation; left is the kernel.
pub struct KnownResult {
    /// Why plyfs differs.
    pub reason: &'static str,
    /// Where it counts.
    pub scope: Scope,
    /// Whether it explains these results.
    pub explains: fn(&Op, &Outcome, &Outcome) -> bool,
}

/// An explained difference between two trees; left is the kernel.
pub struct KnownTree {
    /// Why plyfs differs.
    pub reason: &'static str,
    /// Where it counts.
    pub scope: Scope,
    /// Whether it explains this difference.
    pub explains: fn(Stage, &Difference, &Trees<'_>) -> bool,
}

/// The trees that a difference was found between; left is the kernel's, or before a remount.
#[derive(Debug, Clone, Copy)]
pub struct Trees<'a> {
    /// The left one.
    pub left: &'a Snapshot,
    /// The right one.
    pub right: &'a Snapshot,
}

impl Trees<'_> {
    /// Whether the right side's entry has the overlay's own attribute of this name.
    fn right_has(&self, path: &[u8], private: &str) -> bool {
        self.right.entries.get(path).is_some_and(|shot| shot.has_private(private))
    }

    /// Whether in the right side's directory lies something whose number a listing must look up: an object that was copied
    /// up, under whatever name.
    fn right_holds_copies(&self, dir: &[u8]) -> bool {
        let entries = self.right.entries.iter();
        let inside = |path: &[u8]| !path.is_empty() && parent(path) == dir;
        entries.filter(|(path, _)| inside(path)).any(|(_, shot)| shot.has_private("origin"))
    }

    /// Whether what is at this path, on a side that has it, is one of several names in the index, or a directory that was
    /// copied up for such names alone.
    fn is_for_indexed_names(&self, path: &[u8]) -> bool {
        [self.left, self.right].into_iter().filter(|side| side.entries.contains_key(path)).all(|side| {
            let beneath = side.entries.iter().filter(|(other, _)| {
                other.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            });
            let mut leaves = beneath.map(|(_, shot)| shot).filter(|shot| !shot.is_dir()).peekable();
            leaves.peek().is_some() && leaves.all(|shot| shot.has_private("nlink"))
        })
    }

    /// Whether a side's directory holds one of several names in the index.
    fn holds_indexed_names(&self, dir: &[u8]) -> bool {
        let entries = self.left.entries.iter().chain(&self.right.entries);
        let inside = |path: &[u8]| !path.is_empty() && parent(path) == dir;
        entries.filter(|(path, _)| inside(path)).any(|(_, shot)| shot.has_private("nlink"))
    }

    /// Whether the sides' directories hold directories of other names.
    fn hold_different_dirs(&self, dir: &[u8]) -> bool {
        let inside = |path: &[u8]| !path.is_empty() && parent(path) == dir;
        let dirs = |side: &Snapshot| {
            let entries = side.entries.iter().filter(|(path, shot)| inside(path) && shot.is_dir());
            entries.map(|(path, _)| path.clone()).collect::<Vec<_>>()
        };
        self.is_dir(dir) && dirs(self.left) != dirs(self.right)
    }

    fn is_dir(&self, path: &[u8]) -> bool {
        self.left.entries.get(path).is_some_and(Shot::is_dir)
    }

    fn is_regular(&self, path: &[u8]) -> bool {
        self.left.entries.get(path).is_some_and(Shot::is_file)
    }
}

fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path.get(..end).unwrap_or_default()
}

/// Whether both failed, with these errors.
fn fail(kernel: &Outcome, plyfs: &Outcome, with: (Errno, Errno)) -> bool {
    (kernel, plyfs) == (&Outcome::Failed(with.0), &Outcome::Failed(with.1))
}

/// The explained differences in results.
pub const INTENDED: &[KnownResult] = &[
    KnownResult {
        reason: "a mapping of a lower file goes on to show what lay there, also once the file was copied up and truncated; \
                 on plyfs it ends where the file ends now",
        scope: Scope::Everywhere,
        explains: |op, kernel, plyfs| {
            // Each side's mapping was compared with what that side reads.
            let ends_elsewhere = match (kernel, plyfs) {
                (Outcome::Data(..), Outcome::Failed(Errno::IO)) => true,
                (Outcome::Data(kernel, _), Outcome::Data(plyfs, _)) => {
                    kernel != plyfs && (*kernel).min(*plyfs) % 4096 == 0
                }
                _ => false,
            };
            matches!(op, Op::MapRead { .. }) && ends_elsewhere
        },
    },
    KnownResult {
        reason: "where the kernel's own listing contradicts itself, plyfs need not",
        scope: Scope::Everywhere,
        explains: |_, kernel, plyfs| {
            matches!(kernel, Outcome::Broken(_)) && !matches!(plyfs, Outcome::Broken(_))
        },
    },
    KnownResult {
        reason: "the kernel counts an overlay's own attributes in the length of a list from which it leaves them out",
        scope: Scope::Everywhere,
        explains: |op, kernel, plyfs| {
            let list = matches!(op, Op::ListXattr { .. });
            list && match (kernel, plyfs) {
                (Outcome::Failed(Errno::RANGE), Outcome::Names(_)) => true,
                (Outcome::Number(kernel), Outcome::Number(plyfs)) => plyfs < kernel,
                _ => false,
            }
        },
    },
    KnownResult {
        reason: "a layer without support for an attribute's namespace must not break access: the attribute is absent",
        scope: Scope::Everywhere,
        explains: |op, kernel, plyfs| {
            let reads = matches!(op, Op::GetXattr { .. } | Op::RemoveXattr { .. });
            reads && fail(kernel, plyfs, (Errno::OPNOTSUPP, Errno::NODATA))
        },
    },
    KnownResult {
        reason: "the kernel shows the links of the lower file after its name in the overlay was removed",
        scope: Scope::Everywhere,
        explains: |_, kernel, plyfs| match (kernel, plyfs) {
            (Outcome::Stat(kernel), Outcome::Stat(plyfs)) => {
                let unlinked = StatShot { nlink: 0, ..StatShot::clone(kernel) };
                plyfs.nlink == 0 && unlinked == **plyfs
            }
            _ => false,
        },
    },
    KnownResult {
        reason: "the kernel cannot copy up a lower file that was unlinked while open: the whiteout is in its way",
        scope: Scope::Everywhere,
        explains: |op, kernel, plyfs| {
            let by_descriptor = matches!(op, Op::Reopen { .. })
                || matches!(
                    op,
                    Op::Chmod { on: On::Fd(_), .. }
                        | Op::Chown { on: On::Fd(_), .. }
                        | Op::Utimens { on: On::Fd(_), .. }
                        | Op::SetXattr { on: On::Fd(_), .. }
                        | Op::RemoveXattr { on: On::Fd(_), .. }
                );
            let refused = [Outcome::Failed(Errno::EXIST), Outcome::Failed(Errno::NOENT)].contains(kernel);
            by_descriptor && refused && *plyfs == Outcome::Done
        },
    },
    KnownResult {
        reason: "a removed directory that was never copied up cannot be changed: the kernel finds its whiteout, plyfs no name",
        scope: Scope::Everywhere,
        explains: |op, kernel, plyfs| {
            let by_descriptor = matches!(
                op,
                Op::Chmod { on: On::Fd(_), .. }
                    | Op::Chown { on: On::Fd(_), .. }
                    | Op::Utimens { on: On::Fd(_), .. }
                    | Op::SetXattr { on: On::Fd(_), .. }
                    | Op::RemoveXattr { on: On::Fd(_), .. }
            );
            by_descriptor
                && *kernel == Outcome::Failed(Errno::NOTDIR)
                && *plyfs == Outcome::Failed(Errno::NOENT)
        },
    },
    KnownResult {
        // That nothing but zeros is passed over is checked on each side: `lost_by` of `differential/data.rs`.
        reason: "which of its zeros a file system reports as holes, after copy-up or before write-back, is its own choice",
        scope: Scope::Everywhere,
        explains: |op, kernel, plyfs| {
            let holes = matches!(op, Op::Seek { whence: Whence::Hole | Whence::Data, .. });
            let may_be =
                |outcome: &Outcome| matches!(outcome, Outcome::Number(_) | Outcome::Failed(Errno::NXIO));
            holes && may_be(kernel) && may_be(plyfs)
        },
    },
    KnownResult {
        reason: "a directory cannot be read(2) from; before that, the kernel overlay may find its position invalid",
        scope: Scope::Everywhere,
        explains: |op, kernel, plyfs| {
            let read = matches!(op, Op::Read { .. });
            read && fail(kernel, plyfs, (Errno::INVAL, Errno::ISDIR))
        },
    },
    KnownResult {
        reason: "POSIX allows both for a rename onto a directory that is not empty; xfs says EEXIST, and is not asked",
        scope: Scope::Everywhere,
        explains: |op, kernel, plyfs| {
            let rename = matches!(op, Op::Rename { .. } | Op::ListChanging { .. });
            rename && fail(kernel, plyfs, (Errno::EXIST, Errno::NOTEMPTY))
        },
    },
    KnownResult {
        reason: WRITEBACK_CTIME,
        scope: Scope::UserSpace,
        explains: |_, kernel, plyfs| match (kernel, plyfs) {
            (Outcome::Stat(kernel), Outcome::Stat(plyfs)) => copy_up_unnoticed(kernel, plyfs),
            _ => false,
        },
    },
    KnownResult {
        reason: "the kernel cannot record where a copy comes from, and gives it another number when its caches were dropped; \
                 plyfs keeps the number",
        scope: Scope::UserSpace,
        explains: |_, kernel, plyfs| match (kernel, plyfs) {
            (Outcome::Stat(kernel), Outcome::Stat(plyfs)) => {
                let same = StatShot { inode: plyfs.inode, ..StatShot::clone(kernel) };
                kernel.inode > plyfs.inode && same == **plyfs
            }
            _ => false,
        },
    },
    KnownResult {
        reason: METACOPY_MTIME,
        scope: Scope::Metacopy,
        explains: |_, kernel, plyfs| match (kernel, plyfs) {
            (Outcome::Stat(kernel), Outcome::Stat(plyfs)) => {
                let [atime, _, ctime] = kernel.times;
                let same = StatShot { times: [atime, plyfs.times[1], ctime], ..StatShot::clone(kernel) };
                kernel.times[1] == Stamp::Recent && kernel.mode & 0o170_000 == 0o100_000 && same == **plyfs
            }
            _ => false,
        },
    },
    KnownResult {
        reason: WHICH_NAME,
        scope: Scope::Index,
        explains: |_, kernel, plyfs| match (kernel, plyfs) {
            (Outcome::Stat(kernel), Outcome::Stat(plyfs)) => one_is_copied_up(kernel, plyfs),
            _ => false,
        },
    },
    KnownResult {
        reason: NO_GHOSTS,
        scope: Scope::Everywhere,
        explains: |_, kernel, plyfs| only_fewer_ghosts(kernel, plyfs),
    },
];

/// The explained differences between trees.
pub const INTENDED_TREES: &[KnownTree] = &[
    KnownTree {
        reason: NO_GHOSTS,
        scope: Scope::Everywhere,
        explains: |_, difference, _| difference.field == compare::GHOST && difference.right == "false",
    },
    KnownTree {
        reason: "before a rename to another directory that fails the kernel has already made the redirect absolute",
        scope: Scope::Everywhere,
        explains: |stage, difference, _| {
            let target = |text: &str| {
                text.trim_matches('"').split_once(".overlay.redirect = ").map(|(_, to)| to.to_owned())
            };
            let both = target(&difference.left).zip(target(&difference.right));
            stage == Stage::Upper
                && both.is_some_and(|(kernel, plyfs)| kernel.ends_with(&format!("/{plyfs}")))
        },
    },
    KnownTree {
        reason: WRITEBACK_CTIME,
        scope: Scope::UserSpace,
        explains: |stage, difference, trees| {
            // Before and after a remount, which shows the time on disk, it is the other way round.
            let late = if stage == Stage::Remount { &difference.right } else { &difference.left };
            stage != Stage::Upper
                && difference.field == "ctime"
                && late == "Recent"
                && trees.is_regular(&difference.path)
        },
    },
    KnownTree {
        reason: "before a copy-up or rename that fails the kernel has already marked the parent impure",
        scope: Scope::Everywhere,
        explains: |stage, difference, trees| {
            let marked = difference.left.contains(".overlay.impure = y");
            stage == Stage::Upper
                && marked
                && difference.right.contains("absent")
                && !trees.right_holds_copies(&difference.path)
        },
    },
    KnownTree {
        reason: "where a copied-up file is linked into a directory that was not, the kernel forgets to mark it impure, \
                 and then lists a wrong inode number; plyfs marks it",
        scope: Scope::Everywhere,
        explains: |stage, difference, _| {
            let gained = difference.left.contains(".overlay.impure absent");
            stage == Stage::Upper && difference.field == "xattr" && gained
        },
    },
    KnownTree {
        reason: "where the kernel lists an inode number other than that of stat, plyfs need not",
        scope: Scope::Everywhere,
        explains: |_, difference, _| difference.field == "listing" && difference.right == "[]",
    },
    KnownTree {
        reason: "before a rename that fails the kernel has already recorded the directory's present place",
        scope: Scope::Everywhere,
        explains: |stage, difference, _| {
            // A place that is needed has another name: it gets a redirect on both sides.
            let name = difference.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            let name = name.escape_ascii().to_string().escape_debug().to_string();
            let target = difference.left.trim_matches('"').split_once(".overlay.redirect = ");
            let same = target.is_some_and(|(_, target)| target.rsplit('/').next() == Some(name.as_str()));
            stage == Stage::Upper && same && difference.right.contains("absent")
        },
    },
    KnownTree {
        // Where plyfs needs one and has none, the trees after the remounts tell.
        reason: "before a rename that fails the kernel has already made a new directory opaque for its new place",
        scope: Scope::Everywhere,
        explains: |stage, difference, trees| {
            let marked = difference.left.contains(".overlay.opaque = y");
            stage == Stage::Upper
                && marked
                && difference.right.contains("absent")
                && !trees.right_has(&difference.path, "origin")
        },
    },
    KnownTree {
        reason: METACOPY_MTIME,
        scope: Scope::Metacopy,
        explains: |_, difference, trees| {
            difference.field == "mtime" && difference.left == "Recent" && trees.is_regular(&difference.path)
        },
    },
    KnownTree {
        reason: WHICH_NAME,
        scope: Scope::Index,
        explains: |stage, difference, trees| {
            let path = &difference.path;
            match (stage, difference.field) {
                (Stage::Upper, "presence") => trees.is_for_indexed_names(path),
                (Stage::Upper, "nlink") => trees.right_has(path, "nlink") || trees.hold_different_dirs(path),
                (Stage::Upper, "inode shared with") => trees.right_has(path, "nlink"),
                (Stage::Upper, "xattr") => {
                    difference.left.contains(".overlay.impure") && trees.holds_indexed_names(path)
                        || of_names(difference) && trees.right_has(path, "nlink")
                }
                (Stage::Index, "nlink") => trees.right_has(path, "nlink"),
                (Stage::Index, "xattr") => of_names(difference),
                (_, "ctime" | "nlink") => trees.is_dir(path),
                _ => false,
            }
        },
    },
    KnownTree {
        reason: "the UUID of an upper is random",
        scope: Scope::Everywhere,
        explains: |stage, difference, _| {
            stage == Stage::Upper && difference.path.is_empty() && difference.left.contains(".overlay.uuid")
        },
    },
];

const WRITEBACK_CTIME: &str = "where the kernel's FUSE collects writes it keeps the change time of files itself, and a \
                               copy-up is no change to it";

const METACOPY_MTIME: &str = "where the kernel copies the data of a file whose attributes were copied before, when it is opened for \
                              writing, the time of that becomes its modification time; plyfs keeps the time";

const WHICH_NAME: &str = "FUSE tells which inode is opened or changed, not by which of its names: of several names of one \
                          file in the index, other ones are linked into upper, or none, and with them directories";

const NO_GHOSTS: &str = "the kernel lists a whiteout that lies in a lower directory merged with nothing, though no \
                         lookup finds it; plyfs does not list it";

fn only_fewer_ghosts(kernel: &Outcome, plyfs: &Outcome) -> bool {
    let (Outcome::Names(kernel), Outcome::Names(plyfs)) = (kernel, plyfs) else { return false };
    let is_ghost = |name: &&String| name.ends_with(listing::GHOST);
    let real = |names: &[String]| names.iter().filter(|name| !is_ghost(name)).cloned().collect::<Vec<_>>();
    real(kernel) == real(plyfs) && plyfs.iter().filter(is_ghost).all(|ghost| kernel.contains(ghost))
}

/// True if the results of an operation on both sides are equal or their difference is explained.
///
/// Compound outcomes are compared part by part.
pub fn accepts(conditions: &Conditions<'_>, op: &Op, kernel: &Outcome, plyfs: &Outcome) -> bool {
    let explains = |known: &KnownResult| known.scope.holds(conditions) && (known.explains)(op, kernel, plyfs);
    if kernel == plyfs || INTENDED.iter().any(explains) {
        return true;
    }
    match (kernel, plyfs) {
        (Outcome::Several(kernel), Outcome::Several(plyfs)) if kernel.len() == plyfs.len() => {
            kernel.iter().zip(plyfs).all(|(kernel, plyfs)| accepts(conditions, op, kernel, plyfs))
        }
        _ => false,
    }
}

/// The differences between two trees that nothing explains.
pub fn unexplained(
    conditions: &Conditions<'_>,
    stage: Stage,
    trees: &Trees<'_>,
    differences: Vec<Difference>,
) -> Vec<Difference> {
    let explained = |difference: &Difference| {
        let mut known = INTENDED_TREES.iter().filter(|known| known.scope.holds(conditions));
        known.any(|known| (known.explains)(stage, difference, trees))
    };
    differences.into_iter().filter(|difference| !explained(difference)).collect()
}

/// Whether an attribute that depends on which names are linked into upper is present on both sides.
fn of_names(difference: &Difference) -> bool {
    let both = |name: &str| difference.left.contains(name) && difference.right.contains(name);
    both(".overlay.nlink = ") || both(".overlay.redirect = ")
}

/// Whether these are one directory, which only one side has copied up.
fn one_is_copied_up(kernel: &StatShot, plyfs: &StatShot) -> bool {
    let [atime, mtime, _] = kernel.times;
    let directory = kernel.mode & 0o170_000 == 0o040_000;
    let same = StatShot { nlink: plyfs.nlink, times: [atime, mtime, plyfs.times[2]], ..kernel.clone() };
    directory && same == *plyfs
}

/// Whether two stamps differ because only the kernel overlay counts a copy-up as a change.
fn copy_up_unnoticed(kernel: &StatShot, plyfs: &StatShot) -> bool {
    let [atime, mtime, ctime] = kernel.times;
    let regular = kernel.mode & 0o170_000 == 0o100_000;
    let same = StatShot { times: [atime, mtime, plyfs.times[2]], ..kernel.clone() };
    regular && ctime == Stamp::Recent && same == *plyfs
}
