//! The differences between the kernel's overlayfs and plyfs that are meant to be, each with its reason.
//!
//! Whatever is not here is a finding. The list is mirrored in `docs/compatibility.md`.
//!
//! Two more differences are kept out of the comparison altogether, since the sides would go apart by them:
//! - plyfs, like fuse-overlayfs, reads `.wh.NAME` and `.wh..wh..opq` as whiteout and opaque mark (image layers hold
//!   them), and refuses to make such names; to the kernel they are names like any other.
//! - The kernel's FUSE refuses fallocate with COLLAPSE_RANGE, INSERT_RANGE and UNSHARE_RANGE before plyfs hears of it.

use crate::compare::{self, Difference};
use crate::differential::listing;
use crate::differential::op::{On, Op};
use crate::differential::outcome::{Outcome, StatShot};
use crate::differential::run::Stage;
use rustix::io::Errno;

/// An explained difference in the results of one operation; left is the kernel.
pub struct KnownResult {
    /// Why plyfs differs.
    pub reason: &'static str,
    /// Whether it explains these results.
    pub explains: fn(&Op, &Outcome, &Outcome) -> bool,
}

/// An explained difference between two trees; left is the kernel.
pub struct KnownTree {
    /// Why plyfs differs.
    pub reason: &'static str,
    /// Whether it explains this difference.
    pub explains: fn(Stage, &Difference) -> bool,
}

/// The explained differences in results.
pub const INTENDED: &[KnownResult] = &[
    KnownResult {
        reason: "where the kernel's own listing contradicts itself, plyfs need not",
        explains: |_, kernel, plyfs| {
            matches!(kernel, Outcome::Broken(_)) && !matches!(plyfs, Outcome::Broken(_))
        },
    },
    KnownResult {
        reason: "where a FUSE directory is positioned is checked by nobody but the kernel's FUSE, which lets any pass",
        explains: |op, kernel, plyfs| {
            let odd = matches!(plyfs, Outcome::Number(_) | Outcome::Failed(Errno::NXIO));
            matches!(op, Op::Seek { .. }) && *kernel == Outcome::Failed(Errno::INVAL) && odd
        },
    },
    KnownResult {
        reason: "the kernel counts an overlay's own attributes in the length of a list from which it leaves them out",
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
        explains: |op, kernel, plyfs| {
            let reads = matches!(op, Op::GetXattr { .. } | Op::RemoveXattr { .. });
            reads && *kernel == Outcome::Failed(Errno::OPNOTSUPP) && *plyfs == Outcome::Failed(Errno::NODATA)
        },
    },
    KnownResult {
        reason: "the kernel shows the links of the lower file after its name in the overlay was removed",
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
    KnownResult { reason: NO_GHOSTS, explains: |_, kernel, plyfs| only_fewer_ghosts(kernel, plyfs) },
];

/// The explained differences between trees.
pub const INTENDED_TREES: &[KnownTree] = &[
    KnownTree {
        reason: NO_GHOSTS,
        explains: |_, difference| difference.field == compare::GHOST && difference.right == "false",
    },
    KnownTree {
        reason: "where a copied-up file is linked into a directory that was not, the kernel forgets to mark it impure, \
                 and then lists a wrong inode number; plyfs marks it",
        explains: |stage, difference| {
            let gained = difference.left.contains(".overlay.impure absent");
            stage == Stage::Upper && difference.field == "xattr" && gained
        },
    },
    KnownTree {
        reason: "where the kernel lists an inode number other than that of stat, plyfs need not",
        explains: |_, difference| difference.field == "listing" && difference.right == "[]",
    },
    KnownTree {
        // Where plyfs needs one and has none, the trees after the remounts tell.
        reason: "before a rename that fails the kernel has already marked the directory for its new place",
        explains: |stage, difference| {
            let marks = [".overlay.redirect = ", ".overlay.opaque = "];
            let recorded = marks.iter().any(|mark| difference.left.contains(mark));
            stage == Stage::Upper && recorded && difference.right.contains("absent")
        },
    },
    KnownTree {
        reason: "the kernel gives an upper a UUID at its first mount (uuid=auto); plyfs has no need of one",
        explains: |stage, difference| {
            stage == Stage::Upper && difference.path.is_empty() && difference.left.contains(".overlay.uuid")
        },
    },
];

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
pub fn accepts(op: &Op, kernel: &Outcome, plyfs: &Outcome) -> bool {
    if kernel == plyfs || INTENDED.iter().any(|known| (known.explains)(op, kernel, plyfs)) {
        return true;
    }
    match (kernel, plyfs) {
        (Outcome::Several(kernel), Outcome::Several(plyfs)) if kernel.len() == plyfs.len() => {
            kernel.iter().zip(plyfs).all(|(kernel, plyfs)| accepts(op, kernel, plyfs))
        }
        _ => false,
    }
}

/// The differences between two trees that nothing explains.
pub fn unexplained(stage: Stage, differences: Vec<Difference>) -> Vec<Difference> {
    let explained =
        |difference: &Difference| INTENDED_TREES.iter().any(|known| (known.explains)(stage, difference));
    differences.into_iter().filter(|difference| !explained(difference)).collect()
}
