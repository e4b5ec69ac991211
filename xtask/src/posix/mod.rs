//! `cargo xtask posix`: pjdfstest and fsx on plyfs and on the kernel's overlay, both on file systems of their own.
//! What passes on the kernel's overlay must pass on plyfs; what fails on both is listed.

pub mod fsx;
mod pjdfstest;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use plyfs_testkit::backing::{Backing, Kind};
use plyfs_testkit::mount::Driver;
use plyfs_testkit::sandbox::{Space, open_fuse_to_all, run_again};

use crate::{child, mounts, workspace};
use pjdfstest::Who;

/// Building one of the two programs takes minutes on a loaded machine.
const INSTALL_LIMIT: Duration = Duration::from_secs(30 * 60);
/// The version of fsx.
pub const FSX: &str = "0.3.2";
/// A directory for programs of the machine's own administrator, where mount(8)'s helper of FUSE looks for programs.
const HELPERS: &str = "/usr/local/sbin";

#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// The file systems beneath: tmpfs, ext4, xfs
    #[arg(long, default_value = "tmpfs,ext4,xfs", value_delimiter = ',')]
    on: Vec<Kind>,
    /// Runs of fsx, each with another seed, in each of its cases
    #[arg(long, default_value_t = 24)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Operations in each run of fsx
    #[arg(long, default_value_t = 4000)]
    ops: u64,
    /// Only those tests of pjdfstest whose names hold this; fsx is left out
    #[arg(long)]
    only: Option<String>,
    /// pjdfstest in a user namespace on tmpfs, as its root and as another user; fsx is left out
    #[arg(long)]
    user: bool,
    /// The plyfs binary; built from this workspace if left out
    #[arg(long)]
    plyfs: Option<PathBuf>,
}

/// How one test ended: `None` if it passed, else why it failed.
pub type Outcome = Option<String>;
/// The outcome of every test that was not skipped.
pub type Outcomes = BTreeMap<String, Outcome>;

/// Runs both suites on both unions, on each file system; an error if plyfs fails where the kernel's overlay does not.
pub fn run(args: &Args) -> Result<()> {
    let space = if args.user { Space::User } else { Space::Mounts };
    if Space::current().is_none() {
        mounts::need_root_and_fuse()?;
    }
    let tools = Tools { pjdfstest: tool("pjdfstest", "0.2.2")?, fsx: tool("fsx", FSX)? };
    let plyfs = mounts::plyfs(args.plyfs.as_deref())?;
    if Space::current() != Some(space) {
        return inside(args, &plyfs);
    }
    let scratch = tempfile::tempdir().context("a temporary directory")?;
    offer_helper(&plyfs, scratch.path())?;
    let mut worse = 0;
    if args.user {
        worse += in_user_namespace(args, &tools, &plyfs)?;
    }
    for kind in args.on.iter().filter(|_| !args.user) {
        worse += on(*kind, args, &tools, &plyfs)?;
    }
    if worse > 0 {
        bail!("{worse} tests fail on plyfs that pass on the kernel's overlay");
    }
    println!("posix: nothing fails on plyfs that passes on the kernel's overlay");
    Ok(())
}

struct Tools {
    pjdfstest: PathBuf,
    fsx: PathBuf,
}

/// Runs this command again in a mount namespace of its own.
fn inside(args: &Args, plyfs: &Path) -> Result<()> {
    let kinds: Vec<_> = args.on.iter().map(|kind| kind.name()).collect();
    let mut line: Vec<OsString> = vec!["posix".into(), "--plyfs".into(), plyfs.into()];
    line.extend(["--on".into(), kinds.join(",").into()]);
    for (name, number) in [("--seeds", args.seeds), ("--seed", args.seed), ("--ops", args.ops)] {
        line.extend([name.into(), number.to_string().into()]);
    }
    if let Some(only) = &args.only {
        line.extend(["--only".into(), only.into()]);
    }
    line.extend(args.user.then(|| "--user".into()));
    // Root goes into a user namespace by way of a mount namespace.
    let next = if args.user && Space::current() == Some(Space::Mounts) { Space::User } else { Space::Mounts };
    let scratch = tempfile::tempdir().context("a temporary directory")?;
    open_fuse_to_all(scratch.path())?;
    let status = run_again(next, &line, &[])?;
    if status.success() { Ok(()) } else { bail!("plyfs falls short of the kernel's overlay, see above") }
}

/// A program of crates.io, of one version, so that what passes is the same everywhere; installed below the workspace's target
/// directory when it is first wanted.
pub fn tool(name: &str, version: &str) -> Result<PathBuf> {
    let root = workspace::root()?.join("target/tools").join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if program.exists() {
        return Ok(program);
    }
    println!("posix: installing {name} below target/tools");
    let mut install = Command::new(env!("CARGO"));
    install.args(["install", "--locked", "--version", version, "--root"]).arg(&root).arg(name);
    if !child::run(&mut install, INSTALL_LIMIT)?.success() {
        bail!("cargo install {name} failed; it needs crates.io");
    }
    Ok(program)
}

/// Lets mount(8) find plyfs in this mount namespace: a test remounts read-only, which the helper of FUSE turns into a
/// call of `plyfs`.
fn offer_helper(plyfs: &Path, scratch: &Path) -> Result<()> {
    symlink(plyfs, scratch.join("plyfs")).context("a link to plyfs")?;
    rustix::mount::mount_bind(scratch, HELPERS).with_context(|| format!("binding over {HELPERS}"))
}

