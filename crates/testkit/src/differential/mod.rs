//! The differential test: the same random operations on two mounted unions, which must not differ.
//!
//! [`rounds`] runs until enough operations were survived or enough failures found. Each round has layers and
//! steps of its own, made from a seed; a failing one is shrunk and reported with what is needed to see it again.
//!
//! The two sides share their lower layers, so a side that writes into one is found by the comparison of the
//! lowers with before, and not by the comparison of the sides.

pub mod apart;
pub mod apply;
pub mod config;
pub mod data;
pub mod enter;
pub mod generate;
pub mod layers;
pub mod listing;
pub mod op;
pub mod outcome;
pub mod run;
pub mod shrink;

pub use config::Config;
pub use enter::survives;

use crate::backing::Backing;
use crate::features::Features;
use crate::identity::users_are_mapped;
use anyhow::Result;
use fastrand::Rng;
use generate::{Generator, Source};
use op::Step;
use run::{Progress, Setup};
use shrink::Minimal;
use std::fmt::{Display, Formatter};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How many steps of a thread are printed at most.
const LAST_STEPS: usize = 400;

/// How much to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed of the first round; each further round takes the next number.
    pub seed: u64,
    /// Stop after this many operations on each side.
    pub operations: u64,
    /// Stop after this many failures.
    pub failures: usize,
    /// How many operations a round has, of all its threads.
    pub round: usize,
    /// How long to shrink a failure.
    pub shrink: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self { seed: 1, operations: 10_000, failures: 1, round: 1000, shrink: Duration::from_secs(60) }
    }
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Report {
    /// Operations applied to each side (those of shrinking do not count).
    pub operations: u64,
    /// With how many combinations of features.
    pub combinations: usize,
    /// How long they took, with mounting, comparing and all.
    pub elapsed: Duration,
    /// The failures, shrunk, with their seeds.
    pub failures: Vec<(u64, Minimal)>,
}

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "a rate to be read by people")]
        let rate = self.operations as f64 / self.elapsed.as_secs_f64().max(0.001);
        let seconds = self.elapsed.as_secs();
        write!(out, "{} operations in {seconds} s ({rate:.0}/s), ", self.operations)?;
        if self.combinations > 1 {
            write!(out, "{} combinations of features, ", self.combinations)?;
        }
        write!(out, "{} failures", self.failures.len())
    }
}

/// Runs rounds of `config` on a file system mounted at `place`, and prints each failure as it is found.
pub fn rounds(config: &Config, plan: &Plan, place: &Path) -> Result<Report> {
    let progress = Progress::default();
    let started = Instant::now();
    let mut report = Report::default();
    let mut seed = plan.seed;
    let all = config.features(place)?;
    std::thread::scope(|scope| {
        let alive = watch_for_hangs(scope, &progress);
        while progress.steps.load(Ordering::Relaxed) < plan.operations
            && report.failures.len() < plan.failures
        {
            if alive.send(seed).is_err() {
                break;
            }
            let features = of_round(&all, seed);
            if let Some(minimal) = round(config, plan, &features, place, seed, &progress)? {
                eprintln!("{}", describe(config, seed, &minimal));
                report.failures.push((seed, minimal));
            }
            seed += 1;
        }
        anyhow::Ok(())
    })?;
    report.combinations = all.len().min(usize::try_from(seed - plan.seed)?);
    report.operations = progress.steps.load(Ordering::Relaxed);
    report.elapsed = started.elapsed();
    Ok(report)
}

/// Makes the backing that `config` asks for, and runs `plan` on it.
pub fn on_own_backing(config: &Config, plan: &Plan) -> Result<Report> {
    let backing = Backing::new(config.backing)?;
    rounds(config, plan, backing.path())
}

/// Each round has the next combination, which follows from its seed alone.
fn of_round(all: &[Features], seed: u64) -> Features {
    let number = usize::try_from(seed).unwrap_or(0) % all.len().max(1);
    all.get(number).cloned().unwrap_or_default()
}

