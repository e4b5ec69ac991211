//! Runs one case: mounts both sides on the same lowers, applies the steps in lock-step, and compares results,
//! trees, uppers, and what each side makes of the other's upper.
//!
//! Owns the order of the comparisons and the directories of a case. Generates and shrinks nothing.

use super::apart::{self, Ground};
use super::apply::Side;
use super::data;
use super::generate::Source;
use super::op::{Op, Step};
use super::outcome::Outcome;
use crate::compare::{Difference, compare, moved_inodes};
use crate::features::{self, Features};
use crate::identity::{Identity, User};
use crate::known::{self, Conditions, Trees};
use crate::layer::TreeSpec;
use crate::mount::{Driver, Mounted, Stack};
use crate::sandbox::Space;
use crate::snapshot::{Clock, Snapshot, View};
use anyhow::{Context, Result, anyhow};
use std::fmt::{Display, Formatter};
use std::fs::DirEntry;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The lowers of a case, and what both sides are mounted with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The reference.
    pub left: Driver,
    /// What is tested.
    pub right: Driver,
    /// The layers, topmost first.
    pub layers: Vec<TreeSpec>,
    /// What both are mounted with.
    pub features: Features,
    /// Where both are mounted.
    pub space: Space,
    /// The base directory of each thread, relative to the root of the mount; all disjoint.
    pub bases: Vec<String>,
    /// Whether the backing never reuses inode numbers.
    pub inodes_identify: bool,
    /// How many steps lie between two comparisons of the trees.
    pub compare_every: usize,
}

impl Setup {
    /// What decides which differences are explained.
    pub fn conditions(&self) -> Conditions<'_> {
        Conditions { space: self.space, features: &self.features }
    }
}

/// Where in a case a difference between trees was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The merged trees, while mounted.
    Merged,
    /// The uppers on disk, after unmounting.
    Upper,
    /// The indexes on disk, after unmounting.
    Index,
    /// The left upper, as the left and as the right driver mount it again.
    LeftUpperAgain,
    /// The right upper, as the left and as the right driver mount it again.
    RightUpperAgain,
    /// What the right driver shows before and after a remount, where the left shows the same.
    Remount,
    /// A lower layer, before and after.
    Lower,
}

/// A difference that nothing explains.
#[derive(Debug, Clone)]
pub enum Finding {
    /// The results of a step.
    Results {
        /// Which thread.
        thread: usize,
        /// Which of its steps.
        index: usize,
        /// The step.
        step: Step,
        /// Left and right.
        results: Box<(Outcome, Outcome)>,
    },
    /// Trees.
    Trees {
        /// When.
        stage: Stage,
        /// After how many steps of which thread; none at the end.
        after: Option<(usize, usize)>,
        /// How they differ.
        differences: Vec<Difference>,
    },
    /// Something in a case could not be done at all, such as a remount or a reading of the tree.
    Trouble(String),
}

impl Finding {
    /// What makes two findings the same kind.
    pub fn signature(&self) -> String {
        match self {
            Finding::Results { step, results, .. } => {
                let broken = matches!(results.1, Outcome::Broken(_));
                format!("results of {}, broken {broken}", step.op.name())
            }
            Finding::Trees { stage, differences, .. } => {
                format!("{stage:?} {}", differences.first().map_or("", |difference| difference.field))
            }
            Finding::Trouble(_) => "trouble".to_owned(),
        }
    }
}

impl Display for Finding {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Finding::Results { thread, index, step, results } => {
                writeln!(out, "step {index} of thread {thread}: {step:?}")?;
                let (left, right) = differing_parts(&results.0, &results.1);
                write!(out, "    left  {left}\n    right {right}")
            }
            Finding::Trees { stage, after, differences } => {
                match after {
                    Some((thread, index)) => write!(out, "{stage:?} after step {index} of thread {thread}:")?,
                    None => write!(out, "{stage:?}, at the end:")?,
                }
                differences.iter().take(20).try_for_each(|difference| write!(out, "\n    {difference}"))
            }
            Finding::Trouble(what) => write!(out, "trouble: {what}"),
        }
    }
}

/// Of compound outcomes only the parts that differ.
fn differing_parts(left: &Outcome, right: &Outcome) -> (String, String) {
    let (Outcome::Several(lefts), Outcome::Several(rights)) = (left, right) else {
        return (format!("{left:?}"), format!("{right:?}"));
    };
    let parts = lefts.iter().zip(rights).enumerate().filter(|(_, (left, right))| left != right);
    parts
        .map(|(number, (left, right))| (format!("[{number}] {left:?} "), format!("[{number}] {right:?} ")))
        .unzip()
}

/// Tells a watchdog how far a case is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Steps done so far, of all threads and cases.
    pub steps: AtomicU64,
}

