//! Writes that survive a power cut: data first, then one rename, then the directory.
//!
//! Owns the order of write, fsync and rename. Knows nothing of what is written. The kernel's
//! counterpart is what fsync(2) promises: a file's data and attributes, and the entries of a directory
//! only when the directory itself was synced.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

use crate::error::{Context, Error, Result};

/// Replaces the file `path` by `bytes`: a reader sees the old or the new, never a part.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let tmp = path.with_file_name(name);
    match fs::remove_file(&tmp) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at("remove", &tmp),
        _ => {}
    }
    create(&tmp, bytes, mode)?;
    fs::rename(&tmp, path).at("rename", path)?;
    sync_dir(parent(path))
}

/// Creates `path`, which must not exist, with `bytes`, and syncs it.
pub fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut f = new_file(path, mode)?;
    f.write_all(bytes).at("write", path)?;
    f.sync_all().at("sync", path)
}

/// Opens a new file for writing; its mode is exactly `mode`, whatever the umask.
pub fn new_file(path: &Path, mode: u32) -> Result<File> {
    let f = OpenOptions::new()
        .write(true)
        .read(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .at("create", path)?;
    rustix::fs::fchmod(&f, Mode::from_raw_mode(mode)).at("chmod", path)?;
    Ok(f)
}

/// Creates the directory `path` with exactly `mode`.
pub fn new_dir(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new().mode(mode).create(path).at("create", path)?;
    rustix::fs::chmod(path, Mode::from_raw_mode(mode)).at("chmod", path)
}

/// Creates the directory if it is missing and takes away permissions beyond `mode` if it is not.
///
/// A store whose directories host users can enter lets them run the images' set-uid files
/// (CVE-2021-41091, CVE-2024-25621), so wide modes found are tightened.
pub fn ensure_dir(path: &Path, mode: u32) -> Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => rustix::fs::chmod(path, Mode::from_raw_mode(mode)).at("chmod", path),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => tighten(path, mode),
        Err(e) => Err(e).at("create", path),
    }
}

fn tighten(path: &Path, mode: u32) -> Result<()> {
    let st = rustix::fs::lstat(path).at("stat", path)?;
    if rustix::fs::FileType::from_raw_mode(st.st_mode) != rustix::fs::FileType::Directory {
        return Err(Error::Damaged(format!("{} is not a directory", path.display())));
    }
    let found = st.st_mode & 0o7777;
    if found & !mode == 0 {
        return Ok(());
    }
    tracing::warn!("{}: mode {found:o} is wider than {mode:o}, tightened", path.display());
    rustix::fs::chmod(path, Mode::from_raw_mode(found & mode)).at("chmod", path)
}

/// Syncs a directory: the entries made in it last.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).at("open", path)?.sync_all().at("sync", path)
}

/// Syncs the whole file system that `path` lies on: one call for a layer of many files.
pub fn sync_fs(path: &Path) -> Result<()> {
    let f = File::open(path).at("open", path)?;
    rustix::fs::syncfs(&f).at("syncfs", path)
}

/// Removes a tree; one that is already gone is as good.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        r => r.at("remove", path),
    }
}

/// Removes a file; one that is already gone is as good.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        r => r.at("remove", path),
    }
}

/// `count` random bytes as lower-case hexadecimal digits.
pub fn random_hex(count: usize) -> Result<String> {
    let mut b = vec![0u8; count];
    getrandom::fill(&mut b)
        .map_err(|e| Error::Unsupported(format!("the system has no random numbers: {e}")))?;
    Ok(b.iter().map(|x| format!("{x:02x}")).collect())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Reads a small file of the store whole; more than `limit` bytes is damage.
pub fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let f = File::open(path).at("open", path)?;
    let mut v = Vec::new();
    f.take(limit + 1).read_to_end(&mut v).at("read", path)?;
    if v.len() as u64 > limit {
        return Err(Error::invalid(path.display().to_string(), format!("larger than {limit} bytes")));
    }
    Ok(v)
}

/// What a path names when the symbolic links at its end are followed; the last one may lead to nothing yet.
pub fn behind_links(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    // As many as the kernel follows (path_resolution(7)).
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            // EINVAL: no link. What else is wrong is told by whoever opens it.
            Err(_) => return Ok(path),
        }
    }
    Err(rustix::io::Errno::LOOP).at("resolve", &path)
}

/// A path that is absolute, with symbolic links resolved, so that mounts name it alike.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).at("resolve", path)
}