fn round(
    config: &Config,
    plan: &Plan,
    features: &Features,
    place: &Path,
    seed: u64,
    progress: &Progress,
) -> Result<Option<Minimal>> {
    let arena = tempfile::Builder::new().prefix("round-").tempdir_in(place)?;
    let mut rng = Rng::with_seed(seed);
    let bounds = generate::Bounds { users: users_are_mapped(), may_climb: config.threads == 1 };
    let setup = setup(config, features, &mut rng);
    let each = plan.round / config.threads.max(1);
    let mut sources: Vec<Source<'_>> = setup
        .bases
        .iter()
        .map(|base| {
            let paths = layers::paths_below(&setup.layers, base);
            Source::Random(Box::new(Generator::new(rng.fork(), bounds, paths, each)))
        })
        .collect();
    // Others must be able to come as far as the mount point.
    std::fs::set_permissions(arena.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let Some(finding) = run::case(&setup, arena.path(), &mut sources, progress)? else { return Ok(None) };
    let steps: Vec<Vec<Step>> = sources.into_iter().map(Source::into_steps).collect();
    shrink::shrink(&setup, arena.path(), &steps, finding, plan.shrink).map(Some)
}

fn setup(config: &Config, features: &Features, rng: &mut Rng) -> Setup {
    // One thread has the whole mount; several have a directory each.
    let bases: Vec<String> = match config.threads {
        0 | 1 => vec![String::new()],
        threads => (0..threads).map(|thread| format!("t{thread}")).collect(),
    };
    Setup {
        left: config.left.clone(),
        right: config.right.clone(),
        layers: layers::random(rng, config.lowers, &bases, features, config.space()),
        features: features.clone(),
        space: config.space(),
        bases,
        inodes_identify: config.backing.never_reuses_inodes(),
        compare_every: 250,
    }
}

/// Everything that a person needs to see a failure again.
pub fn describe(config: &Config, seed: u64, minimal: &Minimal) -> String {
    let mut lines = vec![format!("== {config}, seed {seed}: left {}, right {}", config.left, config.right)];
    lines.push(format!("   mounted with {}", minimal.setup.features));
    if !minimal.reproduced {
        lines.push("   (did not appear again on replay; this is the whole sequence)".to_owned());
    }
    for (number, layer) in minimal.setup.layers.iter().enumerate() {
        let entries = layer.entries.iter();
        lines.extend(entries.map(|entry| format!("   lower {number}: {}", layers::describe(entry))));
    }
    for (thread, steps) in minimal.steps.iter().enumerate() {
        let from = steps.len().saturating_sub(LAST_STEPS);
        let shown = steps.iter().enumerate().skip(from);
        lines.extend(shown.map(|(index, step)| format!("   {thread}.{index} {step:?}")));
    }
    lines.push(format!("-> {}", minimal.finding));
    lines.join("\n")
}

/// Ends the process if no step is done for a long time: a system call that never returns cannot be left.
fn watch_for_hangs<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    progress: &'scope Progress,
) -> Sender<u64> {
    // Counted in beats of this thread, not by the clock: the machine, or this group of processes, may stand still.
    const PATIENCE: u32 = 120;
    let (alive, heard) = channel();
    scope.spawn(move || {
        let mut seed = 0;
        let mut last = (0, 0);
        loop {
            match heard.recv_timeout(Duration::from_secs(1)) {
                Ok(next) => {
                    seed = next;
                    last.1 = 0;
                }
                Err(RecvTimeoutError::Timeout) => last.1 += 1,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let steps = progress.steps.load(Ordering::Relaxed);
            if steps != last.0 {
                last = (steps, 0);
            } else if last.1 > PATIENCE {
                eprintln!("seed {seed}: nothing happened for {PATIENCE} s; giving up");
                std::process::exit(3);
            }
        }
    });
    alive
}
