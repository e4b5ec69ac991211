//! How long work tells its caller how far it is. Owns the two traits; the command line draws the bars.

use std::io::{self, Read};

/// Something that shows progress.
pub trait Progress: Send + Sync {
    /// A piece of work begins; `total` in bytes, where known.
    fn task(&self, what: &str, total: Option<u64>) -> Box<dyn Task>;
}

/// One piece of work; it ends when dropped.
pub trait Task: Send + Sync {
    /// `n` more bytes are done.
    fn add(&self, n: u64);
}

/// Shows nothing.
pub struct Silent;

impl Progress for Silent {
    fn task(&self, _what: &str, _total: Option<u64>) -> Box<dyn Task> {
        Box::new(Silent)
    }
}

impl Task for Silent {
    fn add(&self, _n: u64) {}
}

/// Counts what is read into a task.
pub(crate) struct Counted<'a, R> {
    pub inner: R,
    pub task: &'a dyn Task,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.task.add(n as u64);
        Ok(n)
    }
}
