//! On which CPU threads run: a FUSE server that answers on its client's CPU saves the cost of waking another one.
//!
//! Which thread goes where is decided by the transport; here are the system calls.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use rustix::thread::CpuSet;

use crate::{Errno, Result, raw};

/// The CPUs that a thread may run on.
#[derive(Clone, Copy, Debug)]
pub struct Cpus(CpuSet);

impl Cpus {
    /// One CPU; `EINVAL` if the number is beyond what the kernel can name.
    pub fn one(cpu: usize) -> Result<Self> {
        let mut set = CpuSet::new();
        if cpu >= CpuSet::MAX_CPU {
            return Err(Errno::INVAL);
        }
        set.set(cpu);
        Ok(Self(set))
    }

    /// These without one, unless no other is left.
    #[must_use]
    pub fn without(&self, cpu: usize) -> Self {
        let mut set = self.0;
        if cpu < CpuSet::MAX_CPU {
            set.unset(cpu);
        }
        if set.count() == 0 { *self } else { Self(set) }
    }

    /// The numbers of the CPUs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..CpuSet::MAX_CPU).filter(|&cpu| self.0.is_set(cpu))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.count() as usize
    }
}

/// The CPUs that a thread, by default the calling one, may run on (sched_getaffinity(2)).
pub fn allowed(tid: Option<i32>) -> Result<Cpus> {
    rustix::thread::sched_getaffinity(pid(tid)?).map(Cpus)
}

/// Restricts a thread, by default the calling one, to some CPUs (sched_setaffinity(2)). `EINVAL` if it may use none of
/// them.
pub fn restrict(tid: Option<i32>, cpus: &Cpus) -> Result<()> {
    rustix::thread::sched_setaffinity(pid(tid)?, &cpus.0)
}

/// Restricts the calling thread to one CPU, and returns what it was allowed before, for [`restrict`] to restore.
pub fn pin(cpu: usize) -> Result<Cpus> {
    let before = allowed(None)?;
    restrict(None, &Cpus::one(cpu)?)?;
    Ok(before)
}

/// The CPU that the calling thread runs on (getcpu(2)).
#[must_use]
pub fn current_cpu() -> usize {
    rustix::thread::sched_getcpu()
}

/// The calling thread's id (gettid(2)).
#[must_use]
pub fn current_tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Puts a thread, by default the calling one, into the scheduling class `SCHED_IDLE` (sched(7)), in which it runs when
/// nothing else wants its CPU, or back into the normal one. Going back needs CAP_SYS_NICE or RLIMIT_NICE (`EPERM`).
pub fn set_idle_class(tid: Option<i32>, idle: bool) -> Result<()> {
    let policy = if idle { libc::SCHED_IDLE } else { libc::SCHED_OTHER };
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: `parameter` is a valid structure, which the call reads.
    raw::check_int(unsafe { libc::sched_setscheduler(tid.unwrap_or(0), policy, &raw const parameter) })
        .map(drop)
}

/// The signal of [`interrupt`]: without a handler it is ignored.
const INTERRUPT: libc::c_int = libc::SIGURG;

/// Makes [`interrupt`] end blocking calls, for the whole process: SIGURG gets a handler that does nothing, without
/// `SA_RESTART` (sigaction(2)).
pub fn allow_interrupts() -> Result<()> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    // SAFETY: an all-zero `sigaction` is valid; the handler touches nothing, and so is safe at any moment.
    raw::check_int(unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigaction(INTERRUPT, &raw const action, std::ptr::null_mut())
    })
    .map(drop)
}

/// Lets a blocking call of a thread of this process end with `EINTR` (tgkill(2)), after [`allow_interrupts`]. A call that is
/// about to begin is missed.
pub fn interrupt(tid: i32) -> Result<()> {
    // SAFETY: sends a signal whose handler does nothing to a thread of this process.
    raw::check(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, INTERRUPT) }).map(drop)
}

/// Another task, watched for the CPU it runs on.
#[derive(Debug)]
pub struct TaskCpu(OwnedFd);

impl TaskCpu {
    /// Opens `/proc/TID/stat`; a thread's id serves as well as a process's (proc_pid_stat(5)).
    pub fn open(tid: u32) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(format!("/proc/{tid}/stat"), flags, Mode::empty()).map(Self)
    }

    /// The CPU the task ran on last. `ESRCH` when it is gone.
    pub fn cpu(&self) -> Result<usize> {
        let mut buffer = [0_u8; 1024];
        let count = rustix::io::pread(&self.0, &mut buffer, 0)?;
        buffer.get(..count).and_then(parse_processor).ok_or(Errno::IO)
    }
}

/// Field 39, `processor`. The second field is the program's name in parentheses and may hold anything, so the fields are
/// counted behind the last parenthesis.
fn parse_processor(stat: &[u8]) -> Option<usize> {
    let end_of_name = stat.iter().rposition(|&byte| byte == b')')?;
    let mut fields =
        stat.get(end_of_name + 1..)?.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    std::str::from_utf8(fields.nth(39 - 3)?).ok()?.parse().ok()
}

fn pid(tid: Option<i32>) -> Result<Option<Pid>> {
    tid.map(|tid| Pid::from_raw(tid).ok_or(Errno::SRCH)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_found_behind_a_hostile_program_name() {
        let mut line = b"12 (a) b) S".to_vec();
        for field in 4..=52 {
            line.extend_from_slice(format!(" {}", if field == 39 { 7 } else { 100 + field }).as_bytes());
        }
        assert_eq!(parse_processor(&line), Some(7));
        assert_eq!(parse_processor(b"12 (a) S 1 2"), None);
        assert_eq!(parse_processor(b""), None);
    }

    #[test]
    fn an_interrupted_thread_leaves_its_blocking_call() {
        allow_interrupts().expect("sigaction");
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        let (tell, told) = std::sync::mpsc::channel();
        let blocked = std::thread::spawn(move || {
            tell.send(current_tid()).expect("send");
            rustix::io::read(&reader, &mut [0_u8; 1])
        });
        let tid = told.recv().expect("tid");
        while !blocked.is_finished() {
            // It may end between the two.
            assert!(matches!(interrupt(tid), Ok(()) | Err(Errno::SRCH)));
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(blocked.join().expect("thread"), Err(Errno::INTR));
        drop(writer);
    }

    #[test]
    fn the_last_cpu_is_never_taken_away() {
        let mut set = CpuSet::new();
        set.set(1);
        set.set(3);
        let one = Cpus(set).without(1);
        assert_eq!(one.iter().collect::<Vec<_>>(), [3]);
        assert_eq!(one.without(3).iter().collect::<Vec<_>>(), [3]);
        assert_eq!(one.without(usize::MAX).count(), 1);
    }

    #[test]
    fn a_pinned_thread_is_seen_on_its_cpu() {
        let cpu = allowed(None).expect("affinity").iter().last().expect("a CPU");
        let before = pin(cpu).expect("pin");
        assert_eq!(current_cpu(), cpu);
        let tid = u32::try_from(current_tid()).expect("tid");
        assert_eq!(TaskCpu::open(tid).expect("open").cpu().expect("cpu"), cpu);
        assert_eq!(allowed(None).expect("affinity").count(), 1);
        restrict(None, &before).expect("unpin");
        assert_eq!(allowed(None).expect("affinity").count(), before.count());
    }
}
