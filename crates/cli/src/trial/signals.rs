//! Signals on their way to the command.
//!
//! The terminal sends an interrupt to all processes of the foreground, the command among them: those signals are the
//! command's to answer, and nobody else acts on them. What a process sends to one of plyfs's own is passed on.

use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin};

use crate::failure::{Context, Outcome};

/// How long a command may take to end after it was asked to.
const PATIENCE: Duration = Duration::from_secs(5);

/// Signals that are caught from now on, and wait until it is known whom they are for.
#[derive(Debug)]
pub struct Caught {
    signals: SignalsInfo<WithOrigin>,
}

/// Passing on; it ends when this is dropped.
#[derive(Debug)]
pub struct Forwarding {
    handle: signal_hook::iterator::Handle,
    child: Sender<u32>,
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.handle.close();
    }
}

/// What is done for a child that was asked to end and does not, and who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Wait,
    /// Nothing; and an interrupt is for all processes of the PID namespace, whose first this is.
    TellAll,
    /// It is killed after some seconds.
    Kill,
}

impl Caught {
    /// Catches the signals that ask a process to end.
    pub fn new() -> Outcome<Self> {
        let signals = SignalsInfo::<WithOrigin>::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP]);
        Ok(Self { signals: signals.context(|| "cannot handle signals")? })
    }

    /// Starts the thread that will pass them on, as soon as it is told to whom.
    pub fn forward(mut self, then: Then) -> Outcome<Forwarding> {
        let handle = self.signals.handle();
        let (child, told) = mpsc::channel();
        let body = move || {
            let Ok(child) = told.recv() else { return };
            let child = i32::try_from(child).ok().and_then(Pid::from_raw);
            for origin in &mut self.signals {
                pass(&origin, child, then);
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(body).context(|| "cannot handle signals")?;
        Ok(Forwarding { handle, child })
    }
}

impl Forwarding {
    /// Names the child. What was caught before is passed on as well.
    pub fn to(&self, child: u32) -> Outcome<()> {
        self.child.send(child).context(|| "cannot handle signals")
    }
}

fn pass(origin: &Origin, child: Option<Pid>, then: Then) {
    let from_terminal = matches!(origin.cause, Cause::Kernel) && matches!(origin.signal, SIGINT | SIGQUIT);
    let (Some(child), Some(signal)) = (child, Signal::from_named_raw(origin.signal)) else {
        return;
    };
    if from_terminal {
        return;
    }
    if then == Then::TellAll && matches!(origin.signal, SIGINT | SIGQUIT) {
        // As the terminal would: a shell waits for its children when it is interrupted, so they must be as well.
        tell_all(signal);
    } else {
        send(child, signal);
    }
    if then == Then::Kill && matches!(origin.signal, SIGTERM | SIGHUP) {
        thread::spawn(move || {
            thread::sleep(PATIENCE);
            send(child, Signal::KILL);
        });
    }
}

/// Sends a signal to every process of the PID namespace but its first, which this is: kill(2) with -1.
fn tell_all(signal: Signal) {
    if let Err(error) = rustix::process::kill_process_group(Pid::INIT, signal) {
        tracing::debug!("signal to all: {error}");
    }
}

fn send(child: Pid, signal: Signal) {
    if let Err(error) = rustix::process::kill_process(child, signal) {
        tracing::debug!("signal to {child:?}: {error}");
    }
}
