//! `cargo xtask mix`: hours of use in half an hour, with every combination of features that the kernel accepts.
//!
//! For each combination: plyfs is mounted; fsx works on files of upper and lower while threads change a tree and one walks
//! it; then it is mounted by the kernel, by plyfs with other options that fit, worked on again, and mounted as at first.
//! Nothing may fail, nothing be lost, the kernel must see what plyfs showed, and the daemons must not have logged a panic or
//! an error.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use plyfs_testkit::backing::{Backing, Kind};
use plyfs_testkit::compare::compare;
use plyfs_testkit::differential::run::Stage;
use plyfs_testkit::features::Features;
use plyfs_testkit::known::{Conditions, Trees, unexplained};
use plyfs_testkit::mount::Driver;
use plyfs_testkit::sandbox::{Space, open_fuse_to_all, run_again};
use plyfs_testkit::snapshot::{Clock, Snapshot};
use plyfs_testkit::stress::{Mix, Plan};

use crate::posix::{fsx, tool};
use crate::{mounts, posix};

/// The files that fsx works on: one that it makes, one of a lower layer.
const FILES: [&str; 2] = ["fsx-upper", "fsx-lower"];

#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Go on at least so long, and until each combination was had
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// The file systems beneath, in turn: tmpfs, ext4, xfs
    #[arg(long, default_value = "tmpfs,ext4,xfs", value_delimiter = ',')]
    on: Vec<Kind>,
    /// Only combinations with these options, such as index=on,metacopy=on
    #[arg(long, default_value = "")]
    with: String,
    /// Operations of all threads together in each mount
    #[arg(long, default_value_t = 1000)]
    ops: u64,
    /// Operations of fsx on each of its files in each mount
    #[arg(long, default_value_t = 400)]
    fsx: u64,
    /// Seed of all choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// In a user namespace, on tmpfs
    #[arg(long)]
    user: bool,
    /// The plyfs binary; built from this workspace if left out
    #[arg(long)]
    plyfs: Option<PathBuf>,
}

/// What was done so far.
#[derive(Default)]
struct Done {
    combinations: usize,
    mounts: u64,
    operations: u64,
    fsx_operations: u64,
}

/// Runs until time is up and nothing is left out; an error with the first thing that was wrong.
pub fn run(args: &Args) -> Result<()> {
    let plyfs = match Space::current() {
        None => {
            mounts::need_root_and_fuse()?;
            mounts::plyfs(args.plyfs.as_deref())?
        }
        Some(_) => args.plyfs.clone().context("no plyfs binary")?,
    };
    let program = tool("fsx", posix::FSX)?;
    let space = if args.user { Space::User } else { Space::Mounts };
    if Space::current() != Some(space) {
        return inside(args, &plyfs);
    }
    let kinds = if args.user { vec![Kind::Tmpfs] } else { args.on.clone() };
    let backings = kinds.iter().map(|kind| Backing::new(*kind)).collect::<Result<Vec<_>>>()?;
    let scratch = tempfile::tempdir().context("a temporary directory")?;
    let log = scratch.path().join("log");
    let driver = Driver::LoggingPlyfs { binary: plyfs, log: log.clone() };
    let mut round = Round { args, driver, program, log, space, done: Done::default() };
    let started = Instant::now();
    round.all(&backings, Duration::from_secs(60 * args.minutes), started)?;
    let Done { combinations, mounts, operations, fsx_operations } = round.done;
    println!(
        "mix: {combinations} rounds in {} s: {mounts} mounts, {operations} operations of threads, {fsx_operations} of fsx: no \
         error, nothing lost, nothing in the log",
        started.elapsed().as_secs()
    );
    Ok(())
}

/// Runs this command again in namespaces of its own.
fn inside(args: &Args, plyfs: &Path) -> Result<()> {
    let kinds: Vec<_> = args.on.iter().map(|kind| kind.name()).collect();
    let mut line: Vec<OsString> = vec!["mix".into(), "--plyfs".into(), plyfs.into()];
    line.extend(["--on".into(), kinds.join(",").into(), "--with".into(), args.with.clone().into()]);
    let numbers =
        [("--minutes", args.minutes), ("--ops", args.ops), ("--fsx", args.fsx), ("--seed", args.seed)];
    line.extend(numbers.iter().flat_map(|(name, number)| [(*name).into(), number.to_string().into()]));
    line.extend(args.user.then(|| "--user".into()));
    let scratch = tempfile::tempdir().context("a temporary directory")?;
    // Root goes into a user namespace by way of a mount namespace.
    let next = if args.user && Space::current() == Some(Space::Mounts) { Space::User } else { Space::Mounts };
    open_fuse_to_all(scratch.path())?;
    let status = run_again(next, &line, &[])?;
    if status.success() { Ok(()) } else { bail!("something was wrong, see above") }
}

