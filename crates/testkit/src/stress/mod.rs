//! Many threads change one mount, another walks it, and large files are copied up meanwhile.
//!
//! Owns the course of such a run and what it must hold: no operation fails, the tree in the end is what the threads
//! made of it, also after a remount, a name that stays is in every listing, and a copy-up keeps nobody waiting. The
//! last is a comparison of the threads' own pace beside a copy-up and without one: no time is asserted.
//!
//! - `ground` builds the layers and compares the tree with the threads' models.
//! - `actor` is one thread and the names that it owns; `walker` the one that only looks.
//! - `mix` lets threads change one tree in several goes, with remounts and other options between them.
//! - `meter` counts operations beside and outside of copy-ups.

mod actor;
mod ground;
mod meter;
mod mix;
mod walker;

pub use meter::Pace;
pub use mix::Mix;

use crate::mount::Driver;
use anyhow::{Context, Result, bail};
use ground::Ground;
use meter::Meter;
use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Creates, renames and deletes of all threads together, at least; they go on until the copy-ups are done.
    pub operations: u64,
    /// Threads that change the tree.
    pub threads: usize,
    /// Files that are copied up by opening them for writing, one after the other.
    pub copies: usize,
    /// Bytes of each of those files.
    pub size: u64,
    /// Seed of all choices.
    pub seed: u64,
}

/// What was found, of a run in which nothing failed.
#[derive(Debug, Clone)]
pub struct Report {
    /// Operations completed.
    pub operations: u64,
    /// From the first operation to the last; all times without those at which the machine stood still.
    pub took: Duration,
    /// Each thread's pace.
    pub paces: Vec<Pace>,
    /// How long each copy-up took.
    pub copies: Vec<Duration>,
    /// Times the walker saw the whole tree.
    pub walks: u64,
    /// Entries of the tree in the end.
    pub entries: usize,
}

impl Report {
    /// The pace of all threads together: operations a second, without and beside a copy-up.
    pub fn rates(&self) -> (f64, f64) {
        let beside: f64 = self.copies.iter().map(Duration::as_secs_f64).sum();
        let alone = self.took.as_secs_f64() - beside;
        let count = |of: fn(&Pace) -> u64| self.paces.iter().map(of).sum::<u64>() as f64;
        (count(|pace| pace.alone) / alone, count(|pace| pace.beside) / beside)
    }

    /// The longest time that one operation took: without a copy-up, and with one in its way.
    pub fn longest(&self) -> (Duration, Duration) {
        let longest = |of: fn(&Pace) -> Duration| self.paces.iter().map(of).max().unwrap_or_default();
        (longest(|pace| pace.longest_alone), longest(|pace| pace.longest_beside))
    }

    /// An error if a copy-up left the threads together less than `least` (a fraction) of their pace, or stopped one
    /// of them altogether. Operations that a copy-up made wait would not have begun and ended beside it.
    pub fn nobody_waited(&self, least: f64) -> Result<()> {
        let (alone, beside) = self.rates();
        if beside < alone * least {
            bail!(
                "{beside:.0} operations a second beside a copy-up, {alone:.0} without: less than {least} of it"
            );
        }
        match self.paces.iter().position(|pace| pace.beside == 0) {
            Some(thread) => bail!("thread {thread} completed nothing beside a copy-up"),
            None => Ok(()),
        }
    }
}

/// Runs `plan` on layers of its own below `place`, mounted by `driver`; an error names the first thing that was wrong.
pub fn run(driver: &Driver, place: &Path, plan: &Plan) -> Result<Report> {
    // The kernel renames the directories of a lower only when told to.
    let mut ground = Ground::new(driver, place, plan, &["redirect_dir=on"], &[])?;
    let meter = Meter::new(plan.operations);
    let root = ground.merged().to_owned();
    let (actors, walks, copies, took) = thread::scope(|scope| {
        scope.spawn(|| meter.beat());
        let actors: Vec<_> = (0..plan.threads)
            .map(|number| actor::Actor::new(&root, number, plan.seed))
            .map(|mut actor| {
                let mut act = move |meter: &Meter| actor.act(meter).map(|pace| (actor.model().clone(), pace));
                let meter = &meter;
                scope.spawn(move || meter.stopping_all_on_failure(move || act(meter)))
            })
            .collect();
        let walker = scope.spawn(|| meter.stopping_all_on_failure(|| walker::walk(&root, &meter)));
        let copies = meter.stopping_all_on_failure(|| copy_up(&root, plan, &meter));
        let actors: Vec<_> = actors.into_iter().map(|thread| joined(thread.join())).collect();
        let took = meter.now();
        meter.finish();
        (actors.into_iter().collect::<Result<Vec<_>>>(), joined(walker.join()), copies, took)
    });
    let (actors, walks, copies) = (actors?, walks?, copies?);
    let models = actors.iter().map(|(model, _)| model);
    let entries = ground.check(models.clone()).context("the tree in the end")?;
    ground.remount()?;
    ground.check(models).context("the tree after a remount")?;
    let paces: Vec<_> = actors.iter().map(|(_, pace)| pace.clone()).collect();
    let operations = paces.iter().map(|pace| pace.completed).sum();
    Ok(Report { operations, took, paces, copies, walks, entries })
}

fn joined<T>(result: thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|_| bail!("a thread of the test panicked"))
}

/// Opens the large files for writing, each after the threads had the tree for themselves for a while.
fn copy_up(root: &Path, plan: &Plan, meter: &Meter) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    for number in 0..plan.copies {
        let share = plan.operations * (number as u64 + 1) / (plan.copies as u64 + 1);
        if !meter.wait_for(share) {
            break;
        }
        let path = root.join(ground::large(number));
        let (opened, time) = meter.beside(|| File::options().read(true).write(true).open(&path));
        took.push(time);
        opened.with_context(|| format!("opening {} for writing", path.display()))?;
    }
    meter.copies_are_done();
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(alone: u64, beside: &[u64]) -> Report {
        let pace = |beside: &u64| Pace { alone, beside: *beside, ..Pace::default() };
        Report {
            operations: 0,
            took: Duration::from_secs(2),
            paces: beside.iter().map(pace).collect(),
            copies: vec![Duration::from_secs(1)],
            walks: 1,
            entries: 0,
        }
    }

    #[test]
    fn a_pace_that_a_copy_up_broke_is_noticed() {
        report(100, &[50, 50]).nobody_waited(0.5).unwrap();
        report(100, &[50, 49]).nobody_waited(0.5).unwrap_err();
        report(100, &[200, 0]).nobody_waited(0.5).unwrap_err();
    }
}
