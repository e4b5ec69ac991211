//! Child processes of the developer commands: no standard input, a process group of their own, a time
//! limit. Output is passed on as it comes and kept. Owns no policy about what to run.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// How often trailing output is looked for.
const POLL: Duration = Duration::from_millis(50);
/// How long output may trail behind the child's end: a daemon that a test left behind may hold the pipe.
const TRAILING_OUTPUT: Duration = Duration::from_secs(3);

/// How a child ended.
pub struct Outcome {
    /// `None` when the time limit ended it.
    pub status: Option<ExitStatus>,
    /// Standard output and standard error, in the order in which lines came.
    pub lines: Vec<String>,
}

impl Outcome {
    /// Whether the child ended by itself and reported success.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

/// Runs `command` to its end, or kills its process group when `limit` has passed.
pub fn run(command: &mut Command, limit: Duration) -> Result<Outcome> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    let lines = Arc::new(Mutex::new(Vec::new()));
    let readers = [
        child.stdout.take().map(|pipe| pass_on(pipe, &lines)),
        child.stderr.take().map(|pipe| pass_on(pipe, &lines)),
    ];
    let status = wait(&mut child, limit).with_context(|| shown.clone())?;
    let deadline = Instant::now() + TRAILING_OUTPUT;
    while readers.iter().flatten().any(|reader| !reader.is_finished()) && Instant::now() < deadline {
        thread::sleep(POLL);
    }
    if status.is_none() {
        println!("xtask: time limit of {} s reached: {shown}", limit.as_secs());
    }
    let lines = std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Outcome { status, lines })
}

/// Like [`run`], without output of its own; what a failing child printed is shown.
pub fn run_silent(command: &mut Command, limit: Duration) -> Result<Outcome> {
    let outcome = run_quiet(command, limit)?;
    if !outcome.success() {
        outcome.lines.iter().for_each(|line| eprintln!("{line}"));
    }
    Ok(outcome)
}

/// Like [`run`], without any output of its own.
pub fn run_quiet(command: &mut Command, limit: Duration) -> Result<Outcome> {
    let shown = format!("{command:?}");
    // A file, not a pipe: a daemon inherits its starter's output and would keep a pipe open.
    let mut output = tempfile::tempfile().context("temporary file")?;
    let (out, err) = (output.try_clone(), output.try_clone());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.context("temporary file")?)
        .stderr(err.context("temporary file")?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    let status = wait(&mut child, limit).with_context(|| shown.clone())?;
    let mut text = Vec::new();
    output.rewind().and_then(|()| output.read_to_end(&mut text)).context("temporary file")?;
    let lines: Vec<_> = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
    Ok(Outcome { status, lines })
}

/// Prints each line of `pipe` and adds it to `lines`, in a thread that ends with the pipe.
fn pass_on(pipe: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) -> thread::JoinHandle<()> {
    let lines = Arc::clone(lines);
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(1..)) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            // Nobody is left to tell when our own output is gone.
            if writeln!(io::stdout(), "{line}").is_err() {
                break;
            }
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            bytes.clear();
        }
    })
}

/// Waits for the child's end; on expiry tells what was running, and kills its process group.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    // A descriptor that can be waited for tells the end at once: the benchmark times mount commands.
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => break,
            Ok(_) => return child.wait().map(Some),
        }
    }
    print_group(child.id());
    kill_process_group(pid, Signal::KILL)?;
    child.wait()?;
    Ok(None)
}

/// Prints the command lines of a process group's members.
fn print_group(group: u32) {
    let group = group.to_string();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The fields after the parenthesized name: state, parent, group.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        if fields.split_whitespace().nth(2) != Some(group.as_str()) {
            continue;
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        println!("xtask: running: {} {command}", entry.file_name().to_string_lossy());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_and_input_is_empty() {
        let outcome =
            run(Command::new("sh").args(["-c", "cat; echo out; exit 3"]), Duration::from_secs(60)).unwrap();
        assert_eq!(outcome.lines, ["out"]);
        assert_eq!(outcome.status.unwrap().code(), Some(3));
    }

    #[test]
    fn a_child_and_its_children_end_with_the_time_limit() {
        let start = Instant::now();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & sleep 600"]);
        let outcome = run(&mut command, Duration::from_millis(200)).unwrap();
        assert!(outcome.status.is_none());
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_daemon_left_behind_does_not_hold_up_its_parents_end() {
        let start = Instant::now();
        let mut command = Command::new("sh");
        command.args(["-c", "setsid sleep 20 & echo started"]);
        let outcome = run(&mut command, Duration::from_secs(60)).unwrap();
        assert!(outcome.success());
        assert!(start.elapsed() < Duration::from_secs(15));
    }
}
