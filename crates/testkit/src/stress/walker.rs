//! The thread that only looks: lists every directory, again and again, and looks up what it lists.

use super::ground::{self, DIRS, STAYING};
use super::meter::Meter;
use crate::snapshot::list;
use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, open, statat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Walks until the run is over, once at least, and returns how often.
pub fn walk(root: &Path, meter: &Meter) -> Result<u64> {
    let mut walks = 0;
    loop {
        for dir in 0..DIRS {
            look(&root.join(ground::dir(dir)))
                .with_context(|| format!("walk {walks}: {}", ground::dir(dir)))?;
        }
        walks += 1;
        if meter.is_over() {
            return Ok(walks);
        }
    }
}

/// Lists a directory that may be gone by now, or have been exchanged with something else.
fn descend(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
        dir => match list(dir.with_context(|| path.display().to_string())?) {
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(cause) => bail!("listing {}: {cause}", path.display()),
        },
    }
}

/// A name that stays must be listed and found. One that threads are changing may be gone, but not listed twice.
fn look(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = open(path, flags, Mode::empty()).context("open")?;
    let mut seen = HashSet::new();
    for listed in list(&dir).context("listing")? {
        if !seen.insert(listed.name.clone()) {
            bail!("{} is listed twice", listed.name.escape_ascii());
        }
        match statat(CWD, path.join(OsStr::from_bytes(&listed.name)), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) | Err(Errno::NOENT) => {}
            Err(cause) => bail!("stat {}: {cause}", listed.name.escape_ascii()),
        }
        if listed.kind == FileType::Directory && listed.name != b"." && listed.name != b".." {
            descend(&path.join(OsStr::from_bytes(&listed.name)))?;
        }
    }
    for name in (0..STAYING).flat_map(ground::staying) {
        if !seen.contains(name.as_bytes()) {
            bail!("{name}, which stays, is not listed");
        }
        statat(CWD, path.join(&name), AtFlags::SYMLINK_NOFOLLOW).with_context(|| format!("stat {name}"))?;
    }
    Ok(())
}
