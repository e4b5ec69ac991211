//! One tree that threads change in several goes; between them it is mounted again, by another driver or with other options.
//!
//! Owns the threads' models from one go to the next. What happens beside them in the mount is the caller's affair.

use super::actor::Actor;
use super::ground::Ground;
use super::meter::Meter;
use super::{Plan, joined, walker};
use crate::features::{self, Features};
use crate::mount::Driver;
use crate::snapshot::{Clock, Snapshot};
use anyhow::{Context, Result};
use std::path::Path;
use std::thread;

/// A mounted union and the threads that change it.
pub struct Mix {
    ground: Ground,
    actors: Vec<Actor>,
}

impl Mix {
    /// Makes the layers below `place`, with these `files` in a lower one, and mounts them.
    pub fn new(
        driver: &Driver,
        place: &Path,
        plan: &Plan,
        features: &Features,
        files: &[(&str, Vec<u8>)],
    ) -> Result<Self> {
        let options: Vec<&str> = features.options().iter().map(String::as_str).collect();
        let mut ground = Ground::new(driver, place, plan, &options, files)?;
        let root = ground.union().merged().to_owned();
        let redirects = features.has("redirect_dir=on");
        let actor = |number| Actor::new(&root, number, plan.seed).rewriting(redirects);
        Ok(Self { actors: (0..plan.threads).map(actor).collect(), ground })
    }

    /// Lets all threads do `operations` together, one walk meanwhile, and `beside` work in the mount; then compares the tree
    /// with the threads' models. Returns how many operations it were.
    ///
    /// # Errors
    /// The first thing that was wrong, of the threads before that of `beside`.
    pub fn go(&mut self, operations: u64, beside: impl FnOnce(&Path) -> Result<()>) -> Result<u64> {
        let meter = Meter::new(operations);
        meter.copies_are_done();
        let root = self.ground.merged().to_owned();
        let (paces, walked, beside) = thread::scope(|scope| {
            let act = |actor: &mut Actor| meter.stopping_all_on_failure(|| actor.act(&meter));
            let acting: Vec<_> =
                self.actors.iter_mut().map(|actor| scope.spawn(move || act(actor))).collect();
            let walker = scope.spawn(|| meter.stopping_all_on_failure(|| walker::walk(&root, &meter)));
            let beside = beside(&root);
            let paces: Result<Vec<_>> = acting.into_iter().map(|thread| joined(thread.join())).collect();
            meter.finish();
            (paces, joined(walker.join()), beside)
        });
        let paces = paces?;
        walked?;
        beside?;
        self.check()?;
        Ok(paces.iter().map(|pace| pace.completed).sum())
    }

    /// Compares the tree with the threads' models.
    pub fn check(&self) -> Result<()> {
        self.ground.check(self.actors.iter().map(Actor::model)).map(|_| ())
    }

    /// Unmounts and mounts again, by another driver and with other options.
    pub fn remount(&mut self, driver: &Driver, features: &Features) -> Result<()> {
        let union = self.ground.union();
        union.unmount()?;
        features::forgive(&union.work())?;
        union.set_options(features.options());
        union.remount_with(driver).with_context(|| format!("mounting again with {features}"))
    }

    /// The tree as it is now.
    pub fn snapshot(&mut self, clock: Clock) -> Result<Snapshot> {
        self.ground.union().snapshot(clock)
    }

    /// The mount point.
    pub fn root(&self) -> &Path {
        self.ground.merged()
    }

    /// Unmounts for good.
    ///
    /// # Errors
    /// If the mount is in use, or its daemon did not end.
    pub fn end(mut self) -> Result<()> {
        self.ground.union().unmount()
    }
}
