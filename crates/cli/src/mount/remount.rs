//! `-o remount`: changes the flags of a mount that is there, such as `ro`. Its layers and the daemon's options stay, as
//! those of the kernel's overlay do. What the new options leave open stays as it is.

use std::path::Path;

use plyfs_format::spec::{Atime, MountFlags};
use plyfs_sys::mount::{self, MountFlags as Flags};
use plyfs_sys::mountinfo::{self, MountInfo};

use crate::failure::{Context, Failure, Outcome};
use crate::list;

/// Gives the plyfs mount at `target` new flags.
pub fn remount(target: &Path, wanted: &MountFlags) -> Outcome<()> {
    let shown = target.display();
    let path = std::fs::canonicalize(target).context(|| format!("{shown}: cannot find it"))?;
    let table = mountinfo::read().context(|| "/proc/self/mountinfo")?;
    let top = list::top(table, &path);
    let Some(top) = top.filter(|mount| mount.fstype == list::FSTYPE) else {
        return Err(Failure::new(format!("{shown}: no plyfs is mounted here, so none can be remounted")));
    };
    let flags = flags(&top, wanted);
    let found = list::with_note(top);
    let has_upper = found.note.is_none_or(|note| note.upper.is_some());
    if !has_upper && !flags.contains(Flags::RDONLY) {
        return Err(Failure::new(format!("{shown}: has no upperdir, so it can only be mounted read-only")));
    }
    mount::remount(&path, flags).map_err(|error| Failure::new(format!("{shown}: cannot remount: {error}")))
}

fn flags(now: &MountInfo, wanted: &MountFlags) -> Flags {
    let mut flags = Flags::empty();
    let mut choose =
        |flag, word, wanted: Option<bool>| flags.set(flag, wanted.unwrap_or(now.has_option(word)));
    choose(Flags::RDONLY, "ro", wanted.read_only);
    choose(Flags::NOSUID, "nosuid", wanted.nosuid);
    choose(Flags::NODEV, "nodev", wanted.nodev);
    choose(Flags::NOEXEC, "noexec", wanted.noexec);
    choose(Flags::NOSYMFOLLOW, "nosymfollow", wanted.nosymfollow);
    choose(Flags::LAZYTIME, "lazytime", wanted.lazytime);
    choose(Flags::NODIRATIME, "nodiratime", wanted.nodiratime);
    choose(Flags::SYNCHRONOUS, "sync", wanted.sync);
    choose(Flags::DIRSYNC, "dirsync", wanted.dirsync.then_some(true));
    choose(Flags::NOATIME, "noatime", wanted.atime.map(|atime| atime == Atime::NoAtime));
    choose(Flags::RELATIME, "relatime", wanted.atime.map(|atime| atime == Atime::RelAtime));
    // It has no word in the mount table.
    let strict = !now.has_option("noatime") && !now.has_option("relatime");
    flags.set(Flags::STRICTATIME, wanted.atime.map_or(strict, |atime| atime == Atime::StrictAtime));
    flags
}
