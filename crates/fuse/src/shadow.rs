//! Where the follower runs: the class and the CPU of its thread.
//!
//! Owns carrying out what [`Pace`] decides; when there is a follower at all is `placement`'s.

use std::time::Instant;

use plyfs_sys::Errno;
use plyfs_sys::affinity::{self, Cpus, TaskCpu};

use crate::placement::Pace;

/// The follower's place: always the CPU of its client, as far as it can be known.
pub struct Shadow {
    pace: Pace,
    idle_since: Instant,
    client: Option<(u32, TaskCpu)>,
    pinned: Option<usize>,
}

impl Shadow {
    /// Nobody was followed yet.
    pub fn new() -> Self {
        Self { pace: Pace::default(), idle_since: Instant::now(), client: None, pinned: None }
    }

    /// A burst begins: into the idle class, on whatever CPU.
    pub fn begin(&mut self) {
        self.pace.begin();
        self.pinned = None;
        self.idle_since = Instant::now();
        if let Err(errno) = affinity::set_idle_class(None, true) {
            tracing::debug!(%errno, "no idle class");
        }
    }

    /// A request came.
    pub fn received(&mut self) {
        self.pace.received(self.idle_since.elapsed());
    }

    /// It was served, and this was the last known client. Moves to the client's CPU if it is time to look for it;
    /// `moving` is told before.
    pub fn served(
        &mut self,
        client: u32,
        moving: impl FnOnce(usize) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if self.pace.due()
            && let Some(cpu) = self.look(client)
            && self.pinned != Some(cpu)
        {
            moving(cpu)?;
            let pinned = Cpus::one(cpu).and_then(|one| affinity::restrict(None, &one));
            self.pinned = pinned.is_ok().then_some(cpu);
        }
        self.idle_since = Instant::now();
        Ok(())
    }

    fn look(&mut self, client: u32) -> Option<usize> {
        if self.client.as_ref().is_none_or(|(known, _)| *known != client) {
            self.client = TaskCpu::open(client).ok().map(|task| (client, task));
        }
        let cpu = self.client.as_ref().and_then(|(_, task)| task.cpu().ok());
        if cpu.is_none() {
            self.client = None;
        }
        cpu
    }
}
