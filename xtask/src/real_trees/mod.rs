//! `cargo xtask real-trees`: a Debian root in three layers, in which packages are installed, git works and a compiler
//! runs; on plyfs and on the kernel's overlay. The resulting trees must be the same, file by file.

pub mod layers;
pub mod work;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use plyfs_testkit::backing::{Backing, Kind};
use plyfs_testkit::compare::{Difference, compare};
use plyfs_testkit::layer::Namespace;
use plyfs_testkit::mount::{Driver, Stack};
use plyfs_testkit::sandbox::{Space, run_again};
use plyfs_testkit::snapshot::{Clock, Snapshot, View};

use crate::{mounts, setup, workspace};

/// Room for what is installed and compiled.
const UPPER_SIZE: u64 = 4 << 30;
/// How many differences are shown.
const SHOWN: usize = 60;

#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Where the layers are made and kept for the next time; target/real-trees if left out
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The packages that are installed in the mount
    #[arg(long, default_value = "hello,tree,jq", value_delimiter = ',')]
    packages: Vec<String>,
    /// The file system of the uppers: tmpfs, ext4 or xfs
    #[arg(long, default_value = "ext4")]
    on: Kind,
    /// The plyfs binary; built from this workspace if left out
    #[arg(long)]
    plyfs: Option<PathBuf>,
}

/// Works in both mounts, and fails if a step fails or the trees differ.
pub fn run(args: &Args) -> Result<()> {
    mounts::need_root_and_fuse()?;
    setup::install_tools(&[("debootstrap", "debootstrap")])?;
    let plyfs = mounts::plyfs(args.plyfs.as_deref())?;
    let home = match &args.dir {
        Some(dir) => dir.clone(),
        None => workspace::root()?.join("target/real-trees"),
    };
    if Space::current().is_none() {
        return inside(args, &home, &plyfs);
    }
    let lowers = layers::lowers(&home)?;
    let mut seen = Vec::new();
    for driver in [Driver::Kernel, Driver::Plyfs(plyfs)] {
        seen.push(one(&driver, &lowers, args).with_context(|| driver.to_string())?);
    }
    let (Some(plyfs), Some(kernel)) = (seen.pop(), seen.pop()) else { bail!("nothing was run") };
    if kernel.output != plyfs.output {
        bail!(
            "the programs said, on the kernel's overlay:\n{}\nand on plyfs:\n{}",
            kernel.output,
            plyfs.output
        );
    }
    let differences = differences(&kernel, &plyfs);
    for difference in differences.iter().take(SHOWN) {
        println!("  {difference}");
    }
    if !differences.is_empty() {
        bail!("{} differences between the kernel's overlay (left) and plyfs (right)", differences.len());
    }
    println!("real-trees: {} names are the same in every respect", kernel.merged.entries.len());
    Ok(())
}

/// Runs this command again in a mount namespace of its own.
fn inside(args: &Args, home: &Path, plyfs: &Path) -> Result<()> {
    let mut line: Vec<OsString> = vec!["real-trees".into(), "--dir".into(), home.into()];
    line.extend(["--plyfs".into(), plyfs.into()]);
    line.extend(["--packages".into(), args.packages.join(",").into(), "--on".into(), args.on.name().into()]);
    let status = run_again(Space::Mounts, &line, &[])?;
    if status.success() { Ok(()) } else { bail!("plyfs and the kernel's overlay do not agree, see above") }
}

/// What one run left.
struct Seen {
    merged: Snapshot,
    remounted: Snapshot,
    upper: Snapshot,
    output: String,
}

fn one(driver: &Driver, lowers: &[PathBuf], args: &Args) -> Result<Seen> {
    let backing = Backing::sized(args.on, UPPER_SIZE)?;
    let clock = Clock::start();
    // Times in whole seconds, as dpkg sets them, are to count as later than that.
    std::thread::sleep(Duration::from_millis(1100));
    let [upper, work, target] = ["upper", "work", "merged"].map(|name| backing.path().join(name));
    for path in [&upper, &work, &target] {
        std::fs::create_dir(path).with_context(|| path.display().to_string())?;
    }
    let stack = Stack {
        lowers: lowers.to_vec(),
        upper: Some((upper.clone(), work)),
        options: ["redirect_dir=on"].map(str::to_owned).to_vec(),
    };
    let mounted = driver.mount(&stack, &target)?;
    let started = Instant::now();
    let output = work::all(mounted.path(), &args.packages)?;
    println!("real-trees: {driver}: all steps passed in {:.1} s", started.elapsed().as_secs_f64());
    let merged = Snapshot::take(mounted.path(), View::Merged, clock).context("the tree in the end")?;
    mounted.unmount()?;
    let upper = Snapshot::take(&upper, View::Upper(Namespace::Trusted), clock).context("the upper")?;
    let mounted = driver.mount(&stack, &target)?;
    let remounted =
        Snapshot::take(mounted.path(), View::Merged, clock).context("the tree after a remount")?;
    mounted.unmount()?;
    Ok(Seen { merged, remounted, upper, output })
}

/// The kernel lists other inode numbers than `stat` tells where layers lie on several file systems; plyfs does not.
fn is_better(difference: &Difference) -> bool {
    difference.field == "listing" && difference.right == "[]"
}

/// What differs between the two, and between before and after the remount of plyfs.
fn differences(kernel: &Seen, plyfs: &Seen) -> Vec<Difference> {
    let mut found = Vec::new();
    let pairs = [
        ("merged", &kernel.merged, &plyfs.merged),
        ("remounted", &kernel.remounted, &plyfs.remounted),
        ("upper", &kernel.upper, &plyfs.upper),
    ];
    for (title, left, right) in pairs {
        let differences = compare(left, right).into_iter().filter(|one| !is_better(one));
        let (volatile, real): (Vec<_>, Vec<_>) = differences.partition(work::is_volatile);
        let volatile: std::collections::BTreeSet<_> =
            volatile.iter().map(|one| one.path.escape_ascii().to_string()).collect();
        let volatile = volatile.into_iter().collect::<Vec<_>>().join(" ");
        println!(
            "real-trees: {title}: {} names, {} differences; those that hold a time or an inode number: {volatile}",
            left.entries.len(),
            real.len()
        );
        found.extend(real);
    }
    found
}
