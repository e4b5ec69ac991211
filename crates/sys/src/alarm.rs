//! A one-shot alarm that one thread waits for and any thread sets: setting it wakes nobody and costs one cheap call.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::{Errno, Result, raw};

/// The alarm (timerfd_create(2)).
#[derive(Debug)]
pub struct Alarm(OwnedFd);

impl Alarm {
    /// An alarm that is not set.
    pub fn new() -> Result<Self> {
        rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).map(Self)
    }

    /// Sets it to go off once after `delay`, in place of when it was set to before (timerfd_settime(2)).
    pub fn set(&self, delay: Duration) -> Result<()> {
        // Zero would switch it off.
        let delay = delay.max(Duration::from_nanos(1));
        let value = Timespec::try_from(delay).map_err(|_| Errno::INVAL)?;
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).map(drop)
    }

    /// Waits until it goes off (read(2)).
    pub fn wait(&self) -> Result<()> {
        let mut count = [0_u8; 8];
        raw::retry(|| rustix::io::read(&self.0, &mut count)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_goes_off_after_the_delay_that_was_set_last() {
        let alarm = Alarm::new().expect("timerfd");
        alarm.set(Duration::from_secs(3600)).expect("set");
        let start = Instant::now();
        alarm.set(Duration::from_millis(20)).expect("set");
        alarm.wait().expect("wait");
        assert!(start.elapsed() >= Duration::from_millis(20));
        alarm.set(Duration::ZERO).expect("set");
        alarm.wait().expect("wait");
    }
}
