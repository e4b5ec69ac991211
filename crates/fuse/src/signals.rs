//! The signals that end a session, and the wake-up when it ended by itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals as Received};

/// The signals that ask a session to end.
pub struct Signals {
    received: parking_lot::Mutex<Received>,
    ended: Arc<AtomicBool>,
}

/// Wakes whoever waits for signals.
#[derive(Clone)]
pub struct Waker {
    handle: Handle,
    ended: Arc<AtomicBool>,
}

/// What the waiting ended with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// Somebody asks the session to end.
    Signal,
    /// It ended by itself.
    Ended,
}

impl Signals {
    /// From now on SIGTERM, SIGINT and SIGHUP do not end the process by themselves.
    ///
    /// # Errors
    /// Why handlers cannot be installed.
    pub fn new() -> io::Result<Self> {
        let received = Received::new([SIGTERM, SIGINT, SIGHUP])?;
        Ok(Self { received: parking_lot::Mutex::new(received), ended: Arc::default() })
    }

    /// What wakes [`wait`](Self::wait).
    pub fn waker(&self) -> Waker {
        Waker { handle: self.received.lock().handle(), ended: Arc::clone(&self.ended) }
    }

    /// Waits for a signal or for the waker.
    pub fn wait(&self) -> Woken {
        let mut received = self.received.lock();
        let signal = received.forever().next();
        if signal.is_some() && !self.ended.load(Ordering::Acquire) { Woken::Signal } else { Woken::Ended }
    }
}

impl Waker {
    /// The session ended.
    pub fn wake(&self) {
        self.ended.store(true, Ordering::Release);
        self.handle.close();
    }
}
