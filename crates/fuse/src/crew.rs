//! The threads that serve a session: readers, the follower, and the watch.
//!
//! Owns starting, parking and ending them, and carries out what `placement` decides. With a fixed number of threads they
//! all read, and there is neither follower nor watch. What a thread does with a request is `worker`'s.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use plyfs_sys::affinity::{self, Cpus};
use plyfs_sys::alarm::Alarm;
use plyfs_sys::{Errno, creds, device, process};

use crate::channel::Received;
use crate::placement::{MOST_READERS, Mode, Sight, TICK, Watch};
use crate::shadow::Shadow;
use crate::worker::{Desk, Server};

/// The threads of a session.
pub struct Crew {
    shared: Arc<Shared>,
}

/// Why serving ended otherwise than by the end of the connection.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SessionError {
    #[error("a serving thread could not be started: {0}")]
    Thread(#[source] std::io::Error),
    #[error("signals cannot be received: {0}")]
    Signals(#[source] std::io::Error),
    #[error("the connection to the kernel broke: {0}")]
    Connection(#[source] Errno),
    #[error("a serving thread ended by a bug")]
    Bug,
}

struct Shared {
    server: Arc<Server>,
    turn: Turn,
    follower: Seat,
    readers: [Seat; MOST_READERS],
    /// The CPUs that the daemon was started on.
    home: Cpus,
    watch_tid: AtomicI32,
    /// The alarm goes off to be set again, not for a look.
    reset_alarm: AtomicBool,
    alarm: Alarm,
    /// The watch looks again by itself; otherwise the next request sets the alarm.
    watching: AtomicBool,
    /// Threads are watched at all.
    watched: bool,
    joins: Mutex<Vec<JoinHandle<Result<(), Errno>>>>,
}

/// Who may read: a word that threads check before each request, and sleep on.
#[derive(Default)]
struct Turn {
    /// Readers that may read; [`FOLLOW`] for the follower alone, [`CLOSED`] when all is over.
    word: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

const FOLLOW: usize = 0;
const CLOSED: usize = usize::MAX;

/// What a thread shows of itself. Kept on cache lines of its own: it is written at each request.
#[derive(Default)]
#[repr(align(128))]
struct Seat {
    tid: AtomicI32,
    begun: AtomicU64,
    ended: AtomicU64,
    requests: AtomicU64,
    switches: AtomicU64,
    last_client: AtomicU32,
}

impl Crew {
    /// Starts the threads: `fixed` many that all read, or as many as it takes. `ended` is called once when the connection
    /// closes.
    ///
    /// # Errors
    /// [`SessionError::Thread`], [`SessionError::Connection`] for lack of a timer or of CPUs.
    pub fn start(
        server: Arc<Server>,
        fixed: Option<usize>,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Self, SessionError> {
        let shared = Arc::new(Shared {
            server,
            turn: Turn::default(),
            follower: Seat::default(),
            readers: std::array::from_fn(|_| Seat::default()),
            home: affinity::allowed(None).map_err(SessionError::Connection)?,
            watch_tid: AtomicI32::new(0),
            reset_alarm: AtomicBool::new(false),
            alarm: Alarm::new().map_err(SessionError::Connection)?,
            watching: AtomicBool::new(false),
            watched: fixed.is_none(),
            joins: Mutex::default(),
        });
        let crew = Self { shared };
        let notice = OnEnd(Some(ended));
        let readers = fixed.unwrap_or(1).clamp(1, MOST_READERS);
        crew.shared.turn.set(readers);
        crew.shared.start_readers(readers)?;
        if fixed.is_none() {
            let may_follow = affinity::allow_interrupts().is_ok();
            if may_follow {
                crew.shared.spawn("plyfs-follower", |shared| {
                    let followed = shared.follow();
                    // The id may soon be another process's.
                    shared.follower.tid.store(0, Ordering::SeqCst);
                    followed
                })?;
            }
            let mut notice = Some(notice);
            crew.shared.spawn("plyfs-watch", move |shared| {
                let _notice = notice.take();
                shared.watch(may_follow)
            })?;
        } else {
            let mut notice = Some(notice);
            crew.shared.spawn("plyfs-end", move |shared| {
                let _notice = notice.take();
                shared.turn.wait_closed();
                Ok(())
            })?;
        }
        Ok(crew)
    }

    /// Waits until the connection is closed and every thread has ended.
    ///
    /// # Errors
    /// [`SessionError`], the first one.
    pub fn join(&self) -> Result<(), SessionError> {
        let mut result = Ok(());
        // Threads may be started while others are waited for.
        while let Some(thread) = { self.shared.joins.lock().pop() } {
            let ended = match thread.join() {
                Ok(ended) => ended.map_err(SessionError::Connection),
                Err(_) => Err(SessionError::Bug),
            };
            result = result.and(ended);
        }
        result
    }
}

/// Starting and ending.
impl Shared {
    fn start_readers(self: &Arc<Self>, count: usize) -> Result<(), SessionError> {
        for (number, seat) in self.readers.iter().enumerate().take(count) {
            if seat.tid.load(Ordering::Relaxed) == 0 {
                // Marked before it runs, so that it is not started twice.
                seat.tid.store(-1, Ordering::Relaxed);
                self.spawn(&format!("plyfs-reader-{number}"), move |shared| shared.read(number))?;
            }
        }
        Ok(())
    }

    fn spawn(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce(&Arc<Self>) -> Result<(), Errno> + Send + 'static,
    ) -> Result<(), SessionError> {
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Also after a panic nobody must wait for ever.
            let closing = Closing(&shared);
            let result = body(&shared);
            drop(closing);
            result
        });
        self.joins.lock().push(spawned.map_err(SessionError::Thread)?);
        Ok(())
    }

    fn close(&self) {
        self.turn.set(CLOSED);
        if let Err(errno) = self.alarm.set(Duration::ZERO) {
            tracing::error!(%errno, "the watch could not be woken");
        }
    }
}

/// The threads' lives.
impl Shared {
    fn read(self: &Arc<Self>, number: usize) -> Result<(), Errno> {
        let Some(seat) = self.readers.get(number) else { return Err(Errno::INVAL) };
        seat.tid.store(affinity::current_tid(), Ordering::Relaxed);
        prepare_thread();
        let mut desk = self.server.desk();
        while self.turn.wait(|readers| number < readers) {
            match self.server.receive(&mut desk)? {
                Received::Closed => break,
                Received::Interrupted => {}
                Received::Message(length) => self.serve(seat, length, &mut desk)?,
            }
        }
        Ok(())
    }

    fn follow(self: &Arc<Self>) -> Result<(), Errno> {
        let seat = &self.follower;
        seat.tid.store(affinity::current_tid(), Ordering::Relaxed);
        prepare_thread();
        let mut desk = self.server.desk();
        let mut shadow = Shadow::new();
        while self.turn.wait_or(|readers| readers == FOLLOW, || shadow.begin()) {
            if self.turn.is_closed() {
                // Whoever closed may have freed this thread before it chose the idle class, in which it could be starved.
                self.free_follower();
                break;
            }
            match self.server.receive(&mut desk)? {
                Received::Closed => break,
                Received::Interrupted => {}
                Received::Message(length) => {
                    shadow.received();
                    self.serve(seat, length, &mut desk)?;
                    shadow
                        .served(seat.last_client.load(Ordering::Relaxed), |cpu| self.keep_watch_off(cpu))?;
                }
            }
        }
        Ok(())
    }

    /// Whatever is woken on the follower's CPU, and be it for a moment, makes the scheduler send the client elsewhere. The
    /// watch's timer goes off where it was set: the watch sets it anew on a CPU that it may still use.
    fn keep_watch_off(&self, cpu: usize) -> Result<(), Errno> {
        let tid = self.watch_tid.load(Ordering::Relaxed);
        let kept = affinity::restrict(Some(tid), &self.home.without(cpu));
        tracing::trace!(cpu, ?kept, "the follower is to be pinned");
        self.reset_alarm.store(true, Ordering::SeqCst);
        self.alarm.set(Duration::ZERO)
    }

    fn serve(&self, seat: &Seat, length: usize, desk: &mut Desk) -> Result<(), Errno> {
        seat.begin(self.server.client(desk));
        if self.watched
            && !self.watching.load(Ordering::SeqCst)
            && !self.watching.swap(true, Ordering::SeqCst)
        {
            self.alarm.set(TICK)?;
        }
        let done = self.server.handle(length, desk);
        seat.end();
        done
    }

    fn watch(self: &Arc<Self>, may_follow: bool) -> Result<(), Errno> {
        self.watch_tid.store(affinity::current_tid(), Ordering::Relaxed);
        let cpus = self.home.count().max(1);
        let mut watch = Watch::new(cpus, may_follow);
        let mut last = Totals::default();
        let mut pause = TICK;
        loop {
            self.alarm.wait()?;
            let [device] = device::wait([self.server.channel.as_fd()], Some(Duration::ZERO))?;
            if device.closed || self.turn.is_closed() {
                // It too must come to its end, whatever else wants its CPU: also if it is about to begin.
                self.turn.set(CLOSED);
                self.free_follower();
                return Ok(());
            }
            if self.reset_alarm.swap(false, Ordering::SeqCst) {
                self.alarm.set(pause)?;
                continue;
            }
            let (sight, totals) = self.look(&last, device.readable);
            last = totals;
            let before = watch.mode();
            let verdict = watch.tick(&sight);
            if verdict.mode != before {
                self.switch(verdict.mode)?;
            }
            if verdict.free_follower {
                self.free_follower();
            }
            if verdict.recall_follower {
                // A follower that reads on reads too much; serving does not end for it.
                let recalled = self.follower.recall();
                tracing::trace!(?recalled, "the follower");
            }
            pause = verdict.again.unwrap_or(TICK);
            self.look_again(verdict.again)?;
        }
    }

    fn look_again(&self, again: Option<Duration>) -> Result<(), Errno> {
        if again.is_none() {
            self.watching.store(false, Ordering::SeqCst);
            // A request that began before it could see that nobody looks.
            let busy = self.seats().any(Seat::is_busy);
            if !busy || self.watching.swap(true, Ordering::SeqCst) {
                return Ok(());
            }
        }
        self.alarm.set(again.unwrap_or(TICK))
    }

    fn switch(self: &Arc<Self>, mode: Mode) -> Result<(), Errno> {
        tracing::debug!(?mode, "serving");
        match mode {
            Mode::Follow => self.turn.set(FOLLOW),
            Mode::Readers(readers) => {
                if let Err(error) = self.start_readers(readers) {
                    // Fewer threads serve as well, only slower.
                    tracing::warn!(%error, "no further serving thread");
                }
                self.turn.set(readers);
            }
        }
        Ok(())
    }

    /// The follower may be in the middle of a request that is slow, on a CPU that others want.
    fn free_follower(&self) {
        let Some(tid) = self.follower.begun_tid() else { return };
        let freed = affinity::restrict(Some(tid), &self.home);
        let watch_freed = affinity::restrict(None, &self.home);
        // Without the right to leave the class it runs when a CPU is free, as it can choose any now.
        let raised = affinity::set_idle_class(Some(tid), false);
        tracing::trace!(?freed, ?raised, ?watch_freed, "the follower is a normal thread");
    }

    fn look(&self, last: &Totals, waiting: bool) -> (Sight, Totals) {
        let mut totals = Totals::default();
        let mut sight = Sight { waiting, ..Sight::default() };
        for (number, seat) in self.seats().enumerate() {
            let (begun, ended) = (seat.begun.load(Ordering::SeqCst), seat.ended.load(Ordering::SeqCst));
            totals.moves = totals.moves.wrapping_add(begun).wrapping_add(ended);
            totals.requests = totals.requests.wrapping_add(seat.requests.load(Ordering::Relaxed));
            totals.switches = totals.switches.wrapping_add(seat.switches.load(Ordering::Relaxed));
            if begun != ended {
                sight.busy += 1;
                sight.stuck += usize::from(last.begun.get(number) == Some(&begun));
            }
            totals.begun.push(begun);
        }
        sight.moved = totals.moves != last.moves;
        sight.requests = totals.requests.wrapping_sub(last.requests);
        sight.switches = totals.switches.wrapping_sub(last.switches);
        (sight, totals)
    }

    fn seats(&self) -> impl Iterator<Item = &Seat> {
        std::iter::once(&self.follower).chain(&self.readers)
    }
}

/// Sums over the seats at the last look.
#[derive(Default)]
struct Totals {
    moves: u64,
    requests: u64,
    switches: u64,
    begun: Vec<u64>,
}

impl Turn {
    fn set(&self, word: usize) {
        let _locked = self.lock.lock();
        // Closed is for ever.
        if self.word.load(Ordering::SeqCst) != CLOSED {
            self.word.store(word, Ordering::SeqCst);
        }
        self.changed.notify_all();
    }

    /// Waits until `mine` holds of the word; `false` when all is over.
    fn wait(&self, mine: impl Fn(usize) -> bool) -> bool {
        self.wait_or(mine, || ())
    }

    /// As [`wait`](Self::wait); `waited` is called after a wait.
    fn wait_or(&self, mine: impl Fn(usize) -> bool, waited: impl FnOnce()) -> bool {
        let word = self.word.load(Ordering::SeqCst);
        if word != CLOSED && mine(word) {
            return true;
        }
        let mut locked = self.lock.lock();
        loop {
            let word = self.word.load(Ordering::SeqCst);
            if word == CLOSED {
                return false;
            }
            if mine(word) {
                drop(locked);
                waited();
                return true;
            }
            self.changed.wait(&mut locked);
        }
    }

    fn is_closed(&self) -> bool {
        self.word.load(Ordering::SeqCst) == CLOSED
    }

    fn wait_closed(&self) {
        self.wait(|_| false);
    }
}

impl Seat {
    /// The id of its thread; `None` before that runs.
    fn begun_tid(&self) -> Option<i32> {
        let tid = self.tid.load(Ordering::SeqCst);
        (tid > 0).then_some(tid)
    }

    /// Gets its thread out of a wait for requests. One that does not run yet will look at the turn itself, and one that
    /// has ended waits for nothing.
    fn recall(&self) -> Result<(), Errno> {
        match self.begun_tid().map_or(Ok(()), affinity::interrupt) {
            Err(Errno::SRCH) => Ok(()),
            other => other,
        }
    }

    fn begin(&self, client: u32) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        // Releases and the like come from nobody.
        if client == 0 {
            return;
        }
        let last = self.last_client.swap(client, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        if last != client && last != 0 {
            self.switches.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn end(&self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    fn is_busy(&self) -> bool {
        self.begun.load(Ordering::SeqCst) != self.ended.load(Ordering::SeqCst)
    }
}

/// Ends the crew when a thread ends, also by a panic.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Tells once that all is over.
struct OnEnd<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnEnd<F> {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell();
        }
    }
}

fn prepare_thread() {
    let prepared = creds::prepare_thread();
    tracing::debug!(?prepared, "serving thread");
    if let Err(errno) = process::mark_io_flusher()
        && errno != Errno::PERM
    {
        tracing::debug!(%errno, "memory may be reclaimed through this thread");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_run_yet_or_any_more_is_recalled_without_failing() {
        let seat = Seat::default();
        assert_eq!(seat.recall(), Ok(()), "no thread");
        seat.tid.store(-1, Ordering::SeqCst);
        assert_eq!(seat.recall(), Ok(()), "it is being started");
        let tid = thread::spawn(affinity::current_tid).join().expect("thread");
        seat.tid.store(tid, Ordering::SeqCst);
        while affinity::interrupt(tid).is_ok() {
            // The kernel lets go of the id a moment after the thread was joined.
            thread::yield_now();
        }
        assert_eq!(seat.recall(), Ok(()), "it has ended");
    }
}
