//! `cargo xtask differential`: the long run of the differential test.

use anyhow::{Context, Result, bail};
use plyfs_testkit::differential::{Config, Plan, survives};
use plyfs_testkit::mount::Driver;
use plyfs_testkit::sandbox::Space;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::mounts;

const FOR_FEATURES: [&str; 5] =
    ["3:tmpfs:root:1", "3:ext4:root:1", "3:xfs:root:1", "2:ext4:root:4", "3:tmpfs:user:1"];

#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Operations on each side, in each configuration
    #[arg(long, default_value_t = 100_000)]
    ops: u64,
    /// Seed of the first round; each further round takes the next number
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop a configuration after this many failures
    #[arg(long, default_value_t = 1)]
    failures: usize,
    /// Operations in a round, on one pair of mounts
    #[arg(long, default_value_t = 1000)]
    round: usize,
    /// Seconds to spend on shrinking a failure
    #[arg(long, default_value_t = 60)]
    shrink: u64,
    /// LOWERS:tmpfs|ext4|xfs:root|user:THREADS, then :FEATURES or not, such as 3:xfs:root:1; may be repeated; all if left out
    #[arg(long)]
    config: Vec<String>,
    /// Mount options of both sides, or `each[,OPTION…]` for each combination (with these) that the kernel accepts, one a round
    #[arg(long)]
    features: Option<String>,
    /// What is compared with the kernel overlay: plyfs, kernel, kernel:OPTION or fuse-overlayfs:PATH
    #[arg(long, default_value = "plyfs")]
    against: String,
    /// The plyfs binary; built from this workspace if left out
    #[arg(long)]
    plyfs: Option<PathBuf>,
}

/// Runs every configuration, and fails if one of them found a difference.
pub fn run(args: &Args) -> Result<()> {
    let args = &with_binary(args)?;
    let configs = configs(args);
    let mut failed = Vec::new();
    for text in configs {
        let config = Config::parse(&text, driver(args)?)?;
        if !survives(&config, &plan(args), &again(args, &text)).with_context(|| text.clone())? {
            failed.push(text);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("differences found in {}", failed.join(", ")) }
}

/// Combinations of features are tried with few layers only: there are hundreds of them.
fn configs(args: &Args) -> Vec<String> {
    let mut configs = match (args.config.as_slice(), &args.features) {
        ([], None) => Config::all(),
        ([], Some(_)) => FOR_FEATURES.map(str::to_owned).to_vec(),
        (given, _) => given.to_vec(),
    };
    if let Some(features) = &args.features {
        configs.iter_mut().for_each(|config| *config = format!("{config}:{features}"));
    }
    configs
}

fn plan(args: &Args) -> Plan {
    Plan {
        seed: args.seed,
        operations: args.ops,
        failures: args.failures,
        round: args.round,
        shrink: Duration::from_secs(args.shrink),
    }
}

fn driver(args: &Args) -> Result<Driver> {
    match args.against.split_once(':') {
        None if args.against == "plyfs" => Ok(Driver::Plyfs(args.plyfs.clone().context("no plyfs binary")?)),
        None if args.against == "kernel" => Ok(Driver::Kernel),
        Some(("kernel", option)) => Ok(Driver::KernelWith(option.to_owned())),
        Some(("fuse-overlayfs", path)) => Ok(Driver::FuseOverlayfs(path.into())),
        _ => bail!("{:?} cannot be compared with the kernel", args.against),
    }
}

/// The command line for one configuration, in a process started in other namespaces.
fn again(args: &Args, config: &str) -> Vec<OsString> {
    let numbers = [
        ("--ops", args.ops),
        ("--seed", args.seed),
        ("--failures", args.failures as u64),
        ("--round", args.round as u64),
        ("--shrink", args.shrink),
    ];
    let mut line: Vec<OsString> = vec!["differential".into(), "--config".into(), config.into()];
    line.extend(numbers.iter().flat_map(|(name, number)| [(*name).into(), number.to_string().into()]));
    line.extend(["--against".into(), args.against.clone().into()]);
    if let Some(plyfs) = &args.plyfs {
        line.extend(["--plyfs".into(), plyfs.into()]);
    }
    line
}

/// Builds plyfs, unless that was done by an outer process or is not needed.
fn with_binary(args: &Args) -> Result<Args> {
    let mut args = args.clone();
    if args.plyfs.is_some() || args.against != "plyfs" || Space::current().is_some() {
        return Ok(args);
    }
    args.plyfs = Some(mounts::plyfs(None)?);
    Ok(args)
}
