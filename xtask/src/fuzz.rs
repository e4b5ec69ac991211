//! `cargo xtask fuzz`: the fuzz targets under libFuzzer, each for some minutes, from the committed seeds on.
//!
//! libFuzzer needs a nightly compiler; cargo-fuzz is installed into `target/tools` at first use. What is found is
//! written to `fuzz/artifacts`: mend the cause, and put the input into `crates/fuzzing/seeds` as `found-…`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{child, workspace};

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// How long each target runs
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Only targets whose name contains this; may be repeated
    #[arg(long, value_name = "TARGET")]
    only: Vec<String>,
}

const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);

/// Runs the targets one after another; fails if any finds something.
pub fn run(args: &Args) -> Result<()> {
    let root = workspace::root()?;
    let tool = cargo_fuzz(&root)?;
    let wanted = |name: &String| args.only.is_empty() || args.only.iter().any(|part| name.contains(part));
    let targets: Vec<_> = targets(&root)?.into_iter().filter(wanted).collect();
    if targets.is_empty() {
        bail!("no target is called that; see fuzz/fuzz_targets");
    }
    let mut broken = Vec::new();
    for target in targets {
        println!("=== fuzz {target}");
        if !fuzz(&root, &tool, &target, args.minutes)? {
            broken.push(target);
        }
    }
    if broken.is_empty() { Ok(()) } else { bail!("found something: {}", broken.join(", ")) }
}

fn fuzz(root: &Path, tool: &Path, target: &str, minutes: u64) -> Result<bool> {
    let mut command = Command::new(tool);
    command.current_dir(root).env("RUSTUP_TOOLCHAIN", "nightly").args(["fuzz", "run", target]);
    // New inputs go to the first directory; the second is only read.
    let corpus = root.join("fuzz/corpus").join(target);
    std::fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
    command.arg(corpus).arg(root.join("crates/fuzzing/seeds").join(target));
    command.args(["--", "-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1"]);
    command.arg(format!("-max_total_time={}", minutes * 60));
    Ok(child::run(&mut command, BUILD_LIMIT + Duration::from_secs(minutes * 60))?.success())
}

fn targets(root: &Path) -> Result<Vec<String>> {
    let files = workspace::rust_files(&root.join("fuzz/fuzz_targets"))?;
    Ok(files.iter().filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned())).collect())
}

fn cargo_fuzz(root: &Path) -> Result<PathBuf> {
    let tools = root.join("target/tools");
    let tool = tools.join("bin/cargo-fuzz");
    if !tool.exists() {
        let mut install = Command::new("cargo");
        install.args(["install", "--locked", "cargo-fuzz", "--root"]).arg(&tools);
        if !child::run(&mut install, BUILD_LIMIT)?.success() {
            bail!("cannot install cargo-fuzz");
        }
    }
    Ok(tool)
}
