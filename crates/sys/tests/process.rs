//! The process: limits and standard descriptors, each in a child process of its own.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

use std::process::{Command, Stdio};

use plyfs_sys::process;

/// Runs a hidden part of this program with closed or open standard descriptors.
fn run(part: &str, shell: &str) -> std::process::Output {
    let test = std::env::current_exe().expect("this program");
    let script = format!("exec \"$0\" --exact {part} --nocapture {shell}");
    Command::new("sh")
        .args(["-c", &script])
        .arg(test)
        .env("PLYFS_TEST_PART", part)
        .stdin(Stdio::null())
        .output()
        .expect("sh")
}

fn is_part(part: &str) -> bool {
    let chosen = std::env::var_os("PLYFS_TEST_PART").is_some_and(|wanted| wanted == part);
    if !chosen {
        eprintln!("skipped: runs as a part of another test");
    }
    chosen
}

fn target(number: i32) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{number}"));
    link.map_or_else(|error| error.to_string(), |path| path.display().to_string())
}

#[test]
fn part_detach() {
    if !is_part("part_detach") {
        return;
    }
    process::detach_standard_descriptors().expect("detach");
    for number in 0..3 {
        assert_eq!(target(number), "/dev/null");
    }
    let next = std::fs::File::open("/dev/zero").expect("open");
    assert!(std::os::fd::AsRawFd::as_raw_fd(&next) > 2);
}

#[test]
fn part_session() {
    if !is_part("part_session") {
        return;
    }
    let outcome = std::thread::spawn(|| {
        let limit = process::raise_descriptor_limit().expect("limit");
        let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        (limit, now.current == now.maximum)
    })
    .join()
    .expect("thread");
    assert!(outcome.0 >= 64 && outcome.1, "{outcome:?}");
    process::new_session().expect("setsid");
    assert_eq!(rustix::process::getsid(None).ok(), Some(rustix::process::getpid()));
}

#[test]
fn standard_descriptors_become_dev_null() {
    // The test harness writes its verdict to descriptor 1, so only the exit code is left to tell.
    assert!(run("part_detach", "").status.success());
}

#[test]
fn the_descriptor_limit_rises_and_a_session_begins() {
    let test = std::env::current_exe().expect("this program");
    let output = Command::new("sh")
        // A child of the shell, so that it does not lead its process group, which setsid(2) forbids.
        .args(["-c", "ulimit -Sn 32; \"$0\" --exact part_session --nocapture; exit $?"])
        .arg(test)
        .env("PLYFS_TEST_PART", "part_session")
        .output()
        .expect("sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_memfd_holds_what_is_written() {
    let file = plyfs_sys::File::from_fd_writable(process::memfd("test").expect("memfd")).expect("file");
    assert_eq!(file.pwrite(b"abc", 0), Ok(3));
    let mut back = [0; 3];
    assert_eq!(file.pread(&mut back, 0), Ok(3));
    assert_eq!(&back, b"abc");
}

#[test]
fn a_living_and_a_dead_process_are_told_apart() {
    assert!(process::is_alive(std::process::id()));
    let mut child = Command::new("true").spawn().expect("true");
    let pid = child.id();
    child.wait().expect("wait");
    assert!(!process::is_alive(pid));
    assert!(!process::is_alive(0) && !process::is_alive(u32::MAX));
}

#[test]
fn trimming_the_heap_is_harmless() {
    drop(vec![vec![1_u8; 1000]; 10_000]);
    plyfs_sys::malloc::trim();
    assert_eq!(vec![1_u8; 10].len(), 10);
}
