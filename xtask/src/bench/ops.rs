//! Loops over system calls, timed. Paths are made before the clock starts.

use std::ffi::{CStr, CString};
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, openat, statat, unlinkat};
use rustix::io::{Errno, Result as SysResult, read};

/// Names as system calls take them.
pub fn names<I: IntoIterator<Item = S>, S: Into<Vec<u8>>>(names: I) -> Result<Vec<CString>> {
    names.into_iter().map(|name| CString::new(name).context("a name with a NUL byte")).collect()
}

/// Microseconds for each call of `op`, over all names.
pub fn each(names: &[CString], mut op: impl FnMut(&CStr) -> SysResult<()>) -> Result<f64> {
    let start = Instant::now();
    for name in names {
        op(name).with_context(|| name.to_string_lossy().into_owned())?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / names.len().max(1) as f64)
}

/// Microseconds for each of `count` calls of `op`, which gets the number of the call.
pub fn repeat(count: usize, mut op: impl FnMut(usize) -> SysResult<()>) -> Result<f64> {
    let start = Instant::now();
    for number in 0..count {
        op(number).with_context(|| format!("call {number}"))?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / count.max(1) as f64)
}

/// Milliseconds of `op`.
pub fn millis(op: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    op()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

pub fn stat(dir: BorrowedFd, name: &CStr) -> SysResult<()> {
    black_box(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?);
    Ok(())
}

/// A stat that has to find nothing.
pub fn stat_missing(dir: BorrowedFd, name: &CStr) -> SysResult<()> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(Errno::EXIST),
    }
}

pub fn open_close(dir: BorrowedFd, name: &CStr) -> SysResult<()> {
    drop(openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    Ok(())
}

pub fn open_read_close(dir: BorrowedFd, name: &CStr) -> SysResult<()> {
    let file = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = [0_u8; 4096];
    while read(&file, &mut bytes)? > 0 {}
    Ok(())
}

pub fn create_close(dir: BorrowedFd, name: &CStr) -> SysResult<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(openat(dir, name, flags, Mode::from_raw_mode(0o644))?);
    Ok(())
}

fn open_dir(dir: BorrowedFd, name: &CStr) -> SysResult<OwnedFd> {
    openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Reads a directory to its end; returns how many entries it has, beside `.` and `..`.
pub fn list(directory: impl AsFd) -> SysResult<usize> {
    let mut count = 0;
    for_entries(directory, |_, _| {
        count += 1;
        Ok(())
    })?;
    Ok(count)
}

fn for_entries(
    directory: impl AsFd,
    mut visit: impl FnMut(&CStr, FileType) -> SysResult<()>,
) -> SysResult<()> {
    let mut buffer = vec![MaybeUninit::uninit(); 64 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            visit(entry.file_name(), entry.file_type())?;
        }
    }
    Ok(())
}

/// Lists a tree and stats every entry, as find(1) with a test does; returns how many entries there are.
pub fn walk(directory: BorrowedFd) -> SysResult<usize> {
    let mut count = 0;
    let mut below = Vec::new();
    for_entries(directory, |name, kind| {
        count += 1;
        stat(directory, name)?;
        if kind == FileType::Directory {
            below.push(name.to_owned());
        }
        Ok(())
    })?;
    for name in below {
        count += walk(open_dir(directory, &name)?.as_fd())?;
    }
    Ok(count)
}

/// Deletes a tree as rm -r does; returns how many entries it had, itself included.
pub fn remove_tree(parent: BorrowedFd, name: &CStr) -> SysResult<usize> {
    let directory = open_dir(parent, name)?;
    let mut entries = Vec::new();
    for_entries(&directory, |name, kind| {
        entries.push((name.to_owned(), kind));
        Ok(())
    })?;
    let mut count = 1;
    for (entry, kind) in entries {
        if kind == FileType::Directory {
            count += remove_tree(directory.as_fd(), &entry)?;
        } else {
            unlinkat(&directory, &entry, AtFlags::empty())?;
            count += 1;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(count)
}

/// An error unless a workload met as many entries as it has.
pub fn expect(found: usize, wanted: usize) -> Result<()> {
    if found != wanted {
        bail!("{found} entries, not {wanted}");
    }
    Ok(())
}
