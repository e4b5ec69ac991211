//! Listings: of a directory at rest, and of one that changes while it is read.

use super::op::Change;
use super::outcome::{Outcome, or_failed};
use crate::snapshot::{Listed, list};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags, SeekFrom};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Follows a name that is listed, but cannot be found: the kernel lists a whiteout in a lower directory that
/// is merged with nothing.
pub const GHOST: &str = " (listed, but not there)";

/// Names and types of the directory `path`, and whether each `d_ino` is the `st_ino`.
pub fn whole(path: &Path) -> Outcome {
    or_failed(open_dir(path), |dir| rewound(dir.as_fd()))
}

/// The same through an open descriptor, from its beginning.
pub fn rewound(dir: BorrowedFd<'_>) -> Outcome {
    let listed = fs::seek(dir, SeekFrom::Start(0)).and_then(|_| list(dir));
    or_failed(listed, |entries| {
        let mut names = Vec::new();
        for entry in &entries {
            match describe(dir, entry) {
                Ok(text) => names.push(text),
                Err(broken) => return broken,
            }
        }
        names.sort();
        Outcome::Names(names)
    })
}

/// Reads a part of the directory, changes it, reads the rest, goes back to where the change was made and
/// reads the rest again, and then reads it from the beginning.
///
/// What POSIX leaves open is not compared: whether a name made or removed meanwhile is listed. A name that
/// was there all the time must be listed exactly once, and in the same part again after going back; after
/// rewinding the listing is what the directory holds now.
pub fn changing(path: &Path, first: usize, changes: &[Change]) -> Outcome {
    let before = open_dir(path).and_then(|dir| names_of(&dir));
    let opened = before.and_then(|before| Ok((before, open_dir(path)?)));
    or_failed(opened, |(before, dir)| {
        let listing = read_while_changing(path, &dir, first, changes);
        or_failed(listing, |listing| judge(&before, &listing, changes))
    })
}

struct Parts {
    head: Vec<Vec<u8>>,
    results: Vec<Outcome>,
    rest: Vec<Vec<u8>>,
    rest_again: Vec<Vec<u8>>,
    rewound: BTreeSet<Vec<u8>>,
    now: BTreeSet<Vec<u8>>,
}

fn read_while_changing(path: &Path, dir: &OwnedFd, first: usize, changes: &[Change]) -> Result<Parts, Errno> {
    let (head, position) = read_some(dir, first)?;
    let results = changes.iter().map(|change| make(path, change).into()).collect();
    let rest = list(dir)?.into_iter().map(|entry| entry.name).collect();
    fs::seek(dir, SeekFrom::Start(position))?;
    let rest_again = list(dir)?.into_iter().map(|entry| entry.name).collect();
    fs::seek(dir, SeekFrom::Start(0))?;
    let rewound = names_of(dir)?;
    let now = names_of(&open_dir(path)?)?;
    Ok(Parts { head, results, rest, rest_again, rewound, now })
}

/// Reads at least `count` names, if there are as many, in the smallest steps; returns them and the position.
fn read_some(dir: &OwnedFd, count: usize) -> Result<(Vec<Vec<u8>>, u64), Errno> {
    let mut names = Vec::new();
    let mut position = 0;
    while names.len() < count {
        // Room for one entry with a name of any length.
        let mut buffer = [MaybeUninit::<u8>::uninit(); 288];
        let mut raw = RawDir::new(dir, &mut buffer);
        loop {
            match raw.next() {
                None => return Ok((names, position)),
                Some(Err(errno)) => return Err(errno),
                Some(Ok(entry)) => {
                    names.push(entry.file_name().to_bytes().to_vec());
                    position = entry.next_entry_cookie();
                }
            }
            if raw.is_buffer_empty() {
                break;
            }
        }
    }
    Ok((names, position))
}

fn make(path: &Path, change: &Change) -> Result<(), Errno> {
    let full = |name: &[u8]| path.join(OsStr::from_bytes(name));
    match change {
        Change::Create(name) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fs::open(full(&name.0), flags, Mode::from_raw_mode(0o666)).map(drop)
        }
        Change::Unlink(name) => fs::unlinkat(CWD, full(&name.0), AtFlags::empty()),
        Change::Rename(from, to) => {
            fs::renameat_with(CWD, full(&from.0), CWD, full(&to.0), RenameFlags::empty())
        }
    }
}

fn judge(before: &BTreeSet<Vec<u8>>, parts: &Parts, changes: &[Change]) -> Outcome {
    let touched: BTreeSet<&[u8]> = changes
        .iter()
        .flat_map(|change| match change {
            Change::Create(name) | Change::Unlink(name) => vec![name.0.as_slice()],
            Change::Rename(from, to) => vec![from.0.as_slice(), to.0.as_slice()],
        })
        .collect();
    let stable = |name: &&Vec<u8>| before.contains(*name) && !touched.contains(name.as_slice());
    let mut counts: BTreeMap<&Vec<u8>, u32> = before.iter().filter(stable).map(|name| (name, 0)).collect();
    for name in parts.head.iter().chain(&parts.rest).filter(stable) {
        *counts.entry(name).or_default() += 1;
    }
    for (name, count) in counts {
        if count != 1 {
            return Outcome::Broken(format!("\"{}\" is listed {count} times", name.escape_ascii()));
        }
    }
    let rest: BTreeSet<&Vec<u8>> = parts.rest.iter().filter(stable).collect();
    let again: BTreeSet<&Vec<u8>> = parts.rest_again.iter().filter(stable).collect();
    if rest != again {
        return Outcome::Broken("after seekdir the listing goes on elsewhere than before".to_owned());
    }
    if parts.rewound != parts.now {
        return Outcome::Broken("after rewinding the listing is not what the directory holds".to_owned());
    }
    let names = parts.now.iter().map(|name| name.escape_ascii().to_string()).collect();
    Outcome::Several([parts.results.clone(), vec![Outcome::Names(names)]].concat())
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The names listed, less those that cannot be found (see [`GHOST`]).
fn names_of(dir: &OwnedFd) -> Result<BTreeSet<Vec<u8>>, Errno> {
    let found = |name: &Vec<u8>| {
        let stat = fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW);
        // One who may list but not search cannot tell which names are ghosts.
        !matches!(stat, Err(Errno::NOENT | Errno::ACCESS))
    };
    Ok(list(dir)?.into_iter().map(|entry| entry.name).filter(found).collect())
}

fn describe(dir: BorrowedFd<'_>, entry: &Listed) -> Result<String, Outcome> {
    let name = entry.name.escape_ascii();
    let above = entry.name == b"..";
    // A listing is allowed to one who cannot search: then there is nothing to compare with.
    let stat = fs::statat(dir, OsStr::from_bytes(&entry.name), AtFlags::SYMLINK_NOFOLLOW);
    match stat {
        Ok(stat) if stat.st_ino != entry.ino && !above => {
            Err(Outcome::Broken(format!("d_ino of \"{name}\" is not its st_ino")))
        }
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != entry.kind => {
            Err(Outcome::Broken(format!("d_type of \"{name}\" is {:?}", entry.kind)))
        }
        Err(Errno::NOENT) => Ok(format!("{name}{GHOST}")),
        // One who may list but not search cannot tell a whiteout from a device.
        Err(Errno::ACCESS) if entry.kind.is_char_device() => Ok(format!("{name}{GHOST}")),
        _ => Ok(format!("{name} {:?}", entry.kind)),
    }
}
