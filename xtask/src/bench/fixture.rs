//! The trees that workloads run on. Each is the same at every run. Building one writes plain directories,
//! layer by layer, or all layers into one directory for the native peer.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

/// Files of [`Fixture::Small`].
pub const SMALL_FILES: usize = 20_000;
/// Entries of [`Fixture::Flat`].
pub const FLAT_ENTRIES: usize = 50_000;
/// Files of [`Fixture::Huge`].
pub const HUGE_FILES: usize = 200_000;
/// Groups of [`Fixture::Groups`]: one for each round that may run.
pub const GROUPS: usize = 8;
/// Files in a group.
pub const GROUP_FILES: usize = 500;
/// Files of the bottom layer of [`Fixture::Deep`], in the merged directory.
pub const DEEP_FILES: usize = 1000;

/// A tree, as one or several layers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fixture {
    /// Nothing but a directory.
    Empty,
    /// `dNNN/fNN`: 200 directories of 100 files of 1 KiB, in one layer.
    Small,
    /// `flat/`: 50,000 empty files, half of them in each of two layers.
    Flat,
    /// `aN/bNN/fNN`: 20 by 100 directories of 100 empty files, in one layer.
    Huge,
    /// `rN/fNNN`: a group of 500 files of 4 KiB for each round, in one layer.
    Groups,
    /// `rN/dNN/fNN`: a tree of 20 directories of 25 files for each round, in one layer.
    Trees,
    /// So many layers, each with a file of its own in `d/`; the bottom one with 1,000 files there and a tree `t/`.
    Deep(usize),
    /// `big`: a file of so many MiB.
    Big(usize),
    /// `fNNNN`: so many files of so many KiB.
    Sized { count: usize, kib: usize },
    /// A git repository, sources in C and Python, and a tar archive.
    Programs,
}

impl Fixture {
    /// The directory name for its layers.
    pub fn name(self) -> String {
        match self {
            Self::Empty => "empty".to_owned(),
            Self::Small => "small".to_owned(),
            Self::Flat => "flat".to_owned(),
            Self::Huge => "huge".to_owned(),
            Self::Groups => "groups".to_owned(),
            Self::Trees => "trees".to_owned(),
            Self::Deep(depth) => format!("deep{depth}"),
            Self::Big(mib) => format!("big{mib}"),
            Self::Sized { count, kib } => format!("sized{count}x{kib}"),
            Self::Programs => "programs".to_owned(),
        }
    }

    /// How many layers it has.
    pub fn layers(self) -> usize {
        match self {
            Self::Flat => 2,
            Self::Deep(depth) => depth,
            _ => 1,
        }
    }

    /// Fills `directory` with what layer `layer` holds; layer 0 is the bottom.
    pub fn fill(self, directory: &Path, layer: usize) -> Result<()> {
        match self {
            Self::Empty => Ok(()),
            Self::Small => fill_dirs(directory, "", 200, 100, 1024),
            Self::Flat => {
                let half = FLAT_ENTRIES / 2;
                fill_files(&directory.join("flat"), layer * half..(layer + 1) * half, 0)
            }
            Self::Huge => {
                (0..20).try_for_each(|a| fill_dirs(&directory.join(format!("a{a}")), "", 100, 100, 0))
            }
            Self::Groups => (0..GROUPS)
                .try_for_each(|group| fill_files(&directory.join(format!("r{group}")), 0..GROUP_FILES, 4096)),
            Self::Trees => (0..GROUPS)
                .try_for_each(|group| fill_dirs(&directory.join(format!("r{group}")), "", 20, 25, 1024)),
            Self::Deep(_) => fill_deep(directory, layer),
            Self::Big(mib) => fill_file(&directory.join("big"), mib << 20),
            Self::Sized { count, kib } => fill_files(directory, 0..count, kib << 10),
            Self::Programs => super::programs::fill(directory),
        }
    }
}

/// The name of the file with this number in [`fill_files`].
pub fn file_name(number: usize) -> String {
    format!("f{number:05}")
}

/// The paths that [`fill_dirs`] makes.
pub fn dir_paths(dirs: usize, files: usize) -> impl Iterator<Item = String> {
    (0..dirs).flat_map(move |dir| (0..files).map(move |file| format!("d{dir:03}/{}", file_name(file))))
}

fn fill_dirs(directory: &Path, prefix: &str, dirs: usize, files: usize, size: usize) -> Result<()> {
    (0..dirs).try_for_each(|dir| fill_files(&directory.join(format!("{prefix}d{dir:03}")), 0..files, size))
}

fn fill_files(directory: &Path, numbers: std::ops::Range<usize>, size: usize) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    numbers.into_iter().try_for_each(|number| fill_file(&directory.join(file_name(number)), size))
}

fn fill_deep(directory: &Path, layer: usize) -> Result<()> {
    fill_file(&directory.join("d").join(format!("own{layer:03}")), 0)?;
    if layer > 0 {
        return Ok(());
    }
    fill_files(&directory.join("d"), 0..DEEP_FILES, 64)?;
    fill_dirs(&directory.join("t"), "", 50, 20, 64)
}

/// Writes a file of `size` bytes that no file system can store as a hole; its directory is made.
fn fill_file(path: &Path, size: usize) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    let mut file = File::create(path).with_context(|| path.display().to_string())?;
    let mut block = String::new();
    while block.len() < size.min(1 << 20) {
        writeln!(block, "{:062}", block.len() + size)?;
    }
    let mut left = size;
    while left > 0 {
        let part = block.as_bytes().get(..left.min(block.len())).unwrap_or_default();
        file.write_all(part).with_context(|| path.display().to_string())?;
        left -= part.len();
    }
    Ok(())
}