struct Round<'a> {
    args: &'a Args,
    driver: Driver,
    program: PathBuf,
    log: PathBuf,
    space: Space,
    done: Done,
}

impl Round<'_> {
    fn all(&mut self, backings: &[Backing], time: Duration, started: Instant) -> Result<()> {
        let first = backings.first().context("no file system")?;
        let Ok(with) = self.args.with.parse::<Features>();
        let mut combinations = Features::accepted_by_kernel(first.path())?;
        combinations.retain(|features| {
            let possible = self.space == Space::Mounts || features.has("userxattr");
            possible && with.options().iter().all(|option| features.has(option))
        });
        println!("mix: {} combinations of features", combinations.len());
        let mut places = backings.iter().cycle();
        for (number, features) in combinations.iter().cycle().enumerate() {
            if combinations.is_empty() || number >= combinations.len() && started.elapsed() >= time {
                break;
            }
            let place = places.next().context("no file system")?.path();
            let fitting: Vec<&Features> = combinations.iter().filter(|other| other.fits(features)).collect();
            let other = fitting.get(number % fitting.len().max(1)).copied().unwrap_or(features);
            self.one(place, features, other, self.args.seed + number as u64)
                .with_context(|| format!("round {number} on {}: {features}", place.display()))?;
            if number % 20 == 0 {
                println!("mix: {} rounds, {} s", number + 1, started.elapsed().as_secs());
            }
        }
        Ok(())
    }

    /// One combination, on layers of its own.
    fn one(&mut self, place: &Path, features: &Features, other: &Features, seed: u64) -> Result<()> {
        let clock = Clock::start();
        let plan = Plan { operations: self.args.ops, threads: 4, copies: 0, size: 0, seed };
        let files = [(FILES[1], fsx::content(seed))];
        let mut mix = Mix::new(&self.driver, place, &plan, features, &files)?;
        let mut kept = self.work(&mut mix, seed)?;
        for (driver, features) in [(Driver::Kernel, features), (self.driver.clone(), other)] {
            let before = mix.snapshot(clock)?;
            mix.remount(&driver, features)?;
            self.done.mounts += 1;
            self.same(&before, &mix.snapshot(clock)?, features)
                .with_context(|| format!("as {driver} sees it, with {features}"))?;
            check(&mix, &kept).with_context(|| format!("as {driver} sees it, with {features}"))?;
        }
        kept = self.work(&mut mix, seed + 1)?;
        let before = mix.snapshot(clock)?;
        mix.remount(&self.driver, features)?;
        self.same(&before, &mix.snapshot(clock)?, features).context("after the last remount")?;
        check(&mix, &kept).context("after the last remount")?;
        mix.end()?;
        self.done.combinations += 1;
        self.done.mounts += 2;
        self.read_log()
    }

    /// Threads, a walker and fsx at once; returns what fsx left in its files.
    fn work(&mut self, mix: &mut Mix, seed: u64) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        let (program, ops) = (&self.program, self.args.fsx);
        self.done.operations += mix.go(self.args.ops, |root| {
            for (name, configuration) in FILES.into_iter().zip([fsx::GROWING, fsx::FIXED]) {
                if let Some(why) = fsx::drive(program, &root.join(name), configuration, seed, ops)? {
                    bail!("fsx on {name}: {why}");
                }
            }
            Ok(())
        })?;
        self.done.fsx_operations += 2 * ops;
        let read = |name: &'static str| {
            let content = fs::read(mix.root().join(name)).with_context(|| name)?;
            Ok((name, content))
        };
        FILES.into_iter().map(read).collect()
    }

    /// Whether a remount shows the same tree, but for what is known.
    fn same(&self, before: &Snapshot, after: &Snapshot, features: &Features) -> Result<()> {
        let conditions = Conditions { space: self.space, features };
        let trees = Trees { left: before, right: after };
        let differences = unexplained(&conditions, Stage::Remount, &trees, compare(before, after));
        match differences.first() {
            None => Ok(()),
            Some(first) => bail!("{} differences, the first: {first}", differences.len()),
        }
    }

    fn read_log(&self) -> Result<()> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        match log.lines().find(|line| line.contains("panic") || line.contains("ERROR")) {
            None => Ok(()),
            Some(line) => bail!("in the daemon's log: {line}"),
        }
    }
}

/// Whether names and contents are as the threads and fsx left them.
fn check(mix: &Mix, kept: &BTreeMap<&str, Vec<u8>>) -> Result<()> {
    mix.check()?;
    for (name, content) in kept {
        let found = fs::read(mix.root().join(name)).with_context(|| (*name).to_owned())?;
        if found != *content {
            bail!("{name} is not what fsx left in it");
        }
    }
    Ok(())
}
