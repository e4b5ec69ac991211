//! How an upper directory differs from what lies under it, read from the format on disk.
//!
//! The upper is read as it lies there, the lowers through the engine, which knows every form of whiteout and redirect. The
//! work is in proportion to the upper: a lower directory is listed only where the upper replaces it. Nothing is changed.

pub mod applied;
mod compare;
mod lower;
mod print;
mod renames;
mod upper;
mod walk;

use std::io::Write;
use std::path::{Path, PathBuf};

use plyfs_format::{RelPath, StackSpec};
use plyfs_sys::FileKind;

use crate::args::DiffArgs;
use crate::failure::{Context, Outcome};

pub use compare::shown_xattrs;
pub use print::{line, shown, to_json};
pub use renames::{Visitor, redirected};
pub use upper::{Item, UpperDir};
pub use walk::walk;

/// What was done to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// It was not there.
    Added,
    /// It is another one, or has other content or attributes.
    Modified,
    /// It is not there any more, with all that it contained.
    Deleted,
    /// It was elsewhere, with all that it contains.
    Renamed,
}

/// What is different about something modified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aspect {
    /// The data of a file, the target of a link, the number of a device.
    Content,
    /// The permissions.
    Mode,
    /// Owner or group.
    Owner,
    /// The time of the last modification, the content being the same.
    Times,
    /// Extended attributes, ACLs among them.
    Xattrs,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What was done.
    pub kind: Kind,
    /// To which path, from the root of the union.
    pub path: RelPath,
    /// Where it was before it was renamed.
    pub from: Option<RelPath>,
    /// What it is; of something deleted, what it was.
    pub file: FileKind,
    /// Its size in bytes; of something deleted, the size it had; 0 of a directory.
    pub size: u64,
    /// What is different, if it was modified.
    pub aspects: Vec<Aspect>,
}

/// What is compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The upper directory.
    pub upper: PathBuf,
    /// The lower directories, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Owners do not count: the upper was written where owners cannot be set.
    pub ignore_owner: bool,
}

impl Comparison {
    /// The upper, over one lower directory.
    pub fn with(upper: &Path, lower: &Path, ignore_owner: bool) -> Self {
        Self { upper: upper.to_owned(), lowers: vec![lower.to_owned()], ignore_owner }
    }
}

/// What `--lower` names: a directory, or a list of them with colons between, as in `lowerdir=`.
fn lowers(given: &[PathBuf]) -> Outcome<Vec<PathBuf>> {
    let mut lowers = Vec::new();
    for word in given {
        // A colon may be part of the name.
        if word.is_dir() {
            lowers.push(word.clone());
        } else {
            lowers.extend(
                StackSpec::parse_lowers(word.as_os_str())
                    .context(|| format!("--lower {}", word.display()))?,
            );
        }
    }
    Ok(lowers)
}

/// `plyfs diff`.
pub fn diff(args: &DiffArgs, out: &mut dyn Write) -> Outcome<()> {
    let comparison = Comparison {
        upper: args.upper.clone(),
        lowers: lowers(&args.lowers)?,
        ignore_owner: args.ignore_owner,
    };
    let paint = crate::paint::Paint::for_stream(&std::io::stdout());
    walk(&comparison, &mut |change| {
        if args.json {
            writeln!(out, "{}", to_json(&change))?;
        } else {
            writeln!(out, "{}", line(&change, paint))?;
        }
        Ok(())
    })
}
