//! Counts the operations of all threads, and tells those beside a copy-up from those without.

use anyhow::Result;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(1);
/// How often the clock is looked at.
const BEAT: Duration = Duration::from_millis(10);
/// A longer gap between two beats is not the work of a file system: the whole machine, or this group of processes,
/// stood still.
const STANDSTILL: Duration = Duration::from_secs(1);

/// What all threads share.
pub struct Meter {
    wanted: u64,
    completed: AtomicU64,
    /// Odd while a file is copied up.
    epoch: AtomicU64,
    started: Instant,
    /// Microseconds that do not count, see [`STANDSTILL`].
    stood_still: AtomicU64,
    copied: AtomicBool,
    /// The threads have ended, or one failed.
    over: AtomicBool,
}

/// The operations of one thread.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// All.
    pub completed: u64,
    /// Begun and ended without a copy-up.
    pub alone: u64,
    /// Begun and ended during one and the same copy-up.
    pub beside: u64,
    /// The longest of those without.
    pub longest_alone: Duration,
    /// The longest of all others.
    pub longest_beside: Duration,
}

impl Meter {
    pub fn new(wanted: u64) -> Self {
        Self {
            wanted,
            completed: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            started: Instant::now(),
            stood_still: AtomicU64::new(0),
            copied: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// Does one operation and counts it.
    pub fn measure(&self, pace: &mut Pace, operation: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.epoch.load(Ordering::SeqCst);
        let started = self.now();
        operation()?;
        let took = self.since(started);
        let same = self.epoch.load(Ordering::SeqCst) == before;
        pace.completed += 1;
        if same && before.is_multiple_of(2) {
            pace.alone += 1;
            pace.longest_alone = pace.longest_alone.max(took);
        } else {
            pace.beside += u64::from(same);
            pace.longest_beside = pace.longest_beside.max(took);
        }
        self.completed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Does what is a copy-up, and tells how long that took.
    pub fn beside<T>(&self, copy_up: impl FnOnce() -> T) -> (T, Duration) {
        let started = self.now();
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let result = copy_up();
        self.epoch.fetch_add(1, Ordering::SeqCst);
        (result, self.since(started))
    }

    /// Looks at the clock until the run is over.
    pub fn beat(&self) {
        let mut last = Instant::now();
        while !self.is_over() {
            thread::sleep(BEAT);
            let gap = last.elapsed();
            last = Instant::now();
            if gap > STANDSTILL {
                let micros = u64::try_from(gap.as_micros()).unwrap_or(u64::MAX);
                self.stood_still.fetch_add(micros, Ordering::SeqCst);
            }
        }
    }

    /// The time since the meter was made, without standstills.
    pub fn now(&self) -> Duration {
        let still = Duration::from_micros(self.stood_still.load(Ordering::SeqCst));
        self.started.elapsed().saturating_sub(still)
    }

    fn since(&self, started: Duration) -> Duration {
        let took = self.now().saturating_sub(started);
        if took < STANDSTILL {
            return took;
        }
        // After a standstill this thread may have woken before the one that notices it.
        let again = Instant::now();
        thread::sleep(BEAT * 5);
        self.now().saturating_sub(started).saturating_sub(again.elapsed())
    }

    /// Waits until so many operations are done; false if the run ended before.
    pub fn wait_for(&self, operations: u64) -> bool {
        while self.completed.load(Ordering::SeqCst) < operations {
            if self.is_over() {
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }

    pub fn copies_are_done(&self) {
        self.copied.store(true, Ordering::SeqCst);
    }

    /// Whether a thread should do one more operation.
    pub fn goes_on(&self) -> bool {
        let enough =
            self.completed.load(Ordering::SeqCst) >= self.wanted && self.copied.load(Ordering::SeqCst);
        !enough && !self.is_over()
    }

    /// Ends what only watches.
    pub fn finish(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Runs a thread's part; if it fails, all others end too.
    pub fn stopping_all_on_failure<T>(&self, part: impl FnOnce() -> Result<T>) -> Result<T> {
        let result = part();
        if result.is_err() {
            self.finish();
        }
        result
    }
}