/// Runs the steps of each thread's source on fresh mounts in `arena`, where the lowers of a case run before
/// are used again.
///
/// # Errors
/// If the case could not be set up. Trouble that the sides make later is a finding.
pub fn case(
    setup: &Setup,
    arena: &Path,
    sources: &mut [Source<'_>],
    progress: &Progress,
) -> Result<Option<Finding>> {
    data::prepare();
    let lowers = make_lowers(setup, arena)?;
    // After the lowers and before the uppers: a change of a lower is then told from a copy-up, and it does not matter
    // what a driver leaves on the root of an upper when it mounts it.
    let clock = Clock::start();
    let places = Places::make(arena, lowers)?;
    let untouched = places.shoot_lowers()?;
    let finding = match places.mount_both(setup) {
        Ok(mounts) => run_mounted(setup, &places, clock, mounts, sources, progress)?,
        Err(cause) => return Err(cause),
    };
    if finding.is_some() {
        return Ok(finding);
    }
    for (before, after) in untouched.iter().zip(places.shoot_lowers()?) {
        let found = trees(&setup.conditions(), Stage::Lower, None, before, &after);
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

struct Places {
    lowers: Vec<PathBuf>,
    left: Place,
    right: Place,
}

struct Place {
    upper: PathBuf,
    work: PathBuf,
    target: PathBuf,
}

impl Place {
    fn make(root: &Path) -> Result<Self> {
        // Deep, so that a stray `..` leads nowhere of importance.
        let target = root.join("1/2/3/4/merged");
        let place = Place { upper: root.join("upper"), work: root.join("work"), target };
        std::fs::create_dir_all(&place.work)?;
        std::fs::create_dir_all(&place.target)?;
        TreeSpec::new().dir("").mode(0o777).time(1_000_000_000, 1).build(&place.upper)?;
        Ok(place)
    }

    fn mount(&self, driver: &Driver, lowers: &[PathBuf], features: &Features) -> Result<Mounted> {
        let upper = Some((self.upper.clone(), self.work.clone()));
        let options = features.options().to_vec();
        features::forgive(&self.work)?;
        driver.mount(&Stack { lowers: lowers.to_vec(), upper, options }, &self.target)
    }

    /// The index, which is empty where there is none.
    fn index(&self, view: View, clock: Clock) -> Result<Snapshot> {
        let index = self.work.join("index");
        if !index.exists() {
            return Ok(Snapshot::default());
        }
        let mut snapshot = Snapshot::take(&index, view, clock)?;
        // What a name begins with that is no entry: the whiteout that the kernel links to make others.
        snapshot.entries.retain(|name, shot| !(name.starts_with(b"#") && shot.is_whiteout()));
        Ok(snapshot)
    }

    /// What a clean unmount must not leave in work: anything but the kernel's one shared whiteout, and the guard of
    /// a volatile mount.
    fn leftovers(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.work.join("work")).into_iter().flatten().flatten();
        let whiteout = |entry: &DirEntry| {
            entry
                .metadata()
                .is_ok_and(|metadata| metadata.file_type().is_char_device() && metadata.rdev() == 0)
        };
        let left = entries.filter(|entry| !whiteout(entry) && entry.file_name() != "incompat");
        left.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

fn make_lowers(setup: &Setup, arena: &Path) -> Result<Vec<PathBuf>> {
    let lowers: Vec<PathBuf> = (0..setup.layers.len()).map(|n| arena.join(format!("lower-{n}"))).collect();
    for (spec, lower) in setup.layers.iter().zip(&lowers) {
        if !lower.exists() {
            spec.build(lower)?;
        }
    }
    Ok(lowers)
}

impl Places {
    fn make(arena: &Path, lowers: Vec<PathBuf>) -> Result<Self> {
        let sides = ["left", "right"].map(|side| arena.join(side));
        for side in &sides {
            if side.exists() {
                std::fs::remove_dir_all(side).with_context(|| side.display().to_string())?;
            }
        }
        let [left, right] = sides;
        Ok(Self { lowers, left: Place::make(&left)?, right: Place::make(&right)? })
    }

    fn mount_both(&self, setup: &Setup) -> Result<(Mounted, Mounted)> {
        let left = self.left.mount(&setup.left, &self.lowers, &setup.features)?;
        let right = self.right.mount(&setup.right, &self.lowers, &setup.features)?;
        Ok((left, right))
    }

    fn shoot_lowers(&self) -> Result<Vec<Snapshot>> {
        self.lowers.iter().map(|lower| Snapshot::take(lower, View::Merged, Clock::never())).collect()
    }
}

fn run_mounted(
    setup: &Setup,
    places: &Places,
    clock: Clock,
    (left, right): (Mounted, Mounted),
    sources: &mut [Source<'_>],
    progress: &Progress,
) -> Result<Option<Finding>> {
    let found = run_threads(setup, places, clock, (left.path(), right.path()), sources, progress)?;
    if found.is_some() {
        return Ok(found);
    }
    let merged = match shoot_both(clock, left.path(), right.path()) {
        Ok(merged) => merged,
        Err(trouble) => return Ok(Some(trouble)),
    };
    if let found @ Some(_) = trees(&setup.conditions(), Stage::Merged, None, &merged.0, &merged.1) {
        return Ok(found);
    }
    for mounted in [left, right] {
        if let Err(cause) = mounted.unmount() {
            return Ok(Some(trouble("unmounting", &cause)));
        }
    }
    compare_uppers(setup, places, clock, &merged)
}

fn run_threads(
    setup: &Setup,
    places: &Places,
    clock: Clock,
    roots: (&Path, &Path),
    sources: &mut [Source<'_>],
    progress: &Progress,
) -> Result<Option<Finding>> {
    let stop = AtomicBool::new(false);
    let ground = Ground {
        mount: roots.0,
        upper: &places.left.upper,
        space: setup.space,
        user_xattrs: setup.features.has("userxattr"),
    };
    if setup.bases.len() > 1 {
        copy_up_bases(setup, roots)?;
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = sources
            .iter_mut()
            .zip(&setup.bases)
            .enumerate()
            .map(|(number, (source, base))| {
                let stop = &stop;
                scope.spawn(move || {
                    let thread = Thread { setup, clock, ground, number, stop, progress };
                    let found = thread.run(roots, base, source);
                    if !matches!(found, Ok(None)) {
                        stop.store(true, Ordering::Relaxed);
                    }
                    found
                })
            })
            .collect();
        let mut first = None;
        for thread in threads {
            let found = thread.join().map_err(|_| anyhow!("a thread of the test panicked"))??;
            first = first.or(found);
        }
        Ok(first)
    })
}

/// Where several bases are copied up at once, the kernel may restore the times of their parent to those in between.
fn copy_up_bases(setup: &Setup, (left, right): (&Path, &Path)) -> Result<()> {
    for path in setup.bases.iter().flat_map(|base| [left.join(base), right.join(base)]) {
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

struct Thread<'a> {
    setup: &'a Setup,
    clock: Clock,
    ground: Ground<'a>,
    number: usize,
    stop: &'a AtomicBool,
    progress: &'a Progress,
}

impl Thread<'_> {
    fn run(&self, roots: (&Path, &Path), base: &str, source: &mut Source<'_>) -> Result<Option<Finding>> {
        let mut identity = Identity::of_this_thread()?;
        let side = |root: &Path| {
            Side::new(root, base, self.clock, self.setup.inodes_identify)
                .with_context(|| format!("{} cannot be used", root.display()))
        };
        let (mut left, mut right) = (side(roots.0)?, side(roots.1)?);
        let mut index = 0;
        while let Some(step) = source.next_step().filter(|_| !self.stop.load(Ordering::Relaxed)) {
            identity.become_user(User::Root)?;
            if self.ground.leads_apart(&left, &step.op) {
                index += 1;
                continue;
            }
            identity.become_user(step.user)?;
            if let Op::Umask(mask) = step.op {
                identity.set_umask(mask);
            }
            let results = (left.apply(&step.op), right.apply(&step.op));
            apart::level(&step.op, (&left, &results.0), (&right, &results.1), &mut identity)?;
            identity.become_user(step.user)?;
            let results = (left.look(&step, results.0), right.look(&step, results.1));
            self.progress.steps.fetch_add(1, Ordering::Relaxed);
            if !known::accepts(&self.setup.conditions(), &step.op, &results.0, &results.1) {
                let (thread, results) = (self.number, Box::new(results));
                return Ok(Some(Finding::Results { thread, index, step, results }));
            }
            let unlinks = matches!(step.op, Op::Unlink(_) | Op::Rename { .. } | Op::ListChanging { .. });
            if results.0 != results.1 || unlinks {
                close_differing(&step.op, &mut left, &mut right);
            }
            source.learn(&step, results.0.succeeded());
            if (index + 1) % self.setup.compare_every == 0 {
                identity.become_user(User::Root)?;
                if let found @ Some(_) = self.compare(index, left.base(), right.base()) {
                    return Ok(found);
                }
            }
            index += 1;
        }
        identity.become_user(User::Root)?;
        Ok(None)
    }

    fn compare(&self, index: usize, left: &Path, right: &Path) -> Option<Finding> {
        match shoot_both(self.clock, left, right) {
            Ok((left, right)) => {
                trees(&self.setup.conditions(), Stage::Merged, Some((self.number, index)), &left, &right)
            }
            Err(trouble) => Some(trouble),
        }
    }
}

/// After results that differ and are explained, or names that went: closes the descriptors that would lead the sides apart from now on,
/// because their positions differ, or because only the right side knows their file to be unlinked.
fn close_differing(op: &Op, left: &mut Side, right: &mut Side) {
    if let Op::Seek { slot, .. } = op {
        left.close(*slot);
        right.close(*slot);
    }
    let linked = left.links_of_slots();
    for (slot, links) in right.links_of_slots() {
        let known_to_left = linked.iter().any(|(other, links)| *other == slot && *links == 0);
        if links == 0 && !known_to_left {
            left.close(slot);
            right.close(slot);
        }
    }
}

/// Compares the uppers, then lets each driver mount the other's upper and compares with before.
fn compare_uppers(
    setup: &Setup,
    places: &Places,
    clock: Clock,
    merged: &(Snapshot, Snapshot),
) -> Result<Option<Finding>> {
    let view = View::Upper(setup.features.namespace());
    let left = Snapshot::take(&places.left.upper, view, clock)?;
    let right = Snapshot::take(&places.right.upper, view, clock)?;
    if let found @ Some(_) = trees(&setup.conditions(), Stage::Upper, None, &left, &right) {
        return Ok(found);
    }
    let [left, right] = [&places.left, &places.right].map(|place| place.index(view, clock));
    if let found @ Some(_) = trees(&setup.conditions(), Stage::Index, None, &left?, &right?) {
        return Ok(found);
    }
    for place in [&places.left, &places.right] {
        let leftovers = place.leftovers();
        if !leftovers.is_empty() {
            let what = format!("left over in {}: {leftovers:?}", place.work.display());
            return Ok(Some(Finding::Trouble(what)));
        }
    }
    match compare_remounted(setup, places, clock, merged) {
        Ok(found) => Ok(found),
        Err(cause) => Ok(Some(trouble("mounting again", &cause))),
    }
}

/// Each driver mounts each upper: of one upper both must make the same, and a remount by the same driver must
/// change nothing on the right that it leaves as it is on the left.
fn compare_remounted(
    setup: &Setup,
    places: &Places,
    clock: Clock,
    merged: &(Snapshot, Snapshot),
) -> Result<Option<Finding>> {
    let again = |place: &Place, driver: &Driver| {
        let mounted = place.mount(driver, &places.lowers, &setup.features)?;
        let snapshot = Snapshot::take(mounted.path(), View::Merged, clock)
            .with_context(|| format!("{} as mounted by {driver}", place.upper.display()))?;
        mounted.unmount()?;
        Ok::<_, anyhow::Error>(snapshot)
    };
    let right_by_right = again(&places.right, &setup.right)?;
    let right_by_left = again(&places.right, &setup.left)?;
    if let found @ Some(_) =
        trees(&setup.conditions(), Stage::RightUpperAgain, None, &right_by_left, &right_by_right)
    {
        return Ok(found);
    }
    let left_by_left = again(&places.left, &setup.left)?;
    let left_by_right = again(&places.left, &setup.right)?;
    if let found @ Some(_) =
        trees(&setup.conditions(), Stage::LeftUpperAgain, None, &left_by_left, &left_by_right)
    {
        return Ok(found);
    }
    let expected = remount_changes(&merged.0, &left_by_left);
    let mut changes = remount_changes(&merged.1, &right_by_right);
    changes.retain(|change| {
        !expected.iter().any(|other| (&other.path, other.field) == (&change.path, change.field))
    });
    let differences = {
        let trees = Trees { left: &merged.1, right: &right_by_right };
        known::unexplained(&setup.conditions(), Stage::Remount, &trees, changes)
    };
    Ok((!differences.is_empty()).then_some(Finding::Trees {
        stage: Stage::Remount,
        after: None,
        differences,
    }))
}

fn remount_changes(before: &Snapshot, after: &Snapshot) -> Vec<Difference> {
    let mut changes = compare(before, after);
    changes.extend(moved_inodes(before, after));
    changes
}

fn shoot_both(clock: Clock, left: &Path, right: &Path) -> Result<(Snapshot, Snapshot), Finding> {
    let shoot = |side, path| {
        Snapshot::take(path, View::Merged, clock)
            .map_err(|cause| trouble(&format!("the {side} tree"), &cause))
    };
    Ok((shoot("left", left)?, shoot("right", right)?))
}

fn trees(
    conditions: &Conditions<'_>,
    stage: Stage,
    after: Option<(usize, usize)>,
    left: &Snapshot,
    right: &Snapshot,
) -> Option<Finding> {
    let differences = known::unexplained(conditions, stage, &Trees { left, right }, compare(left, right));
    (!differences.is_empty()).then_some(Finding::Trees { stage, after, differences })
}

fn trouble(what: &str, cause: &anyhow::Error) -> Finding {
    Finding::Trouble(format!("{what}: {cause:#}"))
}
