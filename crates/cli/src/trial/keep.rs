//! `--keep UPPER`: where what the command changed stays.
//!
//! UPPER holds the changes of the view's root. Another file system of the machine that was changed too has its own upper
//! beside it, called UPPER and its path with `@` for `/` (`upper@home`). The work directories lie beside them, for they
//! must be on the same mount, and are removed at the end; uppers that stayed empty are as well.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use plyfs_format::spec::UpperSpec;

use crate::failure::{Context, Failure, Outcome};
use crate::trial::session::remove_tree;

/// The uppers that are kept.
#[derive(Debug)]
pub struct Keep {
    upper: PathBuf,
    work: PathBuf,
    /// The file system whose upper is UPPER itself.
    main: PathBuf,
    /// All uppers, with the path of what they change.
    uppers: Vec<(PathBuf, PathBuf)>,
}

impl Keep {
    /// Makes UPPER if it does not exist. `main` is the file system whose changes it holds.
    pub fn open(upper: &Path, main: &Path) -> Outcome<Self> {
        let shown = upper.display();
        let name = upper
            .file_name()
            .ok_or_else(|| Failure::new(format!("{shown}: name a directory to keep changes in")))?;
        let parent = upper.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent =
            parent.canonicalize().context(|| format!("{shown}: its parent directory cannot be found"))?;
        let mut work = OsString::from(".");
        work.push(name);
        work.push(".work-");
        sweep(&parent, &work);
        work.push(std::process::id().to_string());
        let (upper, work) = (parent.join(name), parent.join(work));
        make_directory(&upper, 0o755)?;
        DirBuilder::new().mode(0o700).create(&work).context(|| work.display().to_string())?;
        let keep = Self { upper, work, main: main.to_owned(), uppers: Vec::new() };
        Ok(keep)
    }

    /// The upper for what the machine has at `path`.
    pub fn upper_for(&mut self, path: &Path, number: usize) -> Outcome<UpperSpec> {
        let upper = if path == self.main { self.upper.clone() } else { self.beside(path) };
        make_directory(&upper, 0o755)?;
        let work = self.work.join(number.to_string());
        make_directory(&work, 0o700)?;
        self.uppers.push((upper.clone(), path.to_owned()));
        Ok(UpperSpec { upper, work })
    }

    fn beside(&self, path: &Path) -> PathBuf {
        let mut name = self.upper.file_name().unwrap_or_default().to_owned();
        for part in path.components().skip(1) {
            name.push("@");
            name.push(part.as_os_str().to_string_lossy().replace('@', "@@"));
        }
        if path == Path::new("/") {
            name.push("@");
        }
        self.upper.with_file_name(name)
    }

    /// What the view must not show: it would show itself.
    pub fn hidden(&self) -> Vec<PathBuf> {
        let uppers = self.uppers.iter().map(|(upper, _)| upper.clone());
        uppers.chain([self.work.clone()]).collect()
    }

    /// Removes what is not kept, and says what is. `user`: it was made without root.
    pub fn finish(self, quiet: bool, user: bool) -> Outcome<()> {
        let owners = if user { " --ignore-owner" } else { "" };
        for (upper, path) in &self.uppers {
            let empty = fs::read_dir(upper).context(|| upper.display().to_string())?.next().is_none();
            if empty && upper != &self.upper {
                fs::remove_dir(upper).context(|| format!("{}: cannot remove it", upper.display()))?;
            } else if !quiet {
                let (upper, path) = (upper.display(), path.display());
                eprintln!("Kept in {upper}; to apply it: plyfs commit {upper} --onto {path}{owners}");
            }
        }
        Ok(())
    }
}

/// The work directories go in any case, also where the view could not be made.
impl Drop for Keep {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.work) {
            eprintln!("plyfs: {}: cannot remove it: {error}", self.work.display());
        }
    }
}

/// Removes the work directories that killed processes left beside an upper.
fn sweep(parent: &Path, prefix: &OsStr) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        let process = process.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        if process.is_some_and(|process| !plyfs_sys::process::is_alive(process))
            && let Err(error) = remove_tree(&entry.path())
        {
            tracing::debug!("{}: {error}", entry.path().display());
        }
    }
}

fn make_directory(path: &Path, mode: u32) -> Outcome<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.context(|| path.display().to_string()),
    }
}
