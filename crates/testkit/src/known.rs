//! The differences between the kernel's overlayfs and plyfs that are meant to be, each with its reason.
//!
//! Whatever is not here is a finding. The list is mirrored in `docs/compatibility.md`.

use crate::compare::{self, Difference};
use crate::differential::listing;
use crate::differential::op::Op;
use crate::differential::outcome::Outcome;
use crate::differential::run::Stage;

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
    KnownResult { reason: NO_GHOSTS, explains: |_, kernel, plyfs| only_fewer_ghosts(kernel, plyfs) },
];

/// The explained differences between trees.
pub const INTENDED_TREES: &[KnownTree] = &[KnownTree {
    reason: NO_GHOSTS,
    explains: |_, difference| difference.field == compare::GHOST && difference.right == "false",
}];

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
