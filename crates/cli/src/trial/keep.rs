//! `--keep UPPER`: where what the command changed stays.
//!
//! UPPER holds the changes of the view's root. Another file system of the machine that was changed too has its own upper
//! beside it, called UPPER and its path with `@` for `/` (`upper@home`); a name that would be too long is cut and ends with
//! a number that stands for all of it. The work directories lie beside them, for they
//! must be on the same mount, and are removed at the end; uppers that stayed empty are as well.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use plyfs_format::spec::UpperSpec;
use plyfs_sys::{DirMut, Errno};

use crate::failure::{Context, Failure, Outcome};
use crate::trial::session::remove_tree;

/// The longest name that file systems take, in bytes.
const NAME_MAX: usize = 255;

/// The uppers that are kept.
#[derive(Debug)]
pub struct Keep {
    upper: PathBuf,
    work: PathBuf,
    /// The file system whose upper is UPPER itself.
    main: PathBuf,
    /// All uppers, with the path of what they change.
    uppers: Vec<(PathBuf, PathBuf)>,
    /// Those that were not there before.
    made: Vec<PathBuf>,
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
        let upper = parent.join(name);
        refuse_shown(&upper, main)?;
        if upper.is_dir() {
            refuse_in_use(&upper)?;
        }
        let mut work = OsString::from(".");
        work.push(name);
        work.push(".work-");
        sweep(&parent, &work);
        work.push(std::process::id().to_string());
        let work = parent.join(work);
        DirBuilder::new().mode(0o700).create(&work).context(|| work.display().to_string())?;
        Ok(Self { upper, work, main: main.to_owned(), uppers: Vec::new(), made: Vec::new() })
    }

    /// The upper for what the machine has at `path`.
    pub fn upper_for(&mut self, path: &Path, number: usize) -> Outcome<UpperSpec> {
        let upper = if path == self.main { self.upper.clone() } else { self.beside(path) };
        if make_directory(&upper, 0o755)? {
            self.made.push(upper.clone());
        } else {
            refuse_in_use(&upper)?;
        }
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
        self.upper.with_file_name(shortened(name))
    }

    /// What the view must not show: it would show itself.
    pub fn hidden(&self) -> Vec<PathBuf> {
        let uppers = self.uppers.iter().map(|(upper, _)| upper.clone());
        uppers.chain([self.work.clone()]).collect()
    }

    /// Removes what is not kept, and says what is. `user`: it was made without root.
    pub fn finish(mut self, quiet: bool, user: bool) -> Outcome<()> {
        let owners = if user { " --ignore-owner" } else { "" };
        // From here on they are what was asked for, empty or not.
        self.made.clear();
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

/// The work directories go in any case. Where the view could not be made, so do the uppers that were made for it.
impl Drop for Keep {
    fn drop(&mut self) {
        for upper in &self.made {
            match fs::remove_dir(upper) {
                Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => {
                    eprintln!("plyfs: {}: cannot remove it: {error}", upper.display());
                }
                _ => {}
            }
        }
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

/// Returns whether it was not there.
fn make_directory(path: &Path, mode: u32) -> Outcome<bool> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        other => other.map(|()| true).context(|| path.display().to_string()),
    }
}

/// Refuses to keep changes in the directory that is shown, or around it: the view would be its own lower.
fn refuse_shown(upper: &Path, shown: &Path) -> Outcome<()> {
    let real = upper.canonicalize().unwrap_or_else(|_| upper.to_owned());
    if shown.starts_with(&real) {
        let (upper, shown) = (upper.display(), shown.display());
        return Err(Failure::new(format!(
            "{upper}: cannot keep the changes of {shown} in itself; name another directory"
        )));
    }
    Ok(())
}

/// Asks for the lock that a mount holds on its upper, and gives it back: the view's own mount takes it.
fn refuse_in_use(upper: &Path) -> Outcome<()> {
    let describe = || upper.display().to_string();
    match DirMut::open_root(upper).context(describe)?.try_lock() {
        Ok(_) => Ok(()),
        Err(Errno::AGAIN) => {
            Err(Failure::new(format!("{}: in use by another try, a mount or a commit", upper.display())))
        }
        Err(error) => Err(error).context(describe),
    }
}

/// The name itself, or one that is as good as unique for it and always the same.
fn shortened(name: OsString) -> OsString {
    let bytes = name.as_encoded_bytes();
    if bytes.len() <= NAME_MAX {
        return name;
    }
    let end = format!("@@@{:016x}", fnv(bytes));
    let text = name.to_string_lossy();
    let mut length = NAME_MAX - end.len();
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    OsString::from(format!("{}{end}", text.get(..length).unwrap_or_default()))
}

/// The hash FNV-1a of 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_too_long_is_cut_and_stays_one_of_its_own() {
        assert_eq!(shortened("upper@home".into()), "upper@home");
        let long = |end: &str| shortened(format!("upper@{}{end}", "\u{f6}".repeat(200)).into());
        assert!(long("a").len() <= NAME_MAX && long("a").len() > NAME_MAX - 4);
        assert_ne!(long("a"), long("b"));
        // Published value of FNV-1a: the names must stay the same from version to version.
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