/// Both suites on a file system of this kind; returns how many tests fail on plyfs alone.
fn on(kind: Kind, args: &Args, tools: &Tools, plyfs: &Path) -> Result<usize> {
    let backing = Backing::new(kind)?;
    let drivers = [Driver::Kernel, Driver::Plyfs(plyfs.to_owned())];
    let mut worse = 0;
    let mut judge = |suite: &str, outcomes: Vec<Outcomes>| {
        let [kernel, plyfs] = outcomes.try_into().unwrap_or_default();
        worse += report(&format!("{suite} on {}", kind.name()), &kernel, &plyfs);
    };
    let each = |run: &dyn Fn(&Driver) -> Result<Outcomes>| -> Result<Vec<Outcomes>> {
        drivers.iter().map(|driver| run(driver).with_context(|| driver.to_string())).collect()
    };
    let only = args.only.as_deref();
    judge(
        "pjdfstest",
        each(&|driver| pjdfstest::run(&tools.pjdfstest, driver, backing.path(), only, Who::Root))?,
    );
    if only.is_none() {
        let seeds = args.seed..args.seed + args.seeds;
        judge("fsx", each(&|driver| fsx::run(&tools.fsx, driver, backing.path(), seeds.clone(), args.ops))?);
    }
    Ok(worse)
}

/// pjdfstest on mounts made in a user namespace; returns how many tests fail on plyfs alone.
fn in_user_namespace(args: &Args, tools: &Tools, plyfs: &Path) -> Result<usize> {
    let backing = Backing::new(Kind::Tmpfs)?;
    // Others must be able to come as far as the mount point, and to run the program.
    let scratch = tempfile::tempdir_in(backing.path()).context("a temporary directory")?;
    std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o755)).context("chmod")?;
    let program = scratch.path().join("pjdfstest");
    std::fs::copy(&tools.pjdfstest, &program).context("a copy of pjdfstest")?;
    let parent = backing.path().parent().context("the root directory")?;
    std::fs::set_permissions(parent, PermissionsExt::from_mode(0o755)).context("chmod")?;
    let mut worse = 0;
    for (title, who) in [("root of a user namespace", Who::RootOfNamespace), ("a user in it", Who::User)] {
        let one = |driver: &Driver| {
            let only = args.only.as_deref();
            pjdfstest::run(&program, driver, backing.path(), only, who).with_context(|| driver.to_string())
        };
        let (kernel, plyfs) = (one(&Driver::Kernel)?, one(&Driver::Plyfs(plyfs.to_owned()))?);
        worse += report(&format!("pjdfstest as {title}"), &kernel, &plyfs);
    }
    Ok(worse)
}

/// Prints what failed where, and returns how many tests fail on plyfs alone.
fn report(title: &str, kernel: &Outcomes, plyfs: &Outcomes) -> usize {
    let failed = |outcomes: &Outcomes, name: &str| outcomes.get(name).is_some_and(Option::is_some);
    let names = kernel.keys().chain(plyfs.keys().filter(|name| !kernel.contains_key(*name)));
    let (mut both, mut kernel_only, mut plyfs_only) = (Vec::new(), Vec::new(), Vec::new());
    for name in names {
        match (failed(kernel, name), failed(plyfs, name)) {
            (true, true) => both.push(name.clone()),
            (true, false) => kernel_only.push(name.clone()),
            (false, true) => plyfs_only.push(name.clone()),
            (false, false) if kernel.contains_key(name) != plyfs.contains_key(name) => {
                plyfs_only.push(name.clone())
            }
            (false, false) => {}
        }
    }
    let passed = |outcomes: &Outcomes| outcomes.values().filter(|outcome| outcome.is_none()).count();
    println!(
        "posix: {title}: of {} tests {} pass on the kernel's overlay and {} on plyfs",
        kernel.len(),
        passed(kernel),
        passed(plyfs)
    );
    print_failing("on both", &both, plyfs);
    print_failing("on the kernel's overlay alone", &kernel_only, kernel);
    for name in &plyfs_only {
        let why = plyfs.get(name).cloned().flatten();
        println!(
            "  FAILS ON PLYFS ALONE: {name}: {}",
            why.unwrap_or_else(|| "run on one of them only".to_owned())
        );
    }
    plyfs_only.len()
}

/// Prints names with the reasons that `outcomes` gives, each reason once.
fn print_failing(which: &str, names: &[String], outcomes: &Outcomes) {
    let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in names {
        let why = outcomes.get(name).cloned().flatten().unwrap_or_default();
        reasons.entry(why).or_default().push(name);
    }
    for (why, names) in reasons {
        println!("  fail {which}: {}\n    {}", why, names.join(" "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_on_the_kernel_counts_against_plyfs() {
        let outcomes = |failing: &[&str]| -> Outcomes {
            let outcome = |name: &&str| failing.contains(name).then(|| "why".to_owned());
            ["a", "b", "c"].iter().map(|name| ((*name).to_owned(), outcome(name))).collect()
        };
        assert_eq!(report("t", &outcomes(&["a"]), &outcomes(&["a"])), 0);
        assert_eq!(report("t", &outcomes(&["a", "b"]), &outcomes(&[])), 0);
        assert_eq!(report("t", &outcomes(&["a"]), &outcomes(&["b", "c"])), 2);
        // A test that was skipped on one of them proves nothing.
        assert_eq!(report("t", &outcomes(&[]), &Outcomes::new()), 3);
    }
}
