//! Deletes what was removed, beside the service.
//!
//! Owns one thread that empties the trash. Whoever removes a snapshot only renames it there and wakes the thread, so a
//! large tree keeps nobody waiting; what a killed process left is deleted after the next start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use plyfs_sys::DirMut;

use crate::error::{Context, Result};
use crate::tree;

/// The thread that empties the trash; dropping it lets it finish the tree in its hands.
#[derive(Debug)]
pub struct Reaper {
    wake: Option<Sender<Wake>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What wakes the thread: there is new trash, and perhaps somebody wants to know when it is gone.
type Wake = Option<SyncSender<()>>;

impl Reaper {
    /// Starts the thread on the directory `trash`.
    pub fn start(trash: &Path) -> Result<Self> {
        let dir = DirMut::open_root(trash).at("open", trash)?;
        let (wake, woken) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker { dir, path: trash.to_owned(), stop: Arc::clone(&stop) };
        let thread =
            Builder::new().name("reaper".into()).spawn(move || worker.run(&woken)).at("start", trash)?;
        Ok(Self { wake: Some(wake), stop, thread: Some(thread) })
    }

    /// Says that there is something in the trash.
    pub fn wake(&self) {
        self.send(None);
    }

    /// Waits until what is in the trash now is gone, or has failed to go.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        self.send(Some(done));
        if wait.recv().is_err() {
            tracing::warn!("the reaper ended: the trash is emptied after the next start");
        }
    }

    fn send(&self, wake: Wake) {
        if self.wake.as_ref().is_none_or(|sender| sender.send(wake).is_err()) {
            tracing::warn!("the reaper ended: the trash is emptied after the next start");
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the reaper panicked");
        }
    }
}

struct Worker {
    dir: DirMut,
    path: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn run(&self, woken: &Receiver<Wake>) {
        while let Ok(first) = woken.recv() {
            let waiting: Vec<_> = std::iter::once(first).chain(woken.try_iter()).flatten().collect();
            self.empty();
            for done in waiting {
                if done.send(()).is_err() {
                    tracing::debug!("nobody waits for the reaper any more");
                }
            }
        }
    }

    fn empty(&self) {
        let names = match tree::names(&self.dir, usize::MAX) {
            Ok(names) => names,
            Err(e) => {
                tracing::warn!("cannot list {}: {e}", self.path.display());
                return;
            }
        };
        for name in names {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if let Err(e) = tree::delete(&self.dir, name.as_name()) {
                let path = self.path.join(name.as_os_str());
                tracing::warn!("cannot delete {}: {e}; tried again later", path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn flushing_waits_until_all_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..50 {
            fs::create_dir_all(dir.path().join(format!("{n}/a/b/c"))).unwrap();
        }
        fs::write(dir.path().join("file"), "").unwrap();
        let reaper = Reaper::start(dir.path()).unwrap();
        reaper.wake();
        reaper.flush();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
