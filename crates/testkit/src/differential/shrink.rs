//! Cuts a failing case down to what is needed for it to fail, by replaying parts of it on fresh mounts.

use super::generate::Source;
use super::op::Step;
use super::run::{Finding, Progress, Setup, case};
use anyhow::Result;
use std::path::Path;
use std::time::{Duration, Instant};

/// A case that fails, as small as it was made.
#[derive(Debug, Clone)]
pub struct Minimal {
    /// The setup, with the layers' entries that matter.
    pub setup: Setup,
    /// The steps of each thread.
    pub steps: Vec<Vec<Step>>,
    /// What is found with them.
    pub finding: Finding,
    /// False if the finding did not appear again when everything was replayed.
    pub reproduced: bool,
}

/// Shrinks the case of `finding` for at most `limit`.
pub fn shrink(
    setup: &Setup,
    arena: &Path,
    steps: &[Vec<Step>],
    finding: Finding,
    limit: Duration,
) -> Result<Minimal> {
    let minimal = Minimal { setup: setup.clone(), steps: steps.to_vec(), finding, reproduced: false };
    let mut shrinker = Shrinker { arena, minimal, until: Instant::now() + limit };
    shrinker.cut_after_finding();
    if !shrinker.still_fails(shrinker.minimal.setup.clone(), shrinker.minimal.steps.clone())? {
        return Ok(shrinker.minimal);
    }
    shrinker.minimal.reproduced = true;
    loop {
        let before = shrinker.size();
        shrinker.fewer_steps()?;
        shrinker.fewer_entries()?;
        if shrinker.size() == before || Instant::now() > shrinker.until {
            return Ok(shrinker.minimal);
        }
    }
}

struct Shrinker<'a> {
    arena: &'a Path,
    minimal: Minimal,
    until: Instant,
}

impl Shrinker<'_> {
    fn size(&self) -> usize {
        let entries: usize = self.minimal.setup.layers.iter().map(|layer| layer.entries.len()).sum();
        self.minimal.steps.iter().map(Vec::len).sum::<usize>() + entries
    }

    /// Nothing after the step that failed matters, and often no other thread does.
    fn cut_after_finding(&mut self) {
        let place = match &self.minimal.finding {
            Finding::Results { thread, index, .. } => Some((*thread, *index)),
            Finding::Trees { after, .. } => *after,
            Finding::Trouble(_) => None,
        };
        if let Some((thread, index)) = place
            && let Some(steps) = self.minimal.steps.get_mut(thread)
        {
            steps.truncate(index + 1);
            // The trees are compared at the end anyway.
            self.minimal.setup.compare_every = usize::MAX;
        }
    }

    /// Runs a smaller case; if it fails in the same way, it becomes the minimal one.
    fn still_fails(&mut self, setup: Setup, steps: Vec<Vec<Step>>) -> Result<bool> {
        let layers_changed = setup.layers != self.minimal.setup.layers;
        self.clear_lowers(layers_changed)?;
        let mut sources: Vec<Source<'_>> = steps.iter().map(|steps| Source::Replay(steps.iter())).collect();
        let found = case(&setup, self.arena, &mut sources, &Progress::default());
        let found = match found {
            Ok(found) => found,
            // A layer that cannot be made, say because a hard link's first name was cut away.
            Err(_) if layers_changed => None,
            Err(cause) => return Err(cause),
        };
        let same = found.filter(|found| found.signature() == self.minimal.finding.signature());
        let Some(finding) = same else {
            self.clear_lowers(layers_changed)?;
            return Ok(false);
        };
        self.minimal = Minimal { setup, steps, finding, reproduced: true };
        Ok(true)
    }

    fn clear_lowers(&self, layers_changed: bool) -> Result<()> {
        let lowers = 0..if layers_changed { self.minimal.setup.layers.len() } else { 0 };
        for lower in lowers.map(|n| self.arena.join(format!("lower-{n}"))).filter(|lower| lower.exists()) {
            std::fs::remove_dir_all(lower)?;
        }
        Ok(())
    }

    fn fewer_steps(&mut self) -> Result<()> {
        for thread in 0..self.minimal.steps.len() {
            let length = self.minimal.steps.get(thread).map_or(0, Vec::len);
            self.cut_out(length, |minimal, range| {
                let mut steps = minimal.steps.clone();
                steps.get_mut(thread)?.drain(range);
                Some((minimal.setup.clone(), steps))
            })?;
        }
        Ok(())
    }

    fn fewer_entries(&mut self) -> Result<()> {
        for layer in 0..self.minimal.setup.layers.len() {
            let length = self.minimal.setup.layers.get(layer).map_or(0, |layer| layer.entries.len());
            self.cut_out(length, |minimal, range| {
                let mut setup = minimal.setup.clone();
                setup.layers.get_mut(layer)?.entries.drain(range);
                Some((setup, minimal.steps.clone()))
            })?;
        }
        Ok(())
    }

    /// Leaves out runs of a list of `length`, long ones first, as long as the case still fails.
    fn cut_out(
        &mut self,
        mut length: usize,
        without: impl Fn(&Minimal, std::ops::Range<usize>) -> Option<(Setup, Vec<Vec<Step>>)>,
    ) -> Result<()> {
        let mut run = length.div_ceil(2);
        while run > 0 {
            let mut start = 0;
            while start < length {
                if Instant::now() > self.until {
                    return Ok(());
                }
                let end = (start + run).min(length);
                let smaller = without(&self.minimal, start..end);
                let fails = match smaller {
                    Some((setup, steps)) => self.still_fails(setup, steps)?,
                    None => false,
                };
                if fails {
                    length -= end - start;
                } else {
                    start = end;
                }
            }
            run = if run == 1 { 0 } else { run.div_ceil(2) };
        }
        Ok(())
    }
}
