//! fsx: random reads, writes, mappings, truncations, holes and copies in one file, checked against a copy in memory.

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use plyfs_testkit::fixture::Union;
use plyfs_testkit::layer::TreeSpec;
use plyfs_testkit::mount::Driver;

use super::{Outcome, Outcomes};
use crate::child;

const LIMIT: Duration = Duration::from_secs(10 * 60);
/// The length of the files, and the longest that fsx makes.
const LENGTH: usize = 256 * 1024;
/// How many last lines of a failed run are shown.
const SHOWN: usize = 3;

/// All that changes a file's length, and all else.
pub const GROWING: &str = "
flen = 262144
[opsize]
max = 65536
[weights]
close_open = 1
invalidate = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 5
sendfile = 5
posix_fadvise = 2
copy_file_range = 5
";
/// All that leaves the length as it is: the file is not truncated when it is opened.
pub const FIXED: &str = "
blockmode = true
[opsize]
max = 65536
[weights]
invalidate = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = 0
fsync = 1
fdatasync = 1
punch_hole = 5
sendfile = 5
posix_fadvise = 2
copy_file_range = 5
";

/// One way to come by the file.
struct Case {
    name: &'static str,
    configuration: &'static str,
    in_lower: bool,
    options: &'static [&'static str],
    /// Another descriptor reads the lower file before it is copied up, and must read what fsx wrote after.
    watched: bool,
    /// The mode is changed first, so that the file is copied up in two steps.
    chmod_first: bool,
}

const CASES: [Case; 4] = [
    Case {
        name: "upper",
        configuration: GROWING,
        in_lower: false,
        options: &[],
        watched: false,
        chmod_first: false,
    },
    Case {
        name: "lower-truncated",
        configuration: GROWING,
        in_lower: true,
        options: &[],
        watched: false,
        chmod_first: false,
    },
    Case {
        name: "lower-watched",
        configuration: FIXED,
        in_lower: true,
        options: &[],
        watched: true,
        chmod_first: false,
    },
    Case {
        name: "lower-metacopy-watched",
        configuration: FIXED,
        in_lower: true,
        options: &["redirect_dir=on", "metacopy=on"],
        watched: true,
        chmod_first: true,
    },
];

/// Runs every case with every seed, each on a new file; a test is named after both.
pub fn run(program: &Path, driver: &Driver, place: &Path, seeds: Range<u64>, ops: u64) -> Result<Outcomes> {
    let mut outcomes = Outcomes::new();
    for case in &CASES {
        let mut layer = TreeSpec::new().dir("d");
        for seed in seeds.clone().filter(|_| case.in_lower) {
            layer = layer.file(file_name(seed), content(seed));
        }
        let mut union = Union::new(driver, place, &[layer], case.options)?;
        for seed in seeds.clone() {
            let outcome = one(program, &union, case, seed, ops).with_context(|| case.name)?;
            outcomes.insert(format!("{}-{seed}", case.name), outcome);
        }
        union.unmount()?;
    }
    Ok(outcomes)
}

fn file_name(seed: u64) -> String {
    format!("d/file-{seed}")
}

/// What a file of a lower layer holds.
pub fn content(seed: u64) -> Vec<u8> {
    (0..LENGTH as u64 / 8).flat_map(|word| (word ^ seed).to_le_bytes()).collect()
}

fn one(program: &Path, union: &Union, case: &Case, seed: u64, ops: u64) -> Result<Outcome> {
    let path = union.path(&file_name(seed));
    let watcher = if case.watched { Some(watch(&path, seed)?) } else { None };
    if case.chmod_first {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).context("chmod")?;
    }
    let outcome = drive(program, &path, case.configuration, seed, ops)?;
    match watcher {
        Some(watcher) if outcome.is_none() => compare(&watcher, &path),
        _ => Ok(outcome),
    }
}

/// Runs fsx on one file.
pub fn drive(program: &Path, path: &Path, configuration: &str, seed: u64, ops: u64) -> Result<Outcome> {
    let scratch = tempfile::tempdir().context("a temporary directory")?;
    let file = scratch.path().join("fsx.toml");
    fs::write(&file, configuration).context("the configuration of fsx")?;
    let mut command = Command::new(program);
    command.arg("-f").arg(&file).arg("-P").arg(scratch.path());
    command.args(["-N", &ops.to_string(), "-S", &seed.to_string()]).arg(path);
    let outcome = child::run_quiet(&mut command, LIMIT)?;
    if outcome.success() {
        return Ok(None);
    }
    let last = outcome.lines.len().saturating_sub(SHOWN);
    let last = outcome.lines.get(last..).unwrap_or_default().join(" / ");
    Ok(Some(format!("{:?}: {last}", outcome.status)))
}

/// Opens a lower file for reading, and reads all of it.
fn watch(path: &Path, seed: u64) -> Result<File> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut data = Vec::new();
    file.read_to_end(&mut data).with_context(|| path.display().to_string())?;
    anyhow::ensure!(data == content(seed), "{} is not what was put there", path.display());
    Ok(file)
}

/// What the descriptor that was opened before the copy-up reads, and what a new one reads, must be the same.
fn compare(watcher: &File, path: &Path) -> Result<Outcome> {
    let now = fs::read(path).with_context(|| path.display().to_string())?;
    let mut seen = vec![0; now.len()];
    watcher.read_exact_at(&mut seen, 0).with_context(|| path.display().to_string())?;
    Ok((seen != now).then(|| "a descriptor opened before the copy-up reads something else".to_owned()))
}
